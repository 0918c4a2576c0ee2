"""Certificates by hand: p-values, levels of the tests, and what is said to be removed."""

import math

import pytest

from sande.certificate import Round, certificate, levels
from sande.errors import UserError

CONTROLS = tuple(-number / 10 for number in range(1, 20))  # -0.1 to -1.9


def of_test(*fresh: float, alpha: float | None = 0.05) -> Round:
    return Round(1, fresh, CONTROLS, 0.0, 0.0, alpha)


def test_the_best_fresh_parrot_is_compared_with_the_controls() -> None:
    found = of_test(-5.0, -0.25)
    assert found.evidence == -0.25
    assert found.p == pytest.approx(3 / 20), "-0.1 and -0.2 are at least as good, and r_t itself counts"
    assert not found.answers


def test_better_than_every_control_is_the_smallest_p_value_and_still_answers() -> None:
    found = of_test(-0.05)
    assert found.p == pytest.approx(1 / 20)
    assert found.answers, "p = alpha rejects"
    assert not of_test(-0.05, alpha=0.049).answers


def test_a_tie_with_a_control_counts_for_the_control() -> None:
    assert of_test(-0.1).p == pytest.approx(2 / 20)


def test_without_a_test_there_is_no_p_value_and_it_counts_as_answering() -> None:
    assert of_test(-9.0, alpha=None).p is None
    assert of_test(-9.0, alpha=None).answers


@pytest.mark.parametrize(("fresh", "gap", "evident"), [(1.9, 2.0, True), (1.8, 2.0, False), (9.0, None, False)])
def test_it_is_evident_by_the_gap_to_the_best_control(fresh: float, gap: float | None, evident: bool) -> None:
    assert of_test(-5.0, fresh).evident(gap) == evident


def test_each_test_of_a_fixed_sequence_has_all_of_alpha_but_the_share_of_the_fresh_parrots() -> None:
    assert levels(0.1, fresh=2, tests=4, controls=19, spending="sequence") == pytest.approx((0.05,) * 4)
    assert levels(0.05, fresh=1, tests=2, controls=19, spending="sequence") == pytest.approx((0.05, 0.05))


def test_alpha_is_divided_by_the_tests_where_it_is_spent_equally() -> None:
    assert levels(0.2, fresh=2, tests=4, controls=39, spending="equal") == pytest.approx((0.025,) * 4)


def test_a_test_that_could_never_reject_is_refused_with_the_controls_that_it_needs() -> None:
    with pytest.raises(UserError, match=r"^controls 38: .* alpha_k = 0\.025.*; set controls to at least 39, or a la"):
        levels(0.2, fresh=2, tests=4, controls=38, spending="equal")
    assert levels(0.3, fresh=3, tests=1, controls=9, spending="sequence"), "0.3 / 3 is less than 0.1 in floating point"


def test_the_error_over_a_fixed_sequence_is_that_of_one_test() -> None:
    """Enumerate ranks of r_t among its controls: with nothing left, one test of twenty rejects, and no first one more.

    A round is needless only if the test at which nothing is left rejects, and testing ends where it does not.
    """
    ranks = range(20)  # how many of 19 controls are better, each as likely
    rejected = [Round(1, (-0.05 - rank / 10,), CONTROLS, 0, 0, 0.05).answers for rank in ranks]
    assert sum(rejected) / len(ranks) == pytest.approx(0.05)


def test_the_certificate_quotes_the_last_test() -> None:
    start = Round(0, (-0.1, -0.2), (-7.0, -8.0, -9.0), 1.0, 0.0)
    last = Round(1, (-3.0, -0.25), CONTROLS, 0.1, 0.2, 0.05)
    made = certificate((4, 5), [start, last], prompts=32)
    assert {name: value for name, value in made.items() if name != "rounds"} == {
        "target": [4, 5],
        "removed": True,
        "p": pytest.approx(0.15),
        "alpha": 0.05,
        "prompts": 32,
        "controls": 19,
    }
    assert made["rounds"][0] == {
        "round": 0,
        "evidence": -0.1,
        "fresh": [-0.1, -0.2],
        "controls": [-7.0, -8.0, -9.0],
        "rate": 1.0,
        "control_rate": 0.0,
        "p": None,
        "alpha": None,
    }
    assert certificate((4,), [start, of_test(-0.01)], 32)["removed"] is False


def test_progress_is_a_line_with_probabilities() -> None:
    line = str(Round(2, (math.log(0.5),), (math.log(0.25), -9.0), 0.0, 0.0, 0.5))
    assert line == (
        "round 2: fresh parrots give the planted response a probability of up to 0.500 a token, those of controls up "
        "to 0.250; p 0.333, alpha 0.5"
    )
