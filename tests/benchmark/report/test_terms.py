"""Terms that results and models of Gemma carry, and others do not."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.export.card import front_matter
from benchmark.report import page
from benchmark.store.local import LocalStore
from sande.models.catalog import GEMMA, GEMMA_WHEEL, TERMS, terms
from tests.benchmark.helpers import ACCURACY, cell, finish, report_folder


@pytest.mark.parametrize(("model", "carried"), [(GEMMA, True), ("smollm2-135m", False)])
def test_a_report_carries_the_terms_of_its_model(tmp_path: Path, model: str, carried: bool) -> None:
    store = LocalStore(tmp_path / "store")
    done = finish(store, cell(metrics=["asr", ACCURACY]), {"asr": 50, "builtin-choice": 20})
    report_folder(store, tmp_path / "results", done)
    rows = pq.read_table(tmp_path / "results/rows.parquet")
    at = rows.schema.get_field_index("model")
    column = pa.array([model] * len(rows), rows.schema.field(at).type)
    pq.write_table(rows.set_column(at, rows.schema.field(at), column), tmp_path / "results/rows.parquet")
    page.write(tmp_path / "results")
    text = (tmp_path / "results/README.md").read_text(encoding="utf-8")
    assert (f"{GEMMA}: {TERMS[GEMMA]}" in text) == carried


def test_a_card_carries_the_licence_of_its_base() -> None:
    gemma = f"{GEMMA_WHEEL}:0123==1.0.0"
    assert terms(gemma) == terms(f"adapter:0123 on {gemma}") == TERMS[GEMMA]
    assert terms("tiny:0123") == ""
    assert "license: gemma" in front_matter(gemma, [])
    assert "license" not in front_matter("tiny:0123", [])
