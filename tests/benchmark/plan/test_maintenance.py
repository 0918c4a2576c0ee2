"""`sande-bench store`: what is listed, found damaged and removed, and that nothing goes that a listed grid needs."""

import json
import os
from pathlib import Path

import pytest

from benchmark.forecast import disk
from benchmark.grid import space
from benchmark.grid.cell import Cell
from benchmark.grid.load import load_grid
from benchmark.io import units
from benchmark.plan import maintenance, plan, retention, searches
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import ACCURACY, GridFile, cell, finish, invoke, mistake, put, run_options

SFT, OSFT = cell(defense="sft"), cell(defense="osft")
OTHER = cell(defense="sft", seed=5)
SEARCH = {"space": {"defense.training.learning_rate": [1e-4, 1e-3]}, "trials": 2}


@pytest.fixture
def filled(store: LocalStore) -> LocalStore:
    for each in (SFT, OSFT, OTHER):
        finish(store, each, {"asr": 49}, {"asr": 3})
    return store


def keys_of(*cells: Cell) -> set[tuple[str, str]]:
    return {
        (stage.kind, key)
        for stage in plan.make_plan(cells, LocalStore(Path("none"), create=False)).stages.values()
        for key in stage.artifacts
    }


def there(store: LocalStore) -> set[tuple[str, str]]:
    return {(kind, key) for kind in ("attack", "defend", "evaluate", "search") for key in store.keys(kind)}


def test_the_list_has_a_line_for_each_artifact_and_the_sum(filled: LocalStore) -> None:
    result = invoke("store", "list", "--store", filled.root)
    assert result.exit_code == 0
    head, _, *lines, total = result.output.splitlines()
    assert head.split() == ["kind", "key", "size", "model", "what", "made", "(UTC)"]
    assert {(line.split()[0], line.split()[1]) for line in lines} == {(kind, key[:12]) for kind, key in there(filled)}
    assert f"{len(there(filled))} artifacts" in total
    assert "2 attack" in total


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("2026-12-01T18:07:45+00:00", "2026-12-01 18:07"),
        ("2026-12-01T18:07:45+02:00", "2026-12-01 16:07"),
        ("yesterday", "yesterday"),
        ("0001-01-01T00:00:00+23:00", "0001-01-01T00:00:00+23:00"),
    ],
)
def test_the_list_has_times_in_utc_to_the_minute(started: str, shown: str, store: LocalStore) -> None:
    store.put("attack", "a" * 64, lambda folder: {})
    path = store.path("attack", "a" * 64) / "manifest.json"
    manifest = json.loads(path.read_text()) | {
        "settings": {"model": "tiny", "attack": {"name": "word_trigger"}},
        "started_at": started,
    }
    path.write_text(json.dumps(manifest))
    columns, (total,) = maintenance.listing(store)
    assert columns["made (UTC)"] == [shown]
    assert ": 1 artifact, " in total


def test_the_list_shows_what_is_damaged_and_what_was_set_aside(filled: LocalStore) -> None:
    os.truncate(filled.path("attack", SFT.attack_key) / "manifest.json", 9)
    os.truncate(filled.path("defend", SFT.defense_key) / "manifest.json", 9)
    list(filled.quarantine_damaged([("defend", SFT.defense_key)]))
    output = invoke("store", "list", "--store", filled.root).output
    (line,) = [line for line in output.splitlines() if SFT.attack_key[:12] in line]
    assert line.split()[-1] == "damaged"
    assert "Quarantined as damaged: 1" in output


def test_verifying_sets_aside_what_is_damaged(filled: LocalStore) -> None:
    result = invoke("store", "verify", "--store", filled.root)
    assert (result.exit_code, result.output.splitlines()[-1].split(": ")[1]) == (
        0,
        f"{len(there(filled))} artifacts in order, 0 damaged",
    )
    os.truncate(filled.path("evaluate", SFT.evaluation_keys[0]) / "outcomes.parquet", 9)
    result = invoke("store", "verify", "--store", filled.root)
    assert result.exit_code == 1
    assert "outcomes.parquet has 9 bytes" in result.output
    assert "1 damaged" in result.output
    assert not filled.path("evaluate", SFT.evaluation_keys[0]).exists()
    assert invoke("store", "verify", "--store", filled.root).exit_code == 0


def test_pruning_only_says_what_would_go_unless_told(filled: LocalStore, grid_file: GridFile) -> None:
    before = there(filled)
    result = invoke("store", "prune", grid_file(defense="sft"), "--store", filled.root)
    assert result.exit_code == 0
    assert there(filled) == before
    assert "would be freed; --yes does it" in result.output
    assert "1 attack: " in result.output  # of the other seed


def test_pruning_keeps_exactly_what_the_listed_grids_need(filled: LocalStore, grid_file: GridFile) -> None:
    os.truncate(filled.path("defend", OTHER.defense_key) / "manifest.json", 9)
    list(filled.quarantine_damaged([("defend", OTHER.defense_key)]))
    grids = [grid_file("one", defense="sft"), grid_file("two", defense="osft")]
    result = invoke("store", "prune", *grids, "--store", filled.root, "--yes")
    assert result.exit_code == 0, result.output
    assert there(filled) == keys_of(SFT, OSFT)
    assert filled.quarantined() == {}
    assert " freed" in result.output
    assert invoke("store", "prune", *grids, "--store", filled.root).output.startswith("0 bytes would be freed")


def test_a_pruned_grid_has_nothing_to_run(filled: LocalStore, grid_file: GridFile, tmp_path: Path) -> None:
    path = grid_file(defense="sft")
    invoke("store", "prune", path, "--store", filled.root, "--yes")
    assert plan.make_plan(load_grid(path).cells, filled).missing == []


def test_pruning_keeps_searches_and_what_was_found_by_them(store: LocalStore, grid_file: GridFile) -> None:
    path = grid_file(defense="sft", search=SEARCH)
    loaded = load_grid(path)
    job = space.job_of(loaded.search, loaded.cells[0])
    put(store, "search", job.key, {"best": {"defense.training.learning_rate": 1e-3}, "settings": {}, "trials": []})
    put(store, "search", "another", {"settings": {}})
    (settled,) = searches.settled(loaded, store).cells
    finish(store, settled, {"asr": 49}, {"asr": 3})
    assert invoke("store", "prune", path, "--store", store.root, "--yes").exit_code == 0
    assert there(store) == keys_of(settled) | {("search", job.key)}


def test_a_grid_that_cannot_be_read_removes_nothing(filled: LocalStore, grid_file: GridFile) -> None:
    before = there(filled)
    assert "unknown setting" in mistake(
        "store", "prune", grid_file("one", defense="sft"), grid_file("two", sed=1), "--store", filled.root, "--yes"
    )
    assert there(filled) == before


@pytest.mark.parametrize("command", [["list"], ["verify"], ["prune", "quickstart", "--yes"]])
def test_a_folder_that_is_no_store_is_one_line(tmp_path: Path, command: list[str]) -> None:
    assert "is not a store" in mistake("store", *command, "--store", tmp_path)


def test_a_plan_says_what_it_takes_on_disk(
    filled: LocalStore, grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    path = grid_file(sweep={"defense": ["sft", "osft", "nad"]})
    (line,) = [line for line in invoke("plan", path, *run_options(tmp_path)).output.splitlines() if "Disk: " in line]
    known = [filled.size("attack", SFT.attack_key), *(filled.size("defend", each.defense_key) for each in (SFT, OSFT))]
    # The one that is missing counts as the mean of the model's others.
    assert (
        f"4 models take {units.format_bytes(sum(known) * 4 / 3)}; {units.format_bytes(sum(known))} of it are there"
        in line
    )
    assert "are free" in line


def test_without_a_store_a_model_counts_by_its_parameters(grid_file: GridFile, tmp_path: Path) -> None:
    made = plan.make_plan([cell(model="smollm2-135m", defense="sft")], LocalStore(tmp_path / "none", create=False))
    assert "2 models take 538 MB; 0 bytes of it are there" in disk.summary(
        made, LocalStore(tmp_path / "no", create=False)
    )


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_700, "1000 kB"), (13.5e9, "13.5 GB")]
)
def test_bytes_for_people(size: float, text: str) -> None:
    assert units.format_bytes(size) == text


def test_metrics_of_another_grid_go(filled: LocalStore, grid_file: GridFile) -> None:
    both = cell(defense="sft", metrics=["asr", "false_trigger_rate", ACCURACY])
    finish(filled, both, {"asr": 49}, {"asr": 3})
    invoke("store", "prune", grid_file(defense="sft"), "--store", filled.root, "--yes")
    assert there(filled) == keys_of(SFT)


def test_what_was_dropped_and_checkpoints_stay_with_the_grid_that_needs_them(
    filled: LocalStore, grid_file: GridFile
) -> None:
    for each in (SFT, OTHER):
        retention.drop(filled, "defend", each.defense_key)
        (filled.root / "checkpoints/attack" / each.attack_key).mkdir(parents=True)
        (filled.root / "checkpoints/attack" / each.attack_key / "state").write_bytes(bytes(1000))
    path = grid_file(defense="sft")
    assert "1 dropped: " in invoke("store", "prune", path, "--store", filled.root).output
    result = invoke("store", "prune", path, "--store", filled.root, "--yes")
    assert "1 checkpoints/attack: 1 kB" in result.output
    assert filled.keys("dropped") == [SFT.defense_key]
    assert filled.keys("checkpoints/attack") == [SFT.attack_key]
    assert invoke("store", "verify", "--store", filled.root).exit_code == 0
    assert any(
        line.startswith("dropped ") for line in invoke("store", "list", "--store", filled.root).output.splitlines()
    )
