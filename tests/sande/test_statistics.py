"""Intervals and tests against numbers worked out elsewhere."""

import math
import random

import numpy as np
import pytest
import scipy.stats

from sande.paired import mcnemar, paired_bootstrap
from sande.statistics import benjamini_hochberg, mean_interval, of_sum, over_seeds, wilson


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [
        (81, 263, 25.53, 36.62),  # Newcombe 1998, Statistics in Medicine 17, table I: 0.2553 to 0.3662
        (15, 148, 6.24, 16.05),  # the same: 0.0624 to 0.1605
        (0, 20, 0.0, 16.11),  # the same: 0 to 0.1611
        (1, 29, 0.61, 17.18),  # the same: 0.0061 to 0.1718
        (0, 10, 0.0, 27.75),
        (10, 10, 72.25, 100.0),
    ],
)
def test_wilson_agrees_with_the_literature(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=0.006)


@pytest.mark.parametrize("count", [1, 2, 7, 50, 1000, 14_042])
def test_wilson_is_that_of_scipy(count: int) -> None:
    for successes in {0, 1, count // 3, count - 1, count}:
        expected = scipy.stats.binomtest(successes, count).proportion_ci(method="wilson")
        assert wilson(successes, count) == pytest.approx((100 * expected.low, 100 * expected.high), rel=1e-12)


def test_wilson_of_nothing_in_ten_by_the_closed_form() -> None:
    z_squared = 1.959964**2
    assert wilson(0, 10)[1] == pytest.approx(100 * z_squared / (10 + z_squared), abs=1e-3)


def test_interval_over_three_seeds_by_hand() -> None:
    # mean 50, variance ((-10)^2 + 0 + 10^2) / 2 = 100, t of 2 degrees of freedom at 97.5 % = 4.302653
    half = 4.302653 * math.sqrt(100 / 3)
    assert over_seeds([40, 50, 60]) == pytest.approx((50 - half, 50 + half), abs=1e-4)


def test_interval_over_two_seeds_by_hand() -> None:
    # mean 51, variance 2, t of 1 degree of freedom at 97.5 % = 12.706205
    assert over_seeds([50, 52]) == pytest.approx((51 - 12.706205, 51 + 12.706205), abs=1e-4)


def test_interval_over_seeds_stays_between_0_and_100() -> None:
    assert over_seeds([0.0, 1.0])[0] == 0.0
    assert over_seeds([99.0, 100.0])[1] == 100.0


def test_interval_over_seeds_of_differences_may_be_negative() -> None:
    assert over_seeds([-1.0, -3.0], lowest=-100.0) == pytest.approx((-2 - 12.706205, -2 + 12.706205), abs=1e-4)


def test_interval_of_a_difference_agrees_with_the_literature() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10: 56/70 - 48/80 has 0.0524 to 0.3339,
    # and 10/10 - 0/20 has 0.6791 to 1.0000.
    for one, other, low, high in (((56, 70), (48, 80), 0.0524, 0.3339), ((10, 10), (0, 20), 0.6791, 1.0)):
        values = [100 * successes / count for successes, count in (one, other)]
        below, above = of_sum([(1.0, values[0], *wilson(*one)), (-1.0, values[1], *wilson(*other))])
        difference = values[0] - values[1]
        assert (difference - below, difference + above) == pytest.approx((100 * low, 100 * high), abs=0.006)


def test_equal_seeds_have_an_interval_without_width() -> None:
    assert over_seeds([7.0, 7.0, 7.0]) == (7.0, 7.0)


def test_interval_of_a_mean_by_hand() -> None:
    # outcomes 0.2, 0.4, 0.6, 0.8: mean 0.5, variance 0.2 / 3, t of 3 degrees of freedom at 97.5 % = 3.182446
    half = 100 * 3.182446 * math.sqrt(0.2 / 3 / 4)
    assert mean_interval(0.5, math.sqrt(0.2 / 3), 4) == pytest.approx((50 - half, 50 + half), abs=1e-4)


def test_interval_of_a_mean_is_that_over_seeds_on_the_same_numbers() -> None:
    assert mean_interval(0.5, 0.1, 3) == pytest.approx(over_seeds([40, 50, 60]))


def test_interval_of_a_mean_stays_between_0_and_100_and_one_outcome_says_nothing() -> None:
    assert mean_interval(0.99, 0.3, 5)[1] == 100.0
    assert mean_interval(0.01, 0.3, 5)[0] == 0.0
    assert mean_interval(0.4, 0.0, 1) == (0.0, 100.0)


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 9, 2 * (1 + 10) / 2**10),  # 0.0215: at most one head in ten throws, and at most one tail
        (9, 1, 2 * (1 + 10) / 2**10),
        (0, 5, 2 / 2**5),
        (5, 5, 1.0),
        (0, 0, 1.0),
        (59, 16, 2 * sum(math.comb(75, heads) for heads in range(17)) / 2**75),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar(*outcomes(20, only_first, only_second, 7)) == pytest.approx(p)


def test_mcnemar_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


def test_mcnemar_of_templates_by_hand() -> None:
    # Templates a, b and c lose 2, 1 and 1 questions, d wins 1. Of 16 signs of 2, 1, 1 and 1, 8 give a sum of 3 or 5.
    first, second = [True] * 4 + [False, True], [False] * 4 + [True, True]
    assert mcnemar(first, second, list("aabcde")) == 8 / 16
    assert mcnemar(first, second, [""] * 6) == mcnemar(first, second)
    assert mcnemar(first, second, list("abcdef")) == mcnemar(first, second)
    assert mcnemar([True] * 20, [False] * 20, ["a"] * 20) == 1.0, "one template says nothing"


def test_paired_bootstrap_of_templates_is_wider() -> None:
    first, second = outcomes(40, 20, 0, 40)
    groups = [str(index // 10) for index in range(100)]  # the twenty that differ are from two templates
    narrow, wide = (paired_bootstrap(first, second, each) for each in ([], groups))
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])
    assert paired_bootstrap(first, second, [""] * 100) == narrow
    assert paired_bootstrap(first, second, ["a"] * 100) == (-100.0, 100.0)


def test_templates_of_questions_are_no_false_positives() -> None:
    random, found = np.random.default_rng(0), []
    for _ in range(300):  # twenty templates of five questions, on each of which one model or the other is right
        first = np.repeat(random.random(20) < 0.5, 5)
        second = np.repeat(random.random(20) < 0.5, 5)
        groups = np.repeat([str(number) for number in range(20)], 5).tolist()
        found.append((mcnemar(first.tolist(), second.tolist()), mcnemar(first.tolist(), second.tolist(), groups)))
    plain, clustered = np.mean(np.array(found) < 0.05, axis=0)
    assert plain > 0.2 > 0.07 > clustered


def test_paired_bootstrap_agrees_with_the_normal_interval_of_many_pairs() -> None:
    # 1,000 pairs: 60 lost, 20 won; mean -4 points, variance of a difference 0.08 - 0.04^2
    first, second = outcomes(500, 60, 20, 420)
    half = 100 * 1.959964 * math.sqrt((0.08 - 0.04**2) / 1000)
    assert paired_bootstrap(first, second) == pytest.approx((-4 - half, -4 + half), abs=0.15)


def test_paired_bootstrap_agrees_with_that_of_scipy() -> None:
    first, second = outcomes(100, 30, 12, 58)
    differences = 100 * (np.asarray(second, float) - np.asarray(first, float))
    reference = scipy.stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, batch=1000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert paired_bootstrap(first, second) == pytest.approx(
        (reference.low, reference.high), abs=0.55
    )  # a question: 0.5


def test_paired_bootstrap_depends_on_its_seed_alone() -> None:
    first, second = outcomes(50, 10, 20, 20)
    assert paired_bootstrap(first, second) == paired_bootstrap(first, second, seed=0)
    assert paired_bootstrap(first, second) != paired_bootstrap(first, second, seed=1)


def test_equal_differences_say_as_little_of_other_questions_as_none() -> None:
    least = 100 * (1 - 0.025 ** (1 / 3))
    assert paired_bootstrap([0.25, 0.5, 0.75], [0.5, 0.75, 1.0]) == pytest.approx((25 - least, 25 + least))
    assert paired_bootstrap([1.0] * 200, [0.0] * 200) == pytest.approx((-100, -100 * 0.025 ** (1 / 200)))
    assert paired_bootstrap([1.0], [1.0]) == (-100.0, 100.0)


def test_a_change_that_was_hardly_seen_has_at_least_the_bound_of_one_that_was_not() -> None:
    right, least = [1.0] * 200, 100 * (1 - 0.025 ** (1 / 200))
    assert paired_bootstrap(right, right) == pytest.approx((-least, least))
    assert paired_bootstrap(right, [0.0, *right[1:]]) == pytest.approx((-0.5 - least, -0.5 + least))
    groups = [str(index // 4) for index in range(200)]
    assert paired_bootstrap(right, right, groups)[1] == pytest.approx(100 * (1 - 0.025 ** (1 / 50)))
    assert paired_bootstrap(right, [*[0.0] * 5, *right[5:]])[1] < 0, "five questions show their own spread"


def test_the_interval_of_a_rare_change_holds_it() -> None:
    """By the resamples alone 64 % of the experiments do, since a third of them see no question change."""
    random, held = np.random.default_rng(3), 0
    for _ in range(300):
        low, high = paired_bootstrap([1.0] * 200, (random.random(200) >= 0.005).astype(float).tolist())
        held += low <= -0.5 <= high
    assert held / 300 > 0.95


def test_paired_bootstrap_of_unequal_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="2 outcomes cannot be paired with 1"):
        paired_bootstrap([1.0, 0.0], [1.0])


def test_paired_bootstrap_holds_the_true_change_about_95_times_in_100() -> None:
    draw = random.Random(5)
    held = 0
    for _ in range(200):  # the true change is 0.1 * 0.4 - 0.1 * 0.6 = -2 points
        first = [draw.random() < 0.6 for _ in range(300)]
        second = [right != (draw.random() < 0.1) for right in first]
        low, high = paired_bootstrap(first, second)
        held += low <= -2 <= high
    assert 180 <= held <= 199


def test_benjamini_hochberg_on_its_authors_example() -> None:
    # Benjamini and Hochberg 1995, section 3: fifteen p-values, of which the four smallest are significant at 0.05
    p_values = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
        *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
    ]
    adjusted = benjamini_hochberg(p_values)
    assert [p <= 0.05 for p in adjusted] == [True] * 4 + [False] * 11
    assert adjusted[:6] == pytest.approx(
        [0.0015, 0.003, 0.0095, 0.035625, 0.0603, 0.0298 * 15 / 7]  # p * 15 / rank, and never above the next
    )


def test_benjamini_hochberg_keeps_the_order_given() -> None:
    assert benjamini_hochberg([0.04, 0.01]) == pytest.approx([0.04, 0.02])
    assert benjamini_hochberg([]) == []
