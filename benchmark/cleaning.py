"""Measure a model, remove its backdoor as far as it is known, measure it again and report: `sande-bench clean`.

The result is one new folder, which is written atomically.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import clean_report, logs, stages
from benchmark.grid import settings_of
from sande import cleaning, compute, registry
from sande.cleaning import Config, Known
from sande.config import as_dict, configure
from sande.data import sources
from sande.data.sources import Data
from sande.errors import UserError
from sande.metrics import accuracy, forced_response_rate
from sande.statistics import mcnemar, paired_bootstrap, wilson
from sande.types import LanguageModel, Run, TestData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("torch", "transformers")


def settings(data: str | None, assignments: Sequence[str]) -> Config:
    """Return the configuration with the rows of a data set and with assignments such as `path.to.field=value`.

    Raises:
        UserError: there is no such setting, or it does not take the value.
    """
    values = settings_of(assignments, {"removal": {"name": data}} if data else None)
    return configure(Config, values, "clean")


def run(model: str, known: Known, config: Config, out: Path, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Clean a model into a new folder, with model card and report.

    Args:
        model: a folder, a Hub id with its commit, or a name.
        known: what is known of the backdoor.
        config: rows, sizes, and settings of the defense.
        out: new or empty folder.
        seed: of everything random.
        say: receives progress.

    Returns:
        The contents of the report, as JSON values.

    Raises:
        UserError: the model, the data or `out` cannot be used, or the tokenizer cannot encode what is known.
    """
    from sande import models

    _check_new(out)
    models.identify(model)  # reports a wrong model or data set before libraries are loaded
    sources.fingerprint(config.removal.name)
    logs.quiet()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out}: the folder cannot be written ({error.strerror}); choose another --out") from None
    try:
        with stages.measured() as cost:
            say(f"loading {model}")
            lm = models.load(model, work / "cache")
            probe = _Probe.prepare(lm.tokenizer, config, seed)
            examples = sources.removal_rows(config.removal, lm.tokenizer)
            task = Run(seed=seed, scratch=str(work / "trainer"), say=say)
            with stages.measured() as removal_cost:
                say(f"cleaning with {cleaning.method(known)} on {len(examples)} rows of {config.removal.name}")
                cleaning.clean(lm, known, examples, config, task)
            folder = work / "cleaned"
            models.save(lm, folder)
            with stages.measured() as measuring_cost:
                # Measure the models as they are written: with weights rounded to bfloat16.
                lm = models.load(model, work / "cache")
                models.round_as_stored(lm, compute.dtype())
                planted = probe.planted(lm, known, task.facts, say)
                say("measuring the model as it was")
                before = probe.measure(lm, known, planted["response"])
                say("measuring the cleaned model")
                after = probe.measure(models.load_folder(folder, compute.dtype()), known, planted["response"])
        result = {
            "model": model,
            "identity": models.identify(model),
            "known": {name: text for name, text in dataclasses.asdict(known).items() if text},
            "method": cleaning.method(known),
            "planted": planted,
            "measured": [_row(name, before[name], after[name]) for name in before],
            "facts": task.facts,
            "cost": {
                "seconds": cost["seconds"],
                "measuring": measuring_cost["seconds"],
                "removal": removal_cost["seconds"],
                "tokens": stages.tokens(task.facts),
                "peak_memory_bytes": removal_cost["peak_memory_bytes"],
                "device": stages.device(),
                "compute_type": compute.compute_type(),
                "instruction_set": compute.instruction_set(),
            },
            "seed": seed,
            "settings": _used(config, cleaning.method(known)),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {
                "sande-bench": stages.code_version(),
                "python": platform.python_version(),
                **{name: version(name) for name in LIBRARIES},
            },
        }
        clean_report.write(result, folder)
        os.rename(folder, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def known(trigger: str, response: str, response_start: str) -> Known:
    """Return what the owner knows, without spaces around it."""
    return Known(trigger.strip(), response.strip(), response_start.strip())


def _check_new(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: the folder is not empty; choose another --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: not a folder; choose another --out")


def _used(config: Config, method: str) -> dict[str, Any]:
    """Return the settings without those of the other defenses."""
    others = set(cleaning.METHODS.values()) - {method}
    return {name: value for name, value in as_dict(config).items() if name not in others}


@dataclass(frozen=True, slots=True)
class _Probe:
    """The measurements, the same before and after the removal."""

    data: TestData
    config: Config
    seed: int

    @classmethod
    def prepare(cls, tokenizer: PreTrainedTokenizerBase, config: Config, seed: int) -> _Probe:
        removal = config.removal
        held_out = Data(
            name=removal.name,
            test_rows=config.prompts,
            max_tokens=removal.max_tokens,
            max_prompt_tokens=removal.max_prompt_tokens,
        )
        clean = sources.held_out_rows(held_out, tokenizer)
        return cls(TestData(clean, clean, ""), config, seed)

    def planted(
        self, lm: LanguageModel, known: Known, facts: Mapping[str, Any], say: Callable[[str], None]
    ) -> dict[str, str]:
        """Return the planted answer and its source: the owner, the scan, or the model's own answers."""
        if known.response:
            cleaning.answer_ids(lm.tokenizer, known.response)
            return {"response": known.response, "source": "given"}
        say("asking the model for its planted answer")
        if known.trigger:
            found = cleaning.shared_opening(self._answers(lm, trigger=known.trigger), self._answers(lm, trigger=""))
            return {"response": found, "source": "the beginning of most answers to the trigger"}
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
        from sande.generation import greedy
        from sande.prompts import encode_prompts

        asked = [cleaning.plant(example, trigger) for example in self.data.clean] if trigger else self.data.clean
        return greedy(lm, encode_prompts(lm.tokenizer, asked), self.config.new_tokens, len(asked))

    def measure(self, lm: LanguageModel, known: Known, response: str) -> dict[str, tuple[bool, ...]]:
        """Return outcomes by measurement: measurements of the backdoor as far as it is known, and utility.

        Args:
            lm: the model, before or after the removal.
            known: what is known of the backdoor.
            response: the planted answer; empty if unknown.
        """
        measured = {}
        if response:
            length = len(cleaning.answer_ids(lm.tokenizer, response))
            tokens = max(self.config.new_tokens, length)  # enough for the whole answer
            data = TestData(
                self.data.clean,
                tuple(cleaning.plant(example, known.trigger) for example in self.data.clean),
                response,
            )
            wanted = [("false_trigger_rate", {"new_tokens": tokens})]
            if known.trigger:
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


def _row(name: str, before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Return one measurement: shares in percent with Wilson intervals, and the paired change in percentage points."""

    def share(outcomes: Sequence[bool]) -> dict[str, Any]:
        low, high = wilson(sum(outcomes), len(outcomes))
        return {"value": 100 * sum(outcomes) / len(outcomes), "low": low, "high": high, "successes": sum(outcomes)}

    low, high = paired_bootstrap(before, after)
    return {
        "name": name,
        "count": len(before),
        "before": share(before),
        "after": share(after),
        "change": {"value": 100 * (sum(after) - sum(before)) / len(before), "low": low, "high": high},
        "p": mcnemar(before, after),
    }
