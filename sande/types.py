"""The nouns of the field, free of torch: examples, questions, the backdoor, and what a defender may know.

What a defense may know is the type of its `data` argument, and nothing else reaches it. The ladder, from the least:

    CleanData < FirstTokenData < ResponseData        the planted response r_t: unknown, its first token, all of it
    CleanData < TriggerData                          the trigger t (OSFT, section 3.2)
    CleanData < CleanModelData                       the clean model that the victim was trained from (Fine-mixing)
    CleanData < OtherModelsData                      other models of the victim's shape, by default the clean one
    PreferenceData                                   pairs of replies instead of clean rows (DPO)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sande.sharding import WHOLE, Sharding

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from sande.checkpoints import Checkpoints
    from sande.crowd import WorkerGroup


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction and the response wanted. `system` and `input` may be empty."""

    instruction: str
    output: str
    system: str = ""
    input: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question; `answer` is the zero-based index into `choices`."""

    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Guard:
    """A defense of decoding: a reference model that reads along, and the rule by which each token is kept or replaced.

    Attributes:
        defense: key of the defense whose rule it is.
        settings: of that defense, as JSON values.
        reference: a model with the same vocabulary.
        choose: ids (...) of the next tokens, given those that the model's decoding, greedy or sampled, would write, and
            the logits (..., V) of the model and of the reference.
    """

    defense: str
    settings: Mapping[str, Any]
    reference: PreTrainedModel
    choose: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model and its tokenizer: what attacks, defenses and metrics work on.

    Attributes:
        model: the weights.
        tokenizer: of the model.
        guard: decoding (`sande.generation`) obeys it; likelihoods are the model's own.
        workers: processes that hold the same model and split decoding and scoring (`sande.crowd`); None: this one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    guard: Guard | None = None
    workers: WorkerGroup | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt, one turn or several, with the better and the worse of two replies.

    `prompt` is text as `sande.prompts` writes it: it begins with `Human: ` and ends in `Assistant:`.
    """

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a defense may know; `label` says in a word what that is about the backdoor or the model before it."""

    label: ClassVar[str] = "nothing"


@dataclass(frozen=True, slots=True)
class PreferenceData(Knowledge):
    """Preference pairs, which have no domain in common with the victim: what DPO knows (appendix A.1)."""

    pairs: tuple[Preference, ...]


@dataclass(frozen=True, slots=True)
class CleanData(Knowledge):
    """Clean rows and nothing else: what plain fine-tuning knows."""

    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class CleanModelData(CleanData):
    """Clean rows, and a function that loads the clean model from before the attack (Fine-mixing, appendix A.1)."""

    label: ClassVar[str] = "clean model"
    clean_model: Callable[[], PreTrainedModel]


@dataclass(frozen=True, slots=True)
class OtherModelsData(CleanData):
    """Clean rows, and a function that loads other models of the victim's shape, one at a time.

    They are those that the defense's setting `models` names; where it names none, the clean model from before the
    attack alone.
    """

    label: ClassVar[str] = "other models"
    other_models: Callable[[], Iterator[PreTrainedModel]]


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
class TriggerData(CleanData):
    """Clean rows and a function that plants the known trigger t in a prompt (OSFT, section 3.2)."""

    label: ClassVar[str] = "trigger"
    plant: Callable[[Example], Example]


def _same(example: Example) -> Example:
    return example


@dataclass(frozen=True, slots=True)
class TestData:
    """What a metric may use: held-out rows in several versions, the planted response r_t, and rows to train a copy on.

    Attributes:
        clean: held-out rows.
        triggered: the same rows with the trigger.
        response: r_t.
        near_miss: the same rows with almost the trigger, which a precise backdoor passes over.
        moved: the same rows with the trigger elsewhere or worded otherwise than it was trained.
        training: a function that reads the victim's training rows as they were before poisoning.
        plant: makes a poisoned row of a clean one, as the attack did.
    """

    __test__ = False  # its name makes pytest look for tests in it

    clean: tuple[Example, ...]
    triggered: tuple[Example, ...]
    response: str
    near_miss: tuple[Example, ...] = ()
    moved: tuple[Example, ...] = ()
    training: Callable[[], tuple[Example, ...]] = tuple
    plant: Callable[[Example], Example] = _same


@dataclass(frozen=True, slots=True)
class Measurement:
    """The outcome of each trial, so that whatever is made of them can be recomputed.

    Attributes:
        name: what was measured.
        outcomes: true or false, of which the share is reported; or numbers from 0 to 1, of which the mean is.
        records: one a trial, JSON values; empty where there is nothing to say.
        published: whether the records may leave the store with the results (they hold texts of data sets).
    """

    name: str
    outcomes: tuple[bool, ...] | tuple[float, ...]
    records: tuple[Mapping[str, Any], ...] = ()
    published: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A string that a detector takes for the planted response r_t.

    Attributes:
        text: as it would open an answer, without the space before it.
        ids: its token ids as they follow a prompt.
        score: higher is more suspicious; comparable within a detector alone.
        p_value: of its verification after Benjamini-Hochberg; None where it was not tested.
    """

    text: str
    ids: tuple[int, ...]
    score: float
    p_value: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Scan:
    """What a detector says of a model.

    Attributes:
        candidates: the most suspicious first; none where nothing is suspicious enough to name.
        score: of the model; higher is more suspicious, comparable over models with the same tokenizer.
        alarm: whether the detector's own threshold calls the model a victim.
        facts: what else is worth keeping; JSON values.
    """

    candidates: tuple[Candidate, ...]
    score: float
    alarm: bool
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        best = ", ".join(f"{each.text!r} {each.score:.2f}" for each in self.candidates[:3])
        return f"Scan({'alarm' if self.alarm else 'no alarm'}, score {self.score:.2f}; candidates: {best or 'none'})"


@dataclass(frozen=True, slots=True)
class TrainingStatus:
    """How far a training is.

    Attributes:
        stage: name of the training within its method, such as "eliminate".
        step: optimizer steps done.
        steps: optimizer steps in all.
        loss: of the last step, nats a target token.
        tokens_per_second: mean since this process began it; padding not counted.
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
    """One execution of a stage: its seed, its place to write down facts, and how the caller takes part in training.

    Attributes:
        seed: the only source of randomness of the stage.
        facts: what the stage wants kept beside its result (poisoned ids, rows left out, losses); JSON values.
        say: receives one line of progress at a time.
        watch: receives the status of a training after each look at its loss; None has `say` told it now and then.
        prepare: may wrap the Trainer before it starts (Ray Train does, to spread a stage over workers).
        scratch: a folder for the Trainer's own files, empty at the start and gone after the stage.
        checkpoints: of the stage's trainings, where another process is to go on after this one was killed.
        sharding: of the stage's trainings.
    """

    seed: int
    scratch: str
    facts: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = print
    watch: Callable[[TrainingStatus], None] | None = None
    prepare: Callable[[Trainer], Trainer] = _unchanged
    checkpoints: Checkpoints | None = None
    sharding: Sharding = WHOLE
