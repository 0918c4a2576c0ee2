"""What a stage ran on and with: code, versions, device, memory, tokens."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sande
from benchmark.plan.stage import Stage
from sande import compute, registry

CODE_VERSION = "SANDE_CODE_VERSION"  # in the environment of a job, which runs outside of a checkout
DIRTY = "-dirty"  # suffix of the commit where files differ from it
LIBRARIES = ("torch", "transformers", "tokenizers", "trl", "peft", "accelerate", "datasets", "lm_eval", "numpy", "ray")


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Measure seconds and peak memory of the block: the process's on a CPU, the allocator's and the total on a GPU."""
    import torch

    cuda = torch.cuda.is_available()
    cost: dict[str, Any] = {"started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_peak_rss()
    begin = time.perf_counter()
    yield cost
    cost["seconds"] = round(time.perf_counter() - begin, 3)
    cost["peak_memory_bytes"] = torch.cuda.max_memory_allocated() if cuda else _peak_rss()
    if cuda:
        cost["device_memory_bytes"] = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def manifest(
    stage: Stage, cost: dict[str, Any], tokens: int, compute_type: str, workers: int, more: dict[str, Any]
) -> dict[str, Any]:
    """Return the manifest of an artifact: its settings, its costs, and what computed it.

    Args:
        stage: made the artifact.
        cost: seconds and memory of this stage alone, see `measured`.
        tokens: trained on.
        compute_type: of its trainings or measurements.
        workers: processes that computed it together.
        more: further values.
    """
    return {
        "kind": stage.kind,
        "settings": dict(stage.settings),
        **cost,
        "tokens": tokens,
        **computed_with(compute_type, workers),
        **more,
    }


def computed_with(compute_type: str, workers: int) -> dict[str, Any]:
    """Return what this process computes with: device, instruction set, compute type, code, versions of libraries."""
    return {
        "device": device(),
        "instruction_set": compute.instruction_set(),
        "compute_type": compute_type,
        "workers": workers,
        "code_version": code_version(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
            **registry.plugin_versions(),
        },
    }


def device() -> str:
    """Return the GPU's name, or the processor's with the threads in use."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return f"{model} ({torch.get_num_threads()} threads)"


def code_version() -> str:
    """Return the version of the package, with the commit in a checkout; in a job that of the submitting process."""
    if CODE_VERSION in os.environ:
        return os.environ[CODE_VERSION]
    commit, changes = _git("describe", "--always"), changed_files()
    if commit is None or changes is None:
        return sande.__version__
    return f"{sande.__version__}+{commit}{DIRTY if changes else ''}"


def changed_files() -> list[str] | None:
    """Return tracked files of the checkout that differ from its commit, except results; None outside a checkout."""
    status = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return None if status is None else [line.split(maxsplit=1)[-1] for line in status.splitlines()]


def _git(*arguments: str) -> str | None:
    """Return git's output about the checkout of this program; None where there is no git or no checkout."""
    here = Path(sande.__file__).parent.parent
    try:
        git = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return git.stdout.strip()


def tokens(facts: Mapping[str, Any]) -> int:
    """Return the tokens of all trainings among a stage's facts."""
    return sum(fact["tokens"] for fact in _trainings(facts))


def compute_type(facts: Mapping[str, Any]) -> str:
    """Return the type that a stage's trainings computed in: both, where they differ; fp32 for a stage without any."""
    return "+".join(sorted({fact["compute_type"] for fact in _trainings(facts)})) or "fp32"


def _trainings(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the facts of trainings; a stage may also count what it only reads, such as the tokens of a calibration."""
    return [fact for fact in facts.values() if isinstance(fact, dict) and "steps" in fact]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _reset_peak_rss() -> None:
    # Linux: restart VmHWM here, so that a reused worker does not report an earlier stage's peak.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_rss() -> int:
    for line in _lines(f"/proc/{os.getpid()}/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
