"""The interval over victims and questions: by hand, and by how often it holds the truth."""

import numpy as np
import pytest
from scipy.stats import t

from sande.crossed import Answers, interval, of_repeats
from sande.statistics import over_seeds


def test_by_hand() -> None:
    values = np.array([[0.0, 10.0, 20.0], [4.0, 10.0, 28.0]])
    # Means of victims 10 and 14, of questions 2, 10 and 24; residuals of the first victim 0, 2 and -2.
    squares = {"victims": 3 * 8.0, "questions": 2 * (10**2 + 2**2 + 12**2), "rest": 2 * (0 + 2**2 + 2**2)}
    freedom = {"victims": 1, "questions": 2, "rest": 2}
    parts = {name: squares[name] / freedom[name] / 6 for name in squares}
    variance = parts["victims"] + parts["questions"] - parts["rest"]
    degrees = variance**2 / sum(parts[name] ** 2 / freedom[name] for name in parts)
    half = t.ppf(0.975, degrees) * variance**0.5
    assert interval([Answers(values, [])]) == pytest.approx((12 - half, 12 + half))


def test_of_one_victim_it_is_of_its_questions_and_copies_of_a_question_add_nothing() -> None:
    answers = [0.0, 100.0, -100.0, 0.0, 0.0, 100.0]
    alone = interval([Answers(np.array([answers]), [])])
    assert alone == pytest.approx(over_seeds(answers, -100.0))
    copied = interval([Answers(np.array([answers * 2]), list("abcdef") * 2)])
    assert copied == pytest.approx(alone)
    assert interval([Answers(np.array([[0.0, 100.0]]), ["a", "a"])]) == (-100.0, 100.0), "one template says nothing"


def test_victims_that_differ_more_than_questions_decide() -> None:
    means = [-20.0, 0.0, 40.0]
    values = np.array([[mean, mean] for mean in means])
    assert interval([Answers(values, [])]) == pytest.approx(over_seeds(means, -100.0))


def test_tasks_count_alike_and_their_questions_are_independent() -> None:
    random = np.random.default_rng(0)
    one = Answers(random.normal(0, 30, (1, 200)), [])
    other = Answers(random.normal(4, 30, (1, 50)), [])
    low, high = interval([one, other])
    assert (low + high) / 2 == pytest.approx((one.values.mean() + other.values.mean()) / 2)
    halves = [(high - low) / 2 for low, high in (interval([one]), interval([other]))]
    assert (high - low) / 2 == pytest.approx(np.hypot(*halves) / 2, rel=0.02)


def test_tasks_need_the_same_victims() -> None:
    for tasks in ([], [Answers(np.zeros((2, 3)), []), Answers(np.zeros((1, 3)), [])]):
        with pytest.raises(ValueError, match="a row for each victim"):
            interval(tasks)


def test_repetitions_are_a_sample_as_their_trials_are() -> None:
    """Two parrots at 30 and 70 %: t of one degree of freedom, 12.7, times 20; three: 4.30 times 11.5."""
    even, prompts = np.full(50, 0.1), [""] * 50
    even[::2] = -0.1
    low, high = of_repeats([0.5 + even, 0.5 + even], prompts)
    assert (low, high) == pytest.approx((50 - 100 * 0.0287, 50 + 100 * 0.0287), abs=0.1)
    assert of_repeats([0.3 + even, 0.7 + even], prompts) == (0.0, 100.0)
    low, high = of_repeats([0.3 + even, 0.5 + even, 0.7 + even], prompts)
    assert (low, high) == pytest.approx((50 - 49.7, 50 + 49.7), abs=0.5)
    assert of_repeats([0.5 + even], prompts) == interval([Answers(np.array([50 + 100 * even]), prompts)])
    # Nothing of two templates: both sides of 0 of 2 by Clopper and Pearson.
    assert of_repeats([np.zeros(4), np.zeros(4)], ["a", "a", "b", "b"]) == (0.0, pytest.approx(100 * (1 - 0.025**0.5)))


def test_victims_that_answer_alike_still_leave_the_questions_that_were_not_asked() -> None:
    alike = Answers(np.zeros((3, 200)), [])
    least = 100 * (1 - 0.025 ** (1 / 200))
    assert interval([alike]) == pytest.approx((-least, least))
    assert interval([alike] * 4) == pytest.approx((-least / 2, least / 2)), "errors of four tasks are independent"
    one = np.zeros((3, 200))
    one[:, 7] = -100.0
    assert interval([Answers(one, [])]) == pytest.approx((-0.5 - least, -0.5 + least))
    lost = np.zeros((3, 1000))
    lost[:, :5] = -100.0
    small, large = Answers(np.zeros((3, 20)), []), Answers(lost, [])
    low, high = interval([large, small])
    assert high > 0.4 * 100 * (1 - 0.025 ** (1 / 20)), "a spread in one task says nothing of another"
    many = np.zeros((3, 200))
    many[:, :5] = -100.0
    low, high = interval([Answers(many, [])])
    assert low < -2.5 - least < -2.5 + least < high, "five of them show their own spread"


@pytest.mark.parametrize("repeats", [2, 3])
def test_repetitions_hold_the_truth_about_as_often_as_they_say(repeats: int) -> None:
    """0.95 and 0.94 in 2,000 experiments; trials alone hold it in one of six."""
    random, held = np.random.default_rng(2), 0
    for _ in range(400):
        logits = (
            random.normal(0, 1, (repeats, 1)) + random.normal(0, 0.5, (1, 50)) + random.normal(0, 0.3, (repeats, 50))
        )
        low, high = of_repeats(1 / (1 + np.exp(-logits)), [])
        held += low <= 50 <= high
    assert held / 400 >= 0.91


@pytest.mark.parametrize("victims", [3, 7, 21])
@pytest.mark.parametrize(("of_victim", "of_question"), [(3.0, 15.0), (0.0, 20.0), (4.0, 0.0)])
def test_it_holds_the_truth_as_often_as_it_says(victims: int, of_victim: float, of_question: float) -> None:
    """Answers that change for the worse or for the better: by the victim, by the question, and by chance."""
    random, held, truth = np.random.default_rng(1), 0, 2.0
    for _ in range(400):
        mean = truth + random.normal(0, of_victim, (victims, 1)) + random.normal(0, of_question, (1, 100))
        changes = 0.2 + np.abs(mean) / 100  # how likely an answer changes
        changed = random.random((victims, 100)) < changes
        worse = random.random((victims, 100)) < (1 + mean / 100 / changes) / 2
        low, high = interval([Answers(100.0 * changed * np.where(worse, 1, -1), [])])
        held += low <= truth <= high
    assert held / 400 >= 0.93
