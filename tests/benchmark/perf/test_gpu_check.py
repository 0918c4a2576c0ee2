"""The check of a GPU, with small programs in place of its parts: limits, figures, the folder; and all parts as slow."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmark.perf import gpu_check
from benchmark.perf.gpu_check import Outcome, Part, good
from benchmark.perf.outcome import Figure, figures, tell


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
