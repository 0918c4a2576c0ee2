"""Numbers of a defense over its runs, by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmark.leaderboard import standing
from benchmark.leaderboard.board import FAILED, Number, Run
from sande import crossed
from sande.crossed import Answers
from sande.statistics import mean_bounds, over_seeds

RUN = Run(
    "", "sft", "nothing", "case", "a case", "victim", 0, 0, 99.0, Number(0.0, 0.0, 4.0), Number(1.0, -1.0, 3.0), {}
)


def test_a_unit_is_the_mean_of_its_cases_and_a_case_the_mean_of_its_defense_seeds() -> None:
    runs = [replace(RUN, defense_seed=seed, asr=Number(asr)) for seed, asr in ((0, 10.0), (1, 30.0))]
    runs += [replace(RUN, case="other", asr=Number(60.0)), replace(RUN, attack_seed=1, asr=Number(5.0))]
    assert [one.value for one in standing.of_units(runs, lambda run: run.asr)] == [40.0, 5.0]
    assert [one.value for one in standing.of_units(runs[::-1], lambda run: run.asr)] == [40.0, 5.0], "in fixed order"


def test_an_interval_of_several_units_is_gaffkes_and_of_one_its_own() -> None:
    one = Number(0.0, 0.0, 3.7)
    assert standing.share([one]) == one
    three = standing.share([one, one, one])
    assert three.high == pytest.approx(100 * mean_bounds([0.0] * 3)[1])
    assert standing.share([Number(-3.0, -4.0, -2.0), Number(2.0)]) == Number(-0.5), "no share: no interval"


def test_without_answers_the_interval_of_lost_utility_is_the_wider_of_units_and_questions() -> None:
    def of(*values: float) -> Number | None:
        losses = [Number(value, value - 0.5, value + 0.5) for value in values]
        return standing.lost([replace(RUN, attack_seed=seed, loss=loss) for seed, loss in enumerate(losses)])

    assert of(1.0) == Number(1.0, 0.5, 1.5)
    assert of(1.0, 1.0, 1.0) == Number(1.0, 0.5, 1.5), "seeds that agree do not make a number exact"
    apart = of(0.0, 1.0, 5.0)
    assert apart is not None
    assert (apart.low, apart.high) == over_seeds([0.0, 1.0, 5.0], -100.0)
    assert standing.lost([RUN, replace(RUN, loss=None)]) is None


def answered(values: Sequence[float], seed: int, **more: Any) -> Run:
    """A run that lost so much in each question."""
    answers = {"arc": Answers(np.array([values]), ["", "", "a", "a"])}
    return replace(RUN, attack_seed=seed, loss=Number(float(np.mean(values))), answers=answers, **more)


def test_where_answers_are_known_the_interval_is_over_victims_and_questions() -> None:
    one, other, third = [0.0, 100.0, 0.0, 0.0], [0.0, 0.0, -100.0, 0.0], [100.0, 100.0, 0.0, 0.0]
    runs = [answered(one, 0, defense_seed=0), answered(other, 0, defense_seed=1), answered(third, 1)]
    values = np.array([[0.0, 50.0, -50.0, 0.0], third])
    groups = ["", "", "a", "a"]
    assert standing.lost(runs) == Number(25.0, *crossed.interval([Answers(values, groups)]))
    alone = standing.lost(runs[-1:])
    assert alone == Number(50.0, *crossed.interval([Answers(values[1:], groups)]))


def test_a_run_that_failed_lost_nothing_in_any_question() -> None:
    failed = replace(RUN, attack_seed=1, loss=Number(0.0, 0.0, 0.0), flaw=FAILED)
    found = standing.lost([answered([0.0, 100.0, 0.0, 100.0], 0), failed])
    values = np.array([[0.0, 100.0, 0.0, 100.0], [0.0] * 4])
    assert found == Number(25.0, *crossed.interval([Answers(values, ["", "", "a", "a"])]))


def test_runs_of_other_questions_have_the_wider_interval() -> None:
    first = replace(answered([0.0, 100.0, 0.0, 0.0], 0), loss=Number(25.0, 0.0, 60.0))
    for other in (
        replace(first, attack_seed=1, answers={}),
        replace(first, attack_seed=1, answers={"arc": Answers(np.zeros((1, 5)), [""] * 5)}),
    ):
        assert standing.lost([first, other]) == Number(25.0, 0.0, 60.0)


def test_runs_that_leave_the_backdoor_are_counted_by_unit() -> None:
    asrs = ((0, 0, 5.0), (0, 1, 5.1), (1, 0, 0.0), (1, 1, 0.0))
    runs = [replace(RUN, attack_seed=a, defense_seed=d, asr=Number(asr)) for a, d, asr in asrs]
    found = standing.fails(runs)
    low, high = mean_bounds([0.5, 0.0])
    assert (found.value, found.low, found.high) == pytest.approx((25.0, 100 * low, 100 * high))


def test_cost_is_of_measured_runs_alone() -> None:
    runs = [replace(RUN, device="CPU", seconds=10.0), replace(RUN, device="", flaw=FAILED)]
    assert standing.by_device(runs) == {"CPU": 10.0}
    assert standing.tokens([replace(RUN, tokens=8.0), replace(RUN, flaw=FAILED)]) == (8.0,)
    assert standing.tokens([]) == (0.0,)


def test_tokens_of_other_meanings_have_no_mean() -> None:
    """Cases may differ, and attack seeds a little."""
    cases = {("a", 0): 100.0, ("a", 1): 108.0, ("b", 0): 900.0}
    runs = [replace(RUN, case=case, attack_seed=seed, tokens=count) for (case, seed), count in cases.items()]
    assert standing.tokens(runs) == (pytest.approx((100.0 + 108.0 + 900.0) / 3),)
    assert standing.tokens([*runs, replace(RUN, case="a", attack_seed=2, tokens=200.0)]) == (108.0, 500.0)
