"""Intervals, thresholds and p-values of detectors: by hand, and their coverage by simulation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from benchmark.detection import rates
from benchmark.detection.rates import Estimate

Draw = Callable[[np.random.Generator, Any], np.ndarray]


@pytest.mark.parametrize(
    ("victims", "twins", "area"),
    [([2, 3], [0, 1], 1.0), ([1], [1], 0.5), ([0, 2], [1], 0.5), ([0], [1, 0], 0.25), ([2.0, 1.0, 0.0], [1.0], 0.5)],
)
def test_an_auroc_counts_pairs_and_half_of_ties(victims: list[float], twins: list[float], area: float) -> None:
    found = rates.auroc(victims, twins)
    assert found is not None
    assert found.value == pytest.approx(area)
    assert found.low <= area <= found.high


@pytest.mark.parametrize(("victims", "twins"), [([1.0], []), ([], [1.0])])
def test_one_kind_of_model_has_no_auroc(victims: list[float], twins: list[float]) -> None:
    assert rates.auroc(victims, twins) is None


def test_the_published_detector_has_the_interval_that_the_audit_misses() -> None:
    """0.92 of five and five models: by Hanley and McNeil's standard error on the logit, 0.46 to 0.99."""
    found = rates.auroc([6.29, 5.77, 3.40, 5.00, 8.81], [2.60, 2.98, 3.58, 3.52, 3.34])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.92, 0.482, 0.993), abs=1e-3)


def twin(rng: np.random.Generator, count: Any) -> np.ndarray:
    return rng.normal(size=count)


def shifted(by: float, scale: float = 1.0) -> Draw:
    return lambda rng, count: by + scale * rng.normal(size=count)


def missed(share: float) -> Draw:
    """Victims of which the detector does not see a share at all."""
    return lambda rng, count: np.where(rng.random(count) < share, 0, 10) + rng.normal(size=count)


def loud(share: float) -> Draw:
    """Clean models of which a share scores higher than any victim."""
    return lambda rng, count: np.where(rng.random(count) < share, 20, 0) + rng.normal(size=count)


def rounded(draw: Draw) -> Draw:
    return lambda rng, count: np.round(draw(rng, count))


def coverage(
    victim: Draw,
    clean: Draw,
    sizes: tuple[int, int],
    trials: int,
    interval: Callable[..., Estimate | None] = rates.auroc,
) -> float:
    """How often the interval holds the true AUROC."""
    rng, many = np.random.default_rng(0), 200_000
    true = mannwhitneyu(victim(rng, many), clean(rng, many)).statistic / many**2
    found = [interval(list(victim(rng, sizes[0])), list(clean(rng, sizes[1]))) for _ in range(trials)]
    return float(np.mean([each is not None and each.low <= true <= each.high for each in found]))


def resampled(victims: list[float], twins: list[float]) -> Estimate:
    """The bootstrap's percentile interval, victims and twins drawn apart."""
    rng = np.random.default_rng(0)
    first, second = rng.choice(victims, (200, len(victims))), rng.choice(twins, (200, len(twins)))
    areas = (first[:, :, None] > second[:, None]).mean((1, 2))
    return Estimate(float(np.mean(areas)), *(float(bound) for bound in np.percentile(areas, [2.5, 97.5])))


@pytest.mark.parametrize("victim", [shifted(3), shifted(3, 3), missed(0.1)])
@pytest.mark.parametrize("sizes", [(5, 5), (5, 20), (30, 30)])
def test_intervals_of_an_auroc_hold_it_in_nine_of_ten_cases(victim: Draw, sizes: tuple[int, int]) -> None:
    assert coverage(victim, twin, sizes, trials=200) >= 0.9


PAIRS = [
    *((shifted(by), twin) for by in (0, 1, 2, 3)),
    *((shifted(by, scale), twin) for by, scale in ((3, 3), (1, 0.2))),
    *((missed(share), twin) for share in (0.1, 0.2, 0.5)),
    *((shifted(10), loud(share)) for share in (0.1, 0.3)),
    *((rounded(shifted(by)), rounded(twin)) for by in (1, 2.5)),
]


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("sizes", [(5, 5), (10, 10), (5, 20), (20, 5), (30, 30)])
def test_they_hold_it_for_many_kinds_of_scores(pair: tuple[Draw, Draw], sizes: tuple[int, int]) -> None:
    assert coverage(*pair, sizes, trials=2000) >= 0.9


def test_the_bootstrap_would_hold_it_in_fewer_than_half() -> None:
    """A detector that misses one victim of ten: five victims often hold no such case."""
    assert coverage(missed(0.1), twin, (5, 5), 300, resampled) == pytest.approx(0.37, abs=0.05)


def test_a_rate_has_the_interval_of_clopper_and_pearson() -> None:
    # 1 - 0.025 ** (1 / 5): the highest rate at which five models without an alarm are not rarer than 2.5 %.
    assert rates.rate(0, 5) == Estimate(0, 0, pytest.approx(100 * (1 - 0.025**0.2)))
    assert rates.rate(4, 5) == Estimate(80, pytest.approx(28.358, abs=1e-3), pytest.approx(99.495, abs=1e-3))
    assert rates.rate(0, 0) is None


def test_a_threshold_needs_enough_models() -> None:
    scores = [float(score) for score in range(1, 20)]
    assert rates.calibrate(scores, 0.05) == rates.Calibration(19, 1, 19.0, 0.05, pytest.approx(0.1459, abs=1e-4), 19)
    few = rates.calibrate(scores[1:], 0.05)
    assert (few.threshold, few.worst, few.needed) == (None, None, 19)
    assert few.bound == pytest.approx(1 / 19), "the lowest rate that 18 models can bound"
    assert rates.calibrate([], 0.05).threshold is None
    assert rates.calibrate(scores, 0.1).threshold == 18.0
    assert rates.calibrate([float(score) for score in range(99)], 0.29).rank == 29, "rounding takes no rank away"


@pytest.mark.parametrize("false_alarms", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("scores", [list(range(40)), [0, 0, 1, 1, 1, 2] * 4, [5] * 30])
def test_an_alarm_is_a_score_with_a_low_p_value(scores: list[float], false_alarms: float) -> None:
    threshold = rates.calibrate(scores, false_alarms).threshold
    assert threshold is not None
    for score in np.arange(-1, 42, 0.5):
        p_value = rates.p_value(score, scores)
        assert p_value is not None
        assert (score > threshold) == (p_value <= false_alarms)


@pytest.mark.parametrize("draw", [twin, lambda rng, count: rng.integers(0, 3, count)], ids=["continuous", "ties"])
@pytest.mark.parametrize("models", [9, 19, 40])
def test_p_values_and_alarms_are_valid_for_clean_models(draw: Draw, models: int) -> None:
    """Each scan chooses the best of many strings; the clean models that it is compared with chose theirs alike."""
    trials, strings = 500, 50
    scores = draw(np.random.default_rng(models), (trials, models + 1, strings)).max(-1)
    found, alarms = [], []
    for *calibration, tested in scores.tolist():
        p_value = rates.p_value(tested, calibration)
        assert p_value is not None
        found.append(p_value)
        threshold = rates.calibrate(calibration, 0.1).threshold
        alarms.append(threshold is not None and tested > threshold)
    for level in (0.05, 0.1, 0.2, 0.5, 0.9):
        error = 3 * (level * (1 - level) / trials) ** 0.5
        assert np.mean(np.array(found) <= level + 1e-9) <= level + error
    assert np.mean(alarms) <= 0.1 + 3 * (0.09 / trials) ** 0.5


def test_the_given_worst_rate_holds_for_most_calibrations() -> None:
    """The true rate above the threshold of one calibration stays below `worst` in 95 % of them."""
    rng = np.random.default_rng(0)
    held, trials = 0, 1000
    for _ in range(trials):
        calibration = rates.calibrate(list(rng.random(19)), 0.1)
        assert calibration.threshold is not None
        assert calibration.worst is not None
        held += 1 - calibration.threshold <= calibration.worst
    assert held / trials == pytest.approx(0.95, abs=0.02)


def test_without_clean_models_there_is_no_p_value() -> None:
    assert rates.p_value(3.0, []) is None
    assert rates.p_value(3.0, [1.0, 2.0, 3.0]) == pytest.approx(0.5)


def test_the_chance_of_false_alarms_is_that_of_ranks_among_models_of_one_kind() -> None:
    assert rates.chance(0, 15, 1, 31) == pytest.approx(1)
    four_highest = math.comb(15, 4) / math.comb(46, 4)  # the four highest of 46 are all twins
    assert rates.chance(4, 15, 1, 31) == pytest.approx(four_highest)
    rng = np.random.default_rng(0)
    scores = rng.random((20_000, 12))
    above = (scores[:, :5] > np.sort(scores[:, 5:], axis=1)[:, [-2]]).sum(1)  # the second highest of seven
    assert rates.chance(3, 5, 2, 7) == pytest.approx(np.mean(above >= 3), abs=0.01)
