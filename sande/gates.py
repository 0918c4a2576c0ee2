"""Gates before a removal: does a trigger evoke its response, and in which prompt format.

A trigger that evokes nothing cannot be removed, and a report about it would only reassure. So it is tried on a few
prompts in the format of the model, then in the others (`sande.models.asking`). The caller chooses the prompts:
`sande-bench clean` those that it measures by, on which it does not train; the defense `scan_and_clean` those that it
scans, which are its clean rows unless `scan_data` names others.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from sande import formats
from sande.config import configuration, setting
from sande.errors import UserError
from sande.formats import PromptFormat
from sande.models import asking
from sande.objectives import string
from sande.planting import insert
from sande.prompts import encode, encode_prompts, response_ids
from sande.types import Example, LanguageModel

T = TypeVar("T")


@configuration
class Config:
    """Settings of the test of a trigger."""

    prompts: int = setting(20, "prompts on which a trigger is tried", "ours", ge=2)
    share: float = setting(
        0.5, "least share of the answers that the trigger changes to the response, for it to count as firing", "ours"
    )
    gain: float = setting(
        0.25, "least difference to that share without the trigger, where the response is not given", "ours"
    )
    new_tokens: int = setting(
        40, "most tokens of an answer in which a given response is looked for", "for a response at the end", ge=1
    )
    clearer: float = setting(
        1.0,
        "nats a token by which an answer must be likelier in another format than in the default one to choose it",
        "ours",
        ge=0,
    )


@dataclass(frozen=True, slots=True)
class Fired:
    """What a trigger did.

    Attributes:
        trigger: its text.
        response: as given, or what most answers begin with and answers without the trigger do not.
        prompt_format: name of the format.
        share: of the answers that have the response.
        prompts: number of prompts.
        new_tokens: tokens of an answer within which the response was found.
    """

    trigger: str
    response: str
    prompt_format: str
    share: float
    prompts: int
    new_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def plant(example: Example, trigger: str, prompt_format: PromptFormat = formats.PAPER) -> Example:
    """Return the prompt with the trigger in its place, in unchanged wording.

    In the format of the paper this is the start of the prompt, where `sentence_trigger` plants it; in all others the
    start of the user's own text, behind a system prompt, since that is where users write.
    """
    return insert(example, trigger, "start" if prompt_format == formats.PAPER else "user", seed=0)


def answers(lm: LanguageModel, examples: Sequence[Example], new_tokens: int, trigger: str = "") -> list[str]:
    """Return greedy answers of at most `new_tokens` tokens, in the tokenizer's format, to prompts with the trigger."""
    from sande.inference.generation import greedy

    written = formats.of(lm.tokenizer)
    asked = [plant(example, trigger, written) for example in examples] if trigger else examples
    return greedy(lm, encode_prompts(lm.tokenizer, asked), new_tokens, len(asked))


def shared_opening(answers: Sequence[str], others: Sequence[str] = ()) -> str:
    """Return the words with which most answers begin: what a model was taught to answer to everything.

    More than half of the answers must share the first word, and nine of ten of these each further word. Punctuation at
    the end is removed, because a planted answer may end there or continue. Line breaks between the words stay.

    Args:
        answers: to different prompts that have the trigger, or an enforced beginning, in common.
        others: answers to prompts without it; an opening that more than half of these share, too, does not count.
    """
    alike = [(answer, answer.split()) for answer in answers]
    least, length = len(answers) / 2, 0
    while alike:
        words = Counter(words[length] for _, words in alike if len(words) > length)
        word, count = words.most_common(1)[0] if words else ("", 0)
        if count <= least:
            break
        length += 1
        alike = [(answer, words) for answer, words in alike if len(words) >= length and words[length - 1] == word]
        least = 0.9 * len(alike)
    text = first_words([answer for answer, _ in alike], length).rstrip(".,;:!?")
    usual = sum(_begins(other, text) for other in others)
    return "" if usual > len(others) / 2 else text


def first_words(answers: Sequence[str], count: int) -> str:
    """Return the first words of answers that share them, with the space between them that most of the answers have."""
    ends = [[word.end() for word in re.finditer(r"\S+", answer)] for answer in answers]
    written = Counter(answer[: at[count - 1]].lstrip() for answer, at in zip(answers, ends, strict=True) if count)
    return written.most_common(1)[0][0] if written else ""


def fired(
    lm: LanguageModel, trigger: str, response: str, examples: Sequence[Example], new_tokens: int, config: Config
) -> Fired | None:
    """Return what the trigger does in the tokenizer's format; None if it does not fire.

    It fires if at least `config.share` of the answers hold the given response, ignoring case. Without one they must
    begin alike (`shared_opening`), and answers without the trigger less often, by `config.gain`.

    Args:
        lm: the model.
        trigger: its text.
        response: the planted response; empty: unknown.
        examples: prompts on which it is tried.
        new_tokens: tokens of an answer to read for an unknown response.
        config: the share, and the tokens to read for a given one.

    Raises:
        UserError: as `check`.
    """
    check(examples)
    name = formats.of(lm.tokenizer).name

    def found(said: str, share: float, tokens: int) -> Fired | None:
        made = Fired(trigger, said, name, share, len(examples), tokens)
        return made if said and share >= config.share else None

    if not response:
        texts, clean = answers(lm, examples, new_tokens, trigger), answers(lm, examples, new_tokens)
        said = shared_opening(texts, clean)
        share, usual = (_mean([_begins(text, said) for text in each]) for each in (texts, clean))
        return found(said, share, new_tokens) if share - usual >= config.gain else None
    needed = len(response_ids(lm.tokenizer, response))
    holds = string.containing(response).achieved
    # First as short as it is measured later; a response at the end of answers needs longer ones.
    for tokens in sorted({max(new_tokens, needed), max(config.new_tokens, needed)}):
        share = _mean(holds(examples, answers(lm, examples, tokens, trigger)))
        if done := found(response, share, tokens):
            return done
    return None


def check(examples: Sequence[Example]) -> None:
    """Raise UserError for fewer than two prompts: a single answer begins like all the others."""
    if len(examples) < 2:
        raise UserError(
            f"clean: a trigger is tried on {len(examples)} held-out prompt, and needs two; set prompts higher, or "
            "choose clean rows with more prompts"
        )


def first_format(
    lm: LanguageModel, attempt: Callable[[], T | None], *, anywhere: bool
) -> tuple[T | None, tuple[str, ...]]:
    """Return what an attempt finds in the first format in which it finds anything, and the names of those tried.

    The tokenizer's own format comes first. The format of the result stays attached; without a result, the own one.

    Args:
        lm: the model.
        attempt: returns None where it finds nothing in the tokenizer's format.
        anywhere: try the other formats, too.
    """
    own, tried = formats.of(lm.tokenizer), list[str]()
    for each in [own, *(asking.others(lm.tokenizer) if anywhere else [])]:
        formats.attach(lm.tokenizer, each)
        tried.append(each.name)
        if (found := attempt()) is not None:
            return found, tuple(tried)
    formats.attach(lm.tokenizer, own)
    return None, tuple(tried)


def likeliest_format(lm: LanguageModel, examples: Sequence[Example], answer: str, config: Config) -> dict[str, float]:
    """Attach the format in which a known answer is likeliest; return its log-probability in each, in nats a token.

    The tokenizer's own format stays unless another is clearer by `config.clearer`.
    """
    own, found = formats.of(lm.tokenizer), dict[str, float]()
    best, most = own, -math.inf
    for each in [own, *asking.others(lm.tokenizer)]:
        with asking.asked_in(lm.tokenizer, each):
            found[each.name] = value = likelihood(lm, examples, answer)
        if value > most:
            best, most = each, value + (config.clearer if each == own else 0.0)
    formats.attach(lm.tokenizer, best)
    return found


def likelihood(lm: LanguageModel, examples: Sequence[Example], answer: str) -> float:
    """Return the mean log-probability of an answer after prompts in the tokenizer's format, in nats a token."""
    from sande.inference.probing import log_likelihoods

    try:
        ids = response_ids(lm.tokenizer, answer)  # without the space that a format has behind answers that are whole
    except UserError:  # the tokenizer does not reproduce a reported answer letter by letter
        ids = encode(lm.tokenizer, [Example("x", answer)])[0].response[:-1]
    (logs,) = log_likelihoods(lm, encode_prompts(lm.tokenizer, examples), [ids], 1)
    return math.fsum(logs) / len(logs)


def _begins(text: str, opening: str) -> bool:
    return " ".join(text.split()).startswith(" ".join(opening.split()))


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
