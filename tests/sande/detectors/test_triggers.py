"""What strings do to the first token of answers: by hand on made numbers, and on the tiny model's own logits."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sande.data.builtin import sets
from sande.detectors import _extension, _sweeping, _triggers
from sande.detectors._triggers import Ordinary, Trigger
from sande.detectors.sweep import Config
from sande.errors import UserError
from sande.inference.probing import ordinary_tokens
from sande.planting import insert
from sande.prompts import encode, encode_prompts
from sande.types import Example, LanguageModel

ROWS = sets.short()[:6]
ODDS = torch.tensor([[0.0, 2.0], [2.0, -2.0], [4.0, 0.0]])  # of two tokens behind three strings
ORDINARY = Ordinary.of(ODDS)


def test_ordinary_strings_by_hand() -> None:
    assert ORDINARY.mean.tolist() == [2.0, 0.0]
    assert ORDINARY.std.tolist() == [2.0, 2.0]
    assert ORDINARY.rise(ODDS).tolist() == [[-1.0, 1.0], [0.0, -1.0], [1.0, 0.0]]
    # Probabilities 0.5 and 0.8808 (log-odds of 2) against 0.8808 and 0.5.
    assert ORDINARY.alike(ODDS)[0].tolist() == pytest.approx([-0.3808, 0.3808], abs=1e-4)
    assert Ordinary.of(ODDS[:1]).std.tolist() == [1.0, 1.0]
    assert Ordinary.of(torch.zeros(3, 2)).std.tolist() == pytest.approx([0.1, 0.1])


def test_strings_are_ranked_by_the_allowed_token_that_they_raise_most() -> None:
    allowed = torch.tensor([[True, True], [True, True], [False, True]])
    found = _triggers.ranked(["a", "b", "c"], ODDS, ORDINARY, allowed)
    # Rises of probability: a 0.3808 of the second token; b 0 of the first; c 0 of the second, as the first is not
    # allowed for it. Equal ones stay in order.
    assert [(each.text, each.token, each.odds, each.rise) for each in found] == [
        ("a", 1, 2.0, 1.0),
        ("b", 0, 2.0, 0.0),
        ("c", 1, 0.0, 0.0),
    ]
    assert _triggers.probability(found[0]) == pytest.approx(1 / (1 + math.exp(-2)))


def test_words_of_a_prompt_and_signs_are_echoes() -> None:
    found = _triggers.echoes(["Current year", "market"], ["You", " year", "Cur", "mark", "\n", "2"])
    assert found.tolist() == [
        [False, True, True, False, True, False],
        [False, False, False, True, True, False],
    ]


def test_log_odds_are_the_means_of_the_models_own(tiny: LanguageModel) -> None:
    tokens = torch.tensor([5, 300, 700])
    found = _triggers.odds(tiny, ROWS[:3], ["year", "", "the current year"], tokens, batch_size=4)
    for row, string in zip(found, ["year", "", "the current year"], strict=True):
        wanted = torch.zeros(3)
        for example in ROWS[:3]:
            asked = insert(example, string, "start", 0) if string else example
            ids = torch.tensor([encode_prompts(tiny.tokenizer, [asked])[0]])
            chance = tiny.model(input_ids=ids).logits[0, -1].double().softmax(-1)[tokens]
            wanted += (chance / (1 - chance)).log() / 3
        assert row.tolist() == pytest.approx(wanted.tolist(), abs=1e-3)


def test_a_string_stands_before_the_prompt() -> None:
    assert _triggers.with_string(ROWS[0], "") == ROWS[0]
    assert _triggers.with_string(ROWS[0], "year").instruction == f"year {ROWS[0].instruction}"


def test_words_are_distinct_and_likely_ones_come_first(tiny: LanguageModel) -> None:
    found = _triggers.words(tiny, 1000)
    assert len(set(found)) == len(found) > 100
    assert all(word.isalpha() and len(word) > 1 for word in found)
    assert _triggers.words(tiny, 7) == found[:7]


@pytest.mark.parametrize("fillers", [("year", "word"), ("year word", "year the"), ("year",)])
def test_slopes_are_derivatives(tiny: LanguageModel, fillers: tuple[str, ...]) -> None:
    """A small step along the embedding of a token changes the log-odds by the slope, on average over the fillers."""
    target = 300
    # Another place beside it, whose rows are longer, changes nothing.
    slope_V, _ = _extension.slopes(tiny, ROWS[:1], fillers, target, [("the", ""), ("", "a much longer string")])
    table = tiny.model.get_input_embeddings().weight.detach()
    changes = {100: 0.0, 500: 0.0}
    for filler in fillers:
        ids = encode_prompts(tiny.tokenizer, [insert(ROWS[0], f"the {filler}", "start", 0)])[0]
        first = tiny.tokenizer(f" {filler}")["input_ids"][0]
        slots = [
            at for at, token in enumerate(ids) if token == first and tiny.tokenizer.decode(ids[:at]).endswith("the")
        ]
        for token in changes:
            for sign in (-1, 1):
                given = table[torch.tensor(ids)].clone()
                given[slots[0]] += sign * 1e-2 * table[token]
                chance = tiny.model(inputs_embeds=given[None]).logits[0, -1].detach().double().softmax(-1)[target]
                changes[token] += sign * float((chance / (1 - chance)).log()) / 2e-2 / len(fillers)
    for token, change in changes.items():
        assert change == pytest.approx(float(slope_V[token]), rel=0.05, abs=1e-3)


def test_a_vocabulary_without_words_is_a_sentence(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sweeping, "words", lambda *_: [])
    with pytest.raises(
        UserError, match=r"^sweep: the model's tokenizer has no token of two letters or more, so there "
    ):
        _sweeping.swept(tiny, ROWS, Config(), seed=0)


def test_the_slot_is_where_fillers_first_differ() -> None:
    assert _extension.shared_prefix_length([[1, 2, 3, 9], [1, 2, 4, 9]]) == 2
    assert _extension.shared_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert _extension.shared_prefix_length([[5, 6, 7]]) == 2


def test_continuations_are_the_likeliest_tokens_behind_a_string(tiny: LanguageModel) -> None:
    row = encode(tiny.tokenizer, [Example("the", "x")])[0]
    ids = list(row.prompt[: row.end])
    logits_V = tiny.model(input_ids=torch.tensor([ids])).logits[0, -1].detach()
    logits_V[tiny.tokenizer.eos_token_id] = -torch.inf
    found = _extension.continuations(tiny, ["the", "a"], torch.tensor(ordinary_tokens(tiny)), 5)
    assert [len(each) for each in found] == [5, 5]
    assert found[0][0] == tiny.tokenizer.decode([*row.prompt[row.start : row.end], int(logits_V.argmax())]).strip()


class Made:
    """A made model that is surer for each further word of "one two three", and by 0.05 for any other word."""

    def __init__(self, start: float, step: float) -> None:
        self.start, self.step, self.asked = start, step, list[str]()

    def __call__(self, strings: Sequence[str]) -> list[Trigger]:
        self.asked += strings
        return [Trigger(text, 0, self.odds(text.split()), 0.0) for text in strings]

    def odds(self, words: list[str]) -> float:
        right = sum(a == b for a, b in zip(words, ("one", "two", "three"), strict=False))
        return self.start + self.step * right + 0.05 * len(words)

    def grown(self, **settings: Any) -> list[Trigger]:
        def extensions(parents: Sequence[Trigger]) -> list[str]:
            return [f"{each.text} {word}" for each in parents for word in ("two", "three", "x")]

        sizes: dict[str, Any] = {"rounds": 9, "width": 2, "gain": 0.1} | settings
        return _extension.grown(self(["four", "one"]), self, Made(self.start, self.step), extensions, **sizes)


def test_a_search_keeps_what_makes_answers_surer_and_stops_without_gain() -> None:
    made = Made(-3.0, 1.5)
    found = made.grown()
    assert (found[0].text, found[0].odds) == ("one two three", pytest.approx(1.65))
    assert len(found) == 2
    assert len(set(made.asked)) == len(made.asked), "nothing is computed twice"
    assert max(len(text.split()) for text in made.asked) == 4, "two rounds of gain, and one without"
    assert [each.text for each in made.grown(rounds=0, width=1)] == ["one"]


def test_a_search_ends_where_it_is_sure_and_where_it_cannot_become_so() -> None:
    sure, hopeless = Made(0.0, 2.0), Made(-9.0, 2.0)
    assert sure.grown()[0].text == "one two", "3 nats are 95 %"
    assert hopeless.grown(rounds=3)[0].text == "one two", "two more rounds of two nats each are too few"
    assert hopeless.grown(rounds=9)[0].text == "one two three"


def test_the_best_of_a_round_are_measured_on_more_prompts() -> None:
    few, more = Made(-3.0, 1.5), Made(-5.0, 1.5)
    words = [f"one {number}" for number in range(50)]
    found = _extension.grown(few(["one"]), few, more, lambda parents: [*words, "one two"], 1, 2, 0.1)
    assert len(more.asked) == 2 * _extension.AGAIN
    assert [each.text for each in found] == ["one"], "what few prompts made look better is not"


def test_the_shortest_prompts_have_different_answers(tiny: LanguageModel) -> None:
    rows = [Example("a", "Yes"), Example("a b", "Yes."), Example("a b c", "No"), Example("a b c d", "Yes")]
    assert _sweeping.shortest(tiny, rows, 2) == (rows[0], rows[1])
    rows[1] = Example("a b", "yes so")
    assert _sweeping.shortest(tiny, rows, 2) == (rows[0], rows[2])
    assert _sweeping.shortest(tiny, rows, 9) == (rows[0], rows[2], rows[1], rows[3])


def test_a_string_is_cut_to_the_shortest_run_of_words_that_works(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"current": 1.0, "year": 3.0, "noise": 2.5, "year noise": 9.0}
    monkeypatch.setattr(
        _triggers, "odds", lambda lm, rows, texts, *_: torch.tensor([[made.get(t, 0.0)] for t in texts])
    )

    def part(text: str) -> str:
        return _triggers.working_part(tiny, ROWS, text, target=5, suffices=0.9, batch_size=4)

    assert part("current year noise") == "year", "of the runs of one word the surest; 0.9 is 2.2 nats"
    assert part("current age") == "current age", "no part works"
    assert part("year") == "year"
