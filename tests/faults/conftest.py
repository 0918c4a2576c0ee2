"""The undisturbed run, the cluster, and the table at the end."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmark.execution import provenance
from tests.faults import table
from tests.faults.harness import Case, Faults, Line, Machines

NewCase = Callable[..., AbstractContextManager[Case]]
_lines: list[Line] = []
KILLS = 50  # random ones


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-table", type=Path, help="write the table of the faults into this file")
    parser.addoption("--faults-kills", type=int, default=KILLS, help="number of random kills [default: %(default)s]")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kill" in metafunc.fixturenames:  # each kill by its seed; the option is unknown where all tests are run
        metafunc.parametrize("kill", range(metafunc.config.getoption("--faults-kills", KILLS)))


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def case(faults: Faults, tmp_path: Path) -> Iterator[NewCase]:
    """Makes the case of a fault, which becomes a line of the table however it ends."""
    made: list[Case] = []

    @contextmanager
    def new(fault: str, *options: str, **changes: Any) -> Iterator[Case]:
        line, begin = Line(fault, code=provenance.code_version().partition("+")[2]), time.monotonic()
        _lines.append(line)
        made.append(Case(tmp_path / str(len(made)), faults, line, options, changes))
        try:
            yield made[-1]
        finally:
            line.seconds = time.monotonic() - begin
            made[-1].close()

    return new


@pytest.fixture(scope="session")
def undisturbed(faults: Faults, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A run where nothing happens; each of its stages is begun once."""
    begin = time.monotonic()
    case = Case(tmp_path_factory.mktemp("undisturbed") / "0", faults, Line("none"))
    assert case.ended(case.start()) == 0, case.said
    begun = faults.begun(case.location)
    assert set(begun.values()) == {1}
    assert len(begun) == 1 + 2 + 3
    case.line.seconds = time.monotonic() - begin
    return case


@pytest.fixture(scope="session")
def machines(faults: Faults, undisturbed: Case) -> Iterator[Machines]:
    """After the first run, as Ray makes the token that they ask for where it starts on one machine."""
    machines = Machines(faults)
    yield machines
    machines.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _lines:
        terminalreporter.write_line("")
        terminalreporter.write_line(table.text(_lines))
        path = config.getoption("--faults-table")
        if path:
            before = table.read(path.read_text()) if path.is_file() else []
            path.write_text(table.page(_lines, os.cpu_count() or 1, before))
