"""Code, libraries, device and costs of each stage in its rows, and what a page tells of stages that differ."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmark.plan.plan import victim_of
from benchmark.records import provenance, record
from benchmark.records.schema import PROVENANCE, SCHEMA
from benchmark.report import page
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import cell, put, report_folder, rows_of

LIBRARIES = {"python": "3.11", "torch": "2.13.0", "datasets": "4.0"}


def made_by(number: int, **changes: Any) -> dict[str, Any]:
    """What a stage recorded, different for every stage."""
    return {
        "code_version": f"0.1.0+{number:07}",
        "versions": LIBRARIES,
        "device": f"abacus {number}",
        "instruction_set": f"beads {number}",
        "compute_type": "fp32",
        "workers": number,
        "sharding": f"split {number}",
        "worker_changes": f"9 from step 0 of x; {number} from step 1 of x",
        "seconds": 10.0 * number,
        "tokens": 5,
        "peak_memory_bytes": 7,
    } | changes


def done(store: LocalStore, attack: dict[str, Any], defense: dict[str, Any], evaluation: dict[str, Any]) -> Any:
    of = cell(defense="sft", metrics=["asr"])
    put(store, "attack", of.attack_key, attack)
    put(store, "defend", of.defense_key, defense)
    asr = {"measurements": [{"name": "asr", "successes": 5, "count": 10, "published": False}], "started_at": "now"}
    for each in (victim_of(of), of):
        for key in each.evaluation_keys:
            put(store, "evaluate", key, asr | evaluation)
    return of


def test_a_row_has_what_each_stage_recorded_for_itself(store: LocalStore) -> None:
    of = done(store, made_by(1), made_by(2), made_by(3))
    (row,) = rows_of(store, of)
    (victim,) = rows_of(store, victim_of(of))
    for prefix, number in (("attack_", 1), ("defense_", 2), ("", 3)):
        expected = {name: made_by(number)[name] for name in PROVENANCE}
        expected["versions"] = "datasets 4.0, python 3.11, torch 2.13.0"
        assert {name: row[f"{prefix}{name}"] for name in PROVENANCE} == expected
        own = dict.fromkeys(PROVENANCE) if prefix == "defense_" else expected
        assert {name: victim[f"{prefix}{name}"] for name in PROVENANCE} == own
    assert (row["attack_seconds"], row["seconds"], row["metric_seconds"]) == (10.0, 20.0, 30.0)


def table(store: LocalStore, *stages: dict[str, Any]) -> pa.Table:
    of = done(store, *stages)
    return pa.Table.from_pylist(rows_of(store, victim_of(of), of), schema=SCHEMA)


def test_stages_of_one_kind_mix_nothing(store: LocalStore) -> None:
    assert provenance.mixtures(table(store, *itertools.repeat(made_by(1), 3))) == []


def test_code_that_differs_is_named_by_stage(store: LocalStore) -> None:
    rows = table(store, made_by(1), made_by(2), made_by(2))
    assert provenance.by_stage(rows, "code_version") == {
        "attacks": ["0.1.0+0000001"],
        "defenses": ["0.1.0+0000002"],
        "evaluations": ["0.1.0+0000002"],
    }
    versions = "attacks 0.1.0+0000001; defenses 0.1.0+0000002; evaluations 0.1.0+0000002"
    for from_one_store, why in (
        (True, "The store kept those whose own code and settings did not change."),
        (False, "Each row names the version that made each of its stages."),
    ):
        assert provenance.mixtures(rows, from_one_store) == [
            f"Stages are of several versions of the code: {versions}. {why}"
        ]


def test_libraries_that_differ_are_named_by_stage(store: LocalStore) -> None:
    later = {"versions": LIBRARIES | {"datasets": "4.1", "vllm": "0.32"}}  # vllm only decodes
    assert provenance.mixtures(table(store, made_by(1), made_by(1), made_by(1, **later))) == [
        "Stages used several versions of libraries: datasets (attacks 4.0; defenses 4.0; evaluations 4.1)."
    ]


def test_a_page_tells_of_a_mixture_and_lists_all_code(store: LocalStore, tmp_path: Path) -> None:
    of = done(store, made_by(1), made_by(2), made_by(2))
    page.write(report_folder(store, tmp_path, of))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "- Code: 0.1.0+0000001, 0.1.0+0000002\n" in text
    assert "- Device: abacus 1, abacus 2\n" in text
    assert "- **Mixed:** Stages are of several versions of the code: attacks 0.1.0+0000001; " in text
    assert "The store kept those" in text


def test_a_page_of_joined_parts_speaks_of_no_common_store(store: LocalStore, tmp_path: Path) -> None:
    folder = report_folder(store, tmp_path, done(store, made_by(1), made_by(2), made_by(2)))
    record.write(record.now("sande-bench run a && sande-bench run b", "1", complete=True), folder)
    page.write(folder)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "evaluations 0.1.0+0000002. Each row names the version that made each of its stages.\n" in text
    assert "The store" not in text


def test_a_page_says_one_thread(store: LocalStore, tmp_path: Path) -> None:
    page.write(report_folder(store, tmp_path, done(store, *[made_by(1, device="abacus (1 threads)")] * 3)))
    assert "- Device: abacus (1 thread)\n" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("lacking", ["attack_", "defense_"])
def test_what_earlier_versions_did_not_record_is_unknown_and_no_mixture(store: LocalStore, lacking: str) -> None:
    rows = table(store, *itertools.repeat(made_by(1), 3))
    for name in ("code_version", "versions"):
        number = rows.column_names.index(f"{lacking}{name}")
        rows = rows.set_column(number, rows.schema.field(number), pa.nulls(rows.num_rows, pa.string()))
    assert provenance.by_stage(rows, "code_version")[provenance.NAMES[lacking]] == [provenance.UNKNOWN]
    assert provenance.mixtures(rows) == []
