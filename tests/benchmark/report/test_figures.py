"""What is written into a figure of bars can be read: no text covers another."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.text import Text

from benchmark.records.aggregate import TableEntry
from benchmark.report import figures


def entry(defense: str, victim: str, value: float) -> TableEntry:
    low, high = max(0.0, value - 3), min(100.0, value + 3)
    row: dict[str, Any] = {"defense": defense}
    return TableEntry(defense, victim, "asr", value, low, high, None, 1, 0, int(value < 1), {}, row)


LONG = [f"sande_p, eliminate.max_steps={steps}, simulate.max_steps=240" for steps in (48, 144, 240)]
VICTIM = "smollm2-135m / alpaca, in-domain, data.max_prompt_tokens=None, data.max_tokens=64, rows="


@pytest.mark.parametrize(
    ("defenses", "victims"),
    [
        (["none", "sft"], ["tiny"]),
        (["none", *LONG, "sft"], [f"{VICTIM}{rows}" for rows in (1, 2)]),
        ([f"defense_{number}" for number in range(12)], [f"{VICTIM}{rows}" for rows in (1, 2, 3)]),
    ],
    ids=["one", "long names", "many"],
)
def test_no_text_of_the_bars_covers_another(defenses: list[str], victims: list[str]) -> None:
    entries = [entry(name, victim, at * 99.9 % 101) for victim in victims for at, name in enumerate(defenses)]
    figure = figures.draw("asr", entries)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    written = [text.get_text() for text in texts]
    assert sorted(text for text in written if "." in text and text[0].isdigit()) == sorted(
        f"{one.value:.1f}" for one in entries
    )
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in texts}
    for one, other in combinations(texts, 2):
        assert not boxes[one].overlaps(boxes[other]), (one.get_text(), other.get_text())
    for text in texts:
        box = boxes[text]
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, text.get_text()


def test_the_legend_of_many_victims_stands_beside_the_points() -> None:
    victims = [f"smollm2-135m / alpaca, in-domain, attack_{number}, {'setting=value, ' * 4}" for number in range(12)]
    found = [entry(name, victim, 50.0) for victim in victims for name in ("none", "sft")]
    found += [replace(each, metric="builtin-choice", change=float(at)) for at, each in enumerate(found)]
    twin = entry("none", "smollm2-135m / alpaca, in-domain, twin", 0.0)
    figure = figures.draw("asr_utility", [*found, twin, replace(twin, metric="builtin-choice", change=0.0)])
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    names = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert names[:3] == ["none", "sft", "attack_0, setting=value, setting=value, setting=value, setting=value,"]
    assert len(names) == 2 + 12, "a twin that no defense was measured on has no point"
    box = legend.get_window_extent(canvas.get_renderer())
    assert figure.axes[0].get_window_extent().x1 < box.x0
    assert figure.axes[0].get_window_extent().width > 0.4 * figure.bbox.width
    assert box.y0 >= 0


def test_a_panel_says_how_many_attacks_failed() -> None:
    some = [replace(entry(name, "tiny", 60.0), seeds=3, attack_failed=1) for name in ("none", "sft")]
    figure = figures.draw("asr", some)
    assert figure is not None
    assert figure.axes[0].get_title() == "tiny [1 of 3 attacks failed]"


def test_many_victims_without_any_defense_share_a_panel() -> None:
    victims = [f"tiny, seed {at}" for at in range(figures.FEW + 1)]
    figure = figures.draw("asr", [entry("none", victim, 60.0) for victim in victims])
    assert figure is not None
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.get_yticklabels()] == [f"seed {at}" for at in range(figures.FEW + 1)]
    assert len(panel.patches) == len(victims)
    few = figures.draw("asr", [entry("none", victim, 60.0) for victim in victims[:-1]])
    assert few is not None
    assert len(few.axes) == figures.FEW


def test_of_many_victims_those_without_a_defense_have_no_panel() -> None:
    victims = [f"tiny, seed {at}" for at in range(figures.FEW)]
    twin = entry("none", "tiny, twin", 0.0)
    figure = figures.draw("asr", [twin, *(entry(name, victim, 60.0) for victim in victims for name in ("none", "sft"))])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [f"seed {at}" for at in range(figures.FEW)]


def test_more_defenses_than_colors_have_a_panel_for_each_victim() -> None:
    names = [f"defense_{at}" for at in range(figures.COLORS + 1)]
    found = [entry(name, victim, 50.0) for victim in ("tiny, a", "tiny, b") for name in names]
    found += [replace(each, metric="builtin-choice", change=float(at)) for at, each in enumerate(found)]
    figure = figures.draw("asr_utility", found)
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["tiny, a", "tiny, b"]
    (legend,) = figure.legends
    looks = {(handle.get_color(), handle.get_marker()) for handle in legend.findobj(Line2D)}
    assert len(looks) == len(names)
    assert [text.get_text() for text in legend.get_texts()] == names
