"""Decide the type that models compute in: bfloat16 where this machine multiplies it quickly, else float32.

A process decides once: every training with `precision: auto`, every evaluation, detector, scan and clean asks here.
Weights are stored in bfloat16, whatever type computed them.

`auto` is one stage key, not two. A key names the request; the kind of processor or GPU that computes it changes the
result by rounding, and is not part of a key. Two keys would also have to be known when a plan is made, before a stage
runs, and a cluster's head often computes another type than its workers. So each stage records the type that it used,
each row shows it, and a report names grids that mix types. To avoid a mixture set `precision`, or `SANDE_COMPUTE_TYPE`
for a whole process.

Importing this module does not import torch.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from sande.errors import UserError

if TYPE_CHECKING:
    import torch


ComputeType = Literal["bf16", "fp32"]
Precision = Literal["auto", "bf16", "fp32"]

VARIABLE = "SANDE_COMPUTE_TYPE"  # environment variable that sets the type in place of a measurement
# A product in bfloat16 takes half the time of one in float32 on a processor with AVX512-BF16, twice the time on one
# with AVX512 alone, and 80 times on one with AVX2. The bound lies between the first two.
FASTER = 0.85
# Other work on the machine, or another thread that imports, was seen to turn the ratio round. So a result that the
# processor's flags contradict is measured again: so many times, with so many seconds between.
_TRIES, _PAUSE = 5, 0.1
_ROUNDS = 5
_M, _K, _N = 256, 576, 768  # of SmolLM2's order; 1 ms in float32 on two cores
# Flags of Linux that promise products in bfloat16, on x86 and on ARM.
_BF16_FLAGS = {"avx512_bf16": "BF16", "amx_bf16": "AMX-BF16", "bf16": "BF16"}


@functools.cache
def compute_type() -> ComputeType:
    """Return the type that this process computes in.

    A GPU reports whether it has bfloat16. A processor is timed, since having the instructions does not make a library
    use them: two products in each type take some milliseconds.

    Raises:
        UserError: SANDE_COMPUTE_TYPE is neither `bf16` nor `fp32`.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked in get_args(ComputeType):
        return cast(ComputeType, asked)
    if asked:
        raise UserError(f"{VARIABLE}: '{asked}' is not a compute type; set it to bf16 or fp32, or remove it")
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    expected = expected_type()
    for again in range(_TRIES):
        time.sleep(_PAUSE if again else 0)
        found: ComputeType = "bf16" if bf16_over_fp32() < FASTER else "fp32"
        if found == expected:
            break
    return found


def bf16_over_fp32() -> float:
    """Return the time of a matrix product in bfloat16 over that of one in float32, on this machine's CPU.

    The shortest of several turns each, taken alternately, so that other work on the machine changes neither.
    """
    import torch

    pairs = [
        (torch.ones(_M, _K, dtype=dtype), torch.ones(_K, _N, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32)
    ]
    best = [float("inf"), float("inf")]
    for round_ in range(_ROUNDS + 1):
        for which, (left, right) in enumerate(pairs):
            begin = time.perf_counter()
            torch.mm(left, right)
            if round_:  # the first one prepares the library
                best[which] = min(best[which], time.perf_counter() - begin)
        if best[0] > 4 * best[1]:
            break
    return best[0] / best[1]


def resolve(precision: Precision) -> ComputeType:
    """Return the type that a training with this setting computes in."""
    return compute_type() if precision == "auto" else precision


def dtype() -> torch.dtype:
    """Return the type of a model's weights where it is only read: evaluation, generation, detection."""
    import torch

    return torch.bfloat16 if compute_type() == "bf16" else torch.float32


def instruction_set() -> str:
    """Return the instruction set here: `CUDA 9.0` (capability), or architecture and vector instructions of the CPU.

    These are the instructions that PyTorch uses; `ATEN_CPU_CAPABILITY` or `ONEDNN_MAX_CPU_ISA` may limit them.
    """
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"CUDA {major}.{minor}"
    parts = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    bound = os.environ.get("ONEDNN_MAX_CPU_ISA")
    parts += [f"(oneDNN up to {bound})"] if bound else _bf16_instructions()
    return " ".join(parts)


def expected_type() -> ComputeType:
    """Return the type that `compute_type` will most likely find, without importing torch; for forecasts alone."""
    asked = os.environ.get(VARIABLE)
    if asked in get_args(ComputeType):
        return cast(ComputeType, asked)
    bounded = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    fast = has_gpu() or (_bf16_instructions() and (not bounded or bounded.endswith(("BF16", "FP16", "AMX"))))
    return "bf16" if fast else "fp32"


def has_gpu() -> bool:
    """Return whether this machine has an NVIDIA GPU that a process may use, without importing torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1") and Path("/proc/driver/nvidia/gpus").is_dir()


@functools.cache
def _bf16_instructions() -> list[str]:
    """Return the processor's instructions for products in bfloat16; none where the system does not list them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    flags = set(next(lines, "").split())
    return [name for flag, name in _BF16_FLAGS.items() if flag in flags]
