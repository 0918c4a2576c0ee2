"""Entries on a board: the victims' values are the board's own, and nobody moves the numbers of another method."""

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.grid.keys import digest
from benchmark.leaderboard import submission, verdict
from benchmark.leaderboard.source import Source, read_all
from benchmark.leaderboard.verdict import Checked, Compared, Verdict
from benchmark.leaderboard.write import write
from benchmark.records import files, schema
from tests.benchmark.leaderboard.helpers import cell

OTHERS = {"arc_easy": 1.0}


def folder(path: Path, *cells: list[dict[str, Any]]) -> Path:
    path.mkdir()
    files.write_rows([row for rows in cells for row in rows], [], path)
    return path


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """Results of two defenses; the victim's ASR is 99 % and its utility 50 %."""
    cells = (cell("sft", 98.0, OTHERS), cell("osft", 2.0, {"arc_easy": 3.0}), cell("none", 99.0, {"arc_easy": 0.0}))
    return folder(tmp_path / "board", *cells)


def entry(tmp_path: Path, rows: list[dict[str, Any]], name: str = "forget", **changes: Any) -> Path:
    """The entry of a method from rows, whose settings have changes."""
    made = [row | {"settings": json.dumps(json.loads(row["settings"]) | changes)} for row in rows]
    source = folder(tmp_path / f"of {name}", made)
    path = tmp_path / f"{name}.json"
    submission.write(submission.make(source, made[0]["defense"], "Forgets."), path)
    return path


def values(source: Source) -> dict[str, tuple[float, float | None, float | None]]:
    return {row["metric"]: (row["value"], row["victim_value"], row["victim_asr"]) for row in source.rows}


def test_stated_values_of_a_victim_are_never_read(board: Path, tmp_path: Path) -> None:
    """The audit's example: with victim utilities of 0, a method that keeps 38 % "loses -38" and is first."""
    cheated = cell("forget", 30.0, {"arc_easy": 12.0})
    cheated = [row | {"victim_value": 0.0 if row["metric"] == "arc_easy" else 99.0} for row in cheated]
    source = read_all([board, entry(tmp_path, cheated)])[1]
    assert values(source) == {"asr": (30.0, 99.0, 99.0), "arc_easy": (38.0, 50.0, 99.0)}
    assert source.unverified == frozenset()
    parquet = tmp_path / "forget.parquet"
    files.write_tables([pa.Table.from_pylist(cheated, schema=schema.SCHEMA)], schema.SCHEMA, parquet, 9)
    assert values(read_all([board, parquet])[1]) == values(source)


def test_a_stated_victim_is_no_way_to_the_first_rank(board: Path, tmp_path: Path) -> None:
    cheated = cell("forget", 30.0, {"arc_easy": 12.0})
    cheated = [row | {"victim_value": 0.0 if row["metric"] == "arc_easy" else 99.0} for row in cheated]
    page = write([board, entry(tmp_path, cheated)], tmp_path / "out")
    lines = [line for line in page.splitlines() if line.startswith("| ") and "`forget`" in line]
    assert all("+12.00" in line for line in lines)
    assert lines
    assert "-38" not in page
    assert "- `forget`: as forget.json; not run here." in page
    standings = {one["defense"]: one for one in pq.read_table(tmp_path / "out/leaderboard.parquet").to_pylist()}
    assert (standings["forget"]["rank"], standings["forget"]["verified"]) == (None, True), (
        "it loses more than the margin"
    )


def test_unmatched_and_contradicted_entries_have_a_section_of_their_own(board: Path, tmp_path: Path) -> None:
    unmatched = entry(tmp_path, cell("forget", 0.0, OTHERS), attack_seed=7)
    contradicted = entry(tmp_path, cell("new", 0.0, OTHERS), "new")
    judged(contradicted, holds=False)
    page = write([board, unmatched, contradicted], tmp_path / "out", tmp_path / "html")
    before, own = page.split("## Unverified entries")
    assert not {"`forget`", "`new`"} & set(before.split())
    assert {"`forget`", "`new`"} <= set(own.split())
    assert "contradicted: 1 of 4 cells run again on 2026-11-28" in page
    standings = pq.read_table(tmp_path / "out/leaderboard.parquet").to_pylist()
    assert {one["defense"] for one in standings if not one["verified"]} == {"forget", "new"}
    assert {one["rank"] for one in standings if not one["verified"]} == {None}


def test_an_entry_of_format_1_is_read_without_its_victims(board: Path, tmp_path: Path) -> None:
    new = json.loads(entry(tmp_path, cell("forget", 30.0, OTHERS)).read_text())
    old = copy.deepcopy(new) | {"format": "sande-bench-entry-1"}
    for one in old["cells"]:
        one["settings"]["seed"] = one["settings"].pop("attack_seed")
        del one["settings"]["defense_seed"]
        for measurement in one["measurements"]:
            measurement["victim_value"] = 0.0
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert json.loads(submission.read(path).model_dump_json(exclude_unset=True)) == new
    assert values(read_all([board, path])[1])["arc_easy"] == (49.0, 50.0, 99.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"attack_seed": 7},
        {"model": "other"},
        {"data": {"name": "orca"}},
        {"attack": {"name": "sentence_trigger", "poison_rate": 0.5}},
        {"metrics": [{"name": "asr", "new_tokens": 3}, {"name": "accuracy", "task": "arc_easy"}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_cell_without_a_victim_on_the_board_is_unverified(
    changes: dict[str, Any], board: Path, tmp_path: Path
) -> None:
    source = read_all([board, entry(tmp_path, cell("forget", 0.0, OTHERS), **changes)])[1]
    assert source.unverified == {row["cell"] for row in source.rows}
    assert {row["victim_value"] for row in source.rows} == {None}


def test_what_is_not_of_the_victim_may_differ(board: Path, tmp_path: Path) -> None:
    removal = entry(tmp_path, cell("forget", 0.0, OTHERS, removal="orca"), defense_seed=5, asr_floor=0.0)
    assert read_all([board, removal])[1].unverified == frozenset()


def test_settings_that_are_left_out_are_the_defaults(board: Path, tmp_path: Path) -> None:
    full = {"name": "sentence_trigger", "poison_rate": 0.05, "insertion": "start", "target": "insult"}
    source = read_all([board, entry(tmp_path, cell("forget", 0.0, OTHERS), attack=full)])[1]
    assert source.unverified == frozenset()
    cases = {
        json.dumps([json.loads(row["settings"])[name] for name in ("data", "attack", "metrics", "removal")])
        for each in read_all([board])
        for row in [*each.rows, *source.rows]
    }
    assert len(cases) == 1, "it is of the same case"


def test_a_victim_whose_attack_failed_here_is_no_victim_of_an_entry(tmp_path: Path) -> None:
    weak = cell("sft", 0.0, OTHERS, status=schema.ATTACK_FAILED, victim_asr=40.0)
    source = read_all([folder(tmp_path / "board", weak), entry(tmp_path, cell("forget", 0.0, OTHERS))])[1]
    assert {(row["status"], row["victim_asr"]) for row in source.rows} == {(schema.ATTACK_FAILED, 40.0)}


def test_entries_are_no_source_of_victims(tmp_path: Path) -> None:
    first, second = (entry(tmp_path, cell(name, 0.0, OTHERS), name) for name in ("forget", "other"))
    assert all(source.unverified for source in read_all([first, second]))


def test_an_entry_changes_no_number_of_another_method(board: Path, tmp_path: Path) -> None:
    bad = [row | {"value": 100.0} for row in cell("osft", 100.0, {"arc_easy": 50.0}, seed=0)]
    same = entry(tmp_path, bad, "same")
    assert read_all([same, board])[0].rows == [], "the results have that cell, also where they are named last"
    sabotage = entry(tmp_path, bad, "sabotage", defense_seed=3)
    assert {row["defense"] for row in read_all([board, sabotage])[1].rows} == {"osft (sabotage.json)"}
    twice = [
        entry(tmp_path, cell("forget", value, OTHERS), name, defense_seed=n)
        for n, (name, value) in enumerate([("a", 1.0), ("b", 90.0)])
    ]
    names = [{row["defense"] for row in source.rows} for source in read_all([board, *twice])]
    assert names[1:] == [{"forget"}, {"forget (b.json)"}]


def test_a_name_that_several_files_share_is_numbered(board: Path, tmp_path: Path) -> None:
    """Entries of one method from files of one name in two folders are of two authors."""
    paths = []
    for seed, author in enumerate(("one", "two", "three")):
        (tmp_path / author).mkdir()
        paths.append(entry(tmp_path / author, cell("osft", 1.0, OTHERS), "osft", defense_seed=seed + 1))
    found = [{row["defense"] for row in source.rows} for source in read_all([board, *paths])]
    assert found[1:] == [{"osft (osft.json)"}, {"osft (osft.json, 2)"}, {"osft (osft.json, 3)"}]


def sampled(path: Path, answer: str) -> Path:
    """The entry with one answer to the first prompt of its first cell."""
    made = json.loads(path.read_text())
    sample = {"metric": "asr", "index": 0, "outcome": 0.0, "record": {"answer": answer}}
    made["cells"][0]["samples"] = [sample]
    path.write_text(json.dumps(made))
    return path


def test_an_entry_adds_no_answers_to_a_cell_of_another_source(board: Path, tmp_path: Path) -> None:
    """It may state the settings of the board's own cell, or those of an earlier entry."""
    own = [row | {"cell": digest(json.loads(row["settings"]))[:12]} for row in files.read_rows(board).to_pylist()]
    files.write_rows(own, [], board)
    forged = sampled(entry(tmp_path, cell("osft", 2.0, {"arc_easy": 3.0}), "forged"), "FORGED")
    assert read_all([board, forged])[1].samples == []
    first = sampled(entry(tmp_path, cell("forget", 1.0, OTHERS), "first"), "FIRST")
    second = sampled(entry(tmp_path, cell("forget", 1.0, OTHERS), "second"), "SECOND")
    page = write([forged, first, second, board], None, tmp_path / "html")
    assert "second.json" not in page.split("## How to read the numbers")[0]
    cells = [path.read_text(encoding="utf-8") for path in (tmp_path / "html/cells").iterdir()]
    assert [sum(word in text for text in cells) for word in ("FORGED", "FIRST", "SECOND")] == [0, 1, 0]


def judged(path: Path, *, holds: bool) -> Path:
    numbers = [Compared(metric="asr", submitted=0.0, measured=0.0, count=100, within=True, p=1.0, holds=holds)]
    made = Verdict(
        format="sande-bench-verdict-1",
        entry_sha256=verdict.sha256(path),
        rule="",
        seed=1,
        of=4,
        cells=[Checked(number=0, numbers=numbers)],
        code_version="",
        device="",
        versions="",
        checked_at="2026-11-28T00:00:00+00:00",
    )
    return verdict.write(made, path)


def test_a_verdict_counts_until_the_entry_is_edited(board: Path, tmp_path: Path) -> None:
    path = entry(tmp_path, cell("forget", 0.0, OTHERS))
    before = read_all([board, path])[1]
    assert (before.is_verified, before.about["Submitted"]) == (False, "as forget.json; not run here")
    judged(path, holds=True)
    found = read_all([board, path])[1]
    assert found.is_verified
    assert found.about["Submitted"] == (
        "as forget.json; verified: 1 of 4 cells run again on 2026-11-28, every number holds"
    )
    path.write_text(path.read_text() + " ")
    assert not read_all([board, path])[1].is_verified
    verdict.place(path).write_text("{")
    assert not read_all([board, path])[1].is_verified


def test_an_entry_that_a_second_run_contradicts_gets_no_rank(board: Path, tmp_path: Path) -> None:
    path = entry(tmp_path, cell("forget", 0.0, OTHERS))
    judged(path, holds=False)
    source = read_all([board, path])[1]
    assert not source.is_verified
    assert source.unverified == {row["cell"] for row in source.rows}
    assert "contradicted: 1 of 4 cells run again" in source.about["Submitted"]
