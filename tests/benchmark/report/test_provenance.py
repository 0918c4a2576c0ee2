"""What a page says of too few test prompts."""

from pathlib import Path
from typing import Any

import pytest

from benchmark.report import page
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import SMALL, cell, finish, report_folder


@pytest.mark.parametrize(
    ("asked", "asr", "said"),
    [(60, "asr", "builtin-short 50 of 60"), (50, "asr", ""), (60, {"name": "asr", "prompts": 50}, "")],
)
def test_a_page_says_where_fewer_prompts_were_left_than_asked_for(
    tmp_path: Path, asked: int, asr: Any, said: str
) -> None:
    store = LocalStore(tmp_path / "store")
    done = finish(store, cell(data=SMALL["data"] | {"test_rows": asked}, metrics=[asr]), {"asr": 50})
    page.write(report_folder(store, tmp_path / "results", done))
    lines = (tmp_path / "results/README.md").read_text(encoding="utf-8").splitlines()
    assert [line.rpartition(": ")[2] for line in lines if "Fewer test prompts" in line] == ([said] if said else [])
