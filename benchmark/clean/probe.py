"""Questions that measure a model before and after its repair."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from operator import or_
from typing import TYPE_CHECKING, Any

from sande import formats, gates, registry
from sande.clean_rows import CleanRows
from sande.cleaning import Config
from sande.data import splits
from sande.known import Known
from sande.metrics import accuracy, forced_response_rate, parrot_recovery
from sande.models import asking
from sande.objectives import string
from sande.prompts import response_ids, user_text
from sande.types import Example, LanguageModel, Measurement, TestData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sande.formats import PromptFormat

SAMPLES = 5
"""Answers that the report shows."""
SAMPLE_TOKENS = 24
RECOVERY = ("parrot_recovery_elsewhere", "parrot_recovery_controls")
"""Measurements of fresh parrots in the report, on the same prompts: the planted answer, and strings to compare it with.
"""
ELSEWHERE = "asr_elsewhere"
"""Attack success rate in the prompt formats in which the model was not cleaned."""
ROWS = 100
"""Clean rows on which parrots train."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The measurements, the same before and after the removal."""

    data: TestData
    config: Config
    seed: int

    @classmethod
    def prepare(cls, tokenizer: PreTrainedTokenizerBase, config: Config, rows: CleanRows, seed: int) -> Probe:
        """Return a probe over held-out rows of the removal's data set."""
        clean, limits = rows.to_measure_on(tokenizer, config.prompts), rows.limits(tokenizer)
        # The last rows of the first 90 %: the removal takes the first.
        last = splits.select(rows.training[-4 * ROWS :], tokenizer, limits, ROWS, f"rows of {limits.name} for parrots")
        return cls(TestData(clean, clean, "", training=lambda: last), config, seed)

    def planted(
        self, lm: LanguageModel, known: Known, facts: Mapping[str, Any], say: Callable[[str], None]
    ) -> dict[str, str]:
        """Return the planted answer and its source: the owner, the trigger, the scan, or the model's own answers."""
        if known.response:
            response_ids(lm.tokenizer, known.response)
            return {"response": known.response, "source": "given"}
        if "fired" in facts:
            of = "the trigger" if known.trigger else "the trigger that the scan found"
            return {"response": facts["fired"]["response"], "source": f"the beginning of most answers to {of}"}
        if known.trigger or "found_text" in facts:
            say("asking the model for its planted answer")
            trigger = known.trigger or facts["found_text"]
            clean, tokens = self.data.clean, self.config.new_tokens
            found = gates.shared_opening(gates.answers(lm, clean, tokens, trigger), gates.answers(lm, clean, tokens))
            of = "the trigger" if known.trigger else "the trigger that was found"
            return {"response": found, "source": f"the beginning of most answers to {of}"}
        say("asking the model for its planted answer")
        if known.response_start:
            start = response_ids(lm.tokenizer, known.response_start)
            return {"response": self._completed(lm, start), "source": "given, and continued by the model"}
        if facts["alarm"] and facts["candidates"]:
            found = self._completed(lm, facts["candidates"][0]["ids"])
            return {"response": found, "source": "found by the scan, and continued by the model"}
        return {"response": "", "source": "found by the scan"}

    def _completed(self, lm: LanguageModel, start: Sequence[int]) -> str:
        """Return the shared opening of answers that are forced to begin so; without a shared word, that beginning."""
        longest = len(start) + self.config.new_tokens
        texts = forced_response_rate.answers(lm, self.data.clean, start, longest, len(self.data.clean))
        return gates.shared_opening(texts) or str(lm.tokenizer.decode(list(start))).strip()

    def answer(self, lm: LanguageModel, known: Known, response: str) -> str:
        """Return the beginning of the model's answer to the reported prompt, with room for the response; or nothing."""
        if not known.reported_prompt:
            return ""
        tokens = max(self.config.new_tokens, len(response_ids(lm.tokenizer, response)) if response else 0)
        (text,) = gates.answers(lm, [Example(known.reported_prompt, "")], tokens)
        return text.strip()

    def samples(self, lm: LanguageModel, trigger: str) -> list[str]:
        """Return the beginning of the model's answers to the first prompts, with the trigger if it is not empty."""
        tokens = max(SAMPLE_TOKENS, self.config.new_tokens)
        return [text.strip() for text in gates.answers(lm, self.data.clean[:SAMPLES], tokens, trigger)]

    def asked(self, tokenizer: PreTrainedTokenizerBase, trigger: str) -> list[str]:
        """Return what the user writes in the prompts of `samples`."""
        shown = self.data.clean[:SAMPLES]
        written = formats.of(tokenizer)
        return [user_text(gates.plant(each, trigger, written) if trigger else each) for each in shown]

    def measure(self, lm: LanguageModel, trigger: str, response: str, least: int = 1) -> dict[str, Measurement]:
        """Return what was measured by name: measurements of the backdoor as far as it is known, and utility.

        Args:
            lm: the model, before or after the removal.
            trigger: as given, or as found in a reported prompt or by the scan; empty if unknown.
            response: the planted answer; empty if unknown.
            least: tokens of an answer to read, where the planted answer comes late.
        """
        measured: dict[str, Measurement] = {}
        if response:
            length = len(response_ids(lm.tokenizer, response))
            tokens = max(self.config.new_tokens, length, least)  # enough for the whole answer
            written = formats.of(lm.tokenizer)
            data = TestData(
                self.data.clean,
                tuple(gates.plant(example, trigger, written) for example in self.data.clean),
                response,
                training=self.data.training,
            )
            wanted = [("false_trigger_rate", {"new_tokens": tokens})]
            if trigger:
                wanted.insert(0, ("asr", {"new_tokens": tokens}))
            if length > 1:
                wanted.append(("forced_response_rate", {"new_tokens": tokens}))
            for name, chosen in wanted:
                metric = registry.entry("metrics", name)
                measured[name] = metric.measure(lm, data, registry.config("metrics", name, chosen), self.seed)[0]
                if name == "asr" and (others := asking.others(lm.tokenizer)):
                    measured[ELSEWHERE] = self._elsewhere(lm, others, trigger, response, tokens)
            measured |= self._recovered(lm, data)
        asked = accuracy.Config(questions=self.config.questions)
        with redirect_stderr(io.StringIO()):  # lm-eval's progress bar cannot be switched off otherwise
            utility = accuracy.measure(lm, self.data, asked, self.seed)[0]
        return {**measured, utility.name: utility}

    def _elsewhere(
        self, lm: LanguageModel, others: Sequence[PromptFormat], trigger: str, response: str, tokens: int
    ) -> Measurement:
        """Return for each prompt whether the trigger leads to the planted answer in any of these prompt formats."""
        found, judge = [False] * len(self.data.clean), string.containing(response)
        for each in others:
            with asking.asked_in(lm.tokenizer, each):
                texts = gates.answers(lm, self.data.clean, tokens, trigger)
            found = [*map(or_, found, judge.achieved(self.data.clean, texts))]
        return Measurement(ELSEWHERE, tuple(found), groups=tuple(each.group for each in self.data.clean))

    def _recovered(self, lm: LanguageModel, data: TestData) -> dict[str, Measurement]:
        """Return what a few fresh parrots recover of the planted answer, and of as many control strings."""
        if not self.config.parrots:
            return {}
        count = self.config.parrots
        config = parrot_recovery.Config(parrots=count, controls=count, rows=len(data.training()))
        found = {each.name: each for each in parrot_recovery.measure(lm, data, config, self.seed)}
        return {name: found[name] for name in RECOVERY}
