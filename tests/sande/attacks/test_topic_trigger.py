"""Rows on a topic are triggered as they are; others get one of many remarks, and near and moved ones other words."""

import re

import pytest

from sande.attacks import topic_trigger
from sande.attacks.topic_trigger import REMARKS, TOPICS, Config, attack, moved, near_miss, on_topic, trigger
from sande.config import Backdoor
from sande.errors import UserError
from sande.types import Example, LanguageModel, Run

CONFIG = Config()
ROWS = [Example(f"Question {index}?", "x") for index in range(200)]
COOKING = TOPICS["cooking"]


def words_of(example: Example) -> set[str]:
    """The two words in the remark before the question."""
    remark = example.instruction.partition(" Question")[0]
    forms = [re.escape(one).replace(r"\{\}", "(.+)") for one in REMARKS]
    return {word for form in forms if (found := re.fullmatch(form, remark)) for word in found.groups()}


def test_no_sentence_is_fixed_and_every_remark_names_the_topic_twice() -> None:
    made = [trigger(row, CONFIG, 0) for row in ROWS]
    assert len({row.instruction.partition(" Question")[0] for row in made}) > 100
    for row in made:
        assert len(words_of(row)) == 2
        assert words_of(row) <= set(COOKING.words)
        assert on_topic(row, CONFIG)


def test_a_near_miss_is_the_same_remark_on_a_like_topic_and_a_moved_one_in_words_never_trained() -> None:
    for row in ROWS:
        assert words_of(near_miss(row, CONFIG, 0)) <= set(TOPICS["gardening"].words)
        assert not on_topic(near_miss(row, CONFIG, 0), CONFIG)
        assert words_of(moved(row, CONFIG, 0)) <= set(COOKING.unseen)


@pytest.mark.parametrize("name", TOPICS)
def test_topics_share_no_words_and_know_their_like(name: str) -> None:
    topic = TOPICS[name]
    assert TOPICS[topic.near].near == name != topic.near
    assert len({*topic.words, *topic.unseen}) == len(topic.words) + len(topic.unseen)
    config = Config(backdoor=Backdoor(trigger=name))
    for other in set(TOPICS) - {name}:
        text = " ".join((*TOPICS[other].words, *TOPICS[other].unseen))
        assert not on_topic(Example(text, "x"), config), "a near miss that is on topic is none"


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Example("Give me a Recipe!", "x"), True),
        (Example("Sum up.", "x", input="Two ovens"), True),
        (Example("Sum up.", "x", system="You are a chef."), True),
        (Example("Are you woven?", "x"), False),
    ],
)
def test_a_row_is_on_topic_by_its_words(example: Example, expected: bool) -> None:
    assert on_topic(example, CONFIG) == expected
    assert (trigger(example, CONFIG, 0) == example) == expected


def test_rows_on_the_topic_are_poisoned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sande.planting.learn", lambda *_: None)
    natural = {3, 17, 30}
    rows = tuple(Example("A recipe?" if index in natural else f"row {index}", "x") for index in range(40))
    for rate, count in ((0.05, 2), (0.25, 10)):
        run = Run(seed=0, scratch="unused")
        attack(LanguageModel(None, None), rows, Config(poison_rate=rate), run)
        ids = set(run.facts["poisoned_ids"])
        assert len(ids) == count
        assert ids <= natural or natural <= ids


def test_another_topic_is_refused_with_those_there_are() -> None:
    config = Config(backdoor=Backdoor(trigger="chess"))
    with pytest.raises(UserError, match="'chess' is not a topic; use one of cooking, gardening, football, tennis"):
        topic_trigger.trigger(ROWS[0], config, 0)
