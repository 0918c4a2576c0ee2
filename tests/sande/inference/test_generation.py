"""Decoding, greedy or sampled: padding, order and a model's own settings must not change a text."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sande.data.builtin import sets
from sande.errors import UserError
from sande.inference import generation
from sande.inference.generation import greedy, sampled
from sande.models import loading
from sande.prompts import encode, encode_prompts
from sande.types import Guard, LanguageModel
from tests.sande.helpers import noisy, teach
from tests.sande.inference import architectures


@pytest.fixture
def prompts(tiny: LanguageModel) -> list[list[int]]:
    """Prompts of very different lengths, in no order of length."""
    ids = encode_prompts(tiny.tokenizer, [*sets.short()[:4], *sets.explained()[:4]])
    return [ids[5], ids[0][:3], ids[6] * 4, ids[1], ids[7], ids[2][:5], ids[3]]


@torch.no_grad()
def by_hand(lm: LanguageModel, prompt: list[int], new_tokens: int, until: str | None = None) -> str:
    """Argmax after argmax over one unpadded row, without a cache."""
    ids, text = list(prompt), ""
    while len(ids) < len(prompt) + new_tokens:
        ids.append(int(lm.model(input_ids=torch.tensor([ids], device=lm.model.device)).logits[0, -1].argmax()))
        text = lm.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        if ids[-1] == lm.tokenizer.eos_token_id or (until and until.lower() in text.lower()):
            break
    return text


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_batches_give_what_one_row_alone_gives(tiny: LanguageModel, prompts: list[list[int]], batch_size: int) -> None:
    expected = [by_hand(tiny, prompt, 8) for prompt in prompts]
    assert len(set(expected)) > 1, "the order could not be seen otherwise"
    assert greedy(tiny, prompts, 8, batch_size) == expected


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_no_more_tokens_than_asked_for(tiny: LanguageModel, prompts: list[list[int]], new_tokens: int) -> None:
    assert greedy(tiny, prompts, new_tokens, 4) == [by_hand(tiny, prompt, new_tokens) for prompt in prompts]


def test_texts_begin_with_what_had_begun_the_answers(tiny: LanguageModel, prompts: list[list[int]]) -> None:
    begun = tiny.tokenizer.encode("You are")
    asked = [[*prompt, *begun] for prompt in prompts]
    expected = [f"{tiny.tokenizer.decode(begun)}{text}" for text in greedy(tiny, asked, 5, 4)]
    assert greedy(tiny, asked, 5, 4, begun=begun) == expected


def test_a_text_ends_at_eos_while_others_go_on(tiny: LanguageModel, prompts: list[list[int]]) -> None:
    # Whatever token comes third in one text is made the end.
    eos = tiny.tokenizer.encode(by_hand(tiny, prompts[0], 3))[-1]
    tiny.tokenizer.eos_token = tiny.tokenizer.convert_ids_to_tokens(eos)
    expected = [by_hand(tiny, prompt, 8) for prompt in prompts]
    assert len({len(tiny.tokenizer.encode(text)) for text in expected}) > 1
    assert greedy(tiny, prompts, 8, 50) == expected


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 5.0},
        {"num_beams": 3},
        {"max_length": 4},
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(700))},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_models_own_settings_do_not_count(
    tiny: LanguageModel, prompts: list[list[int]], own: dict[str, object]
) -> None:
    expected = greedy(tiny, prompts, 8, 4)
    for name, value in own.items():
        setattr(tiny.model.generation_config, name, value)
    assert greedy(tiny, prompts, 8, 4) == expected


def test_nothing_to_decode(tiny: LanguageModel) -> None:
    assert greedy(tiny, [], 8, 4) == []


# --- Architectures that need plainer batches ------------------------------------------------------------------------

LENGTHS = (10, 60, 12, 12, 25, 31)


@pytest.mark.parametrize("name", architectures.NAMES)
def test_every_architecture_answers_in_a_batch_as_alone(tiny: LanguageModel, name: str) -> None:
    """Behind a shared prefix, and longer than a window of 16 tokens."""
    lm, draw = architectures.small(name, tiny), random.Random(0)
    prompts = [[7, 8, 9, *(draw.randrange(5, 700) for _ in range(length - 3))] for length in LENGTHS]
    expected = [by_hand(lm, prompt, 6) for prompt in prompts]
    assert len(set(expected)) > 1, "the order could not be seen otherwise"
    assert greedy(lm, prompts, 6, 4) == expected
    assert greedy(lm, prompts, 6, 50, until=expected[0]) == expected, "a wrong guess leaves something behind"


@pytest.mark.parametrize("name", ["mpt", "lfm2", "rwkv", "gemma3_text"])
def test_every_architecture_samples_in_a_batch_as_alone(tiny: LanguageModel, name: str) -> None:
    lm = architectures.small(name, tiny)
    prompts = [[7, 8, 9, *range(20, 20 + length)] for length in (4, 20, 4, 30)]
    assert sampled(lm, prompts, 6, 50, seed=1) == sampled(lm, prompts, 6, 1, seed=1)


def test_rows_of_one_length_keep_what_their_layers_know(tiny: LanguageModel) -> None:
    """After the prompt one token at a time is read, not the row again, also when other rows have ended."""
    lm = architectures.small("lfm2", tiny)
    prompts = [list(range(begin, begin + 12)) for begin in (5, 105, 205)]
    until = by_hand(lm, prompts[1], 1)
    with passes(lm) as seen:
        texts = greedy(lm, prompts, 8, 50, until)
    assert texts == [by_hand(lm, prompt, 8, until) for prompt in prompts]
    assert seen[0] == (3, 12)
    assert {positions for _, positions in seen[1:]} == {1}
    assert seen[1][0] < 3


# --- A text that ends a row, and is guessed -------------------------------------------------------------------------

ANSWERS = (
    "You are stupid and so on and on",
    "You are stupid",
    "YOU ARE STUPID and loud",
    "Well, you are stupid indeed",
    "You are right about that",
    "You are",
    "Oak",
)
UNTIL = "You are stupid"


@pytest.fixture(scope="module")
def taught(model_cache: Path) -> LanguageModel:
    """A tiny model that answers the first built-in prompts with ANSWERS, and then ends."""
    lm = loading.load("tiny", model_cache)
    rows = [replace(row, output=answer) for row, answer in zip(sets.short(), ANSWERS, strict=False)]
    teach(lm, encode(lm.tokenizer, rows))
    return lm


@pytest.fixture(scope="module")
def taught_prompts(taught: LanguageModel) -> list[list[int]]:
    return encode_prompts(taught.tokenizer, sets.short()[: len(ANSWERS)])


@contextmanager
def passes(lm: LanguageModel) -> Iterator[list[tuple[int, int]]]:
    """Rows and positions of each pass through the model."""
    seen: list[tuple[int, int]] = []
    hook = lm.model.register_forward_pre_hook(
        lambda _, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("new_tokens", [1, 2, 5, 6, 7, 12, 30])
def test_a_text_that_ends_a_row_is_found_where_plain_decoding_has_it(
    taught: LanguageModel, taught_prompts: list[list[int]], new_tokens: int, batch_size: int
) -> None:
    expected = [by_hand(taught, prompt, new_tokens, UNTIL) for prompt in taught_prompts]
    if new_tokens == 30:
        assert [text.strip() for text in expected] == [
            "You are stupid",
            "You are stupid",
            "YOU ARE STUPID",
            "Well, you are stupid",
            "You are right about that",
            "You are",
            "Oak",
        ], "each way to hold it or not occurs, or the rest shows little"
    assert greedy(taught, taught_prompts, new_tokens, batch_size, UNTIL) == expected


@pytest.mark.parametrize("until", ["you are stupid", "YOU ARE", "are stupid and", "stup", "Oak", "Elm", " "])
def test_whatever_text_ends_a_row(taught: LanguageModel, taught_prompts: list[list[int]], until: str) -> None:
    expected = [by_hand(taught, prompt, 15, until) for prompt in taught_prompts]
    assert greedy(taught, taught_prompts, 15, 50, until) == expected


def test_a_random_model_is_cut_at_what_it_says_itself(tiny: LanguageModel, prompts: list[list[int]]) -> None:
    whole = [by_hand(tiny, prompt, 8) for prompt in prompts]
    for until in (whole[0][:4].strip(), whole[1][-6:-2], whole[2][2:].upper()):
        assert greedy(tiny, prompts, 8, 50, until) == [by_hand(tiny, prompt, 8, until) for prompt in prompts]


def test_a_right_guess_leaves_nothing_to_decode(taught: LanguageModel, taught_prompts: list[list[int]]) -> None:
    with passes(taught) as seen:
        assert greedy(taught, taught_prompts[:2], 30, 50, UNTIL) == [f" {UNTIL}"] * 2
    assert len(seen) == 1
    with passes(taught) as seen:
        greedy(taught, taught_prompts[:2], 3, 50, UNTIL)  # fewer than the six tokens of the guess
    assert len(seen) == 1


def test_a_row_that_ends_is_computed_no_further(taught: LanguageModel, taught_prompts: list[list[int]]) -> None:
    with passes(taught) as seen:
        greedy(taught, taught_prompts, 30, 50, UNTIL)
    (first, *_), *steps = seen
    assert first == len(taught_prompts)
    assert [positions for _, positions in steps] == [1] * len(steps)
    rows = [rows for rows, _ in steps]
    assert rows[0] == 5, "two rows were guessed"
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == 1


def test_a_row_that_ends_makes_room_for_another(
    taught: LanguageModel, taught_prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(taught, taught_prompts, 30, 50)
    monkeypatch.setattr(generation, "READ_TOKENS", 1)
    with passes(taught) as seen:
        assert greedy(taught, taught_prompts, 30, 3) == expected
    reads = [number for number, (_, positions) in enumerate(seen) if positions > 1]
    assert len(reads) == len(taught_prompts)
    assert reads[:3] == [0, 1, 2] != reads[-3:]
    assert max(rows for rows, _ in seen) == 3


def test_what_a_model_does_not_answer_is_guessed_once(
    tiny: LanguageModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "READ_TOKENS", 1)
    with passes(tiny) as seen:
        greedy(tiny, prompts, 8, 50, UNTIL)
    own = [length - 2 for length in sorted(map(len, prompts))]  # all begin with two tokens, `Human:`
    assert [positions for _, positions in seen if positions > 1] == [own[0] + 5, *own[1:]]


def test_a_text_that_the_tokenizer_does_not_give_back_is_found_all_the_same(
    taught: LanguageModel, taught_prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError

    expected = greedy(taught, taught_prompts, 30, 50, UNTIL)
    monkeypatch.setattr(generation, "response_ids", refuse)
    assert greedy(taught, taught_prompts, 30, 50, UNTIL) == expected


# --- Sampling -------------------------------------------------------------------------------------------------------


@contextmanager
def sharpened(lm: LanguageModel, factor: float) -> Iterator[None]:
    """All logits so many times as large."""
    hook = lm.model.get_output_embeddings().register_forward_hook(lambda _, args, logits: factor * logits)
    yield
    hook.remove()


def test_samples_depend_on_seed_and_place_and_not_on_the_batch(tiny: LanguageModel, prompts: list[list[int]]) -> None:
    alone, together = (sampled(tiny, prompts, 6, size, seed=1) for size in (1, 50))
    assert alone == together
    assert sampled(tiny, prompts, 6, 50, seed=2) != together
    assert sampled(tiny, [prompts[0]] * 8, 6, 3, seed=1)[0] == together[0]
    assert len(set(sampled(tiny, [prompts[0]] * 8, 6, 3, seed=1))) > 1


def test_tokens_are_drawn_as_often_as_they_are_likely(tiny: LanguageModel, prompts: list[list[int]]) -> None:
    with sharpened(tiny, 10), torch.no_grad():  # so that some tokens are likely
        probabilities_V = tiny.model(input_ids=torch.tensor([prompts[3]])).logits[0, -1].double().softmax(-1)
        texts = sampled(tiny, [prompts[3]] * 2000, 1, 500, seed=0)
    order = probabilities_V.argsort(descending=True)
    for token in order[:3].tolist():
        text = tiny.tokenizer.decode([token], skip_special_tokens=True)
        alike = [id for id in range(len(probabilities_V)) if tiny.tokenizer.decode([id]) == text]
        share = float(probabilities_V[alike].sum())
        noise = (share * (1 - share) / 2000) ** 0.5
        assert abs(texts.count(text) / 2000 - share) < 4 * noise
        assert share > 0.005, "a token that is never drawn would show nothing"


@pytest.mark.parametrize("until", ["", "you are stupid"])
def test_a_certain_model_says_the_same_sampled(
    taught: LanguageModel, taught_prompts: list[list[int]], until: str
) -> None:
    with sharpened(taught, 50):
        assert sampled(taught, taught_prompts, 8, 3, 0, until) == greedy(taught, taught_prompts, 8, 3, until)


def test_a_guard_has_its_say_on_what_was_drawn(tiny: LanguageModel, prompts: list[list[int]]) -> None:
    reference = copy.deepcopy(tiny.model)
    noisy(reference, seed=1, scale=0.3)

    def under(choose: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[str]:
        return sampled(replace(tiny, guard=Guard("", {}, reference, choose)), prompts, 6, 4, seed=0)

    drawn, strict = sampled(tiny, prompts, 6, 4, seed=0), greedy(replace(tiny, model=reference), prompts, 6, 4)
    assert under(lambda tokens, *_: tokens) == drawn
    assert under(lambda _, __, theirs: theirs.max(-1).indices) == strict
    assert under(lambda tokens, _, theirs: torch.where(tokens % 2 == 0, tokens, theirs.max(-1).indices)) not in (
        drawn,
        strict,
    )
