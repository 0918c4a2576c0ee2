"""Intervals against numbers worked out elsewhere."""

import math

import pytest

from sande.statistics import over_seeds, wilson


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


def test_equal_seeds_have_an_interval_without_width() -> None:
    assert over_seeds([7.0, 7.0, 7.0]) == (7.0, 7.0)
