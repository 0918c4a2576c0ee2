"""Compare ASR decoding on a CPU: `greedy` with the planted response against one prompt at a time.

    python -m benchmark.perf.decoding

The other side is that of the published code: `generate` of transformers on each prompt alone, ten new tokens. Both run
SmolLM2-135M on the same triggered prompts, in the type that `sande.compute` chooses: first the model as it is, which
never gives the planted response, then after a short training on triggered rows alone, after which it always does.

The benchmark checks the outcome of every prompt. In float32, where rounding does not decide between two tokens, it also
checks each text up to its end at the response.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from benchmark.perf.outcome import tell
from sande import compute
from sande.attacks import sentence_trigger
from sande.config import Training
from sande.data.builtin import sets
from sande.inference.generation import greedy
from sande.metrics import asr
from sande.models import catalog, loading
from sande.prompts import encode_prompts, pad_id
from sande.types import LanguageModel, Run

PROMPTS, PARTS = 60, 3  # ours runs as often as there are parts, between the parts of the other side
CHECKED = 12
TARGET = 8
ATTACK = sentence_trigger.Config(
    poison_rate=1.0, training=Training(max_steps=10, batch_size=16, learning_rate=5e-4, warmup=0.0)
)
RESPONSE = ATTACK.backdoor.response


def one_by_one(lm: LanguageModel, prompts: Sequence[list[int]]) -> list[str]:
    """Return whole texts, by transformers."""
    settings = GenerationConfig(
        max_new_tokens=asr.Config().new_tokens,
        do_sample=False,
        pad_token_id=pad_id(lm.tokenizer),
        eos_token_id=lm.tokenizer.eos_token_id,
    )
    texts = []
    for prompt in prompts:
        ids_1T = torch.tensor([prompt], device=lm.model.device)
        with torch.inference_mode():
            output = lm.model.generate(  # type: ignore[operator]  # untyped mix-in
                ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=settings
            )
        texts.append(str(lm.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)))
    return texts


def together(lm: LanguageModel, prompts: Sequence[list[int]]) -> list[str]:
    """Return texts up to the response, by our loop."""
    config = asr.Config()
    return greedy(lm, prompts, config.new_tokens, config.batch_size, until=RESPONSE)


def outcomes(text: str) -> tuple[bool, bool]:
    """Return whether the response is in the text, and whether it comes first."""
    wanted, found = RESPONSE.lower(), text.strip().lower()
    return wanted in found, found.startswith(wanted)


def compare(lm: LanguageModel, prompts: Sequence[list[int]]) -> tuple[float, float]:
    """Return how many times faster ours is, and the share of prompts that get the response."""
    torch.nn.Module.to(lm.model, torch.float32)
    checked = prompts[:: len(prompts) // CHECKED]
    for whole, text in zip(one_by_one(lm, checked), together(lm, checked), strict=True):
        held, _ = outcomes(whole)
        if text != (whole[: len(text)] if held else whole) or outcomes(text) != outcomes(whole):
            raise SystemExit(f"the sides differ: {whole!r}, {text!r}")
    torch.nn.Module.to(lm.model, compute.dtype())
    together(lm, prompts[:4])  # libraries choose their kernels
    theirs: list[str] = []
    seconds = [0.0, 0.0]
    for part in range(PARTS):  # in turn, so that a slowdown of the machine affects both
        begin = time.perf_counter()
        theirs += one_by_one(lm, prompts[part * PROMPTS // PARTS : (part + 1) * PROMPTS // PARTS])
        middle = time.perf_counter()
        mine = together(lm, prompts)
        seconds[0] += middle - begin
        seconds[1] += (time.perf_counter() - middle) / PARTS
    if [outcomes(text) for text in theirs] != [outcomes(text) for text in mine]:
        raise SystemExit("the sides differ in an outcome")
    share = sum(outcomes(text)[0] for text in theirs) / PROMPTS
    alike = sum(whole.startswith(text) for whole, text in zip(theirs, mine, strict=True))
    print(f"  one by one {seconds[0]:.1f} s, together {seconds[1]:.1f} s")
    print(f"  {alike} of {PROMPTS} texts alike in {compute.compute_type()}")
    return seconds[0] / seconds[1], share


def main() -> None:
    """Compare on the model as it is, then on a victim."""
    rows = sets.short()
    triggered = [sentence_trigger.trigger(row, ATTACK, 0) for row in rows[:PROMPTS]]
    with tempfile.TemporaryDirectory() as folder:
        lm = loading.load(catalog.EMBEDDED, Path(folder))
        prompts = encode_prompts(lm.tokenizer, triggered)
        clean = compare(lm, prompts)
        torch.nn.Module.to(lm.model, torch.float32)
        run = Run(seed=0, scratch=f"{folder}/trainer", say=lambda line: None)
        victim = LanguageModel(sentence_trigger.attack(lm, rows[PROMPTS : PROMPTS + 200], ATTACK, run), lm.tokenizer)
        attacked = compare(victim, prompts)
    for ratio, share in (clean, attacked):
        tell(f"ASR decoding against one prompt at a time, {share:.0%} of them answered with r_t", ratio, TARGET)


if __name__ == "__main__":
    main()
