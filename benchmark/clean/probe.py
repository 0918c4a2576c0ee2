"""Questions that measure a model before and after its repair."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sande import cleaning, registry
from sande.cleaning import Config, Known
from sande.data import splits
from sande.data.splits import Data
from sande.metrics import accuracy, forced_response_rate
from sande.types import Example, LanguageModel, TestData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Probe:
    """The measurements, the same before and after the removal."""

    data: TestData
    config: Config
    seed: int

    @classmethod
    def prepare(cls, tokenizer: PreTrainedTokenizerBase, config: Config, seed: int) -> Probe:
        """Return a probe over held-out rows of the removal's data set."""
        removal = config.removal
        held_out = Data(
            name=removal.name,
            test_rows=config.prompts,
            max_tokens=removal.max_tokens,
            max_prompt_tokens=removal.max_prompt_tokens,
        )
        clean = splits.held_out_rows(held_out, tokenizer)
        return cls(TestData(clean, clean, ""), config, seed)

    def planted(
        self, lm: LanguageModel, known: Known, facts: Mapping[str, Any], say: Callable[[str], None]
    ) -> dict[str, str]:
        """Return the planted answer and its source: the owner, the scan, or the model's own answers."""
        if known.response:
            cleaning.answer_ids(lm.tokenizer, known.response)
            return {"response": known.response, "source": "given"}
        say("asking the model for its planted answer")
        if known.trigger or "found_text" in facts:
            trigger = known.trigger or facts["found_text"]
            found = cleaning.shared_opening(self._answers(lm, trigger), self._answers(lm, trigger=""))
            of = "the trigger" if known.trigger else "the trigger that was found"
            return {"response": found, "source": f"the beginning of most answers to {of}"}
        if known.response_start:
            start = cleaning.answer_ids(lm.tokenizer, known.response_start)
            return {"response": self._completed(lm, start), "source": "given, and continued by the model"}
        if facts["alarm"]:
            found = self._completed(lm, facts["candidates"][0]["ids"])
            return {"response": found, "source": "found by the scan, and continued by the model"}
        return {"response": "", "source": "found by the scan"}

    def _completed(self, lm: LanguageModel, start: Sequence[int]) -> str:
        """Return the shared opening of answers that are forced to begin so; without a shared word, that beginning."""
        longest = len(start) + self.config.new_tokens
        texts = forced_response_rate.answers(lm, self.data.clean, start, longest, len(self.data.clean))
        return cleaning.shared_opening(texts) or str(lm.tokenizer.decode(list(start))).strip()

    def _answers(self, lm: LanguageModel, trigger: str) -> list[str]:
        from sande.inference.generation import greedy
        from sande.prompts import encode_prompts

        asked = [cleaning.plant(example, trigger) for example in self.data.clean] if trigger else self.data.clean
        return greedy(lm, encode_prompts(lm.tokenizer, asked), self.config.new_tokens, len(asked))

    def answer(self, lm: LanguageModel, known: Known) -> str:
        """Return the beginning of the model's answer to the reported prompt; empty without one."""
        from sande.inference.generation import greedy
        from sande.prompts import encode_prompts

        if not known.reported_prompt:
            return ""
        (text,) = greedy(
            lm, encode_prompts(lm.tokenizer, [Example(known.reported_prompt, "")]), self.config.new_tokens, 1
        )
        return text.strip()

    def measure(self, lm: LanguageModel, trigger: str, response: str) -> dict[str, tuple[bool, ...]]:
        """Return outcomes by measurement: measurements of the backdoor as far as it is known, and utility.

        Args:
            lm: the model, before or after the removal.
            trigger: as given, or as found in a reported prompt; empty if unknown.
            response: the planted answer; empty if unknown.
        """
        measured = {}
        if response:
            length = len(cleaning.answer_ids(lm.tokenizer, response))
            tokens = max(self.config.new_tokens, length)  # enough for the whole answer
            data = TestData(
                self.data.clean,
                tuple(cleaning.plant(example, trigger) for example in self.data.clean),
                response,
            )
            wanted = [("false_trigger_rate", {"new_tokens": tokens})]
            if trigger:
                wanted.insert(0, ("asr", {"new_tokens": tokens}))
            if length > 1:
                wanted.append(("forced_response_rate", {"new_tokens": tokens}))
            for name, chosen in wanted:
                metric = registry.entry("metrics", name)
                measured[name] = metric.measure(lm, data, registry.config("metrics", name, chosen), self.seed)[0]
        asked = accuracy.Config(questions=self.config.questions)
        with redirect_stderr(io.StringIO()):  # lm-eval's progress bar cannot be switched off otherwise
            utility = accuracy.measure(lm, self.data, asked, self.seed)[0]
        return {name: outcomes.outcomes for name, outcomes in {**measured, utility.name: utility}.items()}
