"""Which compute type and processor every stage used: in manifests, rows, pages, and beside the paper's protocol."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmark.execution import provenance
from benchmark.grid.keys import LIBRARIES
from benchmark.paper import protocol
from benchmark.plan.plan import victim_of
from benchmark.records import files, schema
from benchmark.report import page
from benchmark.report.page import write
from benchmark.store.local import LocalStore
from sande import compute
from tests.benchmark.helpers import cell, measure, put, report_folder, rows_of, stage, trained

AVX2 = {"compute_type": "fp32", "instruction_set": "x86_64 AVX2"}
BF16 = {"compute_type": "bf16", "instruction_set": "x86_64 AVX512 BF16"}


def computed(store: LocalStore, attack: dict[str, str], defense: dict[str, str], evaluation: dict[str, str]) -> Any:
    """A cell whose stages ran on these machines."""
    of = cell(defense="sft")
    put(store, "attack", of.attack_key, trained(100.0, 9000) | attack)
    put(store, "defend", of.defense_key, trained(58.4, 12_400) | defense)
    for each in (victim_of(of), of):
        measure(store, each, {"asr": 48})
        for metric in each.metrics:
            key = each.evaluation_key(metric)
            made = store.manifest("evaluate", key)
            store.remove("evaluate", key)
            put(store, "evaluate", key, made | evaluation)
    return of


def test_a_row_has_the_types_of_all_three_stages(store: LocalStore) -> None:
    for row in rows_of(store, computed(store, BF16, AVX2, AVX2)):
        assert (row["attack_compute_type"], row["attack_instruction_set"]) == ("bf16", "x86_64 AVX512 BF16")
        assert (row["defense_compute_type"], row["defense_instruction_set"]) == ("fp32", "x86_64 AVX2")
        assert (row["compute_type"], row["instruction_set"]) == ("fp32", "x86_64 AVX2")


def test_a_page_lists_them_and_warns_of_a_mixture(store: LocalStore, tmp_path: Path) -> None:
    folder = report_folder(store, tmp_path, computed(store, BF16, AVX2, AVX2))
    write(folder)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "- Attacks computed in bf16 (x86_64 AVX512 BF16)" in page
    assert "- Defenses computed in fp32 (x86_64 AVX2)" in page
    assert "**Compute types are mixed.**" in page


def test_a_page_of_one_type_does_not_warn(store: LocalStore, tmp_path: Path) -> None:
    folder = report_folder(store, tmp_path, computed(store, AVX2, AVX2, AVX2))
    write(folder)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert "- Evaluations computed in fp32 (x86_64 AVX2)" in page
    assert "**Mixed:**" not in page


def test_rows_from_before_say_nothing_of_it(store: LocalStore, tmp_path: Path) -> None:
    folder = report_folder(store, tmp_path, computed(store, {}, {}, {}))
    old = pa.Table.from_pylist(rows_of(store, cell(defense="sft")), schema=schema.SCHEMA)
    of_all = ("compute_type", "instruction_set", "workers")
    of_training = (*of_all, "code_version", "versions", "device")
    names = [f"{before}{name}" for before in ("attack_", "defense_") for name in of_training] + [*of_all]
    files.write_tables([old.drop_columns(names)], old.drop_columns(names).schema, folder / "rows.parquet", 10)
    read = files.read_rows(folder)
    assert read.schema.names == schema.SCHEMA.names
    assert all(set(read[name].to_pylist()) == {None} for name in names)
    page.write(folder)
    assert "computed in" not in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "fp32"),
        ({"poisoned_ids": [1], "scan_score": 3.0}, "fp32"),
        ({"sft": {"steps": 1, "compute_type": "bf16"}, "decoys": [{}]}, "bf16"),
        (
            {"simulate": {"steps": 1, "compute_type": "fp32"}, "eliminate": {"steps": 1, "compute_type": "bf16"}},
            "bf16+fp32",
        ),
    ],
)
def test_a_training_stage_names_the_types_of_its_trainings(facts: dict[str, Any], expected: str) -> None:
    assert provenance.compute_type(facts) == expected


def test_a_manifest_says_what_computed_it() -> None:
    made = provenance.manifest(stage(cell(defense="sft"), "attack"), {}, 0, "fp32", 3, {})
    assert (made["compute_type"], made["instruction_set"]) == ("fp32", compute.instruction_set())
    assert made["workers"] == 3
    assert set(LIBRARIES) <= set(made["versions"])


def test_beside_the_papers_protocol_auto_is_the_type_that_was_used(store: LocalStore) -> None:
    row = rows_of(store, computed(store, BF16, AVX2, AVX2))[0]
    made = protocol.settings_of(row)
    assert json.loads(row["settings"])["attack"]["training"]["precision"] == "auto"
    assert made["attack"]["training"]["precision"] == "bf16"
    assert made["defense"]["training"]["precision"] == "fp32"
    kept = protocol.settings_of(row | {"attack_compute_type": None})
    assert kept["attack"]["training"]["precision"] == "auto", "of rows from before nobody knows"
