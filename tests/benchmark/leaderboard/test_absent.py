"""Runs that were never attempted: no number of a board is made from them, and ranks compare the same runs."""

from pathlib import Path
from typing import Any

import pytest

from benchmark.leaderboard.board import Board, Standing
from benchmark.leaderboard.figure import draw
from benchmark.leaderboard.markdown import markdown
from benchmark.leaderboard.rank import rank
from benchmark.leaderboard.runs import by_cell
from benchmark.leaderboard.write import write
from benchmark.records import files, schema
from tests.benchmark.leaderboard.helpers import board, cell, seeds

DATA = ("alpaca", "orca", "dolly")


def several(defense: str, asr: float, of_seeds: tuple[int, ...], **of: Any) -> list[dict[str, Any]]:
    """The rows of a defense on three attacks."""
    return [
        row
        for data in DATA
        for seed in of_seeds
        for row in cell(defense, asr, {"mmlu": 0.5 + 0.1 * seed}, data=data, seed=seed, **of)
    ]


def of(made: Board, defense: str) -> Standing:
    return next(one for one in made.standings if one.defense == defense)


@pytest.mark.parametrize("status", [None, schema.NOT_RUN])
def test_a_seed_that_a_defense_was_not_run_on_gives_it_no_number(status: str | None) -> None:
    """So a defense that leaves nothing does not leave half, whatever was planned and not run."""
    rows = several("sft", 30.0, (71, 72)) + several("osft", 0.0, (71,))
    rows += several("osft", 0.0, (72,), status=status) if status else []
    made = board(rows)
    osft, sft = of(made, "osft"), of(made, "sft")
    assert (osft.asr.value, osft.fails.value, osft.victims, osft.cells) == (0.0, 0.0, 3, 3)
    assert (osft.gaps, osft.lacks, osft.absent) == ((), ("attack seed 72",), (72,))
    assert (sft.victims, sft.lacks, sft.absent) == (6, (), ())
    assert (made.victims, made.attack_seeds) == (6, 2)
    page = markdown(made, ["hand"])
    assert "Runs are missing of attack seed 72: `osft`." in page
    assert "3 runs, 3 victims, lacks runs of attack seed 72 |" in page
    assert "- `osft` was not run on: attack seed 72." in page
    assert "| trigger | `osft` | not ranked, lacks runs |" in page


def test_a_failed_run_counts_as_its_victim_beside_one_that_was_not_run() -> None:
    rows = several("sft", 30.0, (0, 1, 2)) + several("new", 0.0, (0,))
    rows += several("new", 0.0, (1,), status=schema.FAILED)
    new = of(board(rows), "new")
    assert new.asr.value == pytest.approx(99.0 / 2)
    assert (len(new.gaps), new.absent) == (3, (2,))


def test_one_case_of_a_seed_is_named_by_both() -> None:
    rows = [*several("sft", 30.0, (0, 1)), *several("new", 0.0, (0,)), *cell("new", 0.0, {"mmlu": 0.5}, seed=1)]
    assert of(board(rows), "new").lacks == (
        "smollm2-135m / orca, out-of-domain, attack seed 1",
        "smollm2-135m / dolly, out-of-domain, attack seed 1",
    )


def test_those_that_lack_runs_have_no_rank_and_come_last_in_their_level() -> None:
    made = board(several("sft", 30.0, (0, 1)) + several("new", 0.0, (0,)) + several("dpo", 99.0, (0, 1)))
    assert [(one.defense, one.utility, one.rank) for one in made.standings] == [
        ("sft", "kept", 1),
        ("dpo", "kept", None),
        ("new", "kept", None),
    ]
    assert of(made, "sft").rank_high is None, "alone in its level"


def test_a_headline_is_of_those_that_have_every_run() -> None:
    page = markdown(board(several("sft", 30.0, (0, 1)) + several("new", 0.0, (0,))), ["hand"])
    assert "**No defense leaves at most 5 % in every run.**" in page


def test_what_lacks_runs_has_no_mark(tmp_path: Path) -> None:
    rows = several("sft", 30.0, (0, 1)) + several("new", 0.0, (0,))
    (axes,) = draw(board(rows)).axes
    assert [bar.get_label() for bar in axes.containers] == ["sft (nothing)"]
    (tmp_path / "results").mkdir()
    files.write_rows(rows, [], tmp_path / "results")
    page = write([tmp_path / "results"], None, tmp_path / "html")
    index = (tmp_path / "html/index.html").read_text(encoding="utf-8")
    for text in (page, index):
        assert "A defense that lacks runs has no mark." in text
        assert "A defense of unknown utility has no mark." not in text
    assert index.count('<g data-row="') == 1
    assert '<span class="interval">3 victims, lacks runs</span>' in index


def test_without_a_defense_that_has_every_run_none_is_ranked() -> None:
    """Both have the case, but no seed in common."""
    made = board(several("sft", 1.0, (0, 1)) + several("new", 1.0, (1, 2)))
    assert [(one.rank, one.absent) for one in made.standings] == [(None, (0,)), (None, (2,))]
    page = markdown(made, ["hand"])
    assert "**No defense is ranked**: none was run on all 9 victims. Run the missing cells." in page
    assert "in every run" not in page


def test_an_entry_on_none_of_the_compared_victims_has_its_own_numbers_and_no_rank() -> None:
    own, entry = seeds("sft", (10.0,) * 3), cell("new", 0.0, {"mmlu": 0.5}, data="orca")
    victim = cell("none", 99.0, {"mmlu": 0.0}, data="orca")
    made = rank(by_cell(own + victim + entry), entries={entry[0]["cell"]})
    new = of(made, "new")
    assert (new.asr.value, new.victims, new.absent, new.rank) == (0.0, 1, (0, 1, 2), None)
    assert (made.victims, made.victim_asr) == (3, 99.0)


def test_a_cell_that_was_not_run_shows_no_number_on_the_pages(tmp_path: Path) -> None:
    rows = seeds("sft", (10.0, 10.0)) + cell("new", 3.0, {"mmlu": 0.5})
    rows += cell("new", 0.0, {"mmlu": 0.5}, seed=1, status=schema.NOT_RUN)
    (tmp_path / "results").mkdir()
    files.write_rows(rows, [], tmp_path / "results")
    write([tmp_path / "results"], None, tmp_path / "html")
    index = (tmp_path / "html/index.html").read_text(encoding="utf-8")
    (row,) = [text for text in index.split("<tr id=") if "not finished</span>" in text]
    before, _, after = row.partition('<td data-value="no">no</td>')
    assert before, "not compared"
    assert after.lstrip().startswith('<td class="number"><span aria-hidden="true">–</span>'), "no ASR"
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "html/cells").iterdir()]
    assert ["It counts nowhere." in page for page in pages].count(True) == 1


def test_several_victims_of_a_seed_are_said_to_share_it() -> None:
    two = markdown(board(several("sft", 30.0, (71, 72))), ["hand"])
    assert "**The 6 victims are of 2 attack seeds.** Those of one attack seed share its draws of rows and order" in two
    assert "the intervals take all 6 for independent" in two
    one = markdown(board(several("sft", 30.0, (71,))), ["hand"])
    assert "**All victims are of one attack seed**" in one
    pair = [row for row in several("sft", 30.0, (71,)) if "dolly" not in row["cell"]]
    assert "**All victims are of one attack seed**" in markdown(board(pair), ["hand"]), "of two victims as well"
    each = markdown(board(seeds("sft", (30.0,) * 3)), ["hand"])
    assert "attack seeds.**" not in each
    assert "of one attack seed**" not in each
