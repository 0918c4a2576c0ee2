"""Statistics over seeds: exact values, and simulations of a removal that works or fails."""

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from sande.statistics import equivalent, mean_bounds, non_inferior, paired_p, rank_intervals, share_above, wilson

PROMPTS = 100
FAILS, LEFT = 0.2, 0.95  # one run in five leaves an ASR of 95 %


def measured(seeds: int, runs: int, seed: int, fails: float = FAILS, left: float = LEFT) -> NDArray[np.float64]:
    """Return measured ASR, of shape (runs, seeds): each seed works (ASR 0) or leaves the backdoor."""
    random = np.random.default_rng(seed)
    true = np.where(random.random((runs, seeds)) < fails, left, 0.0)
    return random.binomial(PROMPTS, true) / PROMPTS


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 40])
def test_bounds_of_zeros_and_ones_are_clopper_and_pearsons(count: int) -> None:
    for ones in {0, 1, count // 2, count - 1, count}:
        exact = scipy.stats.binomtest(ones, count).proportion_ci(method="exact")
        values = [1.0] * ones + [0.0] * (count - ones)
        assert mean_bounds(values) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_bounds_are_the_quantiles_of_weighted_means() -> None:
    values = [0.01, 0.02, 0.0, 0.95, 0.03, 0.03]
    weights = np.random.default_rng(0).dirichlet(np.ones(7), size=400_000)
    low = np.quantile(weights @ np.array([0.0, *values]), 0.025)
    high = np.quantile(weights @ np.array([1.0, *values]), 0.975)
    assert mean_bounds(values) == pytest.approx((low, high), abs=2e-3)


def test_bounds_of_many_units_are_nearly_exact() -> None:
    random = np.random.default_rng(1)
    for count in (51, 400):
        ones = round(0.1 * count)
        exact = scipy.stats.binomtest(ones, count).proportion_ci(method="exact")
        assert mean_bounds([1.0] * ones + [0.0] * (count - ones)) == pytest.approx((exact.low, exact.high), abs=0.01)
        values = random.random(count).tolist()
        assert mean_bounds(values) == mean_bounds(values[::-1])


def test_bounds_of_one_value_by_hand() -> None:
    # U * 0.4 below and U * 0.4 + (1 - U) above, with U uniform: the quantiles are 0.025 of the way from the far end
    assert mean_bounds([0.4]) == pytest.approx((0.4 * 0.025, 1 - 0.6 * 0.025))


def test_bounds_follow_the_range_and_the_order_does_not_matter() -> None:
    low, high = mean_bounds([0.1, 0.7, 0.3])
    assert mean_bounds([30, 10, 70], 0, 100) == pytest.approx((100 * low, 100 * high))
    assert mean_bounds([-0.8, 0.4, -0.4], -1, 1) == pytest.approx((2 * low - 1, 2 * high - 1))


def test_bounds_contain_the_mean_with_values_that_nearly_agree() -> None:
    values = [0.5, 0.5 + 1e-13, 0.5 - 1e-14, 0.5 + 1e-9]
    low, high = mean_bounds(values)
    assert (low, high) == pytest.approx(mean_bounds([0.5] * 4), abs=1e-8)
    assert low < 0.5 < high


def test_bounds_refuse_values_outside_the_range_and_no_values() -> None:
    with pytest.raises(ValueError, match="outside 0"):
        mean_bounds([0.0, 95.0])
    with pytest.raises(ValueError, match="at least one"):
        mean_bounds([])
    assert mean_bounds([100 + 1e-12], 0, 100)[1] == 100


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_bounds_cover_the_mean_of_a_removal_that_sometimes_fails(seeds: int) -> None:
    held = [low <= FAILS * LEFT <= high for low, high in map(mean_bounds, measured(seeds, 400, seed=seeds).tolist())]
    assert np.mean(held) >= 0.93


def test_pooled_prompts_and_a_bootstrap_of_seeds_do_not_cover_it() -> None:
    runs = measured(5, 400, seed=1)
    pooled = [wilson(round(values.sum() * PROMPTS), 5 * PROMPTS) for values in runs]
    assert np.mean([low <= 100 * FAILS * LEFT <= high for low, high in pooled]) < 0.7
    drawn = runs[:, np.random.default_rng(0).integers(5, size=(1000, 5))].mean(2)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    assert np.mean((low <= FAILS * LEFT) & (high >= FAILS * LEFT)) < 0.7  # a third of the experiments see zeros alone


@pytest.mark.parametrize("spread", ["attack seeds", "defense seeds", "both"])
def test_bounds_cover_the_mean_over_two_defense_seeds(spread: str) -> None:
    random = np.random.default_rng(7)
    attacks, defenses = {"attack seeds": (0.2, 0.0), "defense seeds": (0.0, 0.2), "both": (0.1, 0.1)}[spread]
    failed = (random.random((400, 5, 1)) < attacks) | (random.random((400, 5, 2)) < defenses)
    units = (random.binomial(PROMPTS, np.where(failed, LEFT, 0.0)) / PROMPTS).mean(2)
    mean = LEFT * (1 - (1 - attacks) * (1 - defenses))
    assert np.mean([low <= mean <= high for low, high in map(mean_bounds, units.tolist())]) >= 0.93


@pytest.mark.parametrize("fails", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_identical_methods_are_rarely_told_apart(seeds: int, fails: float) -> None:
    pairs = zip(measured(seeds, 1500, 1, fails).tolist(), measured(seeds, 1500, 2, fails).tolist(), strict=True)
    assert np.mean([paired_p(first, second) < 0.05 for first, second in pairs]) <= 0.07


def power(seeds: int, fails: float, left: float) -> float:
    pairs = zip(measured(seeds, 500, 1, 0.0).tolist(), measured(seeds, 500, 2, fails, left).tolist(), strict=True)
    return float(np.mean([paired_p(first, second) < 0.05 for first, second in pairs]))


def test_different_methods_are_told_apart() -> None:
    assert power(3, 1.0, 0.6) > 0.95  # 0 % against 60 % in each run
    assert power(5, 1.0, 0.6) > 0.95
    assert power(10, 0.63, 0.95) > 0.9  # against 95 % in 63 of 100 runs, also 60 % on average
    assert power(5, 0.63, 0.95) < 0.6  # five seeds do not tell that reliably


def test_paired_p_by_hand() -> None:
    # differences 0.1, 0.2, 0.3: t = 0.2 / (0.1 / sqrt(3)) = 3.4641 with 2 degrees of freedom
    expected = scipy.stats.ttest_rel([0.1, 0.2, 0.3], [0.0, 0.0, 0.0]).pvalue
    assert paired_p([0.0, 0.0, 0.0], [0.1, 0.2, 0.3]) == pytest.approx(expected)
    assert paired_p([0.1, 0.2, 0.3], [0.0, 0.0, 0.0]) == pytest.approx(expected)


def test_equal_differences_are_not_more_certain_than_their_number() -> None:
    assert paired_p([0.0] * 3, [0.5] * 3) == 2 / 4**3
    assert paired_p([0.0] * 2, [1.0] * 2) == 2 / 4**2
    assert paired_p([0.0], [1.0]) == 1.0
    assert paired_p([0.3, 0.4], [0.3, 0.4]) == 1.0
    with pytest.raises(ValueError, match="shorter"):
        paired_p([0.0, 1.0], [1.0])


def test_share_of_runs_above_a_limit_counts_attack_seeds() -> None:
    share, low, high = share_above([[0.0], [0.0], [95.0], [4.9], [5.0]], limit=5)
    assert (share, low, high) == pytest.approx((0.2, *mean_bounds([0, 0, 1, 0, 0])))
    share, low, high = share_above([[0.0, 95.0], [0.0, 0.0]], limit=5)
    assert (share, low, high) == pytest.approx((0.25, *mean_bounds([0.5, 0.0])))
    with pytest.raises(ValueError, match="without a run"):
        share_above([[0.0], []], limit=5)


def test_equivalence_of_utility_by_hand() -> None:
    differences = [0.5, -0.5, 1.0, 0.0]  # mean 0.25, standard error sqrt(5 / 12) / 2
    error = np.sqrt(5 / 12) / 2
    assert non_inferior(differences, 1) == pytest.approx(scipy.stats.t.sf((0.25 + 1) / error, 3))
    assert equivalent(differences, 1) == pytest.approx(scipy.stats.t.sf((1 - 0.25) / error, 3))
    assert non_inferior([-5.0, -4.0, -6.0], 2) > 0.95
    assert non_inferior([0.0] * 3, 2) == 1 / 4**3
    assert equivalent([0.0], 2) == 1.0


def test_equivalence_of_a_removal_takes_many_seeds() -> None:
    # Five equal runs say nothing about a run in ten that fails: mean 0.095, outside a margin of 0.05.
    assert equivalent([0.0] * 5, 0.05) < 0.05
    assert equivalent([0.0] * 5, 0.05, reach=1.0) > 0.5
    assert equivalent([0.0] * 60, 0.05, reach=1.0) == pytest.approx((1 - 0.05) ** 60)


def test_equivalence_is_not_claimed_at_the_edge_of_the_margin() -> None:
    random = np.random.default_rng(3)
    runs = 0.02 + 0.01 * random.standard_normal((1000, 5))
    assert np.mean([equivalent(values, 0.02) < 0.05 for values in runs.tolist()]) <= 0.07
    assert np.mean([equivalent(values, 0.02) < 0.05 for values in (runs - 0.02).tolist()]) > 0.8


def test_rank_intervals_do_not_separate_what_seeds_do_not() -> None:
    alike = rank_intervals({name: [0.0] * 5 for name in "abc"})
    assert alike == dict.fromkeys("abc", (1, 3))
    ranks = rank_intervals({"good": [0.0] * 10, "bad": [0.9] * 10, "worse": [1.0] * 10})
    assert ranks["good"] == (1, 1)
    assert ranks["bad"] == ranks["worse"] == (2, 3)


def test_rank_intervals_hold_the_true_rank() -> None:
    fails = {"a": 0.0, "b": 0.2, "c": 0.5, "d": 0.9}
    experiments = [measured(5, 150, seed, rate).tolist() for seed, rate in enumerate(fails.values())]
    held = []
    for run in zip(*experiments, strict=True):
        ranks = rank_intervals(dict(zip(fails, run, strict=True)))
        held.append([first <= place <= last for place, (first, last) in enumerate(ranks.values(), start=1)])
    assert np.mean(held, axis=0).min() >= 0.9


def test_ranks_need_the_same_units() -> None:
    with pytest.raises(ValueError, match="use the same units"):
        rank_intervals({"a": [0.0], "b": [0.0, 1.0]})
    assert rank_intervals({}) == {}
