"""BAIT on the tiny model, against a search that grows one string at a time without any cache."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from sande.detectors import bait
from sande.detectors._inversion import Strings
from sande.inference.probing import chosen_prompts, opening_tokens, ordinary_tokens
from sande.models import loading
from sande.types import Example, LanguageModel, Run

NewRun = Callable[..., Run]
CONFIG = bait.Config(prompts=4, warmup_prompts=2, warmup_steps=3, full_steps=6, batch_size=64, candidates=10**6)


def repeated(ids: list[int], size: int) -> set[int]:
    """Tokens that would end an n-gram which the ids hold already."""
    seen = [ids[at : at + size] for at in range(len(ids) - size + 1)]
    return {gram[-1] for gram in seen if gram[:-1] == ids[len(ids) - size + 1 :]}


def mean(lm: LanguageModel, prompts: list[list[int]], ids: Iterable[int], size: int) -> torch.Tensor:
    rows = []
    for prompt in prompts:
        whole = [*prompt, *ids]
        with torch.inference_mode():
            logits = lm.model(torch.tensor([whole])).logits[0, -1].float()
        logits = logits.clone()
        logits[list(repeated(whole, size))] = -math.inf
        rows.append(logits.softmax(-1))
    return torch.stack(rows).mean(0)


def warmed_up(lm: LanguageModel, prompts: list[list[int]], first: int, config: bait.Config) -> list[int] | None:
    """One string after the warm-up, with the special token that ends it; None if it is dropped."""
    ids, looked = [first], 0
    for _ in range(config.warmup_steps):
        chances = mean(lm, prompts, ids, config.no_repeat)
        entropy, top = float(-(chances * (chances + 1e-30).log()).sum()), float(chances.max())
        if looked < config.inspections and (
            config.sure < entropy < config.unsure or (entropy < config.unsure and top < config.expectation)
        ):
            looked += 1
            likely = chances.topk(config.inspected).indices.tolist()
            token = max(likely, key=lambda one: float(mean(lm, prompts, [*ids, one], config.no_repeat).max()))
        elif entropy < config.sure or top > config.expectation:
            token = int(chances.argmax())
        else:
            return None
        ids.append(token)
        if token in lm.tokenizer.all_special_ids:
            break
    return ids


def grown(
    lm: LanguageModel, prompts: list[list[int]], warm: list[int], config: bait.Config
) -> tuple[tuple[int, ...], float]:
    ids, chances = warm[:1], []
    for step in range(1, config.full_steps + 1):
        distribution = mean(lm, prompts, ids, config.no_repeat)
        token = warm[step] if step < len(warm) else int(distribution.argmax())
        if token in lm.tokenizer.all_special_ids:
            break
        ids.append(token)
        chances.append(float(distribution[token]))
    return tuple(ids), (sum(chances) - min(chances)) / (len(chances) - 1) if len(chances) > 1 else 0.0


@pytest.fixture(scope="module")
def lm(model_cache: Path) -> LanguageModel:
    """The random model with a stronger output layer, so that some tokens are likely and a few answers end."""
    lm = loading.load("tiny", model_cache)
    size, width = lm.model.get_input_embeddings().weight.shape
    layer = torch.nn.Linear(width, size, bias=False)
    layer.weight.data = torch.randn(size, width, generator=torch.Generator().manual_seed(0)) / 2
    layer.weight.data[lm.tokenizer.eos_token_id] *= 1.5
    lm.model.set_output_embeddings(layer)
    return lm


def test_it_finds_what_a_search_string_by_string_finds(
    lm: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    firsts = opening_tokens(lm)[40:70]
    monkeypatch.setattr(bait, "first_tokens", lambda *_: firsts)
    monkeypatch.setattr(loading, "in_compute_type", lambda lm: lm)
    found = bait.scan(lm, few_rows, CONFIG, new_run(seed=3))
    prompts = chosen_prompts(lm, few_rows, CONFIG.prompts, 3)
    warm = [warmed_up(lm, prompts[:2], first, CONFIG) for first in firsts]
    kept = [ids for ids in warm if ids is not None]
    assert 0 < len(kept) < len(firsts), "the bounds decide something here"
    expected = dict(grown(lm, prompts, ids, CONFIG) for ids in kept)
    expected = {ids: score for ids, score in expected.items() if len(ids) >= CONFIG.least_tokens}
    assert {each.ids: each.score for each in found.candidates} == pytest.approx(expected, abs=1e-5)
    assert found.facts["warmed_up"] == len(kept)
    assert any(ids[-1] in lm.tokenizer.all_special_ids for ids in kept)
    assert len(expected) >= 3


@pytest.mark.parametrize(("size", "possible"), [(3, False), (4, True), (0, True)])
def test_no_ngram_occurs_twice_in_a_prompt_and_its_string(tiny: LanguageModel, size: int, possible: bool) -> None:
    strings = Strings(tiny, [[50, 60, 70, 80]], [60], no_repeat=size)
    strings.next_token()
    strings.append(torch.tensor([70]))
    mean_BV = strings.next_token()
    assert bool(mean_BV[0, 80] > 0) is possible, "60 70 80 stands in the prompt"
    assert mean_BV.sum() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("probabilities", "score"), [((0.5, 1.0, 0.9), 0.95), ((0.4,), 0.4), ((), 0.0), ((0.2, 0.6), 0.6)]
)
def test_a_q_score_leaves_the_smallest_out(probabilities: tuple[float, ...], score: float) -> None:
    assert bait.q_score(probabilities) == pytest.approx(score)


def test_openings_are_words_as_published_or_all_tokens(tiny: LanguageModel) -> None:
    words, every = bait.first_tokens(tiny, "words"), bait.first_tokens(tiny, "all")
    assert every == ordinary_tokens(tiny)
    texts = tiny.tokenizer.convert_ids_to_tokens(words)
    assert texts
    assert all(text[0] == "Ġ" and text[1:].isalpha() for text in texts)
    assert len(words) < len(every)


def test_a_cap_keeps_the_most_confident_warm_ups(
    lm: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    light = dataclasses.replace(CONFIG, prompts=2, full_steps=4, least_tokens=2, expectation=0.0, inspections=0)
    every = bait.scan(lm, few_rows, light, new_run())
    some = bait.scan(lm, few_rows, dataclasses.replace(light, full_strings=5), new_run())
    assert every.facts["strings"] > 5
    assert some.facts["strings"] <= 5
    assert {each.ids for each in some.candidates} <= {each.ids for each in every.candidates}


def test_the_first_tokens_tried_are_the_likeliest(
    lm: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "in_compute_type", lambda lm: lm)
    light = dataclasses.replace(
        CONFIG, prompts=2, warmup_steps=1, full_steps=2, least_tokens=2, expectation=0.0, no_repeat=0, tried=6
    )
    found = bait.scan(lm, few_rows, light, new_run())
    prompts = chosen_prompts(lm, few_rows, 2, new_run().seed)
    likely = torch.stack([log_opening(lm, prompt) for prompt in prompts]).mean(0)
    words = bait.first_tokens(lm, "words")
    best = {words[index] for index in likely[words].topk(6).indices.tolist()}
    assert found.facts["firsts"] == 6
    assert len(found.candidates) > 0
    assert {each.ids[0] for each in found.candidates} <= best


def log_opening(lm: LanguageModel, prompt: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return lm.model(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
