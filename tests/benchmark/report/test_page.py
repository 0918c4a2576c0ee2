"""The page of a results folder and the pages beside it."""

from pathlib import Path

from benchmark.report import page
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import cell, finish, report_folder


def test_a_page_links_to_the_pages_that_are_there(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    folder = report_folder(store, tmp_path / "results", finish(store, cell(metrics=["asr"]), {"asr": 50}))

    def further() -> list[str]:
        page.write(folder)
        lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith("Further pages")]

    assert further() == []
    (folder / "detection.md").touch()
    (folder / "board").mkdir()
    (folder / "board/index.html").touch()
    assert further() == [
        "Further pages: [what detectors find in these models](detection.md), "
        "[ranking of the defenses for a browser](board/index.html)."
    ]
