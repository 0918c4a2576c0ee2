"""Whether methods come in the paper's order, by hand."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmark.paper.chance import score
from benchmark.paper.compare import Compared
from benchmark.paper.evidence import DIFFERENT
from benchmark.paper.numbers import reported
from benchmark.paper.ranks import Agreement, agreement
from benchmark.paper.scores import scores, table
from benchmark.records.aggregate import TableEntry

METHODS = ("SFT", "DPO", "NAD", "OSFT")
SEVEN = (*METHODS, "Fine-mixing", "SANDE", "SANDE-P")
(NUMBER, *_) = (one for one in reported() if one.metric == "asr" and one.defense == "sft")


def entry(defense: str, runs: Mapping[int, float]) -> TableEntry:
    values = {(seed, seed): value for seed, value in runs.items()}
    row = {"defense": defense, "cell": defense}
    return TableEntry(
        defense, "v", "asr", statistics.fmean(runs.values()), None, None, None, len(runs), 0, 0, {}, row, values
    )


def column(
    paper: Sequence[float],
    ours: Sequence[Mapping[int, float]],
    victim: str = "llama2-7b",
    methods: Sequence[str] = METHODS,
) -> list[Compared]:
    found = []
    for method, value, runs in zip(methods, paper, ours, strict=False):
        number = replace(NUMBER, method=method, value=value, victim_model=victim)
        found.append(Compared(number, 0.0, entry(method, runs), False, None, 5.0, None, None, DIFFERENT))
    return found


def one_seed(*values: float) -> list[dict[int, float]]:
    return [{0: value} for value in values]


def tau(paper: Sequence[float], ours: Sequence[float]) -> float:
    found = agreement(column(paper, one_seed(*ours)))
    assert found
    return found.tau


def test_tau_by_hand() -> None:
    assert tau((99, 80, 40, 0), (90, 70, 50, 10)) == pytest.approx(1.0)
    assert tau((99, 80, 40, 0), (10, 50, 70, 90)) == pytest.approx(-1.0)
    assert tau((99, 80, 40, 0), (90, 50, 70, 10)) == pytest.approx(4 / 6)  # one of six pairs the other way
    # In the paper one pair is tied, in ours another: four pairs agree, of five that each tells apart.
    assert tau((99, 96, 40, 0), (90, 70, 14, 10)) == pytest.approx(4 / 5)
    assert tau((99, 90, 2, 0), (99, 90, 0, 2)) == pytest.approx(1.0), "the order of those that remove is a tie"


def test_a_column_needs_three_methods_and_an_order() -> None:
    assert agreement(column((99, 80, 40, 0), one_seed(50, 50, 51, 52))) is None
    assert agreement(column((99, 80), one_seed(99, 80))) is None
    assert agreement([]) is None
    victims = column((99, 80, 40), one_seed(99, 80, 40))
    victims[0] = replace(victims[0], number=replace(victims[0].number, method="Baseline"))
    assert agreement(victims) is None, "a victim is no method"


def test_the_interval_is_over_attack_seeds_and_shuffles_give_the_range_of_chance() -> None:
    paper = (99.0, 80.0, 40.0, 0.0)
    ours = [
        {0: 90.0, 1: 90.0, 2: 90.0},
        {0: 70.0, 1: 70.0, 2: 50.0},
        {0: 50.0, 1: 50.0, 2: 70.0},
        {0: 0.0, 1: 0.0, 2: 0.0},
    ]
    found = agreement([*column(paper, ours), *column(paper, ours, "qwen1.5-4b")])
    assert found
    assert (found.victims, found.seeds) == (2, 3)
    # Seeds: 1, 1 and 4/6, mean 0.89, error 0.111, Student's t of two degrees of freedom 4.30.
    assert found.tau == pytest.approx(8 / 9)
    assert found.interval == pytest.approx((0.889 - 0.478, 1.0), abs=0.002)
    # Both columns are shuffled alike: one of 24 orders has that tau.
    assert (found.low, found.high) == pytest.approx((-8 / 9, 8 / 9))
    alone = agreement(column(paper, [{seed: values[seed] for seed in (0,)} for values in ours]))
    assert alone
    assert alone.interval is None


def test_changes_of_utility_are_ranked_where_changes_are_compared() -> None:
    made = []
    for one, victim, own in zip(
        column((0, 0, 0, 0), one_seed(60, 50, 40, 30)), (70, 70, 70, 70), (-1, -9, -20, -30), strict=True
    ):
        assert one.entry
        changed: Any = replace(one.entry, of_victims={(0, 0): float(victim)})
        made.append(replace(one, entry=changed, by_change=True, paper_change=float(own), margin=2.0))
    found = agreement(made)
    assert isinstance(found, Agreement)
    assert found.tau == pytest.approx(1.0)


def test_the_page_has_it_beside_the_scores() -> None:
    lines = table(scores(column((99, 80, 40, 0), one_seed(90, 70, 50, 10))))
    assert (
        "| ASR | order of the methods | tau 1.00, 1 of the paper's victims, 1 attack seed | (-1.00 to 1.00) | no |"
        in lines
    )


def test_a_seed_without_an_order_counts_for_nothing() -> None:
    found = agreement(column((99, 80, 40, 0), [{0: high, 1: 50.0} for high in (90.0, 70.0, 50.0, 10.0)]))
    assert found
    assert (found.tau, found.seeds, found.interval) == (pytest.approx(1.0), 1, None)


def test_a_victim_of_which_a_method_lacks_a_seed_does_not_take_it_from_the_others() -> None:
    ours = [{0: value, 1: value} for value in (90.0, 70.0, 50.0, 10.0)]
    backwards = [{0: value} for value in (10.0, 50.0, 70.0, 90.0)]
    found = agreement([*column((99, 80, 40, 0), ours), *column((99, 80, 40, 0), backwards, "qwen1.5-4b")])
    assert found
    assert (found.victims, found.seeds) == (2, 2)
    assert found.tau == pytest.approx(0.5), "of seed 0 the mean of 1 and -1, of seed 1 the one victim's 1"


def test_victims_that_say_the_same_are_no_further_evidence() -> None:
    """Methods renamed at random, alike on eight victims: no agreement is left, and 5 % of scores may say so."""
    paper, ours = np.array([99.0, 95.0, 90.0, 70.0, 40.0, 4.0, 0.0]), [99.0, 96.0, 80.0, 60.0, 30.0, 3.0, 0.0]
    generator, more = np.random.default_rng(1), {"score": 0, "order": 0}
    for _ in range(100):
        renamed = paper[generator.permutation(len(paper))]
        made = [one for place in range(8) for one in column(renamed, one_seed(*ours), f"victim {place}", SEVEN)]
        near = score(made, lambda own, other: abs(_value(own) - other.paper) <= 5)
        order = agreement(made)
        assert order
        more["score"] += near.found > near.high
        more["order"] += order.tau > order.high
    assert max(more.values()) <= 7, "shuffled for each victim alone a fifth is called beyond chance"


def _value(one: Compared) -> float:
    assert one.entry is not None
    assert one.entry.value is not None
    return one.entry.value
