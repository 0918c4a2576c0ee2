"""A cluster that cannot be reached."""

import pytest

from tests.benchmark.helpers import mistake
from tests.integration.helpers import Workplace


def test_an_address_where_nothing_listens_is_one_line_within_a_minute(place: Workplace) -> None:
    done = place.run(place.grid("elsewhere"), "--address", "127.0.0.1:1", timeout=60)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("sande-bench: ")]
    assert line.startswith("sande-bench: no Ray cluster at '127.0.0.1:1'")
    assert "Traceback" not in done.stderr
    assert place.unfinished() == []


def test_without_an_address_the_cluster_of_a_submitted_job_is_taken(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    line = mistake(*place.command(place.grid("job"))[3:])
    assert "no Ray cluster at '127.0.0.1:1'" in line
    assert place.unfinished() == []
