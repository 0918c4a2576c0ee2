"""Submitted entries: what is right passes unchanged, what is wrong is named, each in a sentence with its place."""

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.grid.keys import digest
from benchmark.leaderboard import submission
from benchmark.leaderboard.rank import rank
from benchmark.leaderboard.runs import by_cell
from benchmark.leaderboard.source import read
from benchmark.leaderboard.write import write
from benchmark.records import files, schema
from sande.errors import UserError
from sande.statistics import wilson
from tests.benchmark.helpers import mistake
from tests.benchmark.leaderboard.helpers import cell, outcome

ROOT = Path(__file__).parents[3]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results with two defenses, intervals, and published outputs of one."""
    found = cell("forget", 3.0, {"arc_easy": 2.0}) + cell("sft", 98.0, {"arc_easy": 1.0}) + cell("none", 99.0, {})
    for row in found:
        row |= dict(zip(("ci_low", "ci_high"), wilson(row["value"], row["count"]), strict=True))
    folder = tmp_path / "results"
    folder.mkdir()
    shown = pa.Table.from_pylist([outcome("forget alpaca alpaca 0", 0) | {"outcome": 0.0}], schema=schema.OUTCOMES)
    files.write_rows(
        [*found, found[0] | {"metric": "case_study", "value": 0.0, "ci_low": 0.0, "ci_high": 9.0}], [shown], folder
    )
    return folder


@pytest.fixture
def valid(results: Path) -> dict[str, Any]:
    made = submission.make(results, "forget", "Forgets.", "https://example.org/forget")
    return json.loads(made.model_dump_json())


def check(made: Any, folder: Path, name: str = "entry.json") -> list[str]:
    path = folder / name
    path.write_text(made if isinstance(made, str) else json.dumps(made), encoding="utf-8")
    result = CliRunner().invoke(app, ["leaderboard", "check", str(path)])
    assert result.exit_code == (2 if result.stderr else 0)
    return [line.removeprefix(f"{path}: ") for line in result.stderr.splitlines()]


def test_an_entry_from_results_is_in_order_and_says_what_they_say(results: Path, tmp_path: Path) -> None:
    for name in ("forget.json", "forget.parquet"):
        path = tmp_path / name
        made = CliRunner().invoke(app, ["leaderboard", "entry", str(results), "forget", "--out", str(path)])
        assert made.exit_code == 0, made.output
        said = CliRunner().invoke(app, ["leaderboard", "check", str(path)])
        assert said.stdout == f"{path}: in order; forget, must know: nothing, 1 cell\n"
        back = submission.to_rows(submission.read(path))
        originals = [row for row in files.read_rows(results).to_pylist() if row["defense"] == "forget"]
        for row, original in zip(back, originals, strict=True):
            for column in ("metric", "value", "ci_low", "ci_high", "count", "knows"):
                assert row[column] == original[column]
            assert (row["victim_value"], row["victim_asr"]) == (None, None)
            assert json.loads(row["settings"]) == json.loads(original["settings"])
    assert submission.samples(submission.read(tmp_path / "forget.json"))[0]["metric"] == "case_study"


def test_an_entry_that_is_not_there_is_no_folder_of_results(results: Path) -> None:
    line = mistake("leaderboard", results, results / "nothere.json", "--out", results.parent / "board")
    assert line.endswith("nothere.json: no such file; choose the .json or .parquet file of an entry")


def test_an_entry_does_not_replace_the_rows_of_results(results: Path) -> None:
    path = results / "rows.parquet"
    before = path.read_bytes()
    said = mistake("leaderboard", "entry", results, "forget", "--out", path)
    assert f"--out {path}: the file is not one that sande-bench wrote, and would be replaced" in said
    assert path.read_bytes() == before


def test_an_entry_replaces_an_entry(results: Path, tmp_path: Path) -> None:
    for name in ("entry.json", "entry.parquet"):
        path = tmp_path / name
        submission.write(submission.make(results, "forget", "Old."), path)
        submission.write(submission.make(results, "forget", "New."), path)
        assert not submission.examine(path)[1]


def test_an_entry_stands_on_the_leaderboard_beside_results(
    results: Path, valid: dict[str, Any], tmp_path: Path
) -> None:
    others = tmp_path / "others"
    others.mkdir()
    files.write_rows(cell("sft", 98.0, {"arc_easy": 1.0}) + cell("osft", 0.0, {"arc_easy": 3.0}), [], others)
    (tmp_path / "forget.json").write_text(json.dumps(valid))
    write([others, tmp_path / "forget.json"], None, tmp_path / "html")
    page = (tmp_path / "html/index.html").read_text(encoding="utf-8")
    assert page.count('<span class="badge">submitted</span>') == 1
    board = rank(by_cell(row for path in (others, results) for row in read(path).rows))
    assert {one.defense for one in board.standings} == {"osft", "forget", "sft"}
    cells = [path.read_text(encoding="utf-8") for path in (tmp_path / "html/cells").iterdir()]
    (own,) = [text for text in cells if "as forget.json; not run here" in text]
    assert 'href="https://example.org/forget" rel="noopener nofollow"' in own
    assert "prompt 0" in own


# Of each mistake: where it is made, what is there, and which place and which word the problem names.
WRONG: dict[str, tuple[list[Any], Any, str, str]] = {
    "format": (["format"], "2", "format", "'sande-bench-entry-2'"),
    "name": (["method", "name"], "<b>", "method.name", "pattern"),
    "script": (["method", "link"], "javascript:alert(1)", "method.link", "pattern"),
    "knowledge": (["method", "knows"], "all", "method.knows", "use one of nothing, clean model, "),
    "baseline": (["method", "name"], "none", "method.name", "the victim itself"),
    "unknown": (["cells", 0, "colour"], "red", "cells[0].colour", "not permitted"),
    "model": (["cells", 0, "settings", "model"], 3, "cells[0].settings.model", "string"),
    "data": (["cells", 0, "settings", "data"], {}, "cells[0].settings.data.name", "required"),
    "no cell": (["cells"], [], "cells", "at least 1 item"),
    "percent": (["cells", 0, "measurements", 0, "value"], 101, "cells[0].measurements[0].value", "equal to 100"),
    "number": (["cells", 0, "seconds"], float("nan"), "cells[0].seconds", "finite"),
    "share": (["cells", 0, "measurements", 0, "value"], 3.4, "cells[0].measurements[0]", "3.4 % of 100 is 3.40"),
    "interval": (["cells", 0, "measurements", 0, "ci_low"], 3.9, "cells[0].measurements[0]", "between 3.9 and 8.45"),
    "bound": (["cells", 0, "measurements", 0, "ci_low"], None, "cells[0].measurements[0]", "one bound"),
    "victim": (
        ["cells", 0, "measurements", 0, "victim_value"],
        0.0,
        "cells[0].measurements[0].victim_value",
        "not perm",
    ),
    "asr": (["cells", 0, "measurements", 0, "metric"], "mine", "cells[0].measurements", "no 'asr'"),
    "utility": (["cells", 0, "measurements", 1, "metric"], "mine", "cells[0].measurements", "no task"),
    "seed": (["cells", 0, "settings", "attack_seed"], -1, "cells[0].settings.attack_seed", "equal to 0"),
    "other defense": (
        ["cells", 0, "settings", "defense", "name"],
        "sft",
        "cells[0].settings.defense.name",
        "use 'forget'",
    ),
    "sample": (["cells", 0, "samples", 0, "metric"], "mine", "cells[0].samples[0].metric", "'mine' is not measured"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_problem_names_its_place(case: str, valid: dict[str, Any], tmp_path: Path) -> None:
    path, value, place, word = WRONG[case]
    where = valid
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = value
    said = check(valid, tmp_path)
    assert [line for line in said if line.startswith(f"{place}: ") and word in line], said


def test_bounds_that_no_such_count_gives_are_a_problem(valid: dict[str, Any], tmp_path: Path) -> None:
    """Wilson's interval of 3 of 100 is 1.03 to 8.45 %; of prompts from few templates it is wider."""
    (asr,) = [one for one in valid["cells"][0]["measurements"] if one["metric"] == "asr"]
    for low, high in ((1.0, 8.5), (1.07, 8.41), (0.2, 20.0), (None, None)):
        asr |= {"ci_low": low, "ci_high": high}
        assert check(valid, tmp_path) == [], "rounded, wider, or left out"
    for low, high in ((3.0, 3.0), (1.03, 8.3), (1.2, 8.45)):
        asr |= {"ci_low": low, "ci_high": high}
        (said,) = check(valid, tmp_path)
        assert said.endswith(
            f": {low:g} to {high:g} is narrower than Wilson's interval of 100 prompts or questions, 1.03 to 8.45; "
            "set wider bounds, or remove both."
        )


def test_everything_that_is_wrong_is_said_at_once(valid: dict[str, Any], tmp_path: Path) -> None:
    valid["cells"].append(copy.deepcopy(valid["cells"][0]))
    valid["method"]["knows"] = "all"
    valid["cells"][0]["measurements"].append(valid["cells"][0]["measurements"][0])
    said = check(valid, tmp_path)
    assert len(said) == 3
    places = ("method.knows: ", "cells[0].measurements: 'asr' occurs 2 times", "cells[1].settings: the same")
    assert all(any(line.startswith(place) for line in said) for place in places), said


def test_a_method_of_the_suite_must_know_what_it_must_know(results: Path, tmp_path: Path) -> None:
    made = json.loads(submission.make(results, "sft").model_dump_json())
    made["method"]["knows"] = "trigger"  # as of settings that were searched by the trigger
    assert check(made, tmp_path) == []
    made["method"]["knows"] = "response"
    (said,) = check(made, tmp_path)
    assert said.startswith("method.knows: 'sft' must know 'nothing'")


def test_a_merge_without_named_models_knows_the_clean_model(results: Path, tmp_path: Path) -> None:
    made = json.loads(submission.make(results, "sft").model_dump_json())
    made["method"] |= {"name": "merge", "knows": "other models"}
    for one in made["cells"]:
        one["settings"]["defense"] = {"name": "merge", "models": [], "weights": []}
    (said,) = check(made, tmp_path)
    assert said.startswith("method.knows: 'merge' must know 'clean model'")
    for one in made["cells"]:
        one["settings"]["defense"]["models"] = ["smollm2-135m"]
    assert check(made, tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", "", "file: invalid JSON: EOF while parsing a value at line 1 column 0."),
        ("b.json", "[]", "file: input should be an object."),
    ],
)
def test_a_file_that_is_no_entry_is_a_sentence(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (said,) = [line for line in check(text, tmp_path, name) if line.startswith("file")]
    assert said.startswith(expected)


def test_other_files_are_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: no such file; "):
        submission.examine(tmp_path / "absent.json")
    (tmp_path / "entry.txt").write_text("{}")
    with pytest.raises(UserError, match=r"entry\.txt: not a \.json or \.parquet file; "):
        submission.examine(tmp_path / "entry.txt")
    (tmp_path / "entry.parquet").write_text("{}")
    with pytest.raises(UserError, match="the file is damaged or of another version"):
        submission.examine(tmp_path / "entry.parquet")
    (problem,) = submission.examine(results / "rows.parquet")[1]
    assert problem.startswith("rows: they are of 2 methods (forget, sft); ")
    with pytest.raises(UserError, match="no row of defense 'absent'; "):
        submission.make(results, "absent")


def as_run_now(published: Path, folder: Path) -> None:
    """Results with the ids that this version gives to their cells."""
    rows, outcomes = files.read_rows(published).to_pylist(), files.read_outcomes(published)
    ids = {row["cell"]: digest(json.loads(row["settings"]))[:12] for row in rows}
    cells = pa.array([ids[cell] for cell in outcomes["cell"].to_pylist()])
    folder.mkdir()
    files.write_rows(
        [row | {"cell": ids[row["cell"]]} for row in rows],
        [outcomes.set_column(0, "cell", cells).cast(schema.OUTCOMES)],
        folder,
    )


def test_the_commands_of_the_docs_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "results/published/quickstart"
    run.parent.mkdir(parents=True)
    as_run_now(ROOT / "results/published/quickstart", run)
    (tmp_path / "results/quickstart").symlink_to(run)
    text = (ROOT / "docs/submit.md").read_text(encoding="utf-8").split("## The main leaderboard")[0]
    lines = [line.strip() for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("sande-bench leaderboard") and " verify " not in line]
    assert len(commands) == 3
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.output)
    known = {
        row["cell"] for row in files.read_rows(tmp_path / "results/quickstart").to_pylist() if row["defense"] == "sft"
    }
    assert {row["cell"] for row in submission.to_rows(submission.read(tmp_path / "sft.json"))} == known
    page = (tmp_path / "board/index.html").read_text(encoding="utf-8")
    assert "submitted</span>" not in page, "the results have that cell, and were named first"


def test_rank_need_not_be_said(results: Path, tmp_path: Path) -> None:
    for arguments in (["leaderboard"], ["leaderboard", "rank"]):
        done = CliRunner().invoke(app, [*arguments, str(results), "--out", str(tmp_path / "board")])
        assert done.exit_code == 0, done.output
        assert "| – | `forget` |" in done.stdout
