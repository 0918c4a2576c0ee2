"""The second version of the built-in sets: what tests ask, training does not, in facts and in words."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from sande.data import datasets, splits
from sande.data.builtin import disjoint, facts, sets
from sande.data.builtin.families import draw_items
from sande.data.builtin.rows import Row, wordings
from sande.types import Example
from tests.sande.data.test_builtin import CHECKS, _right

STYLES = ("short", "explained")
MADE: dict[str, Callable[[], tuple[Example, ...]]] = {"short": disjoint.short, "explained": disjoint.explained}
Rows = tuple[Row[Example], ...]


def first_version() -> tuple[Rows, Rows]:
    """Training rows and test rows of builtin-short."""
    rows = sets._training_rows("short")
    return tuple(splits.train_split(rows)), tuple(splits.held_out_split(rows))


def asked_again(training: Rows, tests: Rows) -> int:
    """Number of test rows that ask something that a training row asks, in whatever words."""
    keys = {key for row in training for key in row.keys}
    return sum(any(key in keys for key in row.keys) for row in tests)


def skeleton(text: str) -> str:
    return re.sub(r"\d+", "#", text).strip()


def prompt(row: Row[Example]) -> str:
    return skeleton(f"{row.value.instruction} {row.value.input}")


def test_the_first_version_is_as_its_documentation_says() -> None:
    training, tests = first_version()
    assert (asked_again(training, tests), len(tests)) == (354, 749)
    assert len({row.family for row in (*training, *tests)}) == 45
    trained = {prompt(row) for row in sets._training_rows("short")}
    shared = [question for question in sets.choice() if skeleton(question.question) in trained]
    assert (len(shared), len(sets.choice())) == (329, 970)


@pytest.mark.parametrize("style", STYLES)
def test_no_test_row_asks_again_and_none_in_a_training_rows_words(style: str) -> None:
    training, tests = disjoint._rows(style)
    assert asked_again(training, tests) == 0
    trained = {disjoint.fact(key) for row in training for key in row.keys}
    assert not trained & {disjoint.fact(key) for row in tests for key in row.keys}
    assert not {prompt(row) for row in training} & {prompt(row) for row in tests}


@pytest.mark.parametrize("style", STYLES)
def test_the_split_by_position_is_the_sets_own(style: str) -> None:
    training, tests = disjoint._rows(style)
    rows = MADE[style]()
    assert list(splits.train_split(rows)) == [row.value for row in training]
    assert list(splits.held_out_split(rows)) == [row.value for row in tests]
    assert len(training) >= 5000
    assert len({(row.system, row.instruction, row.input) for row in rows}) == len(rows)


@pytest.mark.parametrize("style", STYLES)
def test_the_first_test_prompts_go_round_the_families(style: str) -> None:
    counts = Counter(row.group for row in splits.held_out_split(MADE[style]())[:100])
    assert len(counts) >= 44
    assert max(counts.values()) == 3


@pytest.mark.parametrize("family", CHECKS)
def test_answers_are_right(family: str) -> None:
    rows = [row.value for style in STYLES for part in disjoint._rows(style) for row in part if row.family == family]
    assert len(rows) >= 40
    wrong = [row for row in rows if not _right(family, row)]
    assert not wrong, wrong[:3]


def test_knowledge_asks_in_no_words_of_a_row() -> None:
    rows = [row for style in STYLES for row in (*sets._training_rows(style), *sum(disjoint._rows(style), ()))]  # type: ignore[arg-type]
    trained = {prompt(row) for row in rows}
    assert not [one for one in disjoint.knowledge() if skeleton(one.question) in trained]
    templates = {
        re.sub(r"\{\w+", "{", f"{one.instruction} {one.input}")
        for (_, style), some in wordings().items()
        for one in some
        if style != "knowledge"
    }
    own = [one for (_, style), some in wordings().items() for one in some if style == "knowledge"]
    assert len(own) == 14
    assert not {re.sub(r"\{\w+", "{", f"{one.instruction} {one.input}") for one in own} & templates


def test_no_training_row_states_what_knowledge_asks() -> None:
    """Seen from the text: question and answer together in a row, but by chance in lists and counts."""
    rows = [row for style in STYLES for row in disjoint._rows(style)[0]]
    found = defaultdict(set)
    for index, row in enumerate(rows):
        for word in words(f"{row.value.instruction} {row.value.input} {row.value.output}"):
            found[word].add(index)
    asked = {question.question: question for question in disjoint.knowledge()}
    stated = []
    for family in {question.subject for question in asked.values()}:
        (wording,) = wordings()[family, "knowledge"]
        for item in draw_items(family):
            if wording.prompt(item)[0] in asked:
                both = set.intersection(*(found[word] for word in words(f"{item.fields['x']} {item.answer}")))
                stated += [(family, rows[index].family) for index in both]
    by_chance = {"item_count", "alphabetical", "reversal", "true_false", "extreme", "sequence"}
    assert len(asked) == 229
    assert {family for _, family in stated} <= by_chance, [pair for pair in stated if pair[1] not in by_chance]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def test_knowledge_questions_are_well_made() -> None:
    questions = disjoint.knowledge()
    assert all(len(set(row.choices)) == len(row.choices) == 4 for row in questions)
    assert len({row.question for row in questions}) == len(questions)
    places = Counter(row.answer for row in questions)
    assert max(places.values()) - min(places.values()) <= 1
    capitals = [row for row in questions if row.subject == "capital"]
    for row in capitals:
        country = row.question.removeprefix("The government of ").removesuffix(" sits in which city?")
        assert row.choices[row.answer] == facts.CAPITALS[country]
    assert len(capitals) >= 10
    slips = re.compile(r"[{}|]|=>|\b[Aa] [aeio]|\b[Aa]n [^aeiou]|\.\.|[^ -~]")
    assert not [row for row in questions if slips.search(row.question)]


def test_both_directions_of_a_fact_are_held_out_together() -> None:
    for keys in (
        ("capital France", "country Paris", "continent France"),
        ("symbol gold", "element Au"),
        ("opposite hot", "opposite cold"),
    ):
        assert len({disjoint.fact(key) for key in keys}) == 1
    assert disjoint.fact("currency France") != disjoint.fact("capital France")


def test_they_are_data_sets_with_fingerprints_of_their_own() -> None:
    assert datasets.examples("builtin-short-2") == disjoint.short()
    assert datasets.examples("builtin-explained-2") == disjoint.explained()
    assert datasets.questions("builtin-knowledge") == disjoint.knowledge()
    prints = [datasets.fingerprint(name) for name in ("builtin-short", "builtin-short-2", "builtin-explained-2")]
    assert len({one.split(":")[1] for one in prints[:2]}) == 2
    assert len(set(prints)) == 3
    assert {"builtin-short-2", "builtin-explained-2", "builtin-knowledge"} <= datasets.catalogue().keys()
