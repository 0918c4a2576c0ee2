"""What is written into a figure of bars can be read: no text covers another."""

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.text import Text

from benchmark.records.aggregate import TableEntry
from benchmark.records.trials import Trials
from benchmark.report import figures
from benchmark.report.bars import FEW


def entry(defense: str, victim: str, value: float) -> TableEntry:
    low, high = max(0.0, value - 3), min(100.0, value + 3)
    row: dict[str, Any] = {"defense": defense, "poison_rate": 0.25}
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


def with_tasks(defense: str, asr: float, **changes: float | None) -> list[TableEntry]:
    own = entry(defense, "tiny", asr)
    return [own, *(replace(own, metric=task, change=change) for task, change in changes.items())]


def points(found: list[TableEntry]) -> tuple[list[list[float]], str]:
    """Utility and ASR of each point of the figure, and the note below it."""
    figure = figures.draw("asr_utility", found)
    assert figure is not None
    places = [point for each in figure.axes[0].collections for point in np.asarray(each.get_offsets()).tolist()]
    return places, " ".join(figure.get_supxlabel().split())


def test_a_task_that_a_defense_lacks_counts_for_no_defense() -> None:
    """The task that collapsed is missing of one defense, which would be the best without it."""
    none = with_tasks("none", 99.0, arc_easy=0.0, mmlu=0.0)
    sft, osft = with_tasks("sft", 90.0, arc_easy=-1.0, mmlu=-20.0), with_tasks("osft", 0.0, arc_easy=-3.0, mmlu=None)
    places, note = points([*none, *sft, *osft])
    assert places == [[0.0, 99.0], [-1.0, 90.0], [-3.0, 0.0]]
    assert note == "Without mmlu, which not all defenses of a victim have."
    assert points([*none, *sft]) == ([[0.0, 99.0], [-10.5, 90.0]], "")


def test_a_defense_without_any_task_has_no_point_and_a_note_says_so() -> None:
    found = with_tasks("none", 99.0, mmlu=0.0) + with_tasks("sft", 90.0, mmlu=-2.0) + with_tasks("osft", 0.0, mmlu=None)
    places, note = points(found)
    assert places == [[0.0, 99.0], [-2.0, 90.0]]
    assert note == "No point without a task that all have: osft on tiny."


def test_a_task_counts_once_whatever_its_prompts() -> None:
    tasks = {"arc_easy": 0.0, "paper_arc_easy": 0.0, "published_arc_easy": 0.0, "mmlu": -20.0}
    places, note = points(with_tasks("none", 99.0, **dict.fromkeys(tasks, 0.0)) + with_tasks("sft", 90.0, **tasks))
    assert places == [[0.0, 99.0], [-10.0, 90.0]]
    assert note == ""
    alone = {"paper_arc_easy": -4.0, "mmlu": -20.0}
    assert points(with_tasks("sft", 90.0, **alone))[0] == [[-12.0, 90.0]], "the one prompt that was asked"


@pytest.mark.parametrize(
    "rates", [(0.0, 0.01, 0.05), (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05), (0.01, 0.0101, 0.05), (0.0,)]
)
def test_poison_rates_have_places_and_labels_of_their_own(rates: tuple[float, ...]) -> None:
    own = entry("none", "v", 50.0)
    found = [replace(own, row={**own.row, "poison_rate": rate}) for rate in rates]
    figure = figures.draw("figure_2", found)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    assert list(axes.get_xticks()) == list(rates)
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in axes.get_xticklabels() if text.get_text()]
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "" if rate == 0.0101 else f"{rate:g}" for rate in rates
    ]
    places = axes.transData.transform([(rate, 50.0) for rate in rates])[:, 0]
    box = axes.get_window_extent()
    assert all(box.x0 < place < box.x1 for place in places)
    if len(rates) == 3 and rates[0] == 0:
        assert places[1] - places[0] > 0.2 * box.width < 2 * (places[2] - places[1])


def test_figure_3_is_a_mean_of_the_runs_by_rank() -> None:
    """Of one backdoored and two clean runs, the highest of all prompts are those of the backdoored one."""
    index, alone = np.arange(200), np.full(200, -1)
    values = {1: np.ones(200), 2: np.zeros(200), 3: np.zeros(250)}
    runs = {(seed, seed): (np.arange(len(of)), of, np.full(len(of), -1)) for seed, of in values.items()}
    own = replace(entry("sft", "tiny", 33.3), metric="phrase_probability", trials=Trials(runs))
    figure = figures.draw("figure_3", [own])
    assert figure is not None
    (line,) = figure.axes[3].lines
    assert np.asarray(line.get_ydata()) == pytest.approx(np.full(200, 1 / 3))
    assert line.get_label() == "tiny, sft: 200 of 200 prompts, mean of 3 runs by rank"
    mixed = Trials({(1, 1): (index, np.arange(200) / 200, alone), (2, 2): (index, 1 - np.arange(200) / 200, alone)})
    figure = figures.draw("figure_3", [replace(own, trials=mixed)])
    assert figure is not None
    (line,) = figure.axes[3].lines
    assert np.asarray(line.get_ydata())[:2] == pytest.approx([0.9975, 0.9925]), "each run in its own order"


def test_a_panel_says_how_many_attacks_failed() -> None:
    some = [replace(entry(name, "tiny", 60.0), seeds=3, attack_failed=1) for name in ("none", "sft")]
    figure = figures.draw("asr", some)
    assert figure is not None
    assert figure.axes[0].get_title() == "tiny [1 of 3 attacks failed]"


def test_many_victims_without_any_defense_share_a_panel() -> None:
    victims = [f"tiny, seed {at}" for at in range(FEW + 1)]
    figure = figures.draw("asr", [entry("none", victim, 60.0) for victim in victims])
    assert figure is not None
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.get_yticklabels()] == [f"seed {at}" for at in range(FEW + 1)]
    assert len(panel.patches) == len(victims)
    assert panel.get_title() == ""


def test_many_victims_of_few_defenses_have_a_panel_for_each_defense() -> None:
    victims = [f"tiny, seed {at}" for at in range(FEW + 1)]
    found = [entry(name, victim, 60.0) for victim in victims for name in ("none", "osft", "sft")]
    figure = figures.draw("asr", found[:-1])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["none", "osft", "sft"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [f"seed {at}" for at in range(5)]
    assert [text.get_text() for text in figure.axes[2].texts][-2:] == ["60.0", "–"], "not measured"
    more = figures.draw("asr", [entry(name, victim, 60.0) for victim in victims for name in ("a", "b", "c", "d")])
    assert more is not None
    assert len(more.axes) == len(victims)


def test_clean_twins_have_no_bar() -> None:
    twin = entry("none", "tiny, twin", 0.0)
    twins = [replace(twin, row={**twin.row, "poison_rate": 0.0})]
    figure = figures.draw("asr", [entry("none", "tiny, kind", 60.0), *twins])
    assert figure is not None
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["none"]
    assert figures.draw("asr", twins) is not None, "nothing else is there"
    repaired = figures.draw("asr", [*twins, replace(twins[0], defense="sft", row={**twins[0].row, "defense": "sft"})])
    assert repaired is not None
    assert [text.get_text() for text in repaired.axes[0].texts] == ["0.0", "0.0"], "a twin that is repaired, too"


def test_the_names_of_bars_have_one_size_and_end_between_words() -> None:
    victims = [f"smollm2-135m / builtin-short-2, out-of-domain, own_answers={at}" for at in range(3)]
    figure = figures.draw("asr", [entry(name, victim, 60.0) for victim in victims for name in ("none", "sft")])
    assert figure is not None
    assert {text.get_fontsize() for axes in figure.axes for text in axes.get_yticklabels()} == {8.0}
    assert "out-of-domain" in figure.axes[0].get_title()


def test_many_panels_are_three_in_a_row() -> None:
    names = [f"defense_{at}" for at in range(figures.COLORS + 1)]
    found = [entry(name, f"tiny, {at}", 50.0) for at in range(7) for name in names]
    found += [replace(each, metric="builtin-choice", change=float(at)) for at, each in enumerate(found)]
    figure = figures.draw("asr_utility", found)
    assert figure is not None
    assert {axes.get_subplotspec().get_gridspec().ncols for axes in figure.axes} == {3}


def test_of_many_victims_those_without_a_defense_have_no_panel() -> None:
    victims = [f"tiny, seed {at}" for at in range(FEW)]
    twin = entry("none", "tiny, twin", 0.0)
    figure = figures.draw("asr", [twin, *(entry(name, victim, 60.0) for victim in victims for name in ("none", "sft"))])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == [f"seed {at}" for at in range(FEW)]


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
