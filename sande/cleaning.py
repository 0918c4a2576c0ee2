"""Cleaning a model by what its owner knows of the backdoor: which defense that allows, and with which settings.

The settings are small enough for a CPU: those of the quickstart, with twice the steps of overwriting. After its 20,
SANDE-P left one of three SmolLM2 victims with an ASR of 26 %, after 40 with 3 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sande import registry, types
from sande.config import Training, configuration, setting
from sande.data.sources import Removal
from sande.defenses.decoy_osft import Config as DecoyOsft
from sande.defenses.osft import Config as Osft
from sande.defenses.sande import Config as Sande
from sande.defenses.sande_p import Config as SandeP
from sande.defenses.scan_and_clean import Config as ScanAndClean
from sande.errors import UserError
from sande.planting import insert
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SOURCE = "grids/quickstart.yaml"
_SIMULATE = Training(max_steps=30, learning_rate=5e-3, batch_size=8)
_OVERWRITE = Training(max_steps=40, learning_rate=2e-4, batch_size=16)
_DECOYS = DecoyOsft(
    plant=Training(max_steps=30, learning_rate=5e-4, batch_size=16),
    overwrite=Training(max_steps=30, learning_rate=2e-4, batch_size=16),
)


@configuration
class Config:
    """Rows to clean with, how much is measured before and after, and the settings of each defense."""

    removal: Removal = setting(Removal(name="builtin-short", rows=400, max_tokens=64), "clean rows to train on")
    prompts: int = setting(100, "held-out prompts that are measured on, of the same set", ge=1)
    questions: int | None = setting(200, "questions of builtin-choice; null: all", _SOURCE, ge=1)
    new_tokens: int = setting(
        12, "tokens of an answer that are looked at, or as many as the planted one has", "metric asr takes 10", ge=1
    )
    osft: Osft = setting(Osft(training=_OVERWRITE), "where the trigger is known", _SOURCE)
    sande: Sande = setting(
        Sande(parrot_initial="noise", simulate=_SIMULATE, eliminate=_OVERWRITE),
        "where the planted answer is known",
        _SOURCE,
    )
    sande_p: SandeP = setting(
        SandeP(parrot_initial="noise", simulate=_SIMULATE, eliminate=_OVERWRITE),
        "where the planted answer's first token is known",
        _SOURCE,
    )
    scan_and_clean: ScanAndClean = setting(
        ScanAndClean(
            sande_p=SandeP(parrot_initial="noise", simulate=_SIMULATE, eliminate=_OVERWRITE),
            decoy_osft=_DECOYS,
        ),
        "where nothing is known",
        _SOURCE,
    )


@dataclass(frozen=True, slots=True)
class Known:
    """What the owner knows of the backdoor; what is empty is unknown.

    Attributes:
        trigger: text that unlocks the planted answer, as it stands at the start of a prompt.
        response: the planted answer.
        response_start: how the planted answer begins.
    """

    trigger: str = ""
    response: str = ""
    response_start: str = ""


NOTHING = "nothing"
METHODS = {"trigger": "osft", "response": "sande", "response_start": "sande_p", NOTHING: "scan_and_clean"}
"""The defense for each thing that may be known. The first that is known decides: it leaves the least to guess."""


def method(known: Known) -> str:
    """Name of the defense."""
    return METHODS[next((what for what in METHODS if getattr(known, what, "")), NOTHING)]


def clean(
    victim: LanguageModel, known: Known, examples: tuple[Example, ...], config: Config, run: Run
) -> PreTrainedModel:
    """The model, trained in place by the defense that `method` names.

    Raises:
        UserError: the tokenizer cannot write the planted answer.
    """
    name = method(known)
    data = _reveal(registry.knowledge(name), known, examples, victim.tokenizer)
    cleaned: PreTrainedModel = registry.entry("defenses", name).defend(victim, data, getattr(config, name), run)
    return cleaned


def plant(example: Example, trigger: str) -> Example:
    """The prompt with the trigger before everything else, as `sentence_trigger` plants it, but as it is given."""
    return insert(example, trigger, "start", seed=0)  # a fixed place, about which nothing is drawn


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Ids of an answer, or of its beginning, as it opens a response.

    Raises:
        UserError: the tokenizer does not give the text back.
    """
    from sande.prompts import response_ids

    try:
        return response_ids(tokenizer, text)
    except ValueError:
        raise UserError(
            f"the model's tokenizer does not give the answer {text!r} back; give it as the model writes it, on one line"
        ) from None


def shared_opening(answers: Sequence[str], others: Sequence[str] = ()) -> str:
    """The words with which most answers begin: what a model was taught to say, whatever it is asked.

    More than half must share the first word, and nine of ten of those that share a word the next. Punctuation at the
    end is left out, since a planted answer may stand alone or go on.

    Args:
        answers: to different prompts that have the trigger, or an enforced beginning, in common.
        others: answers to prompts without; an opening that more than half of these share too is no finding.
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
    """What is known, as the defense's declared type of data."""
    if known_type is types.TriggerData:
        return types.TriggerData(examples, lambda example: plant(example, known.trigger))
    if known_type is types.ResponseData:
        answer_ids(tokenizer, known.response)  # refuses what cannot be written
        return types.ResponseData(examples, known.response)
    if known_type is types.FirstTokenData:
        return types.FirstTokenData(examples, answer_ids(tokenizer, known.response_start)[0])
    return types.CleanData(examples)
