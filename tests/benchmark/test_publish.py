"""`sande-bench publish`: what it takes, what it refuses, and that nothing else writes where it does."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.detection.outcome import Outcome
from benchmark.execution import provenance
from benchmark.leaderboard import submission
from benchmark.leaderboard import write as leaderboard
from benchmark.paper import comparison_page
from benchmark.publish import publish
from benchmark.records import published, record, rehearsal
from benchmark.records.schema import SCHEMA
from benchmark.report import page
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import ACCURACY, GridFile, cell, finish, report_folder

pytestmark = pytest.mark.usefixtures("few_pixels")
VERSION = "0.1.0+abc1234"
CODE = ("attack_code_version", "defense_code_version", "code_version")
MADE = dict.fromkeys(CODE, VERSION)
COMMAND = "sande-bench run grids/small.yaml --set seed=1"


def changed(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> Path:
    """The folder with other rows."""
    found = pq.read_table(folder / "rows.parquet").to_pylist()
    change(found)
    pq.write_table(pa.Table.from_pylist(found, schema=SCHEMA), folder / "rows.parquet")
    return folder


def set_all(**values: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda found: [row.update(values) for row in found]


@pytest.fixture
def folder(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of a run that may be published, with a comparison, a leaderboard, and files of other kinds."""
    monkeypatch.setattr(provenance, "changed_files", list)
    metrics = ["asr", ACCURACY]
    cells = [cell(defense=defense, metrics=metrics) for defense in ("none", "sft")]
    done = [finish(store, each, {"asr": 50, "builtin-choice": 20}, {"asr": 7, "builtin-choice": 21}) for each in cells]
    made = changed(report_folder(store, tmp_path / "results/small", *done), set_all(model="smollm2-135m", **MADE))
    record.write(record.now(COMMAND, VERSION, complete=True), made)
    comparison_page.write(made)
    leaderboard.write([made], made / "leaderboard", made / "board")
    (made / "scans/a").mkdir(parents=True)
    (made / "scans/a/scan.json").write_text("{}")
    (made / "scans/a/scan.png").touch()
    (made / "detection.md").write_text("detection")
    page.write(made)  # after the pages that it links to
    (made / "unfinished").mkdir()
    (made / "notes.txt").write_text("mine")
    return made


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "results/published"


def sentence(folder: Path, to: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        publish(folder, to, **options)
    assert "\n" not in str(caught.value)
    assert not (to / folder.name).exists() or options == {}
    assert not list(to.glob(".*")), "nothing is left half done"
    return str(caught.value)


def test_what_is_published_is_rows_and_what_follows_from_them(folder: Path, to: Path) -> None:
    target = publish(folder, to)
    assert target == to / "small"
    for name in ("rows.parquet", "outcomes.parquet", "run.json", "scans/a/scan.json", "detection.md"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    for name in ("README.md", "tables/asr.md", "figures/asr.svg", "comparison.md", "comparison.parquet"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()
    assert not (target / "unfinished").exists()
    assert not (target / "notes.txt").exists()
    assert not (target / "scans/a/scan.png").exists()
    assert f"which `{COMMAND}` made with the code named here." in (target / "README.md").read_text()
    assert f"Made by `sande-bench leaderboard {target}`." in (target / "leaderboard/leaderboard.md").read_text()
    assert f"sande-bench leaderboard {target}" in (target / "board/index.html").read_text()
    assert len(list((target / "board/cells").glob("*.html"))) == 1
    assert (to / published.MARKER).is_file()
    assert published.is_published(target)
    assert not published.is_published(folder)


def test_only_what_the_run_has_is_made(folder: Path, to: Path) -> None:
    for name in ("comparison.md", "leaderboard/leaderboard.md", "board/index.html", "run.json"):
        (folder / name).unlink()
    target = publish(folder, to)
    assert not list(target.glob("comparison.*"))
    assert not (target / "leaderboard").exists()
    assert not (target / "board").exists()
    made = record.read(target)
    assert made is not None
    assert not made.recorded
    assert "Their run recorded no command" in (target / "README.md").read_text()


def test_a_folder_without_rows_is_refused(tmp_path: Path, to: Path) -> None:
    assert sentence(tmp_path / "absent", to).startswith(f"{tmp_path}/absent: no rows.parquet; ")


REFUSED: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "a cell that failed": (
        lambda found: found[0].update(status="failed", value=None),
        ": 1 of 2 cells failed; run its grid again, and publish it once all are done",
    ),
    "a cell that was not run": (
        lambda found: found[0].update(status="not_run", value=None),
        ": 1 of 2 cells are unfinished; run its grid again, and publish it once all are done",
    ),
    "the random model": (set_all(model="tiny"), ": these rows are of the random model 'tiny', whose numbers mean "),
    "changes beside a commit": (
        set_all(code_version=f"{VERSION}-dirty"),
        f": its evaluations are of the code {VERSION}-dirty, which is not a commit; commit the changes, and run its "
        "grid again with a new --store",
    ),
    "a victim from changes beside a commit": (
        lambda found: found[0].update(attack_code_version=f"{VERSION}-dirty"),
        f": its attacks are of the code {VERSION}-dirty, which is not a commit; commit the changes, and run its grid "
        "again with a new --store",
    ),
    "a removal of no commit": (
        set_all(defense_code_version="0.1.0"),
        ": its defenses are of the code 0.1.0, which is not a commit; ",
    ),
    "a victim of code that is not known": (
        set_all(attack_code_version=None),
        ": its attacks are of the code unknown, which is not a commit; ",
    ),
    "code of no commit": (
        set_all(code_version="0.1.0"),
        ": its evaluations are of the code 0.1.0, which is not a commit; ",
    ),
    "code that is not known": (
        set_all(code_version=None),
        ": its evaluations are of the code unknown, which is not a commit; ",
    ),
}


def test_a_record_of_changes_beside_a_commit_is_refused(folder: Path, to: Path) -> None:
    record.write(record.now(COMMAND, f"{VERSION}-dirty", complete=True), folder)
    assert sentence(folder, to) == (
        f"{folder}: its run.json is of the code {VERSION}-dirty, which is not a commit; commit the changes, and run "
        "its grid again, which computes nothing"
    )


def test_a_victim_alone_has_no_code_of_a_defense(folder: Path, to: Path) -> None:
    changed(folder, lambda found: [row.update(defense_code_version=None) for row in found if row["defense"] == "none"])
    assert publish(folder, to).is_dir()


def test_stages_of_several_commits_are_published_and_named(folder: Path, to: Path) -> None:
    changed(folder, set_all(attack_code_version="0.1.0+0000000"))
    page = (publish(folder, to) / "README.md").read_text(encoding="utf-8")
    assert "Stages are of several versions of the code: attacks 0.1.0+0000000; defenses" in page


@pytest.mark.parametrize("what", REFUSED)
def test_rows_are_refused_with(what: str, folder: Path, to: Path) -> None:
    change, said = REFUSED[what]
    assert sentence(changed(folder, change), to).startswith(f"{folder}{said}")


def test_a_checkout_with_changes_is_refused(folder: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "changed_files", lambda: ["sande/a.py", "b", "c", "d"])
    assert sentence(folder, to) == (
        f"{folder}: the checkout has changes (sande/a.py, b, c and 1 more); commit them, and publish again"
    )
    monkeypatch.setattr(provenance, "changed_files", lambda: None)
    assert sentence(folder, to).endswith("outside a git checkout; use a checkout to publish results")


def test_what_is_published_is_replaced_only_where_that_is_said(folder: Path, to: Path) -> None:
    target = publish(folder, to)
    (target / "old.txt").touch()
    assert sentence(folder, to) == f"{target} is published already; use --replace to replace it"
    assert (target / "old.txt").exists()
    changed(folder, set_all(**dict.fromkeys(CODE, "0.1.0+1234567")))
    publish(folder, to, replace=True)
    assert not (target / "old.txt").exists()
    assert "0.1.0+1234567" in (target / "README.md").read_text()
    assert [path.name for path in sorted(to.iterdir())] == ["published.json", "small"]


def test_answers_to_rows_of_another_licence_are_refused(folder: Path, to: Path) -> None:
    (first, *_) = pq.read_table(folder / "rows.parquet").to_pylist()
    shown = first | {"metric": "case_study"}
    told = changed(folder, lambda found: found.append(shown | {"dataset": "dolly"}))
    said = sentence(told, to)
    assert said == (
        f"{folder}: case_study shows rows of dolly, whose licence differs; leave it out of the grid, or use "
        "another data set"
    )
    publish(changed(folder, lambda found: found[-1].update(dataset="orca")), to)


def test_a_folder_of_other_things_does_not_become_published(folder: Path) -> None:
    assert sentence(folder, folder.parent) == (
        f"--to {folder.parent}: the folder holds other files than published results; choose a new one"
    )
    assert not published.is_published(folder)


def test_pages_of_published_results_are_made_again_without_a_commit(
    folder: Path, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = publish(folder, to)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    for name in ("README.md", "tables/asr.md", "comparison.md", "leaderboard/leaderboard.md", "board/index.html"):
        (target / name).write_text("old")
    monkeypatch.setattr(provenance, "changed_files", lambda: ["a"])
    assert publish(target) == target
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("report {place}", "use 'sande-bench publish {place}' to write its pages again, or a copy of the folder"),
        ("compare {place}", "use 'sande-bench publish {place}' to write its pages again, or a copy of the folder"),
        ("leaderboard {place} --out {place}/board", "choose another --out, and publish the results from there"),
        ("leaderboard {place} --html {place}/board", "choose another --html, and publish the results from there"),
        ("run {grid} --results {published}", "choose another --results, and publish the results from there"),
        ("leaderboard entry {place} sft --out {place}/rows.parquet", "choose another --out, and publish the results"),
        ("clean tiny --out {published}/tiny", "choose another --out, and publish the results from there"),
        ("export abc {published}/model", "choose another DIR, and publish the results from there"),
        ("init quickstart {published}/grids", "choose another FOLDER, and publish the results from there"),
        ("leaderboard verify {published}/a.json", "choose another ENTRY, and publish the results from there"),
        ("scan tiny --out {published}/scan", "choose another --out, and publish the results from there"),
        (
            "detection scans.yaml --out {published}/detection",
            "choose another --out, and publish the results from there",
        ),
    ],
)
def test_no_other_command_writes_there(command: str, how: str, folder: Path, to: Path, grid_file: GridFile) -> None:
    target = publish(folder, to)
    before = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    typed = command.format(place=target, published=to, grid=grid_file())
    done = CliRunner().invoke(app, [*typed.split(), *(["--store", f"{to}/../store"] if "run " in typed else [])])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert f": only 'sande-bench publish' writes published results; {how.format(place=target)}" in line
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == before


def test_the_random_model_is_compared_and_ranked_in_rehearsal_alone(folder: Path, tmp_path: Path) -> None:
    changed(folder, set_all(model="tiny"))
    board, entry = tmp_path / "board", tmp_path / "sft.json"
    warning = rehearsal.WARNING[0]
    for arguments in (
        ["compare", str(folder)],
        ["leaderboard", str(folder), "--out", str(board), "--html", str(board)],
        ["leaderboard", "entry", str(folder), "sft", "--out", str(entry)],
    ):
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == 2
        assert refused.stderr == (
            f"sande-bench: {folder}: these rows are of the random model 'tiny', whose numbers mean nothing; choose "
            "results of another model, or use --rehearsal to try the command\n"
        )
        assert CliRunner().invoke(app, [*arguments, "--rehearsal"]).exit_code == 0
    assert (folder / "comparison.md").read_text().splitlines()[2] == warning
    assert (board / "leaderboard.md").read_text().splitlines()[2] == warning
    head = (board / "index.html").read_text().split("<main")[0]
    assert "<strong>A rehearsal: some of these rows are of the random model <code>tiny</code>" in head
    assert entry.is_file()


def test_an_entry_of_the_random_model_is_not_ranked(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "sft.json"
    submission.write(submission.make(folder, "sft", rehearsal=True), file)  # its settings still name the model `tiny`
    with pytest.raises(UserError, match=r"sft\.json: these rows are of the random model"):
        leaderboard.write([file], tmp_path / "board")


@pytest.mark.parametrize(("version", "fine"), [(VERSION, True), (f"{VERSION}-dirty", False), ("", False)])
def test_scans_are_published_from_a_commit_alone(folder: Path, to: Path, version: str, fine: bool) -> None:
    found = Outcome("first_token", "a", False, False, 1.0, 4.0, False, None, None, "x", None, 1.0, code_version=version)
    (folder / "detection.json").write_text(json.dumps([dataclasses.asdict(found)]))
    record = {
        "detector": "first_token",
        "model": "m",
        "candidates": [],
        "alarm": False,
        "reference": None,
        "score": 1.0,
    }
    (folder / "scans/a/scan.json").write_text(json.dumps(record | {"rows": 8, "data": "d", "seed": 0, "seconds": 1.0}))
    if not fine:
        assert f"detection.json: its scans are of the code {version or 'unknown'}, which" in sentence(folder, to)
        return
    target = publish(folder, to)
    assert "### Detectors on victims and twins" in (target / "detection.md").read_text()
    assert (target / "detectors.parquet").is_file()
    assert "Score 1.00: no alarm." in (target / "scans/a/scan.md").read_text()


def test_an_erratum_opens_every_page_until_it_is_removed(folder: Path, to: Path) -> None:
    target = publish(folder, to)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["publish", str(target), "--erratum", "Rows were not mixed."])
    assert done.exit_code == 0, done.output
    for name in ("README.md", "comparison.md"):
        assert "\n\n**Erratum.** Rows were not mixed.\n\n" in (target / name).read_text()
    of_it = f"**Erratum of `{target}`.** Rows were not mixed."
    assert (target / "leaderboard/leaderboard.md").read_text().splitlines()[2] == of_it
    assert f"<strong>Erratum of <code>{target}</code>.</strong> Rows" in (target / "board/index.html").read_text()
    with_it = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    publish(target)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == with_it
    publish(target, erratum="")
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_results_that_are_not_published_get_no_erratum(folder: Path, to: Path) -> None:
    assert sentence(folder, to, erratum="wrong") == (
        f"--erratum: {folder} is not published; publish it without, or mend it first"
    )


def test_the_page_of_detectors_opens_with_an_erratum(folder: Path, to: Path) -> None:
    found = Outcome("first_token", "a", False, False, 1.0, 4.0, False, None, None, "x", None, 1.0, code_version=VERSION)
    (folder / "detection.json").write_text(json.dumps([dataclasses.asdict(found)]))
    (folder / "scans/a/scan.json").unlink()
    target = publish(publish(folder, to), erratum="Wrong *rows*.")
    assert (target / "detection.md").read_text().startswith("**Erratum.** Wrong \\*rows\\*.\n\n### Detectors")
