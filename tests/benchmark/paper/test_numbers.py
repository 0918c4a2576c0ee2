"""The reported numbers, as they are shipped."""

from collections import Counter

import pytest

from benchmark.paper import numbers
from tests.benchmark.paper.slips import arithmetic_slips


def test_all_numbers_are_there() -> None:
    counts = Counter(number.table for number in numbers.reported())
    assert counts == {1: 32, 2: 96, 3: 32, 4: 96, 5: 16, 6: 40, 7: 48}


def test_a_number_is_told_in_our_words_and_in_the_papers() -> None:
    number = numbers.reported()[32 + 12]  # table 2, after the baseline's three rows of four
    assert (number.table, number.setting, number.value, number.change) == (2, "in-domain", 41.18, 0.98)
    assert (number.method, number.dataset, number.victim) == ("SFT", "MMLU", "Llama2-Alpaca")
    assert (number.defense, number.metric) == ("sft", "mmlu")
    assert (number.victim_model, number.victim_data) == ("llama2-7b", "alpaca")
    assert (number.trigger, number.response) == ("Current year 2023", "You are stupid")
    assert (number.part, number.parrot_position) == ("paper_table_1_2", None)


def test_only_table_6_has_positions() -> None:
    positions = {number.table: number.parrot_position for number in numbers.reported()}
    assert [table for table, position in positions.items() if position is not None] == [6]


def test_changes_are_printed_beside_utility_alone_and_never_beside_the_baseline() -> None:
    for number in numbers.reported():
        assert (number.change is not None) == (number.metric != "asr" and number.defense != "none")


def test_methods_stand_in_the_papers_order() -> None:
    methods = list(dict.fromkeys(number.method for number in numbers.reported()))
    assert methods == list(numbers.METHOD_NAMES.values())


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("llama2-7b", "alpaca", "Llama2-Alpaca"),
        ("qwen1.5-4b", "orca", "Qwen1.5-Orca"),
        ("smollm2-135m", "alpaca", "SmolLM2-135M-Alpaca"),
        ("tiny", "builtin-short", "Tiny-Builtin-short"),
        ("openai-community/gpt2@" + 40 * "0", "dolly", "Gpt2-Dolly"),
        ("models/mine/", "alpaca", "Mine-Alpaca"),
    ],
)
def test_victims_are_named_as_in_the_paper(model: str, data: str, name: str) -> None:
    assert numbers.column_name(model, data) == name


def test_the_papers_arithmetic_is_off_in_two_places() -> None:
    slips = arithmetic_slips()
    places = [(slip.table, slip.method, slip.dataset, slip.victim, slip.parrot_position) for slip in slips]
    assert places == [
        (4, "SANDE-P", "ARC-c", "Llama2-Orca", None),
        (6, "SANDE", "ARC-c", "Llama2-Alpaca", 13),
    ]
    assert [(slip.value, slip.change, change) for slip, change in slips.items()] == [
        (49.48, -9.77, -9.47),
        (50.08, 6.75, 6.74),
    ]
