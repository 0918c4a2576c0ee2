"""The table of a plan: what tells cells apart, and which of very many are shown where."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.cli import distinctions, overview
from benchmark.grid.cell import Cell, Parser
from benchmark.grid.load import load_grid
from benchmark.plan.plan import make_plan
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import ACCURACY, SFT_FAST, SFT_SLOW, SMALL, GridFile, cell, finish, invoke


def told_apart(cells: Sequence[Cell]) -> list[str]:
    return distinctions.condensed(*distinctions.of(cells))[0]


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
        ([{"seed": 0}, {"seed": 1}], ["", ""]),
        ([{"defense": "sft", "defense_seed": 0}, {"defense": "sft", "defense_seed": 1}], ["", ""]),
        ([{}, {"asr_floor": 50.0}], ["asr_floor=90", "asr_floor=50"]),
        ([{"metrics": ["asr"]}, {"metrics": ["asr", ACCURACY]}], ["metrics=common", "metrics=common+builtin-choice"]),
        (
            [{"attack": "sentence_trigger"}, {"attack": {"name": "sentence_trigger", "poison_rate": 0.5}}],
            ["poison_rate=0.05", "poison_rate=0.5"],
        ),
        (rows("data", 8, 16), ["rows=8", "rows=16"]),
        (rows("removal", 8, None), ["rows=8", "rows=null"]),
        (
            [a | b for a, b in zip(rows("data", 8, 16), rows("removal", 3, 4), strict=True)],
            ["data.rows=8, removal.rows=3", "data.rows=16, removal.rows=4"],
        ),
        (parrots((0.1, 0), (0.2, 1)), [f"poison_rate={rate}, parrot_position={n}" for rate, n in ((0.1, 0), (0.2, 1))]),
        ([{"removal": SMALL["removal"] | {"name": name}} for name in ("builtin-short", "builtin-explained")], ["", ""]),
        (
            [
                {"attack": {"name": "sentence_trigger", "training": {"epochs": 3}}},
                {"attack": {"name": "word_trigger", "training": {"epochs": 3}}},
                {"attack": {"name": "word_trigger", "training": {"epochs": 3}, "poison_rate": 0.5}},
            ],
            ["sentence_trigger", "word_trigger, poison_rate=0.05", "word_trigger, poison_rate=0.5"],
        ),
        (
            [
                {"attack": {"name": name, "training": {"epochs": epochs}}}
                for name, epochs in (("sentence_trigger", 3), ("word_trigger", 3), ("word_trigger", 4))
            ],
            ["sentence_trigger", *(f"word_trigger, training.epochs={epochs}.0" for epochs in (3, 4))],
        ),
    ],
)
def test_cells_are_told_apart_by_what_varies_among_their_like(
    changes: list[dict[str, Any]], expected: list[str]
) -> None:
    parser = Parser()
    assert told_apart([cell(**change) for change in changes]) == expected
    assert told_apart([parser.cell(SMALL | change) for change in changes]) == expected


def test_what_most_cells_have_is_said_once() -> None:
    """What all cells with an attack have in common follows from its name."""
    of = [
        cell(attack={"name": name, "poison_rate": rate, "training": {"epochs": epochs, "max_steps": steps}})
        for name, rate, epochs, steps in (
            *(("sentence_trigger", 0.5, 1, steps) for steps in (None, None, 7)),
            ("sentence_trigger", 0, 1, None),
            ("word_trigger", 0.5, 2, None),
        )
    ]
    of[1] = replace(of[1], asr_floor=50.0)
    found, usual = distinctions.of(of)
    assert distinctions.in_words(usual) == "asr_floor=90, poison_rate=0.5, training.max_steps=null"
    assert list(map(distinctions.in_words, found)) == [
        "sentence_trigger",
        "sentence_trigger, asr_floor=50",
        "sentence_trigger, training.max_steps=7",
        "sentence_trigger, poison_rate=0.0",
        "word_trigger",
    ]


def test_a_plan_without_removals_names_no_rows_for_them(store: LocalStore) -> None:
    columns = overview.table(make_plan([cell(attack_seed=seed) for seed in (0, 1)], store), {}).columns
    assert columns["data"] == ["builtin-short"] * 2
    assert "removal" not in columns


def test_in_a_pipe_each_row_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert overview.room() == overview.UNFOLDED
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert overview.room() == 90


def test_room_goes_where_it_saves_lines() -> None:
    table = {"setting": ["a"] * 4, "default": ["one long value"] + ["1"] * 3, "meaning": ["many words " * 6] * 4}
    lines = list(overview.fitted(table, 60))
    assert max(map(len, lines)) <= 60
    assert len(lines[1].split()[-1]) > 40, "the meanings get it, and the one long default is folded"


def seeds(count: int) -> list[Cell]:
    parser = Parser()
    return [parser.cell(SMALL | {"seed": seed, "defense": "sft"}) for seed in range(count)]


def test_few_cells_are_a_table_with_what_is_left_to_run(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    cells = seeds(2)
    finish(store, cells[1], {"asr": 50})
    overview.show(make_plan(cells, store), "small: two cells")
    title, _, head, _, first, second, _ = capsys.readouterr().out.splitlines()
    assert title == "small: two cells"
    assert re.split("  +", head) == ["cell", "model", "data and removal", "defense", "seed", "to run"]
    assert first.split() == [cells[0].id, "tiny", "builtin-short", "sft", "0", "all"]
    assert second.split() == [cells[1].id, "tiny", "builtin-short", "sft", "1", "–"]


def test_seeds_that_differ_are_two_columns(store: LocalStore) -> None:
    cells = [cell(attack_seed=1), cell(defense="sft", attack_seed=1, defense_seed=2)]
    columns = overview.table(make_plan(cells, store), {}).columns
    assert "seed" not in columns
    assert (columns["attack seed"], columns["defense seed"]) == (["1", "1"], ["1", "2"])


def test_removal_in_another_domain_is_a_column(store: LocalStore) -> None:
    cells = [cell(defense="sft"), cell(defense="sft", removal=SMALL["removal"] | {"name": "builtin-explained"})]
    columns = overview.table(make_plan(cells, store), {}).columns
    assert (columns["data"], columns["removal"]) == (["builtin-short"] * 2, ["builtin-short", "builtin-explained"])


def test_a_cell_shows_which_of_its_stages_are_left(store: LocalStore) -> None:
    cells = [cell(defense="sft"), cell(defense="osft")]
    finish(store, cells[0], {"asr": 50})
    assert overview.table(make_plan(cells, store), {}).columns["to run"] == ["–", "defend, evaluate"]


def test_very_many_cells_all_go_into_a_pipe(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    cells = seeds(overview.MANY + 1)
    overview.show(make_plan(cells, store), "small: many")
    title, _, head, _, *lines, last = capsys.readouterr().out.splitlines()
    assert (title, last) == ("small: many", "")
    assert [line.split()[0] for line in lines] == [cell.id for cell in cells]
    assert {line.index("all") for line in lines} == {head.index("to run")}


def test_of_very_many_cells_a_terminal_gets_the_first_ones(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = seeds(overview.MANY + 1)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    overview.show(make_plan(cells, store), "small: many")
    text = capsys.readouterr().out
    assert [made.id in text for made in cells] == [number < overview.SOME for number in range(len(cells))]
    assert f"{overview.MANY + 1 - overview.SOME} more cells" in text


FOLDER = Path(__file__).parents[3] / "grids"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_grid_fits_a_terminal_of_80_columns_and_uses_a_wider_one(path: Path, store: LocalStore) -> None:
    loaded = load_grid(path)
    plan = make_plan(loaded.cells, store)
    columns = overview.table(plan, loaded.parts).columns
    heights = []
    for room in (80, 200):
        lines = list(overview.layout(columns, room))
        assert max(map(len, lines)) <= room
        _, rule, body = "\n".join(lines).rpartition("─\n")
        assert rule, "the table has a head"
        starts = [line.split()[0] for line in body.splitlines() if not line.startswith(" ")]
        assert len(starts) == len(set(starts)) == len(loaded.cells)
        assert all(each.id.startswith(name) for each, name in zip(loaded.cells, starts, strict=True))
        heights.append(len(lines))
    assert heights[1] <= heights[0]
    # Cells that differ in many settings still take several lines.
    assert heights[1] < heights[0] or heights[1] <= len(loaded.cells) + 4


def test_a_grid_of_which_a_part_is_done_fits_too(store: LocalStore) -> None:
    loaded = load_grid(FOLDER / "paper.yaml")
    plan = make_plan(loaded.cells, store)
    done = {stage.key for number, stage in enumerate(plan.stages.values()) if number % 3}
    lines = list(overview.layout(overview.table(replace(plan, done=frozenset(done)), loaded.parts).columns, 80))
    assert max(map(len, lines)) <= 80


def test_what_all_cells_share_is_a_sentence_where_columns_are_few(store: LocalStore) -> None:
    columns = overview.table(make_plan(seeds(2), store), {}).columns
    first, *_ = overview.layout(columns, 50)
    assert first == "Every cell: model tiny, data and removal"
    wide = list(overview.layout(columns, 80))
    assert wide[0].startswith("cell ")


@pytest.mark.parametrize(
    ("value", "columns", "lines"),
    [
        ("smollm2-135m", 8, ["smollm2-", "135m"]),
        ("training.learning_rate=1e-05", 15, ["training.", "learning_rate=", "1e-05"]),
        ("rows=8, learning_rate=0.001", 20, ["rows=8,", "learning_rate=0.001"]),
        ("unbreakable", 4, ["unbr", "eaka", "ble"]),
        ("", 4, [""]),
    ],
)
def test_values_fold_at_their_joints(value: str, columns: int, lines: list[str]) -> None:
    assert overview._pieces(value, columns) == lines


def test_names_are_cut_no_shorter_than_what_tells_them_apart() -> None:
    assert overview._short_names(["aaaaaaaaa1xx", "aaaaaaaaa2xx", "b00000000000"]) == [
        "aaaaaaaaa1",
        "aaaaaaaaa2",
        "b000000000",
    ]
    assert overview._short_names(["a00000000000", "b00000000000"]) == ["a000000", "b000000"]


def test_rows_that_differ_only_in_their_metrics_show_it(grid_file: GridFile, store: LocalStore) -> None:
    few, many = ["asr"], ["asr", "false_trigger_rate", ACCURACY]
    loaded = load_grid(grid_file(sweep={"metrics": [few, many], "defense": ["none", "sft"]}))
    columns = overview.table(make_plan(loaded.cells, store), loaded.parts).columns
    assert columns["defense"] == ["none", "sft"] * 2
    assert columns["differs in"] == [*["metrics=common"] * 2, *["metrics=[1]"] * 2]
    notes = overview.table(make_plan(loaded.cells, store), loaded.parts).notes
    assert notes == ["metrics=[1]: common + false_trigger_rate + builtin-choice"]
    others = load_grid(grid_file(sweep={"metrics": [[{"name": "asr", "prompts": 7}], [{"name": "asr", "prompts": 9}]]}))
    assert told_apart(others.cells) == ["metrics=asr(prompts=7)", "metrics=asr(prompts=9)"]


def test_rows_of_a_union_show_their_grids(grid_file: GridFile, store: LocalStore, tmp_path: Path) -> None:
    small = grid_file()
    (tmp_path / "mine_table_1.yaml").write_text(small.read_text() + "metrics: [asr]\n")
    (tmp_path / "mine_figure.yaml").write_text(small.read_text() + "metrics: [asr, false_trigger_rate]\n")
    (tmp_path / "mine_again.yaml").write_text(small.read_text() + "metrics: [asr]\n")
    union = tmp_path / "mine.yaml"
    union.write_text("include: [mine_table_1, mine_figure, mine_again]\n")
    loaded = load_grid(union)
    columns = overview.table(make_plan(loaded.cells, store), loaded.parts).columns
    assert columns["grid"] == ["table_1, again", "figure"]
    assert "differs in" not in columns, "the grids tell them apart"


def test_shared_words_go_from_the_names_of_grids_unless_a_number_would_be_left() -> None:
    assert overview._grids([("paper_table_1_2",), ("paper_table_3_4",)]) == ["table_1_2", "table_3_4"]
    assert overview._grids([("one",), ("two",)]) == ["one", "two"]
    assert overview._grids([("one",), ("one",)]) == ["", ""]


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, expected in (("200", 200), ("80", 80), ("7", overview.LEAST)):
        monkeypatch.setenv("COLUMNS", columns)
        assert overview.width() == expected


def test_no_setting_of_a_grid_moves_the_cursor(grid_file: GridFile, tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07a\nb\u202e"
    changes = {"about": hostile, "sweep": {"attack.backdoor.trigger": [hostile, "two"]}}
    made = invoke("plan", grid_file(**changes), "--store", tmp_path / "store")
    assert made.exit_code == 0, made.output
    assert r"\x1b]0;title\x07a" in made.output
    assert not {"\x1b", "\x07", "\u202e"} & set(made.output)
