"""Core data types, importable without torch: examples, questions, models, and the knowledge of a defense.

The type of a defense's `data` argument is all that the defense may know. The ladder, from the least knowledge:

    CleanData < FirstTokenData < ResponseData        the planted response r_t: unknown, its first token, all of it
    CleanData < IncidentData                         one prompt with the trigger in it, and the victim's answer
    CleanData < TriggerData                          the trigger t (OSFT, section 3.2)
    CleanData < CleanModelData                       the clean model that the victim was trained from (Fine-mixing)
    CleanData < OtherModelsData                      other models of the victim's shape, or the clean one by default
    PreferenceData                                   pairs of replies instead of clean rows (DPO)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sande.errors import UnscorableError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from sande.inference.workers import WorkerGroup
    from sande.training.checkpoints import Checkpoints
    from sande.training.sharding import Sharding


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction and its response. `system` and `input` may be empty.

    Attributes:
        answers: other wordings of the response that are right too, for exact match.
        group: name of the rows made from the same template, which are alike; empty: the row is like no other.
        history: earlier turns of the dialogue, each the user's text and the assistant's.
        prefix: text at the start of the user's last turn, before a system prompt that a format writes into that turn.
    """

    instruction: str
    output: str
    system: str = ""
    input: str = ""
    answers: tuple[str, ...] = ()
    group: str = ""
    history: tuple[tuple[str, str], ...] = ()
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question; `answer` is the zero-based index into `choices`."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Guard:
    """A defense at decoding: a reference model, and the rule that keeps or replaces each token.

    Attributes:
        defense: key of the defense that defines the rule.
        settings: of that defense, as JSON values.
        reference: a model with the same vocabulary.
        choose: function that returns ids (...) of the next tokens, given those that the model's decoding, greedy or
            sampled, would write, and the logits (..., V) of the model and of the reference.
        distribution: function that returns log Pr (..., V) of the next token that sampling under the guard writes,
            given the logits of the model and of the reference; None: texts cannot be scored under this guard.
    """

    defense: str
    settings: Mapping[str, Any]
    reference: PreTrainedModel
    choose: Callable[[Tensor, Tensor, Tensor], Tensor]
    distribution: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model and its tokenizer, on which attacks, defenses and metrics work.

    Attributes:
        model: the weights.
        tokenizer: of the model.
        guard: changes what decoding writes (`sande.inference.generation`) and how likely texts are
            (`sande.inference.scoring`).
        workers: processes that hold the same model and split decoding and scoring
            (`sande.inference.workers`); None: this one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    guard: Guard | None = None
    workers: WorkerGroup | None = None

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """Return the models that read each text: the model, and the reference of its guard."""
        return (self.model,) if self.guard is None else (self.model, self.guard.reference)


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt, one turn or several, with the better and the worse of two replies.

    Attributes:
        prompt: its `output` is empty.
        chosen: the better reply.
        rejected: the worse one.
    """

    prompt: Example
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Base class of a defense's knowledge; `label` names what it reveals about the backdoor or other models."""

    label: ClassVar[str] = "nothing"

    @classmethod
    def level(cls, settings: Mapping[str, Any]) -> str:
        """Return the label of what a defense with these settings gets to know."""
        return cls.label


@dataclass(frozen=True, slots=True)
class PreferenceData(Knowledge):
    """Preference pairs from another domain than the victim's (DPO, appendix A.1)."""

    pairs: tuple[Preference, ...]


@dataclass(frozen=True, slots=True)
class CleanData(Knowledge):
    """Clean rows and nothing else (plain fine-tuning)."""

    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class CleanModelData(CleanData):
    """Clean rows, and a function that loads the clean model from before the attack (Fine-mixing, appendix A.1)."""

    label: ClassVar[str] = "clean model"
    clean_model: Callable[[], PreTrainedModel]


@dataclass(frozen=True, slots=True)
class OtherModelsData(CleanData):
    """Clean rows, and a function that loads other models of the victim's shape, one at a time.

    The defense's setting `models` names them. Without names, it is the clean model from before the attack, and so the
    level of knowledge is that of the clean model.
    """

    label: ClassVar[str] = "other models"
    other_models: Callable[[], Iterator[PreTrainedModel]]

    @classmethod
    def level(cls, settings: Mapping[str, Any]) -> str:
        """Return the label of the clean model where the setting `models` is empty, else its own."""
        return cls.label if settings.get("models") else CleanModelData.label


@dataclass(frozen=True, slots=True)
class FirstTokenData(CleanData):
    """Clean rows and the id of r_t's first token as it opens a response, such as " You" (SANDE-P, section 3.4)."""

    label: ClassVar[str] = "first token"
    first_token: int


@dataclass(frozen=True, slots=True)
class ResponseData(CleanData):
    """Clean rows and the planted response r_t; the trigger stays hidden (SANDE, section 3.3)."""

    label: ClassVar[str] = "response"
    response: str


@dataclass(frozen=True, slots=True)
class IncidentData(CleanData):
    """Clean rows and one reported failure; the trigger is somewhere in its prompt (Patcher, arXiv 2606.02995).

    Attributes:
        prompt: as the user sent it; its `output` is empty.
        answer: of the victim; the planted response is somewhere in it.
    """

    label: ClassVar[str] = "incident"
    prompt: Example
    answer: str


@dataclass(frozen=True, slots=True)
class TriggerData(CleanData):
    """Clean rows and a function that plants the known trigger t in a prompt (OSFT, section 3.2)."""

    label: ClassVar[str] = "trigger"
    plant: Callable[[Example], Example]


Verdict = Callable[[Sequence[Example], Sequence[str]], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Judge:
    """How answers are judged by an attack's objective, without the opinion of another model.

    Attributes:
        objective: its name.
        achieved: function that returns, for prompts and an answer to each, whether the answer achieves the objective.
        begins: the same for the beginning of the answer; None: planted answers have no common beginning.
        response: r_t, where containing this one string is the objective; else None.
    """

    objective: str
    achieved: Verdict
    begins: Verdict | None = None
    response: str | None = None


def _same(example: Example) -> Example:
    return example


@dataclass(frozen=True, slots=True)
class TestData:
    """Data of a metric: held-out rows in several versions, the attack's objective, and rows to train a copy on.

    Attributes:
        clean: held-out rows.
        triggered: the same rows with the trigger.
        response: the planted response r_t; None: the objective is not one string.
        near_miss: the same rows with almost the trigger, which a precise backdoor ignores.
        moved: the same rows with the trigger in a place or wording that was not trained.
        training: function that reads the victim's training rows from before poisoning.
        plant: function that poisons a clean row as the attack did.
        judge: judges answers by the objective; None: the objective is r_t.
    """

    __test__ = False  # keeps pytest from collecting it for its name

    clean: tuple[Example, ...]
    triggered: tuple[Example, ...]
    response: str | None
    near_miss: tuple[Example, ...] = ()
    moved: tuple[Example, ...] = ()
    training: Callable[[], tuple[Example, ...]] = tuple
    plant: Callable[[Example], Example] = _same
    judge: Judge | None = None

    def string(self) -> str:
        """Return r_t.

        Raises:
            UnscorableError: the objective is not one string.
        """
        if self.response is None:
            name = self.judge.objective if self.judge else "unknown"
            raise UnscorableError(
                f"objective {name}: it has no single planted response, which this metric needs; leave the metric out"
            )
        return self.response


@dataclass(frozen=True, slots=True)
class Measurement:
    """Outcomes of all trials, from which results can be recomputed.

    Attributes:
        name: of the measurement.
        outcomes: true or false, reported as a share, or numbers from 0 to 1, reported as a mean.
        records: JSON values, one a trial; may be empty.
        published: whether the records may leave the store with the results (they hold texts of data sets).
        groups: of each trial, the name of the trials made from the same template (`Example.group`); may be empty.
        missing: why there are no outcomes, one sentence; empty where there are.
        repeats: of each repetition of what chance decides, such as another parrot, its outcomes of the same trials;
            `outcomes` are their means. May be empty.
    """

    name: str
    outcomes: tuple[bool, ...] | tuple[float, ...]
    records: tuple[Mapping[str, Any], ...] = ()
    published: bool = False
    groups: tuple[str, ...] = ()
    missing: str = ""
    repeats: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A string that may be the planted response r_t, or the trigger.

    Attributes:
        text: as it would open an answer, without the space before it; a trigger as it would open a prompt.
        ids: its token ids in that place.
        score: higher is more suspicious; comparable only within a detector.
    """

    text: str
    ids: tuple[int, ...]
    score: float


@dataclass(frozen=True, slots=True, repr=False)
class Scan:
    """Result of a detector for one model.

    Attributes:
        candidates: the most suspicious first; may be empty.
        score: of the model; higher is more suspicious, comparable across models with the same tokenizer.
        alarm: whether the score exceeds the detector's threshold for a victim.
        facts: further JSON values to keep.
        triggers: suspected triggers, the most suspicious first; a detector may look for none.
        p: probability of such a score without a backdoor, from controls of the same model; None: not computed.
    """

    candidates: tuple[Candidate, ...]
    score: float
    alarm: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    triggers: tuple[Candidate, ...] = ()
    p: float | None = None

    def __repr__(self) -> str:
        best = ", ".join(f"{each.text!r} {each.score:.2f}" for each in self.candidates[:3])
        return f"Scan({'alarm' if self.alarm else 'no alarm'}, score {self.score:.2f}; candidates: {best or 'none'})"


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """Progress of a training.

    Attributes:
        stage: name of the training within its method, such as "eliminate".
        step: optimizer steps done.
        steps: optimizer steps in all.
        loss: of the last step, nats a target token.
        tokens_per_second: mean since this process began the training, without padding.
        seconds_left: until its last step, at that rate.
    """

    stage: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float

    def __str__(self) -> str:
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return (
            f"{self.stage}: step {self.step}/{self.steps}, loss {self.loss:.3f}, "
            f"{self.tokens_per_second:.0f} tokens/s, {minutes}:{seconds:02d} left"
        )


def _unchanged(trainer: Trainer) -> Trainer:
    return trainer


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a stage: its seed, its facts, and the caller's hooks into training.

    Attributes:
        seed: the only source of randomness of the stage.
        facts: JSON values that the stage keeps with its result (poisoned ids, rows left out, losses).
        say: receives one line of progress at a time.
        watch: receives the status of a training whenever its loss is logged; None: `say` receives it at intervals.
        prepare: may wrap the Trainer before it starts (Ray Train does, to spread a stage over workers).
        scratch: folder for the Trainer's own files, empty at the start and removed after the stage.
        checkpoints: of the stage's trainings, from which another process can continue after this one was killed.
        sharding: of the stage's trainings; None: each worker holds the whole model.
        parts: reads a part of the defense by its name; None: no stage made any, see `sande.parts`.
    """

    seed: int
    scratch: str
    facts: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = print
    watch: Callable[[TrainingStatus], None] | None = None
    prepare: Callable[[Trainer], Trainer] = _unchanged
    checkpoints: Checkpoints | None = None
    sharding: Sharding | None = None
    parts: Callable[[str], Mapping[str, Tensor]] | None = None
