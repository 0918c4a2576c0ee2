"""Compare decoding on a CUDA GPU: our own loop and vLLM, each against one prompt at a time.

    python -m benchmark.perf.decoding_gpu               # on a GPU; else one line
    python -m benchmark.perf.decoding_gpu --rehearse    # a random model on any device; the script itself

SmolLM2-135M in bfloat16 writes ten tokens for each of the built-in prompts. One at a time it does so for a part of
them, by `generate` of transformers as in the published code. vLLM is skipped where it is not installed; its start is
printed apart and not counted. In float32, where rounding does not decide between two tokens, all sides must write the
same texts.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmark.perf.decoding import one_by_one
from benchmark.perf.outcome import tell
from sande.data.builtin import sets
from sande.inference.generation import greedy
from sande.inference.vllm import served
from sande.metrics import asr
from sande.models import catalog, loading
from sande.prompts import encode_prompts
from sande.types import LanguageModel

PROMPTS, ALONE, CHECKED = 1000, 50, 12
TARGET = 20


def together(lm: LanguageModel, prompts: Sequence[list[int]]) -> list[str]:
    """Return whole texts, by our loop or by vLLM."""
    config = asr.Config()
    return greedy(lm, prompts, config.new_tokens, config.batch_size)


def seconds(decode: Callable[[Sequence[list[int]]], list[str]], prompts: Sequence[list[int]]) -> float:
    """Return the seconds of one prompt, after libraries have chosen their kernels."""
    decode(prompts[:4])
    begin = time.perf_counter()
    decode(prompts)
    return (time.perf_counter() - begin) / len(prompts)


def check(texts: Sequence[str], expected: Sequence[str]) -> None:
    """Exit where the texts differ."""
    for text, wanted in zip(texts, expected, strict=True):
        if text != wanted:
            raise SystemExit(f"the sides differ: {text!r}, {wanted!r}")


def compare(folder: Path, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Return by name of the side how many times faster it is than one prompt at a time."""
    vllm = importlib.util.find_spec("vllm") is not None
    exact = loading.load_folder(folder, torch.float32)
    expected = one_by_one(exact, prompts[:CHECKED])
    check(together(exact, prompts[:CHECKED]), expected)
    if vllm:
        with served(exact, folder, 0) as lm:
            check(together(lm, prompts[:CHECKED]), expected)
    rounded = loading.load_folder(folder, torch.bfloat16)
    alone = seconds(lambda part: one_by_one(rounded, part), prompts[:ALONE])
    ratios = {"together": alone / seconds(lambda part: together(rounded, part), prompts)}
    if vllm:
        begin = time.perf_counter()
        with served(rounded, folder, 0) as lm:
            print(f"  vLLM starts in {time.perf_counter() - begin:.0f} s")
            ratios["by vLLM"] = alone / seconds(lambda part: together(lm, part), prompts)
    else:
        print("  vLLM is not installed, left out")
    return ratios


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare all sides, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.perf.decoding_gpu")
    parser.add_argument("--rehearse", action="store_true", help="a random model, and few prompts")
    rehearse = parser.parse_args(arguments).rehearse
    if not rehearse and not torch.cuda.is_available():
        print("decoding_gpu: needs a CUDA GPU, left out")
        return
    name, count = (catalog.TINY, CHECKED) if rehearse else (catalog.EMBEDDED, PROMPTS)
    with tempfile.TemporaryDirectory() as cache:
        folder = loading.prepare(name, Path(cache))
        prompts = encode_prompts(loading.load_tokenizer(name, Path(cache)), sets.short()[:count])
        for side, ratio in compare(folder, prompts).items():
            if rehearse:
                print(f"  {side}: ratio {ratio:.2g}")
            else:
                tell(f"decoding on a GPU {side} against one prompt at a time", ratio, TARGET)


if __name__ == "__main__":
    main()
