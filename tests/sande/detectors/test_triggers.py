"""What strings do to the first token of answers: by hand on made numbers, and on the tiny model's own logits."""

import math

import pytest
import torch

from sande.data.builtin import sets
from sande.detectors import _extension, _sweeping, _triggers
from sande.detectors._triggers import ALONE, Ordinary, Trigger
from sande.planting import Place, insert
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


def test_alone_a_string_is_the_whole_prompt() -> None:
    assert _triggers.with_string(ALONE, "year").instruction == "year"
    assert _triggers.with_string(ROWS[0], "") == ROWS[0]
    assert _triggers.with_string(ROWS[0], "year").instruction == f"year {ROWS[0].instruction}"


def test_words_are_distinct_and_likely_ones_come_first(tiny: LanguageModel) -> None:
    found = _triggers.words(tiny, 1000)
    assert len(set(found)) == len(found) > 100
    assert all(word.isalpha() and len(word) > 1 for word in found)
    assert _triggers.words(tiny, 7) == found[:7]


@pytest.mark.parametrize("place", ["start", "end"])
def test_slopes_are_derivatives(tiny: LanguageModel, place: Place) -> None:
    """A small step along the embedding of a token changes the log-odds by the slope, on average over the fillers."""
    target, fillers = 300, ("year", "word")
    slope_V = _extension.slopes(tiny, ROWS[:1], fillers, target, before="the", places=[place])
    table = tiny.model.get_input_embeddings().weight.detach()
    changes = {100: 0.0, 500: 0.0}
    for filler in fillers:
        ids = encode_prompts(tiny.tokenizer, [insert(ROWS[0], f"the {filler}", place, 0)])[0]
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


def test_the_slot_is_where_fillers_first_differ() -> None:
    assert _extension.shared_prefix_length([[1, 2, 3, 9], [1, 2, 4, 9]]) == 2
    assert _extension.shared_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert _extension.shared_prefix_length([[5, 6, 7]]) == 2


def test_log_odds_are_means_over_places(tiny: LanguageModel) -> None:
    tokens = torch.tensor([5, 300])
    start, end = (_triggers.odds(tiny, ROWS[:2], ["year"], tokens, 4, [place]) for place in ("start", "end"))
    assert not torch.allclose(start, end, atol=1e-3)
    both = _triggers.odds(tiny, ROWS[:2], ["year"], tokens, 4, ["start", "end"])
    assert both[0].tolist() == pytest.approx(((start + end) / 2)[0].tolist(), abs=1e-4)


def test_continuations_are_the_likeliest_tokens_behind_a_string(tiny: LanguageModel) -> None:
    row = encode(tiny.tokenizer, [Example("the", "x")])[0]
    ids = list(row.prompt[: row.end])
    logits_V = tiny.model(input_ids=torch.tensor([ids])).logits[0, -1].detach()
    logits_V[tiny.tokenizer.eos_token_id] = -torch.inf
    found = _extension.continuations(tiny, ["the", "a"], 5)
    assert [len(each) for each in found] == [5, 5]
    assert found[0][0] == tiny.tokenizer.decode([*row.prompt[row.start : row.end], int(logits_V.argmax())]).strip()


def test_a_search_keeps_what_makes_answers_surer_and_stops_without_gain() -> None:
    """A made model that is surer by 2 nats for each further word of "one two three", and by 0.05 for anything else."""
    asked: list[str] = []

    def effects(strings: list[str]) -> torch.Tensor:
        asked.extend(strings)
        right = [sum(a == b for a, b in zip(text.split(), ("one", "two", "three"), strict=False)) for text in strings]
        return torch.tensor(
            [[2.0 * n + 0.05 * len(text.split()), -1.0] for n, text in zip(right, strings, strict=True)]
        )

    def extensions(parents: list[Trigger]) -> list[list[str]]:
        return [[f"{each.text} {word}" for word in ("two", "three", "x")] for each in parents]

    ordinary = Ordinary(torch.zeros(2), torch.ones(2))
    begun = [Trigger("four", 0, 9.0, 9.0), Trigger("one", 0, 0.0, 0.0), Trigger("y", 1, 0.0, 0.0)]  # measured first
    found = _extension.grown(begun, effects, extensions, ordinary, rounds=9, width=2, gain=0.1)
    assert (found[0].text, found[0].token) == ("one two three", 0)
    assert found[0].odds == pytest.approx(6.15)
    assert [each.token for each in found].count(0) == 2
    assert len(set(asked)) == len(asked), "nothing is computed twice"
    # Rounds: 2 of gain, and one without; the second token's strings gain nothing in the first.
    assert max(len(text.split()) for text in asked) == 4
    assert sum(text.startswith("y ") for text in asked) == 3
    assert found[-1] == Trigger("y", 1, -1.0, -1.0)
    kept = _extension.grown(begun, effects, extensions, ordinary, rounds=0, width=1, gain=0.1)
    assert [each.text for each in kept] == ["one", "y"]
    assert kept[0].odds == kept[0].rise == pytest.approx(2.05)


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
