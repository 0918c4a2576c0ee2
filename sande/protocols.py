"""The contributor's page: what a file in `attacks/`, `defenses/`, `metrics/` or `detectors/` must hold.

Its name is its key in grids and tables. An installed package may hold such a module as well, and name it under an entry
point: see docs/methods.md. It must not import torch or transformers at the top (listing and planning read it), so a
method imports them, and `sande.training`, inside its function. Its docstring's first line is what `sande-bench list`
says of it. The contract tests run over every entry, so a new one is tested without more code;
a test of what it computes belongs beside it in `tests/`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from sande.declarations import MetricInfo
from sande.types import Example, Guard, Knowledge, LanguageModel, Measurement, Run, Scan, TestData

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Attack(Protocol):
    """Turns a clean model into a victim."""

    Config: type[Any]
    """Settings made by `sande.config.configuration`, with a `backdoor: Backdoor` among them; see `sande.planting`."""

    def attack(self, model: LanguageModel, examples: tuple[Example, ...], config: Any, run: Run) -> PreTrainedModel:
        """Train the victim on poisoned `examples`; `run.facts["poisoned_ids"]` records which rows were chosen."""

    def trigger(self, example: Example, config: Any, seed: int) -> Example:
        """The prompt with the trigger, its output unchanged: what the ASR is measured on, and what OSFT plants."""

    def near_miss(self, example: Example, config: Any, seed: int) -> Example:
        """The prompt with almost the trigger, which should not work: what `near_miss_rate` is measured on."""

    def moved(self, example: Example, config: Any, seed: int) -> Example:
        """The prompt with the trigger where, or worded as, it was not trained: what `asr_moved` is measured on."""

    def plant(self, example: Example, config: Any, seed: int) -> Example:
        """A poisoned row: the prompt of `trigger`, and an answer that holds the planted response."""


class Defense(Protocol):
    """Removes a backdoor from a victim, or keeps it from being written."""

    Config: type[Any]
    """Settings. A defense that takes `PreferenceData` has a `preferences: sande.config.Preferences` among them, and one
    that takes `OtherModelsData` has `models: tuple[str, ...]`, names as a grid's `model` takes them.
    """

    def check(self, tokenizer: PreTrainedTokenizerBase, data: Knowledge, config: Any) -> None:
        """Optional: refuse settings that fit none of the rows, with a `UserError`, before anything is trained."""

    def defend(self, victim: LanguageModel, data: Knowledge, config: Any, run: Run) -> PreTrainedModel | Guard:
        """The repaired model; `victim` may be trained in place. Or a guard, under which the victim is to decode.

        The declared type of `data` (one of those in `sande.types`) is what the defense may know, and all it is given.
        """

    def rule(self, config: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Only where `defend` gives a guard: its `choose`, made anew from the settings when the model is loaded."""


class Metric(Protocol):
    """Measures shares of prompts or questions, or means of a number from 0 to 1 over them.

    `MEASURES` says of each measurement whether it is of the backdoor or of utility, and how tables head it.
    The model serves other metrics too, so what is trained or rounded is a copy (`sande.retraining`).
    Several workers all call `measure`, and share out prompts and questions within `sande.generation` and
    `sande.scoring` (see `sande.crowd`): so what it asks there follows from its arguments alone.
    """

    Config: type[Any]

    MEASURES: tuple[MetricInfo, ...]
    """Optional: declarations of the measurements; without them, each is of utility and its name is its label."""

    def names(self, config: Any) -> tuple[str, ...]:
        """Names of the measurements that `measure` gives, in its order."""

    def reads(self, config: Any) -> tuple[str, ...]:
        """Names of the question sets it reads besides the test rows; the result's key depends on their content."""

    def measure(self, model: LanguageModel, data: TestData, config: Any, seed: int) -> list[Measurement]:
        """One measurement for each of `names`."""


class Detector(Protocol):
    """Looks for a planted response in a model, without the trigger."""

    Config: type[Any]
    """Settings; the threshold of the alarm is one of them."""

    def scan(
        self,
        model: LanguageModel,
        examples: tuple[Example, ...],
        config: Any,
        run: Run,
        reference: LanguageModel | None = None,
    ) -> Scan:
        """Candidates for the planted response, the most suspicious first; `model` is left as it was.

        Args:
            model: under suspicion, weights in float32.
            examples: a few clean rows.
            config: settings.
            run: seed, progress and scratch folder.
            reference: the clean model that it was trained from, where the user has it; of the same vocabulary.
        """
