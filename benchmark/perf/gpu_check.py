"""Confirm on a machine with a GPU what only a GPU can, and run a grid for the rest of the time: `make gpu-check`.

    python -m benchmark.perf.gpu_check                       # 25 minutes on one H100 or H200; else one line
    python -m benchmark.perf.gpu_check --rehearse            # every part on the CPU, in its smallest form

Each part is a program of its own, with a limit on its time, so that one that fails or hangs leaves the others alone.
A part that needs a library which is not installed is left out, and the page says so.
The grid comes last and continues where the store has it, until the time is over; its rows are those of what was done.
The folder of `--out` then holds `README.md` (a table), `gpu_check.json`, the output of each part and the grid's
results, to be committed as a whole. The exit code is 1 if a part failed or a target was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmark.execution import provenance
from benchmark.io.files import write_atomically
from benchmark.io.markdown import markdown_table
from benchmark.perf.outcome import Figure, figures
from sande import compute
from sande.models import catalog

MINUTES = 25.0
GRID = "grids/leaderboard_smollm2.yaml"
RESERVE = 60  # seconds that the grid leaves for its rows, tables and figures
WAIT = 120  # seconds that it may take for them
LIBRARIES = ("torch", "transformers", "ray")
FAILED, LEFT_OUT, TIMED_OUT = "failed", "left out", "timed out"
DONE = "done"
ABSENT = "absent"  # in place of a version


@dataclass(frozen=True, slots=True)
class Part:
    """A program to run.

    Attributes:
        name: of the part and of its output.
        confirms: what it says about the suite.
        command: words behind `python -m`.
        rehearsal: the same for a CPU; empty if there is none.
        seconds: most that it may take.
        gpus: number that it needs.
        needs: packages that it cannot do without, besides those of `sande`.
        weights: packages with the model that it loads; its rehearsal has the random model instead.
    """

    name: str
    confirms: str
    command: tuple[str, ...]
    rehearsal: tuple[str, ...]
    seconds: float
    gpus: int = 1
    needs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a part did: how it ended, its seconds, and the measurements that it printed."""

    part: Part
    ended: str
    seconds: float
    figures: tuple[Figure, ...]


_TRAINING = "benchmark.perf.training_gpu"
# Files by name: pytest imports every file of a folder, and some need packages that a machine with a GPU may lack.
_TESTS = ("pytest", "-p", "no:cacheprovider", "tests/sande/training/test_packing.py")
_TWO_GPUS = ("pytest", "-p", "no:cacheprovider", "tests/integration/test_workers.py")
_SMOLLM2 = ("gguf", catalog.WHEEL)
PARTS = (
    Part(
        name="tests",
        confirms="packed rows do not see each other, and have the losses of padded ones, on this GPU's kernels",
        command=(*_TESTS, "-m", "gpu"),
        rehearsal=(*_TESTS, "-k", "cpu"),
        seconds=180,
        needs=("pytest",),
    ),
    Part(
        name="training",
        confirms="packed against padded training and the published recipe at Qwen1.5-4B's shape: equality and speed",
        command=(_TRAINING,),
        rehearsal=(_TRAINING, "--shape", "tiny", "--device", "cpu", "--precision", "fp32"),
        seconds=420,
    ),
    Part(
        name="decoding",
        confirms="our decoding, and vLLM where it is installed, write the texts of one prompt at a time, and how fast",
        command=("benchmark.perf.decoding_gpu",),
        rehearsal=("benchmark.perf.decoding_gpu", "--rehearse"),
        seconds=300,
        weights=_SMOLLM2,
    ),
    Part(
        name="cells",
        confirms="several cells share a GPU, and how many an hour",
        command=("benchmark.perf.cells_gpu",),
        rehearsal=("benchmark.perf.cells_gpu", "--rehearse"),
        seconds=480,
        needs=("ray",),
        weights=_SMOLLM2,
    ),
    Part(
        name="two_gpus",
        confirms="two workers over NCCL have the losses of one, and two with a shard of a model each its scores",
        command=(*_TWO_GPUS, "-m", "gpu"),
        rehearsal=(),
        seconds=300,
        gpus=2,
        needs=("pytest", "ray"),
    ),
)


def run(part: Part, command: Sequence[str], seconds: float, log: Path) -> Outcome:
    """Run a part with its output in a file, for at most so many seconds."""
    begin = time.perf_counter()
    code = supervised(command, seconds, log)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    ended = TIMED_OUT if code is None else DONE if code == 0 else FAILED
    if ended == DONE and lines and lines[-1].endswith("left out"):
        ended = LEFT_OUT
    return Outcome(part, ended, time.perf_counter() - begin, tuple(figures(lines)))


def supervised(command: Sequence[str], seconds: float, log: Path) -> int | None:
    """Run `python -m COMMAND`, and return its exit code; None if it had to be interrupted.

    It gets SIGTERM at the end of its time, so that a grid writes its rows, and is killed if that takes longer than
    WAIT. SIGINT would not do: a shell's background process, and what it starts, ignore it. However it ended, what it
    started and left behind is killed: a run with a Ray of its own would use the GPU beside the next part.

    Args:
        command: words behind `python -m`.
        seconds: until it is interrupted.
        log: file for its output, written line by line, so that one that is killed leaves what it printed.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(WAIT)
            return None
        finally:
            with suppress(ProcessLookupError):  # it left nothing behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def check(parts: Sequence[Part], out: Path, seconds: float, grid: Sequence[str], *, rehearse: bool) -> list[Outcome]:
    """Run the parts that this machine can, then the grid, within so many seconds; write the folder after each.

    Args:
        parts: the programs.
        out: folder, which is made.
        seconds: in all.
        grid: words behind `python -m` that run a grid; empty: none.
        rehearse: whether to run the forms for a CPU.
    """
    (out / "output").mkdir(parents=True, exist_ok=True)
    end, count, outcomes = time.monotonic() + seconds, _gpus(), list[Outcome]()
    confirms = "rows of a published grid, from this machine"
    weights = _SMOLLM2 if GRID in grid else ()
    whole = Part("grid", confirms, tuple(grid), tuple(grid), seconds, needs=("ray",), weights=weights)
    for part in (*parts, *([whole] if grid else [])):
        command = part.rehearsal if rehearse else part.command
        left = end - time.monotonic() - (RESERVE if part is whole else 0)
        needs = part.needs if rehearse else (*part.needs, *part.weights)
        absent = [name for name in needs if installed(name) == ABSENT]
        if not command or left <= 0 or not (rehearse or count >= part.gpus):
            outcomes.append(Outcome(part, LEFT_OUT, 0.0, ()))
        elif absent:
            outcomes.append(Outcome(part, f"{LEFT_OUT}: needs {' and '.join(absent)}", 0.0, ()))
            print(f"{part.name}: {outcomes[-1].ended}", flush=True)
        else:
            print(f"{part.name}: {part.confirms}", flush=True)
            outcomes.append(run(part, command, min(left, part.seconds), out / "output" / f"{part.name}.txt"))
            print(f"  {summary(outcomes[-1])}", flush=True)
        write(outcomes, out, rehearse=rehearse)
    return outcomes


def summary(outcome: Outcome) -> str:
    """Return in a line how a part ended and what it measured."""
    measured = [f"{each.name}: {each.measured:g} {each.unit}" for each in outcome.figures]
    return "; ".join([f"{outcome.ended} after {outcome.seconds:.0f} s", *measured])


def good(outcome: Outcome) -> bool:
    """Return whether nothing failed; the grid alone may end by the time."""
    stopped = outcome.ended == TIMED_OUT and outcome.part.name != "grid"
    return outcome.ended != FAILED and not stopped and all(each.met for each in outcome.figures)


def write(outcomes: Sequence[Outcome], out: Path, *, rehearse: bool) -> None:
    """Write `gpu_check.json` and `README.md`."""
    about = machine() | {"rehearsal": rehearse}
    record = {"about": about, "parts": [asdict(each) for each in outcomes]}
    write_atomically(out / "gpu_check.json", json.dumps(record, indent=1))
    write_atomically(out / "README.md", page(outcomes, about))


def machine() -> dict[str, Any]:
    """Return what computed: the code, the device, its instructions, the libraries."""
    return {
        "code": provenance.code_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": provenance.device(),
        "gpus": _gpus(),
        "instruction_set": compute.instruction_set(),
        "python": platform.python_version(),
        **{name: installed(name) for name in LIBRARIES},
    }


def installed(name: str) -> str:
    """Return the version of an installed package; ABSENT if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT


def page(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """Return the page: what was confirmed and measured, and where."""
    title = "# Rehearsal on a CPU: its numbers mean nothing" if about["rehearsal"] else "# Checked on a GPU"
    parts = [[each.part.name, each.part.confirms, each.ended, f"{each.seconds:.0f}"] for each in outcomes]
    measured = [
        [each.name, f"{each.measured:g} {each.unit}", f"{each.bound} {each.target:g} {each.unit}", _yes(each.met)]
        for outcome in outcomes
        for each in outcome.figures
    ]
    tables = [
        markdown_table(["part", "what it confirms", "ended", "seconds"], parts, "lllr"),
        *([markdown_table(["figure", "measured", "target", "met"], measured, "lrrl")] if measured else []),
        markdown_table(["machine", ""], [[name, str(value)] for name, value in about.items()], "ll"),
    ]
    last = "The output of each part is in `output/`. `make gpu-check` makes this folder.\n"
    return "\n\n".join([title, *("\n".join(lines) for lines in tables), last])


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.perf.gpu_check")
    parser.add_argument("--rehearse", action="store_true", help="every part on the CPU, in its smallest form")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_check"), help="folder to write")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts and the grid")
    parser.add_argument("--grid", default=GRID, help="run for the rest of the time; '' for none")
    parser.add_argument("--store", default=".store", help="of the grid")
    options = parser.parse_args(arguments)
    if not options.rehearse and not _gpus():
        print("gpu_check: needs a CUDA GPU, left out; --rehearse runs every part on the CPU")
        return 0
    grid = ["benchmark", "run", options.grid, "--store", options.store, "--results", str(options.out)]
    if options.rehearse:
        grid += ["--scale", "tiny", "--set", "resources.cpus=1"]
    outcomes = check(PARTS, options.out, 60 * options.minutes, grid if options.grid else [], rehearse=options.rehearse)
    print(f"GPU check: {options.out / 'README.md'}")
    return 0 if all(map(good, outcomes)) else 1


if __name__ == "__main__":
    sys.exit(main())
