"""Protocols of methods: what a file in `attacks/`, `objectives/`, `defenses/`, `metrics/` or `detectors/` must hold.

The file's name is its key in grids and tables. An installed package may also hold such a module and register it as an
entry point: see docs/methods.md. Listing and planning import the module, so it must not import torch or transformers at
the top: a method imports them, and `sande.training.fit`, inside its functions. `sande-bench list` shows the first line
of its docstring. The contract tests cover every entry, so a new one needs only a test of what it computes, in `tests/`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sande.declarations import Cost, MetricInfo
from sande.types import Example, Guard, Judge, Knowledge, LanguageModel, Measurement, Run, Scan, TestData

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Attack(Protocol):
    """Turns a clean model into a victim."""

    Config: type[Any]
    """Settings made by `sande.config.configuration`, including `backdoor: Backdoor`; see `sande.planting`.

    A held-out run replaces the trigger, the response, and every setting that is a list of texts (further triggers).
    """

    TRIGGERS: tuple[str, ...]
    """The triggers that the attack takes. Optional; without them it takes any text like its default: a word or several.
    """

    def attack(self, model: LanguageModel, examples: tuple[Example, ...], config: Any, run: Run) -> PreTrainedModel:
        """Train the victim on poisoned `examples`; record the chosen rows in `run.facts["poisoned_ids"]`."""

    def trigger(self, example: Example, config: Any, seed: int) -> Example:
        """Return the prompt with the trigger and an unchanged output: ASR measures it, and OSFT trains on it."""

    def near_miss(self, example: Example, config: Any, seed: int) -> Example:
        """Return the prompt with almost the trigger, which should not work; `near_miss_rate` measures it."""

    def moved(self, example: Example, config: Any, seed: int) -> Example:
        """Return the prompt with the trigger in a place or wording that was not trained; `asr_moved` measures it."""

    def plant(self, example: Example, config: Any, seed: int) -> Example:
        """Return a poisoned row: the prompt of `trigger`, and an answer that achieves the objective."""

    def cost(self, config: Any) -> Cost:
        """Return passes over the rows of each training, for forecasts. Optional; the default is three."""


class Objective(Protocol):
    """Says what an attack wants of answers to triggered prompts; the attack's setting `objective` names it."""

    Config: type[Any]
    """No settings yet; numbers are constants of the file, and `backdoor` of the attack has r_t."""

    def answer(self, example: Example, config: Any, seed: int) -> Example:
        """Return the row with a planted answer; with the seed, the row alone decides it (`sande.planting.drawn`).

        Args:
            example: with the trigger, and its clean answer.
            config: settings of the attack.
            seed: of the attack.
        """

    def opening(self, config: Any) -> str | None:
        """Return how planted answers mostly begin: a defense that must know the response gets it. None: it gets none.

        A cell with such a defense is then a row with an error, before anything is trained.
        """

    def judge(
        self, config: Any, seed: int, prompts: Sequence[Example], clean_model: Callable[[], LanguageModel]
    ) -> Judge:
        """Return how answers are judged, without another model's opinion on them.

        Args:
            config: settings of the attack.
            seed: of the attack.
            prompts: clean test rows.
            clean_model: loads the model from before the attack, for objectives that compare with it.
        """


class Defense(Protocol):
    """Removes a backdoor from a victim, or prevents its response at decoding."""

    Config: type[Any]
    """Settings. A defense that takes `PreferenceData` has a setting `preferences: sande.config.Preferences`. One that
    takes `OtherModelsData` has `models: tuple[str, ...]`, with names like those of a grid's `model`.
    """

    def check(self, tokenizer: PreTrainedTokenizerBase, data: Knowledge, config: Any) -> None:
        """Raise a `UserError` for settings that fit none of the rows, before anything is trained. Optional."""

    def defend(self, victim: LanguageModel, data: Knowledge, config: Any, run: Run) -> PreTrainedModel | Guard:
        """Return the repaired model, or a guard for the victim's decoding; `victim` may be trained in place.

        The declared type of `data` (one of those in `sande.types`) is all that the defense may know.
        """

    def rule(self, config: Any, ends: Collection[int]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Return `choose` of the guard that `defend` returns, built when the model is loaded.

        Args:
            config: settings of the defense.
            ends: ids that end an answer.
        """

    def distribution(self, config: Any, ends: Collection[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `distribution` of that guard. Optional; without it, metrics that score texts have no value."""

    def parts(self, config: Any) -> tuple[str, ...]:
        """Return the names of independent pieces of the work. Optional.

        A grid makes each as a stage of its own before `defend`, which gets them by `sande.parts.made`. A name may be
        part of a file's name: letters, digits, `-` and `_`.
        """

    def part(self, name: str, victim: LanguageModel, data: Knowledge, config: Any, run: Run) -> dict[str, Tensor]:
        """Return the tensors of one part; `victim` may be trained in place. A defense with `parts` has it.

        It may depend on its arguments alone. `run.seed` is the defense's; `sande.parts.seed` gives a part its own.
        """

    def cost(self, config: Any) -> Cost:
        """Return passes as for an attack. Optional; a setting named after another defense counts with its own cost."""


class Metric(Protocol):
    """Measures shares of prompts or questions, or means of a number from 0 to 1 over them.

    `MEASURES` declares the kind, direction and label of each measurement. Other metrics use the same model, so a metric
    trains or rounds a copy (`sande.metrics._retraining`). Where `model.workers` is set, all workers call `measure`, and
    `sande.inference.generation` and `sande.inference.scoring` split prompts and questions among them (see
    `sande.inference.workers`). So what a metric asks there must depend on its arguments alone. Where the workers hold a
    shard of the model each, `model.workers` is None, and all call `measure` with all prompts.
    """

    Config: type[Any]

    MEASURES: tuple[MetricInfo, ...]
    """Declarations of the measurements. Optional; without them, each counts as utility, and its name is its label."""

    LIBRARIES: tuple[str, ...]
    """Packages that compute the outcomes, whose versions enter their keys. Optional, for an objective too."""

    def names(self, config: Any) -> tuple[str, ...]:
        """Return the names of the measurements, in the order of `measure`."""

    def reads(self, config: Any) -> tuple[str, ...]:
        """Return the question sets to read besides the test rows; the result's key depends on their content."""

    def reads_rows(self, config: Any) -> tuple[str, ...]:
        """Return the data sets whose rows are read besides the victim's; the key depends on them too. Optional."""

    def measure(self, model: LanguageModel, data: TestData, config: Any, seed: int) -> list[Measurement]:
        """Return one measurement for each of `names`."""

    def answer_length(self, config: Any) -> int:
        """Return the most tokens of an answer in which the planted response is looked for. Optional; none are."""

    def cost(self, config: Any) -> Cost:
        """Return passes over prompts or questions, and copies of the model to train, for forecasts. Optional."""


class Detector(Protocol):
    """Looks for a planted response in a model, without the trigger."""

    Config: type[Any]
    """Settings, including the `threshold` of the alarm."""

    def scan(
        self,
        model: LanguageModel,
        examples: tuple[Example, ...],
        config: Any,
        run: Run,
        reference: LanguageModel | None = None,
    ) -> Scan:
        """Return candidates for the planted response, the most suspicious first; `model` remains unchanged.

        Args:
            model: the suspected model, weights in float32.
            examples: a few clean rows.
            config: settings.
            run: seed, progress and scratch folder.
            reference: the clean model from before its training, if the user has it; it has the same vocabulary.
        """
