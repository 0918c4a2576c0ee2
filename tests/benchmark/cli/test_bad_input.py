"""Mistakes of users: each ends with exit code 2 and one line that names the place, and changes no file."""

from pathlib import Path

import pytest

from tests.benchmark.cli import bad_input
from tests.benchmark.cli.bad_input import EVERY, FROZEN, PAGE, Case

SAID = bad_input.said()


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("furnished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(place / "home"))  # the processes are to find no model of the developer's
        bad_input.furnish(place / "made")
        bad_input.publish(place / "made/my-model", place / "home")
        bad_input.processes()
    return place / "made"


@pytest.mark.parametrize("case", EVERY, ids=lambda case: case.what)
def test_a_mistake_is_one_line_that_names_the_place_and_changes_nothing(
    case: Case, furnished: Path, tmp_path: Path
) -> None:
    ended = bad_input.try_out(case, furnished, tmp_path / "place")
    assert not ended.wrong, ended
    assert "Traceback" not in ended.stdout + ended.stderr
    assert [name for name in case.place if name not in ended.sentence] == [], ended.sentence
    if case.what in FROZEN:
        assert ended.sentence == SAID.get(case.what)


def test_the_page_is_what_would_be_written_now() -> None:
    assert len({case.what for case in EVERY}) == len(EVERY) >= 200
    assert {case.what for case in EVERY} >= set(FROZEN)
    assert PAGE.read_text(encoding="utf-8") == bad_input.render(SAID), "run python -m tests.benchmark.cli.bad_input"
