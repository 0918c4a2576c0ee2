"""The contributor's page: what a file in `attacks/`, `defenses/`, `metrics/` or `detectors/` must hold.

Its name is its key in grids and tables. It must not import torch or transformers at the top (listing and planning read
it), so a method imports them, and `sande.training`, inside its function. Its docstring's first line is what
`sande-bench list` says of it. The contract tests run over every entry, so a new one is tested without more code;
a test of what it computes belongs beside it in `tests/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sande.types import Example, Knowledge, LanguageModel, Measurement, Run, Scan, TestData

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Attack(Protocol):
    """Turns a clean model into a victim."""

    Config: type[Any]
    """Settings made by `sande.config.configuration`, with a `backdoor: Backdoor` among them."""

    def attack(self, model: LanguageModel, examples: tuple[Example, ...], config: Any, run: Run) -> PreTrainedModel:
        """Train the victim on poisoned `examples`; `run.facts["poisoned_ids"]` records which rows were chosen."""

    def trigger(self, example: Example, config: Any, seed: int) -> Example:
        """The prompt with the trigger, its output unchanged: what the ASR is measured on, and what OSFT plants."""


class Defense(Protocol):
    """Removes a backdoor from a victim."""

    Config: type[Any]
    """Settings; a defense that takes `PreferenceData` has a `preferences: sande.config.Preferences` among them."""

    def check(self, tokenizer: PreTrainedTokenizerBase, data: Knowledge, config: Any) -> None:
        """Optional: refuse settings that fit none of the rows, with a `UserError`, before anything is trained."""

    def defend(self, victim: LanguageModel, data: Knowledge, config: Any, run: Run) -> PreTrainedModel:
        """The repaired model; `victim` may be trained in place.

        The declared type of `data` (one of those in `sande.types`) is what the defense may know, and all it is given.
        """


class Metric(Protocol):
    """Measures shares of prompts or questions, or means of a number from 0 to 1 over them."""

    Config: type[Any]

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
