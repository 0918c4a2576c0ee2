"""The table of a plan: what tells cells apart, and which of very many are shown where."""

import io
from typing import Any

import pytest
from rich.console import Console

from benchmark import overview
from benchmark.cell import Cell, Parser
from benchmark.plan import make
from benchmark.store import Store
from tests.benchmark.helpers import ACCURACY, SFT_FAST, SFT_SLOW, SMALL, cell, finish


def rows(section: str, *values: int | None) -> list[dict[str, Any]]:
    return [{section: SMALL[section] | {"rows": value}} for value in values]


def parrots(*settings: tuple[float, int]) -> list[dict[str, Any]]:
    return [
        {
            "attack": {"name": "sentence_trigger", "poison_rate": rate},
            "defense": {"name": "sande", "parrot_position": position},
        }
        for rate, position in settings
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}, {"defense": "sft"}], ["", ""]),
        (
            [{"defense": SFT_FAST}, {"defense": SFT_SLOW}],
            [f"training.learning_rate={rate}" for rate in (0.001, 0.0001)],
        ),
        ([{"defense": SFT_FAST}, {"defense": "sande"}], ["", ""]),
        ([{"seed": 0}, {"seed": 1, "asr_floor": 50.0}], ["", ""]),
        ([{"metrics": ["asr"]}, {"metrics": ["asr", ACCURACY]}], ["", ""]),
        (rows("data", 8, 16), ["rows=8", "rows=16"]),
        (rows("removal", 8, None), ["rows=8", "rows=None"]),
        (
            [a | b for a, b in zip(rows("data", 8, 16), rows("removal", 3, 4), strict=True)],
            ["data.rows=8, removal.rows=3", "data.rows=16, removal.rows=4"],
        ),
        (parrots((0.1, 0), (0.2, 1)), [f"poison_rate={rate}, parrot_position={n}" for rate, n in ((0.1, 0), (0.2, 1))]),
        ([{"removal": SMALL["removal"] | {"name": name}} for name in ("builtin-short", "builtin-explained")], ["", ""]),
    ],
)
def test_cells_are_told_apart_by_what_varies_among_their_like(
    changes: list[dict[str, Any]], expected: list[str]
) -> None:
    parser = Parser()
    assert overview.distinctions([cell(**change) for change in changes]) == expected
    assert overview.distinctions([parser.cell(SMALL | change) for change in changes]) == expected


def seeds(count: int) -> list[Cell]:
    parser = Parser()
    return [parser.cell(SMALL | {"seed": seed, "defense": "sft"}) for seed in range(count)]


def test_few_cells_are_a_table_with_what_is_done(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    cells = seeds(2)
    finish(store, cells[1], {"asr": 50})
    overview.show(make(cells, store), "small: two cells")
    title, _, head, _, first, second, _ = capsys.readouterr().out.splitlines()
    assert title.strip() == "small: two cells"
    assert [name.strip() for name in head.strip("┃").split("┃")] == list(overview.COLUMNS)
    shown = [[value.strip() for value in line.strip("│").split("│")] for line in (first, second)]
    assert shown[0] == [cells[0].id, "tiny", *["builtin-short"] * 2, "sft", "0", *["to run"] * 3, ""]
    assert shown[1] == [cells[1].id, "tiny", *["builtin-short"] * 2, "sft", "1", *["done"] * 3, ""]


def test_very_many_cells_go_into_a_pipe_as_a_line_each(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    cells = seeds(overview.MANY + 1)
    overview.show(make(cells, store), "small: many")
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert title == "small: many"
    assert head.split("  ")[0] == "cell"
    assert [line.split()[0] for line in lines] == [cell.id for cell in cells]
    assert {line.index("to run") for line in lines} == {head.index("attack")}


def test_of_very_many_cells_a_terminal_gets_the_first_ones(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, terminal = seeds(overview.MANY + 1), io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda: Console(file=terminal, force_terminal=True, width=200))
    overview.show(make(cells, store), "small: many")
    text = terminal.getvalue()
    assert [made.id in text for made in cells] == [number < overview.SOME for number in range(len(cells))]
    assert f"{overview.MANY + 1 - overview.SOME} more cells" in text
