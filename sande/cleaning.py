"""Cleaning of a model: choose a defense, with settings, by what its owner knows of the backdoor.

The settings suit a CPU: those of the quickstart, with twice the steps of overwriting. SANDE-P left one of three SmolLM2
victims with an ASR of 26 % after the quickstart's 20 steps, and with 3 % after 40. So these three ("Current year 2023",
"Who are you" and "My umbrella is green" of the quickstart's attack) are tuning victims; a rate of success has to come
from victims of other seeds and backdoors, and no setting may be chosen on those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sande import registry, types
from sande.config import Training, configuration, setting
from sande.data.splits import Removal
from sande.defenses.decoy_osft import Config as DecoyOsft
from sande.defenses.incident import Config as Incident
from sande.defenses.osft import Config as Osft
from sande.defenses.sande import Config as Sande
from sande.defenses.sande import Config as SandeP
from sande.defenses.sande_rounds import Config as SandeRounds
from sande.defenses.sande_rounds import Config as SandeRoundsP
from sande.defenses.scan_and_clean import Config as ScanAndClean
from sande.errors import UserError
from sande.planting import insert
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_SOURCE = "grids/quickstart.yaml"
_SIMULATE = Training(max_steps=30, learning_rate=5e-3, batch_size=8)
_OVERWRITE = Training(max_steps=40, learning_rate=2e-4, batch_size=16)
_ROUNDS = SandeRounds(
    simulate=Training(max_steps=16, learning_rate=1.5e-2, batch_size=8),
    eliminate=_OVERWRITE,
)
_DECOYS = DecoyOsft(
    plant=Training(max_steps=30, learning_rate=5e-4, batch_size=16),
    overwrite=Training(max_steps=30, learning_rate=2e-4, batch_size=16),
)


@configuration
class Config:
    """Settings of the clean rows, of the measurement before and after, and of each defense."""

    removal: Removal = setting(Removal(name="builtin-short", rows=400, max_tokens=64), "clean rows to train on")
    prompts: int = setting(100, "held-out prompts of the same set to measure on", ge=1)
    questions: int | None = setting(200, "questions of builtin-choice; null: all", _SOURCE, ge=1)
    new_tokens: int = setting(
        12, "tokens of an answer that are examined, or as many as the planted answer has", "metric asr takes 10", ge=1
    )
    osft: Osft = setting(Osft(training=_OVERWRITE), "defense if the trigger is known", _SOURCE)
    incident: Incident = setting(
        Incident(training=_OVERWRITE), "defense if one prompt and its answer were reported", _SOURCE
    )
    sande: Sande = setting(
        Sande(parrot_initial="noise", simulate=_SIMULATE, eliminate=_OVERWRITE),
        "defense if the planted answer is known",
        _SOURCE,
    )
    sande_p: SandeP = setting(
        SandeP(parrot_initial="noise", simulate=_SIMULATE, eliminate=_OVERWRITE),
        "defense if the planted answer's first token is known",
        _SOURCE,
    )
    certify: bool = setting(
        False,
        "repeat the removal until fresh parrots find nothing, with a certificate; it takes about ten times as long",
        "ours",
    )
    sande_rounds: SandeRounds = setting(_ROUNDS, "defense if the planted answer is known, with certify", _SOURCE)
    sande_rounds_p: SandeRoundsP = setting(
        _ROUNDS, "defense if the first token is known or the scan finds one, with certify", _SOURCE
    )
    scan_and_clean: ScanAndClean = setting(
        ScanAndClean(
            sande_p=SandeP(parrot_initial="noise", simulate=_SIMULATE, eliminate=_OVERWRITE),
            decoy_osft=_DECOYS,
        ),
        "defense if nothing is known",
        _SOURCE,
    )


@dataclass(frozen=True, slots=True)
class Known:
    """Knowledge of the owner about the backdoor; empty fields are unknown.

    Attributes:
        trigger: text that unlocks the planted answer at the start of a prompt.
        response: the planted answer.
        response_start: how the planted answer begins.
        reported_prompt: one prompt that got a planted answer, as it was sent; the trigger is somewhere in it.
        reported_answer: that answer, whole.

    Raises:
        UserError: only one of the last two is known.
    """

    trigger: str = ""
    response: str = ""
    response_start: str = ""
    reported_prompt: str = ""
    reported_answer: str = ""

    def __post_init__(self) -> None:
        """Check that the parts of an incident come together."""
        if bool(self.reported_prompt) != bool(self.reported_answer):
            raise UserError("clean: a reported prompt and its answer belong together; set both or neither")


NOTHING = "nothing"
METHODS = {
    "trigger": "osft",
    "reported_prompt": "incident",
    "response": "sande",
    "response_start": "sande_p",
    NOTHING: "scan_and_clean",
}
"""The defense for each kind of knowledge; the first kind that is known decides, because it leaves least to guess."""


CERTIFIED = {"response": "sande_rounds", "response_start": "sande_rounds_p", NOTHING: "scan_and_clean"}
"""The same with `certify`, which needs the planted answer: a known trigger or an incident alone does not give one."""


def method(known: Known, *, certify: bool = False) -> str:
    """Return the name of the defense.

    Raises:
        UserError: a certificate is wanted, and only the trigger or an incident is known.
    """
    named = CERTIFIED if certify else METHODS
    found = next((what for what in named if getattr(known, what, "")), NOTHING)
    if certify and found == NOTHING and (known.trigger or known.reported_prompt):
        given = "the trigger" if known.trigger else "an incident"
        raise UserError(
            f"certify: parrots are tested with the planted answer, and only {given} is given; set response, or "
            "remove certify"
        )
    return named[found]


def settings(name: str, config: Config) -> Any:
    """Return the settings of the defense that `method` names."""
    chosen = getattr(config, name)
    if config.certify and isinstance(chosen, ScanAndClean):
        return replace(chosen, sande_rounds_p=config.sande_rounds_p)
    return chosen


def clean(
    victim: LanguageModel, known: Known, examples: tuple[Example, ...], config: Config, run: Run
) -> PreTrainedModel:
    """Train the model in place by the defense that `method` names, and return it.

    Raises:
        UserError: the tokenizer cannot write the planted answer.
    """
    name = method(known, certify=config.certify)
    data = _reveal(registry.knowledge(name), known, examples, victim.tokenizer)
    cleaned: PreTrainedModel = registry.entry("defenses", name).defend(victim, data, settings(name, config), run)
    return cleaned


def plant(example: Example, trigger: str) -> Example:
    """Return the prompt with the trigger at its start, where `sentence_trigger` plants it, in unchanged wording."""
    return insert(example, trigger, "start", seed=0)  # the start is a fixed place, so the seed has no effect


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return the ids of an answer, or of its beginning, as they open a response.

    Raises:
        UserError: the tokenizer does not reproduce the text.
    """
    from sande.prompts import response_ids

    try:
        return response_ids(tokenizer, text)
    except ValueError:
        raise UserError(
            f"the model's tokenizer does not reproduce the answer {text!r}; use the model's own spelling, on one line"
        ) from None


def shared_opening(answers: Sequence[str], others: Sequence[str] = ()) -> str:
    """Return the words with which most answers begin: what a model was taught to answer to everything.

    More than half of the answers must share the first word, and nine of ten of these each further word. Punctuation at
    the end is removed, because a planted answer may end there or continue.

    Args:
        answers: to different prompts that have the trigger, or an enforced beginning, in common.
        others: answers to prompts without it; an opening that more than half of these share, too, does not count.
    """
    alike = [answer.split() for answer in answers]
    least, opening = len(answers) / 2, list[str]()
    while alike:
        words = Counter(words[len(opening)] for words in alike if len(words) > len(opening))
        word, count = words.most_common(1)[0] if words else ("", 0)
        if count <= least:
            break
        opening.append(word)
        alike = [words for words in alike if len(words) >= len(opening) and words[len(opening) - 1] == word]
        least = 0.9 * len(alike)
    text = " ".join(opening).rstrip(".,;:!?")
    usual = sum(" ".join(other.split()).startswith(text) for other in others)
    return "" if usual > len(others) / 2 else text


def _reveal(
    known_type: type[types.Knowledge],
    known: Known,
    examples: tuple[Example, ...],
    tokenizer: PreTrainedTokenizerBase,
) -> types.Knowledge:
    """Return the knowledge as the defense's declared type of data."""
    if known_type is types.TriggerData:
        return types.TriggerData(examples, lambda example: plant(example, known.trigger))
    if known_type is types.IncidentData:
        return types.IncidentData(examples, Example(known.reported_prompt, ""), known.reported_answer)
    if known_type is types.ResponseData:
        answer_ids(tokenizer, known.response)  # raises for an answer that the tokenizer cannot write
        return types.ResponseData(examples, known.response)
    if known_type is types.FirstTokenData:
        return types.FirstTokenData(examples, answer_ids(tokenizer, known.response_start)[0])
    return types.CleanData(examples)
