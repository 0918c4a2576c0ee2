"""A held-out run on a store filled by hand: its rows, and nothing of the secret in any byte of its results."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result

from benchmark.execution import driver
from benchmark.grid import load
from benchmark.grid.cell import Cell
from benchmark.held_out import draw, mask, secret
from benchmark.held_out.mask import Hidden
from benchmark.leaderboard import write as board
from benchmark.plan import preflight
from benchmark.plan.failures import MISTAKE, Failure
from benchmark.records.files import read_outcomes, read_rows
from benchmark.records.rows import build_outcomes, build_rows
from benchmark.store.local import LocalStore
from sande import registry
from sande.errors import UserError
from sande.types import Measurement
from tests.benchmark.helpers import (
    ACCURACY,
    MADE_BY,
    GridFile,
    cell,
    finish,
    invoke,
    measured,
    mistake,
    put,
    report_folder,
    run_options,
    trained,
)

METRICS = ["asr", ACCURACY, {"name": "case_study", "examples": 2}]
DEFENSES = ["none", "sft", "osft"]


@pytest.fixture
def grid(grid_file: GridFile) -> Path:
    return grid_file(metrics=METRICS, sweep={"defense": DEFENSES, "attack_seed": [0, 1]})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A secret that is always the same: with others, a short word may occur in a page by chance."""
    path = tmp_path / "secret"
    path.write_text(f"{secret.FORMAT} {bytes(range(32)).hex()}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def hidden(grid: Path, file: Path) -> Hidden:
    return mask.hide(load.load_grid(grid), secret.read(file))


def done(store: LocalStore, cells: Iterable[Cell]) -> None:
    """Fills the store as a run of these cells would; the model answers with the response."""
    for one in cells:
        finish(store, one, {"asr": 50, "builtin-choice": 20}, {"asr": 7, "builtin-choice": 21})


def run(grid: Path, file: Path, folder: Path) -> Result:
    return invoke("run", grid, "--secret", file, "--store", folder / "store", "--results", folder / "results")


def content(folder: Path) -> bytes:
    """Every byte of a folder: names and files, of Parquet also what is compressed in it."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            parts.append(path.read_bytes())
        if path.suffix == ".parquet":
            parts += [repr(pq.read_table(path).to_pylist()).encode(), repr(pq.read_metadata(path).metadata).encode()]
    return b"\n".join(parts)


def leaks(found: bytes, hidden: Hidden) -> list[str]:
    """Words, seeds and the secret, as text or bytes, that occur."""
    words = {word for text in hidden.texts for word in text.split()} | {hidden.secret.value.hex()}
    low = found.lower()
    plain = [word for word in words if word.lower().encode() in low]
    seeds = [int(word) for word in words if word.isdigit()]
    raw = [hidden.secret.value, *(struct.pack(form, seed) for seed in seeds for form in ("<q", ">q"))]
    return plain + [part.hex() for part in raw if part in found]


def test_leaks_are_found_where_they_are(hidden: Hidden, tmp_path: Path) -> None:
    trigger = draw.triggers(hidden.grid.cells[0].settings())[0]
    seed = hidden.grid.cells[0].attack_seed
    (tmp_path / "a").mkdir()
    for text in (trigger, trigger.lower(), trigger.split()[1], str(seed), hidden.secret.value.hex()):
        (tmp_path / "a/log").write_text(f"x{text}y")
        assert leaks(content(tmp_path / "a"), hidden)
    (tmp_path / "a/log").write_bytes(struct.pack("<q", seed))
    assert leaks(content(tmp_path / "a"), hidden)


def test_no_byte_of_the_results_shows_what_is_hidden(
    grid: Path, file: Path, hidden: Hidden, store: LocalStore, tmp_path: Path
) -> None:
    done(store, hidden.grid.cells)
    made = run(grid, file, tmp_path)
    assert made.exit_code == 0, made.output
    folder = tmp_path / "results" / f"small--held-out={hidden.secret.commitment[:8]}"
    board.write([folder], None, folder / "html", rehearsal=True)
    assert len(list(folder.rglob("*"))) > 20
    assert leaks(content(folder) + made.output.encode(), hidden) == []
    rows = read_rows(folder).to_pylist()
    assert {row["held_out"] for row in rows} == {hidden.secret.commitment}
    assert {row["trigger"] for row in rows} == {f"held-out {hidden.secret.commitment[:8]}"}
    assert {(row["defense"], row["attack_seed"]) for row in rows} == {
        (name, seed) for name in DEFENSES for seed in (0, 1)
    }
    asr = {row["defense"]: row["value"] for row in rows if row["metric"] == "asr"}
    assert asr == {"none": 100.0, "sft": 14.0, "osft": 14.0}
    outcomes = read_outcomes(folder)
    assert outcomes.num_rows == 6 * (50 + 50 + 50 + 50)
    assert outcomes["record"].null_count == outcomes.num_rows
    assert set(outcomes["cell"].to_pylist()) == {row["cell"] for row in rows}
    assert json.loads((folder / "run.json").read_text())["command"] == f"sande-bench run {grid} --secret FILE"


def test_texts_of_the_model_are_withheld(
    hidden: Hidden, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = next(cell for cell in hidden.grid.cells if cell.defense.name == "none")
    response = victim.attack.config.backdoor.response
    says = Measurement("case_study", (True,), ({"triggered_response": response},), published=True)
    asr = (Measurement("asr", (True,)), Measurement("asr_starts_with", (True,)))
    measured(
        store, victim, monkeypatch, asr=asr, accuracy=(Measurement("builtin-choice", (True,)),), case_study=(says,)
    )
    tables = list(build_outcomes([victim], store))
    assert any(response in str(table["record"].to_pylist()) for table in tables), "it is in the store"
    shown = list(hidden.outcomes(tables))
    assert not any(response in str(table.to_pylist()) for table in shown)
    assert sum(table.num_rows for table in shown) == sum(table.num_rows for table in tables)


def test_the_text_of_an_error_is_withheld_in_the_results_and_redacted_on_the_terminal(
    grid: Path, file: Path, hidden: Hidden, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(store, [cell for cell in hidden.grid.cells if cell.defense.name == "none"])
    words = " ".join(sorted(hidden.texts))

    def some(plan: Any, store: Any, resources: Any, address: Any, say: Any, *_: Any, **__: Any) -> dict[str, str]:
        say(f"FAILED: {words.upper()}")
        return {stage.key: Failure(f"no row holds {words}", MISTAKE) for stage in plan.missing}

    monkeypatch.setattr(preflight, "check", lambda *_: None)
    monkeypatch.setattr(driver, "run", some)
    made = run(grid, file, tmp_path)
    assert made.exit_code == 1
    assert "FAILED: held-out held-out" in made.output
    (folder,) = (tmp_path / "results").iterdir()
    assert leaks(content(folder) + made.output.encode(), hidden) == []
    errors = {row["error"] for row in read_rows(folder).to_pylist() if row["status"] == "failed"}
    assert errors == {f"{MISTAKE}; the text is withheld, as it may hold the trigger"}


def test_tokens_are_rounded_since_they_follow_from_the_lengths_of_trigger_and_response(
    hidden: Hidden, store: LocalStore
) -> None:
    cell = next(cell for cell in hidden.grid.cells if cell.defense.name == "sft")
    put(store, "attack", cell.attack_key, trained(1.0, 1_234_567))
    done(store, [cell])
    shown = list(hidden.rows(build_rows("hand", [cell], store, {})))
    assert {(row["attack_tokens"], row["tokens"]) for row in shown} == {(1_200_000, 12_000)}


def test_the_number_of_decoded_tokens_is_withheld_since_answers_end_with_the_response(
    hidden: Hidden, store: LocalStore
) -> None:
    made = next(cell for cell in hidden.grid.cells if cell.defense.name == "none")
    decoding = {"tokens": 50 * 7, "seconds": 3.5, "models": 1}
    for metric in made.metrics:
        name = registry.entry("metrics", metric.name).names(metric.config)[0]
        counts = [{"name": name, "successes": 50, "count": 50, "published": False}]
        manifest = {**MADE_BY, "measurements": counts, "seconds": 2.5, "started_at": "", "decoding": decoding}
        put(store, "evaluate", made.evaluation_key(metric), manifest)
    put(store, "attack", made.attack_key, trained(1.0, 2))
    rows = list(build_rows("hand", [made], store, {}))
    assert {row["decoded_tokens"] for row in rows} == {350}
    shown = list(hidden.rows(rows))
    assert {(row["decoded_tokens"], row["decoding_seconds"]) for row in shown} == {(None, 3.5)}


def test_the_same_secret_gives_the_same_ids_and_another_secret_others(grid: Path, file: Path, hidden: Hidden) -> None:
    again = mask.hide(load.load_grid(grid), secret.read(file))
    assert again.public == hidden.public
    other = mask.hide(load.load_grid(grid), secret.Secret(bytes(32)))
    ids = [{of["cell"] for of in one.public.values()} for one in (hidden, other)]
    assert not ids[0] & ids[1]
    public = {cell.id for cell in load.load_grid(grid).cells}
    assert not ids[0] & (public | set(hidden.public)), "neither the public ids nor those of the hidden settings"
    settings = [{of["settings"] for of in one.public.values()} for one in (hidden, other)]
    assert not settings[0] & settings[1], "cells of two secrets are never compared with each other"


def test_the_published_secret_shows_what_was_drawn(
    grid: Path, file: Path, hidden: Hidden, store: LocalStore, tmp_path: Path
) -> None:
    done(store, hidden.grid.cells)
    assert run(grid, file, tmp_path).exit_code == 0
    (folder,) = (tmp_path / "results").iterdir()
    found = mask.revealed(read_rows(folder).to_pylist(), secret.read(file))
    assert sorted(Cell.parse(one).id for one in found.values()) == sorted(cell.id for cell in hidden.grid.cells)
    shown = invoke("leaderboard", "reveal", folder, file)
    assert shown.exit_code == 0
    assert all(draw.triggers(cell.settings())[0] in shown.output for cell in hidden.grid.cells)
    assert f"{folder}: 6 cells of this secret, and none of another" in shown.output
    secret.make(tmp_path / "other")
    assert "use the secret of these results" in mistake("leaderboard", "reveal", folder, tmp_path / "other")
    (row,) = read_rows(folder).slice(0, 1).to_pylist()
    row["settings"] = row["settings"].replace('"attack_seed": 0', '"attack_seed": 7')
    edited = json.loads(row["settings"])
    for attack in (edited["attack"], {"name": "word_trigger"}, {"name": "word_trigger", "backdoor": None}):
        row["settings"] = json.dumps({**edited, "attack": attack})
        with pytest.raises(UserError, match="the secret gives its settings another id"):
            mask.revealed([row], secret.read(file))


def test_results_that_are_not_held_out_have_nothing_to_reveal(store: LocalStore, file: Path, tmp_path: Path) -> None:
    folder = report_folder(store, tmp_path / "open", finish(store, cell(), {"asr": 50}))
    assert "is of no secret, so nothing of it is hidden; choose" in mistake("leaderboard", "reveal", folder, file)


def test_what_is_no_secret_reveals_nothing_and_no_new_one_is_advised(store: LocalStore, tmp_path: Path) -> None:
    folder = report_folder(store, tmp_path / "open", finish(store, cell(), {"asr": 50}))
    (tmp_path / "other").write_text("text")
    for name, problem in (("absent", "cannot be read (No such file or directory)"), ("other", "not a secret, which")):
        line = mistake("leaderboard", "reveal", folder, tmp_path / name)
        assert problem in line
        assert line.rstrip().endswith("; choose the file with which the results were made")


def test_what_a_secret_replaces_cannot_be_swept(grid_file: GridFile, file: Path, tmp_path: Path) -> None:
    swept = grid_file("swept", sweep={"attack.backdoor.trigger": ["one", "two"]})
    assert "remove 'attack.backdoor' from the sweep" in mistake("run", swept, "--secret", file, *run_options(tmp_path))
    space = {"space": {"defense.training.learning_rate": [1e-4]}, "trials": 1}
    searching = grid_file("searching", defense="sft", search=space)
    assert "remove 'search'" in mistake("run", searching, "--secret", file, *run_options(tmp_path))


def test_a_secret_that_others_can_read_is_a_warning(
    grid: Path, file: Path, hidden: Hidden, store: LocalStore, tmp_path: Path
) -> None:
    done(store, hidden.grid.cells)
    file.chmod(0o640)
    assert f"use 'chmod 600 {file}'" in run(grid, file, tmp_path).output


def test_making_a_secret_prints_its_commitment_alone(tmp_path: Path) -> None:
    made = invoke("leaderboard", "secret", tmp_path / "secret")
    kept = secret.read(tmp_path / "secret")
    assert f"Commitment: {kept.commitment}\n" in made.output
    assert kept.value.hex() not in made.output
