"""Serve a model with vLLM (an extra, for GPUs) in place of `sande.inference.generation` and `sande.inference.scoring`.

vLLM reads the stored folder of a model, which holds safetensors, in a process of its own on this machine. It receives
token ids and returns token ids and likelihoods, so that prompts, stops and texts are the suite's. Both engines compute
the same in bfloat16 in another order: a text may differ where two tokens are about as likely, as on another GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sande.formats import end_ids, without_close
from sande.inference import counts
from sande.types import LanguageModel

BUILT_IN, VLLM = "built-in", "vllm"
MEMORY = 0.5  # share of a GPU's memory that vLLM takes at its start; `LanguageModel.model` needs some too

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Served(LanguageModel):
    """A language model that vLLM has loaded as well.

    A metric uses it like any other: vLLM computes greedy decoding and the likelihoods of choices, and `model` computes
    everything else.
    """

    llm: Any = field(kw_only=True)

    def greedy(self, prompts: Sequence[Ids], new_tokens: int, until: str, begun: Ids = ()) -> list[str]:
        """Return greedy continuations as `sande.inference.generation.greedy` does, all prompts together.

        vLLM's stop strings respect case, so each text is decoded to its end and cut after the token that completes
        `until`.
        """
        begin = time.perf_counter()
        outputs = self._ask(
            prompts,
            max_tokens=new_tokens,
            stop_token_ids=sorted(end_ids(self.tokenizer)),
            ignore_eos=True,  # only the format's token and EOS end a text, not others that the model's files name
        )
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        counts.add(sum(map(len, tokens)), time.perf_counter() - begin, 1)
        return [self._text(ids, until.lower(), begun) for ids in tokens]

    def log_likelihoods(self, questions: Sequence[tuple[Ids, Sequence[Ids]]]) -> list[tuple[tuple[float, bool], ...]]:
        """Return what `sande.inference.scoring.log_likelihoods` does, for contexts with their choices, all together."""
        longest = self.llm.model_config.max_model_len - 1  # leaves room for the token that vLLM must write
        rows = [[*context, *choice][-longest:] for context, choices in questions for choice in choices]
        outputs = iter(self._ask(rows, max_tokens=1, prompt_logprobs=0))
        return [
            tuple(_score(next(outputs).prompt_logprobs[-len(choice) :], choice) for choice in choices)
            for _, choices in questions
        ]

    def _ask(self, prompts: Sequence[Ids], **settings: Any) -> list[Any]:
        """Return the outputs of vLLM in the order of `prompts`."""
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        greedy = SamplingParams(temperature=0.0, detokenize=False, **settings)
        return list(self.llm.generate(asked, greedy, use_tqdm=False))

    def _text(self, tokens: list[int], until: str, begun: Ids) -> str:
        for end in range(1, len(tokens) if until else 0):
            text = self._decoded(tokens[:end], begun)
            if until in text.lower():
                return text
        return self._decoded(tokens, begun)

    def _decoded(self, tokens: list[int], begun: Ids) -> str:
        return str(self.tokenizer.decode([*begun, *without_close(self.tokenizer, tokens)], skip_special_tokens=True))


def _score(positions: Sequence[Any], choice: Ids) -> tuple[float, bool]:
    found = [at[token] for at, token in zip(positions, choice, strict=True)]
    return sum(token.logprob for token in found), all(token.rank == 1 for token in found)


@contextmanager
def served(lm: LanguageModel, folder: Path, seed: int) -> Iterator[Served]:
    """Yield the model of a folder, served by vLLM, whose process ends with the block.

    Args:
        lm: the model as loaded from the folder; vLLM uses its type, too.
        folder: written by `sande.models.loading.save`.
        seed: of vLLM; greedy decoding does not need it.
    """
    # Before the import, which reads them: vLLM reports no usage and contacts no other machine.
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    llm = LLM(
        model=str(folder),
        load_format="safetensors",
        use_tqdm_on_load=False,
        trust_remote_code=False,
        skip_tokenizer_init=True,
        generation_config="vllm",  # not that of the model
        dtype=str(lm.model.dtype).removeprefix("torch."),
        hf_overrides={"head_dtype": "float32"},  # in bfloat16 the logits of two letters are often the same number
        max_model_len=-1,  # as long as memory allows
        gpu_memory_utilization=MEMORY,
        enforce_eager=True,  # compiling takes longer than a metric
        seed=seed,
    )
    try:
        yield Served(lm.model, lm.tokenizer, lm.guard, lm.workers, llm=llm)
    finally:
        llm.llm_engine.engine_core.shutdown()


def version() -> str:
    """Return the version of vLLM, under any name of its distribution."""
    import vllm

    return str(vllm.__version__)
