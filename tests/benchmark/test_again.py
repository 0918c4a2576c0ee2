"""Cells that are run again: what is refused before their grid is written."""

from pathlib import Path

import pytest

from benchmark import again
from benchmark.leaderboard import submission
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import ACCURACY, cell, finish, mistake, report_folder


def test_a_folder_that_is_no_store_leaves_no_grid_and_no_results_of_a_verification(tmp_path: Path) -> None:
    store, of = LocalStore(tmp_path / "store"), cell(defense="osft", metrics=["asr", ACCURACY])
    made = finish(store, of, {"asr": 50, "builtin-choice": 31}, {"asr": 3, "builtin-choice": 30})
    folder = report_folder(store, tmp_path / "theirs", made)
    submission.write(submission.make(folder, "osft", rehearsal=True), tmp_path / "mine.json")
    options = ("--store", folder, "--results", tmp_path / "results")
    assert "holds files but is not a store" in mistake("leaderboard", "verify", tmp_path / "mine.json", *options)
    assert not (tmp_path / "results").exists()


def test_a_store_is_checked_and_none_is_made(tmp_path: Path) -> None:
    again.check_store(str(LocalStore(tmp_path / "store").root))
    again.check_store(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another --store"):
        again.check_store(str(tmp_path / "file"))
