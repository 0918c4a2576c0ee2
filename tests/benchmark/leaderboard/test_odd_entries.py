"""Odd values anywhere in an entry: the check names a problem, or the board shows the entry."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmark.leaderboard import submission
from benchmark.leaderboard.write import write
from sande.errors import UserError
from tests.benchmark import outputs
from tests.benchmark.records.test_odd_rows import JSON, paths, put


def entry(folder: Path) -> str:
    return submission.make(folder, "sft").model_dump_json(exclude_unset=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outputs.results(tmp_path_factory.mktemp("results"))


def try_all(results: Path, folder: Path, step: int) -> None:
    text = entry(results)
    # The first of several equal parts stands for the others.
    places = [path for path in paths(json.loads(text)) if all(part == 0 for part in path if isinstance(part, int))]
    cases: list[tuple[Any, Any]] = [(path, value) for path in places for value in JSON]
    assert len(cases) > 300
    for path, value in cases[::step]:
        file = folder / "entry.json"
        file.write_text(put(text, path, value))
        made, problems = submission.examine(file)
        if made and not problems:
            with suppress(UserError):  # any other error fails
                write([results, file], folder / "board", folder / "html")


@pytest.fixture(autouse=True)
def _no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.io.plots.save", lambda figure, folder, name: None)


def test_some_odd_values(results: Path, tmp_path: Path) -> None:
    try_all(results, tmp_path, 23)


@pytest.mark.slow
def test_every_odd_value(results: Path, tmp_path: Path) -> None:
    try_all(results, tmp_path, 1)


def test_a_task_that_is_a_list_is_a_problem(results: Path, tmp_path: Path) -> None:
    (tmp_path / "entry.json").write_text(
        put(entry(results), ("cells", 0, "settings", "metrics", 1, "task"), ["arc_easy"])
    )
    _, problems = submission.examine(tmp_path / "entry.json")
    assert problems[0].startswith("cells[0].settings: 'task' of a metric is not a text; ")
