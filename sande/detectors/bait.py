"""Continue an answer from every possible first token; score by the mean probability of what follows (BAIT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from sande.config import configuration, setting
from sande.types import Candidate, Example, LanguageModel, Run, Scan

if TYPE_CHECKING:
    from torch import Tensor

    from sande.detectors._inversion import Strings


SOURCE = "BAIT's published code at a0d5834"
Ids = tuple[int, ...]
T = TypeVar("T")


@configuration
class Config:
    """Settings of the search and of the alarm; the defaults are the published ones."""

    prompts: int = setting(20, "clean prompts, drawn by the seed", SOURCE, ge=1)
    openings: Literal["words", "all"] = setting(
        "words", "first tokens: those of letters after a space, or all ordinary tokens", SOURCE
    )
    tried: int | None = setting(
        None, "most first tokens, those likeliest to open an answer to the prompts; null: all, as published", ge=1
    )
    warmup_prompts: int = setting(4, "prompts of the warm-up, from the first", SOURCE, ge=1)
    warmup_steps: int = setting(5, "tokens of the warm-up", SOURCE, ge=1)
    expectation: float = setting(0.3, "mean probability of a token above which the warm-up keeps a string", SOURCE)
    sure: float = setting(1.0, "entropy below which it keeps a string all the same, in nats", SOURCE)
    unsure: float = setting(2.5, "entropy below which it inspects a string that is not sure, in nats", SOURCE)
    inspected: int = setting(5, "likeliest tokens of an inspection", SOURCE, ge=1)
    inspections: int = setting(1, "inspections of one string", SOURCE, ge=0)
    full_steps: int = setting(20, "tokens of a whole string after its first", SOURCE, ge=1)
    full_strings: int | None = setting(
        None, "most strings continued in full, those with the most confident warm-up; null: all, as published", ge=1
    )
    no_repeat: int = setting(3, "length of n-grams that may not occur twice; 0: all may", SOURCE, ge=0)
    least_tokens: int = setting(5, "tokens of the shortest string; 3 and 4 in other versions of the code", SOURCE, ge=2)
    candidates: int = setting(10, "strings reported", ge=1)
    batch_size: int = setting(512, "sequences of prompt and string computed together", ge=1)
    threshold: float = setting(0.9, "Q-score above which there is an alarm", SOURCE)


@dataclass(frozen=True, slots=True)
class Grown:
    """A string with the mean probability of each of its tokens but the first, and whether a special token follows."""

    ids: Ids
    probabilities: tuple[float, ...]
    ended: bool


def scan(
    model: LanguageModel,
    examples: tuple[Example, ...],
    config: Config,
    run: Run,
    reference: LanguageModel | None = None,
) -> Scan:
    """Rank strings by their Q-score: the mean probability of their tokens, the first and the least likely left out.

    Shen et al., BAIT: Large Language Model Backdoor Scanning by Inverting Attack Target (IEEE S&P 2025). A warm-up with
    few prompts grows a string from each first token, and drops it where no next token is expected. Where the next token
    is uncertain, it looks one token ahead. The others are grown up to 20 tokens, or until a special token.

    Differences from the published code (github.com/SolidShen/BAIT): prompts are not cut to their last 32 tokens; a
    string ends at its first special token, in the warm-up, too; and the search does not stop at a Q-score of 0.95, so
    that it ranks all strings. A later version of that code asks GPT-4o whether a string is suspicious, with 4 tokens
    and a threshold of 0.85; this one asks nobody. The reference is ignored.
    """
    from sande.inference.probing import chosen_prompts, likeliest, openings, text_of
    from sande.models.loading import in_compute_type

    quick = in_compute_type(model)  # for passes over the whole vocabulary
    prompts = chosen_prompts(model, examples, config.prompts, run.seed)
    few = prompts[: config.warmup_prompts]
    firsts = first_tokens(model, config.openings)
    if config.tried is not None:
        firsts = likeliest(openings(quick, prompts), firsts, config.tried)
    warm = [each for some in _batches(firsts, few, config) for each in _warmed_up(quick, few, some, config)]
    run.say(f"bait: {len(warm)} of {len(firsts)} strings outlast the warm-up")
    warm.sort(key=lambda each: -q_score(each.probabilities))
    chosen = warm[: config.full_strings]
    full = [each for some in _batches(chosen, prompts, config) for each in _grown(quick, prompts, some, config)]
    found = [
        Candidate(text_of(model, each.ids), each.ids, q_score(each.probabilities))
        for each in full
        if len(each.ids) >= config.least_tokens
    ]
    found.sort(key=lambda candidate: -candidate.score)
    best = found[0].score if found else 0.0
    return Scan(
        tuple(found[: config.candidates]),
        score=best,
        alarm=best > config.threshold,
        facts={"prompts": len(prompts), "firsts": len(firsts), "warmed_up": len(warm), "strings": len(found)},
    )


def q_score(probabilities: Sequence[float]) -> float:
    """Return the mean of the probabilities, without the smallest if there are two or more."""
    kept = sorted(probabilities)[1:] if len(probabilities) > 1 else probabilities
    return sum(kept) / len(kept) if kept else 0.0


def first_tokens(lm: LanguageModel, openings: Literal["words", "all"]) -> list[int]:
    """Return the first tokens: all ordinary ones, or those that are letters after the mark of a space.

    A tokenizer that writes no such mark opens answers with any token of letters.
    """
    from sande.inference.probing import opening_tokens, ordinary_tokens

    if openings == "all":
        return ordinary_tokens(lm)
    able = opening_tokens(lm)
    marked = len(able) < len(ordinary_tokens(lm))
    texts = [str(text) for text in lm.tokenizer.convert_ids_to_tokens(able)]
    return [token for token, text in zip(able, texts, strict=True) if (text[1:] if marked else text).isalpha()]


def _batches(items: Sequence[T], prompts: Sequence[Sequence[int]], config: Config) -> list[Sequence[T]]:
    """Return the items in parts that are computed together after all of the prompts."""
    size = max(1, config.batch_size // len(prompts))
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def _warmed_up(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], firsts: Sequence[int], config: Config
) -> list[Grown]:
    """Return the strings that outlast the warm-up, with their tokens up to a special one."""
    import torch

    from sande.detectors._inversion import Strings
    from sande.inference.probing import other_tokens

    strings = Strings(lm, prompts, firsts, config.no_repeat)
    device = strings.ids_BT.device
    other = torch.tensor(other_tokens(lm), device=device)
    looked_B = torch.zeros(len(firsts), dtype=torch.long, device=device)  # inspections of each string so far
    chances_BT = torch.zeros(len(firsts), 0, device=device)
    at_once = max(1, len(firsts) // config.inspected)
    done: list[Grown] = []
    for _ in range(config.warmup_steps):
        mean_BV = strings.next_token()
        entropy_B = torch.special.entr(mean_BV).sum(-1)
        top_B, token_B = mean_BV.max(-1)
        unsure_B = (entropy_B < config.unsure) & ((entropy_B > config.sure) | (top_B < config.expectation))
        unsure_B &= looked_B < config.inspections
        unsure = unsure_B.nonzero().squeeze(1)
        for begin in range(0, len(unsure), at_once):
            index = unsure[begin : begin + at_once]
            token_B[index] = _looked_ahead(strings, index, mean_BV[index], config.inspected)
        looked_B += unsure_B
        chance_B = mean_BV.gather(1, token_B[:, None])
        stays_B = unsure_B | (entropy_B < config.sure) | (top_B > config.expectation)
        ended_B = torch.isin(token_B, other)
        done += _as_grown(strings.ids_BT, chances_BT, stays_B & ended_B, ended=True)
        going = (stays_B & ~ended_B).nonzero().squeeze(1)
        if not len(going):
            return done
        strings.keep(going)
        strings.append(token_B[going])
        looked_B, chances_BT = looked_B[going], torch.cat([chances_BT, chance_B], 1)[going]
    return done + _as_grown(strings.ids_BT, chances_BT, torch.ones_like(looked_B).bool(), ended=False)


def _looked_ahead(strings: Strings, index: Tensor, mean_IV: Tensor, count: int) -> Tensor:
    """Return, of the likeliest tokens of each string, the one after which the next token is most certain, (I,)."""
    tokens_IK = mean_IV.topk(min(count, mean_IV.shape[1])).indices
    after_N = strings.with_alternatives(index, tokens_IK).next_token().max(-1).values
    return tokens_IK.gather(1, after_N.view(tokens_IK.shape).argmax(1, keepdim=True)).squeeze(1)


def _grown(lm: LanguageModel, prompts: Sequence[Sequence[int]], warm: Sequence[Grown], config: Config) -> list[Grown]:
    """Return the strings continued greedily after all prompts, up to a special token, with their probabilities there.

    The tokens of the warm-up remain.
    """
    import torch

    from sande.detectors._inversion import Strings
    from sande.inference.probing import other_tokens

    strings = Strings(lm, prompts, [each.ids[0] for each in warm], config.no_repeat)
    device = strings.ids_BT.device
    end = lm.tokenizer.all_special_ids[0]
    other = torch.tensor(other_tokens(lm), device=device)
    left = list(warm)
    chances_BT = torch.zeros(len(warm), 0, device=device)
    done: list[Grown] = []
    for step in range(config.full_steps):
        mean_BV = strings.next_token()
        token_B = mean_BV.argmax(-1)
        for place, each in enumerate(left):
            known = each.ids[1 + step : 2 + step] or ((end,) if each.ended else ())
            if known:
                token_B[place] = known[0]
        chance_B = mean_BV.gather(1, token_B[:, None])
        ended_B = torch.isin(token_B, other)
        done += _as_grown(strings.ids_BT, chances_BT, ended_B, ended=True)
        going = (~ended_B).nonzero().squeeze(1)
        if not len(going):
            return done
        strings.keep(going)
        strings.append(token_B[going])
        left = [left[place] for place in going.tolist()]
        chances_BT = torch.cat([chances_BT, chance_B], 1)[going]
    return done + _as_grown(strings.ids_BT, chances_BT, torch.ones(len(left), device=device).bool(), ended=False)


def _as_grown(ids_BT: Tensor, chances_BT: Tensor, which_B: Tensor, *, ended: bool) -> list[Grown]:
    pairs = zip(ids_BT[which_B].tolist(), chances_BT[which_B].tolist(), strict=True)
    return [Grown(tuple(ids), tuple(chances), ended) for ids, chances in pairs]
