"""Types of the Python API: a model with its history, and measurements; see `sande.api`."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande import compute, formats, gates
from sande.clusters import effective_count
from sande.crossed import widened
from sande.data import splits
from sande.data.splits import Data
from sande.errors import UserError
from sande.models import loading
from sande.statistics import of_one_model
from sande.threat import Threat
from sande.types import Example, LanguageModel, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, repr=False)
class Model:
    """A model in a folder, and what was done to it.

    Attributes:
        folder: safetensors in bfloat16 and the tokenizer, as `save_pretrained` writes them.
        name: of the clean model at the beginning, or of the folder that `clean` was given.
        threat: the backdoor; None where it was planted elsewhere.
        methods: the attack and the defenses, in the order in which they ran.
        facts: what the last method reported, such as poisoned rows and losses; JSON values.
        seconds: that the last method took.
    """

    folder: Path
    name: str
    threat: Threat | None
    methods: tuple[str, ...]
    facts: Mapping[str, Any]
    seconds: float
    _kept: Any = field(default=None, compare=False)  # a temporary folder is removed with the last model that needs it

    def __repr__(self) -> str:
        seed = f", seed={self.threat.seed}" if self.threat else ""
        return f"Model({' -> '.join((self.name, *self.methods))}{seed}, {self.seconds:.0f} s)"

    def load(self) -> LanguageModel:
        """Return the model and its tokenizer for transformers, in the type that computes quickly here."""
        return loading.load_folder(self.folder, compute.dtype())

    def respond(self, *instructions: str, triggered: bool = False, new_tokens: int = 20) -> list[str]:
        """Return the greedy answer to each instruction.

        Args:
            *instructions: without a prompt template.
            triggered: plant the trigger in each prompt.
            new_tokens: most tokens of an answer.

        Raises:
            UserError: `triggered`, and the trigger is unknown.
        """
        from sande.inference.generation import greedy
        from sande.prompts import encode_prompts

        examples = [Example(instruction, "") for instruction in instructions]
        if triggered and self.threat is None:
            raise UserError("respond: the trigger of this model is unknown; write it into the instructions")
        if triggered and self.threat:
            examples = list(map(self.threat.plant_trigger, examples))
        lm = self.load()
        return greedy(lm, encode_prompts(lm.tokenizer, examples), new_tokens, len(examples))


@dataclass(frozen=True, slots=True, repr=False)
class Measured:
    """One measurement.

    Attributes:
        name: such as "asr".
        value: percent.
        low, high: 95 % interval, percent; Wilson's for a share, Student's t for a mean; of parrots `sande.crossed`.
        outcomes: of each prompt or question.
        records: of each prompt or question; JSON values, empty where the metric has none.
    """

    name: str
    value: float
    low: float
    high: float
    outcomes: tuple[bool, ...] | tuple[float, ...]
    records: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, measurement: Measurement) -> Measured:
        """Return the measurement with its mean and interval; trials of one template count as `sande.clusters` says.

        Raises:
            UserError: it is missing.
        """
        outcomes: tuple[float, ...] = measurement.outcomes
        if measurement.missing:
            raise UserError(f"measure: {measurement.name} is missing ({measurement.missing}); leave it out")
        mean = statistics.fmean(outcomes)
        count = effective_count(outcomes, measurement.groups or [""] * len(outcomes))
        is_share = all(isinstance(outcome, bool) for outcome in outcomes)
        deviation = 0.0 if is_share or len(outcomes) < 2 else statistics.stdev(outcomes)
        low, high = widened(of_one_model(mean, count, deviation), measurement.repeats, measurement.groups)
        return cls(measurement.name, 100 * mean, low, high, measurement.outcomes, measurement.records)

    def __repr__(self) -> str:
        return f"{self.name} {self.value:.1f} % ({self.low:.1f} to {self.high:.1f}, n = {len(self.outcomes)})"


@dataclass(frozen=True, slots=True, repr=False)
class Measurements(Mapping[str, Measured]):
    """Measurements of one model by name, in the order in which they were asked for."""

    measured: tuple[Measured, ...]

    def __getitem__(self, name: str) -> Measured:
        return {each.name: each for each in self.measured}[name]

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in self.measured)

    def __len__(self) -> int:
        return len(self.measured)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.measured))

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict a measurement, as `pandas.DataFrame` takes them."""
        return [
            {"metric": m.name, "value": m.value, "ci_low": m.low, "ci_high": m.high, "count": len(m.outcomes)}
            for m in self.measured
        ]


class TemporaryFolder:
    """A folder that is removed with this object, or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="sande-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class PartlyKnown:
    """Test data of a backdoor of which some parts are unknown; raises where a metric reads one of those."""

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    @classmethod
    def of(cls, data: Data, tokenizer: PreTrainedTokenizerBase, trigger: str, response: str) -> PartlyKnown:
        """Return the test data of a backdoor of which trigger and response are known, or empty."""
        clean = splits.held_out_rows(data, tokenizer)
        known: dict[str, Any] = {"clean": clean, "training": lambda: splits.training_rows(data, tokenizer)}
        if trigger:
            known["triggered"] = tuple(gates.plant(example, trigger, formats.of(tokenizer)) for example in clean)
        if response:
            known |= {"response": response, "string": lambda: response, "judge": None}
        return cls(**known)

    def __getattr__(self, name: str) -> Any:
        of_trigger = dict.fromkeys(("triggered", "near_miss", "moved", "plant"), "trigger")
        missing = {**of_trigger, "judge": "response", "string": "response"}.get(name, name)
        raise UserError(f"measure: a metric needs the {missing}; give it, or measure a model that attack returned")
