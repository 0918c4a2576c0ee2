"""Check the choice of `sande.compute`: compare the chosen type with the other one, in training and in decoding.

    python -m benchmark.perf.compute_type

SmolLM2-135M computes on a few short built-in rows, since the slower type may be eighty times slower. The types take
turns. On no kind of processor may the chosen type be the slower one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch

from benchmark.perf.outcome import tell
from benchmark.perf.training_cpu import Stopwatch
from sande import compute
from sande.compute import ComputeType
from sande.config import Training
from sande.data.builtin import sets
from sande.inference.generation import greedy
from sande.models import catalog, loading
from sande.prompts import Row, encode, encode_prompts
from sande.training.fit import fit
from sande.types import LanguageModel, Run

TURNS = 2
BATCH, STEPS = 8, 3  # the first step is not counted
PROMPTS, TOKENS = 8, 5
DTYPES: dict[ComputeType, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def training_step(lm: LanguageModel, rows: list[Row], precision: ComputeType, scratch: str) -> float:
    """Return the seconds of a training step."""
    watch = Stopwatch()

    def prepare(trainer: Any) -> Any:
        trainer.add_callback(watch)
        return trainer

    run = Run(seed=0, scratch=scratch, prepare=prepare, say=lambda line: None)
    settings = Training(batch_size=BATCH, max_steps=STEPS, learning_rate=1e-7, precision=precision)
    fit(lm, rows, settings, run, "perf")
    return watch.seconds / (STEPS - 1)


def decoding(lm: LanguageModel, prompts: list[list[int]], precision: ComputeType) -> float:
    """Return the seconds of decoding some prompts."""
    read = loading.copied(lm, DTYPES[precision])
    greedy(read, prompts[:1], 1, 1)  # libraries choose their kernels
    begin = time.perf_counter()
    greedy(read, prompts, TOKENS, PROMPTS)
    return time.perf_counter() - begin


def main() -> None:
    """Choose the type, measure both types, and print a line for each comparison."""
    begin = time.perf_counter()
    chosen = compute.compute_type()
    decided = time.perf_counter() - begin
    (other,) = set(get_args(ComputeType)) - {chosen}
    with tempfile.TemporaryDirectory() as cache:
        lm = loading.load(catalog.EMBEDDED, Path(cache))
        examples = sets.short()[:200]
        rows = sorted(encode(lm.tokenizer, examples), key=len)[: BATCH * STEPS]
        prompts = sorted(encode_prompts(lm.tokenizer, examples), key=len)[:PROMPTS]
        steps: dict[ComputeType, float] = dict.fromkeys(DTYPES, 0.0)
        texts: dict[ComputeType, float] = dict.fromkeys(DTYPES, 0.0)
        for _ in range(TURNS):
            for precision in DTYPES:
                steps[precision] += training_step(lm, rows, precision, f"{cache}/trainer") / TURNS
                texts[precision] += decoding(lm, prompts, precision) / TURNS
    print(f"  {compute.instruction_set()}: {chosen}, decided in {1000 * decided:.0f} ms")
    for what, seconds in (("a training step", steps), ("decoding", texts)):
        print(f"  {what}: {', '.join(f'{precision} {took:.2f} s' for precision, took in seconds.items())}")
        tell(f"compute type: {what} in {chosen} against {other}", seconds[other] / seconds[chosen], 1)


if __name__ == "__main__":
    main()
