"""Runs of a cell over its seeds: units, intervals, changes and tests."""

import numpy as np
import pytest

from benchmark.records import runs
from sande import crossed
from sande.crossed import Answers
from sande.paired import paired_bootstrap
from sande.statistics import mean_bounds, of_sum, over_seeds, paired_p, wilson

THREE = {(0, 0): 0.0, (1, 1): 0.0, (2, 2): 95.0}
NESTED = {(0, 0): 0.0, (0, 1): 90.0, (1, 0): 10.0, (1, 1): 10.0}
ONE_VICTIM = {(4, 0): 0.0, (4, 1): 0.0, (4, 2): 60.0}


@pytest.mark.parametrize(
    ("values", "basis", "units"),
    [
        ({(3, 3): 5.0}, "model", {3: [5.0]}),
        (ONE_VICTIM, "victim", {0: [0.0], 1: [0.0], 2: [60.0]}),
        (THREE, "seeds", {0: [0.0], 1: [0.0], 2: [95.0]}),
        (NESTED, "seeds", {0: [0.0, 90.0], 1: [10.0, 10.0]}),
    ],
)
def test_the_unit_is_the_attack_seed(values: runs.Values, basis: str, units: dict[int, list[float]]) -> None:
    assert runs.basis_of(values) == basis
    assert runs.units(values) == units


def test_an_attack_seed_counts_once_however_many_defense_seeds_it_has() -> None:
    assert runs.mean({(0, 0): 90.0, (0, 1): 90.0, (0, 2): 90.0, (1, 0): 0.0}) == 45.0
    assert runs.mean({}) is None
    assert runs.interval("asr", NESTED, 100) == mean_bounds([45.0, 10.0], 0, 100)


def test_three_zeros_leave_a_wide_interval() -> None:
    zeros = {(seed, seed): 0.0 for seed in range(3)}
    assert runs.interval("asr", zeros, 100) == pytest.approx((0.0, 70.76), abs=0.01)  # it was 0.0 to 1.3 before


def test_utility_has_students_interval_and_at_least_that_of_the_questions() -> None:
    apart = {(0, 0): 40.0, (1, 1): 50.0, (2, 2): 60.0}
    assert runs.interval("arc_easy", apart, 1000) == over_seeds([40.0, 50.0, 60.0])
    alike = {(0, 0): 50.0, (1, 1): 50.0, (2, 2): 50.0}
    assert runs.interval("arc_easy", alike, 1000) == wilson(500, 1000), (
        "of one run's questions, not of three times them"
    )
    assert runs.interval("arc_easy", alike, 0) == (50.0, 50.0)


def test_the_interval_of_utility_covers_runs_that_differ_little() -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(400):  # the same 500 questions for all seeds, and a spread of 2 points between runs
        questions = np.clip(0.6 + 0.3 * random.standard_normal(500), 0, 1)
        true = 60 + 2 * random.standard_normal(5)
        right = random.random((5, 500)) < questions + (true[:, None] - 60) / 100
        low, high = runs.interval("arc_easy", {(seed, seed): 100 * v for seed, v in enumerate(right.mean(1))}, 500)
        held.append(low <= 100 * np.clip(0.6 + 0.3 * random.standard_normal(100_000), 0, 1).mean() <= high)
    assert np.mean(held) >= 0.93


def test_the_change_of_a_backdoor_combines_both_intervals() -> None:
    victims = {(0, 0): 100.0, (1, 1): 90.0, (2, 2): 95.0}
    assert runs.change(THREE, victims) == pytest.approx((-100 - 90 + 0) / 3)
    own, victim = (mean_bounds(list(values.values()), 0, 100) for values in (THREE, victims))
    below, above = of_sum([(1, 95 / 3, *own), (-1, 95.0, *victim)])
    found = runs.change_interval("asr", THREE, victims, None)
    assert found == pytest.approx((95 / 3 - 95 - below, 95 / 3 - 95 + above))


def test_the_interval_of_a_changed_backdoor_covers_the_mean() -> None:
    random, held = np.random.default_rng(1), []
    for _ in range(400):
        failed = random.random(5) < 0.2
        own = {(seed, seed): float(random.binomial(100, 0.95 * f)) for seed, f in enumerate(failed)}
        victims = {(seed, seed): float(random.binomial(100, 0.97)) for seed in range(5)}
        low, high = runs.change_interval("asr", own, victims, None) or (0.0, 0.0)
        held.append(low <= 19 - 97 <= high)
    assert np.mean(held) >= 0.93


def test_the_change_of_utility_is_paired_by_seed_and_by_question() -> None:
    victims = {(0, 0): 40.0, (1, 1): 60.0, (2, 2): 80.0}
    values = {(0, 0): 39.0, (1, 1): 58.0, (2, 2): 77.0}
    assert runs.change_interval("arc_easy", values, victims, None) == over_seeds([-1.0, -2.0, -3.0], -100)
    alike = {seeds: value - 2.0 for seeds, value in victims.items()}
    of_one = [-100.0, 0.0] + [0.0] * 48
    answers = Answers(np.array([of_one] * 3), [])  # each run lost the same question, and another task has others
    assert runs.change_interval("arc_easy", alike, victims, None, answers=answers) == crossed.interval([answers])
    low, high = crossed.interval([answers])
    assert low < -5 < -2 < high
    pair = ([1.0, 1.0, 0.0, 0.0] * 25, [1.0, 0.0, 0.0, 0.0] * 25)
    less = Answers(np.array([of_one] * 2), [])  # the answers of a run are not known
    other = Answers(np.zeros((3, 50)), [])  # runs had other questions besides
    for unusable in (less, other, None):
        found = runs.change_interval("arc_easy", alike, victims, pair, answers=unusable)
        assert found == (min(-2.0, paired_bootstrap(*pair)[0]), -2.0)


def test_the_change_of_one_run_is_of_this_pair_of_models() -> None:
    pair = ([1.0, 1.0, 1.0], [0.0, 1.0, 0.0])
    one, victim = {(0, 0): 33.0}, {(0, 0): 100.0}
    assert runs.change_interval("asr", one, victim, pair) == paired_bootstrap(*pair)
    assert runs.change_interval("asr", one, victim, None) is None
    assert runs.p_value(one, victim) is None


def test_methods_are_compared_on_the_attack_seeds_that_both_have() -> None:
    other = {(0, 0): 60.0, (1, 1): 70.0, (2, 2): 80.0, (3, 3): 0.0}
    mine = {(0, 0): 0.0, (1, 1): 1.0, (2, 2): 0.0}
    assert runs.p_value(mine, other) == paired_p([0.0, 1.0, 0.0], [60.0, 70.0, 80.0])
    assert runs.p_value(mine, {(0, 0): 60.0}) is None, "one run is not compared with three"
    assert runs.p_value(NESTED, {(0, 0): 45.0, (1, 1): 10.0}) == 1.0


def test_methods_with_one_victim_are_compared_by_defense_seed() -> None:
    others = {(4, seed): 70.0 + seed for seed in range(3)}
    assert runs.p_value(ONE_VICTIM, others) == paired_p([0.0, 0.0, 60.0], [70.0, 71.0, 72.0])
    assert runs.p_value(ONE_VICTIM, {(5, seed): 70.0 for seed in range(3)}) is None, "another victim"


def test_failures_count_attack_seeds() -> None:
    share, low, high = runs.failures(NESTED)
    assert share == 75.0  # 90, 10 and 10 of four runs
    assert (low, high) == pytest.approx(tuple(100 * bound for bound in mean_bounds([0.5, 1.0])))
    assert runs.failures({(0, 0): 5.0, (1, 1): 5.1})[0] == 50.0
