"""What `make matrix` installs and runs; it runs itself for half an hour, and not here."""

import re

import pytest

from tests import matrix


def test_the_lowest_end_pins_every_lower_bound() -> None:
    wanted = ["numpy>=2.0", "ray[train,tune]>=2.59,<2.61", "pandas>=2.2.2"]
    assert matrix.lowest(wanted) == ["numpy==2.0", "ray[train,tune]==2.59", "pandas==2.2.2"]


@pytest.mark.parametrize("end", matrix.ENDS)
def test_an_end_installs_each_dependency_once_and_torch_as_tested(end: str) -> None:
    names = [re.split(r"[\[<>=]", each)[0] for each in matrix.requirements(end)]
    assert sorted(names) == sorted(re.split(r"[\[<>=]", each)[0] for each in matrix.dependencies())
    (torch,) = [each for each in matrix.requirements(end) if each.startswith("torch")]
    assert torch in (matrix.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(("==" in each) == (end == "lowest" or each == torch) for each in matrix.requirements(end))


def test_all_that_it_runs_is_there() -> None:
    assert all((matrix.ROOT / name).is_file() for name in (*matrix.TESTS, matrix.SMOKE[0], matrix.GROUPS[0]))


def test_an_unknown_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix.main(["highest"]) == 2
    assert "choose from lowest, newest" in capsys.readouterr().out
