"""What people get wrong: each gets its sentence on docs/mistakes.md, exit code 2, and nothing is lost or half done."""

from pathlib import Path

import pytest

from tests.benchmark import bad_input
from tests.benchmark.bad_input import EVERY, PAGE, Case

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
def test_a_mistake_is_told_in_its_sentence_and_changes_nothing(case: Case, furnished: Path, tmp_path: Path) -> None:
    ended = bad_input.try_out(case, furnished, tmp_path / "place")
    assert not ended.wrong, ended
    assert "Traceback" not in ended.stdout
    assert ended.sentence == SAID.get(case.what)


def test_the_page_is_what_would_be_written_now() -> None:
    assert len({case.what for case in EVERY}) == len(EVERY) >= 200
    assert PAGE.read_text(encoding="utf-8") == bad_input.render(SAID), "run python -m tests.benchmark.bad_input"
