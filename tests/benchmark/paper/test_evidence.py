"""Verdicts by evidence: bounds against those of `sande.statistics`, errors by simulation, and scores of chance."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from benchmark.paper import numbers
from benchmark.paper.chance import same_kind, same_verdict, score
from benchmark.paper.compare import COMPARED, Compared, compare, kind_of_change
from benchmark.paper.evidence import DIFFERENT, EQUIVALENT, UNDECIDED, of_answers, of_change, of_level
from benchmark.paper.ranks import agreement
from benchmark.records import files
from benchmark.records.aggregate import Results
from benchmark.records.trials import Outcomes
from sande import crossed, statistics
from sande.crossed import Answers
from sande.paired import paired_bootstrap

NUMBERS = numbers.reported()


def share(successes: int, count: int) -> list[float]:
    return [100.0] * successes + [0.0] * (count - successes)


def changes(lost: int, won: int, count: int) -> list[float]:
    return [-100.0] * lost + [100.0] * won + [0.0] * (count - lost - won)


# Bounds


@pytest.mark.parametrize("units", [[0.0, 0.0, 0.0], [0.0, 95.0, 0.0, 3.0, 1.0], [100.0] * 4, [20.0, 60.0], [7.0]])
def test_over_seeds_the_bounds_are_those_of_the_tests_in_statistics(units: list[float]) -> None:
    found = of_level(units, "seeds")
    assert found.outer == pytest.approx(statistics.mean_bounds(units, 0, 100), abs=1e-6)
    for reported in (0.0, 5.0, 30.0, 99.9, 100.0):
        for margin in (1.0, 20.0, 60.0, 99.0):
            above = statistics.non_inferior([unit - reported for unit in units], margin, reported)
            below = statistics.non_inferior([reported - unit for unit in units], margin, 100 - reported)
            assert (found.verdict(reported, margin) == EQUIVALENT) == (max(above, below) < 0.05)


@pytest.mark.parametrize("units", [[0.5, -0.5, 0.1], [1.0, 1.0, 1.0], [-3.0, 2.0, 0.0, 1.0, 0.5], [0.1, 0.2], [0.0]])
def test_changes_over_seeds_are_equivalent_by_students_tests(units: list[float]) -> None:
    found = of_change(units, "seeds")
    for reported in (-3.0, 0.0, 1.1):
        for margin in (0.5, 2.0, 8.0):
            p = statistics.equivalent([unit - reported for unit in units], margin)
            assert (found.verdict(reported, margin) == EQUIVALENT) == (p < 0.05)


def test_changes_over_seeds_are_of_other_questions_too() -> None:
    """Victims that all gain and lose as many answers have equal changes, and not of any questions."""
    generator = np.random.default_rng(0)
    answers = np.stack([generator.permutation([-100.0] * 10 + [100.0] * 10 + [0.0] * 180) for _ in range(3)])
    over_units = of_change(answers.mean(1).tolist(), "seeds")
    assert over_units.outer == (0.0, 0.0)
    found = of_answers(Answers(answers, []), "seeds")
    assert found.outer == crossed.interval([Answers(answers, [])])
    assert found.outer[0] < found.inner[0] < -1 < 1 < found.inner[1] < found.outer[1]
    assert of_answers(Answers(answers[:2], []), "seeds").verdict(0.0, 2.0) == UNDECIDED, "two seeds are never enough"


def test_the_prompts_of_one_model_have_clopper_and_pearsons_bounds() -> None:
    found = of_level(share(3, 200), "model")
    for bound, tail in ((found.inner[1], 0.05), (found.outer[1], 0.025)):
        assert binom.cdf(3, 200, bound / 100) == pytest.approx(tail)
    for bound, tail in ((found.inner[0], 0.05), (found.outer[0], 0.025)):
        assert binom.sf(2, 200, bound / 100) == pytest.approx(tail)
    assert of_level(share(0, 200), "model").inner == (0.0, pytest.approx(100 * (1 - 0.05 ** (1 / 200))))


@pytest.mark.parametrize("units", [changes(3, 1, 40), changes(0, 0, 40), changes(20, 15, 40), changes(40, 0, 40)])
def test_the_drawn_bounds_of_questions_are_near_the_exact_ones(units: list[float]) -> None:
    found = of_change(units, "model")
    assert found.outer == pytest.approx(statistics.mean_bounds(units, -100, 100), abs=0.6)


def test_prompts_of_one_template_count_as_what_they_are() -> None:
    alone = of_level(share(0, 100), "model")
    by_template = of_level(share(0, 100), "model", [str(index % 20) for index in range(100)])
    assert by_template.inner == (0.0, pytest.approx(100 * (1 - 0.05 ** (1 / 20))))
    assert (alone.verdict(0.0, 5.0), by_template.verdict(0.0, 5.0)) == (EQUIVALENT, UNDECIDED)
    questions = changes(10, 10, 200)
    groups = [str(index // 10) for index in range(200)]  # each template all lost, all won or all kept
    narrow, wide = (of_change(questions, "model", each).outer for each in ((), groups))
    assert wide[0] < narrow[0] < 0 < narrow[1] < wide[1]


# Verdicts


def test_a_wide_interval_is_undecided_and_never_agreement() -> None:
    """The audit's complaint: a number agreed if it lay in our interval, so few prompts agreed with anything."""
    for reported in range(0, 101, 5):
        assert of_level(share(5, 10), "model").verdict(reported, 5.0) in (UNDECIDED, DIFFERENT)
    assert of_level(share(5, 10), "model").verdict(50.0, 5.0) == UNDECIDED
    assert of_change(changes(0, 0, 100), "model").verdict(0.0, 2.0) == UNDECIDED, "100 equal answers are too few"
    assert of_change(changes(0, 0, 200), "model").verdict(0.0, 2.0) == EQUIVALENT
    assert of_change([0.0, 0.1], "seeds").verdict(0.0, 2.0) == UNDECIDED, "two seeds are never enough"


@pytest.mark.parametrize(
    ("reported", "verdict"),
    [(0.0, EQUIVALENT), (2.0, EQUIVALENT), (4.9, EQUIVALENT), (6.0, UNDECIDED), (8.0, DIFFERENT)],
)
def test_what_is_equivalent_and_what_is_different(reported: float, verdict: str) -> None:
    assert of_level(share(0, 300), "model").verdict(reported, 5.0) == verdict


def test_verdicts_are_wrong_in_at_most_one_of_twenty() -> None:
    generator = random.Random(0)
    at_the_margin: Counter[str] = Counter()
    for _ in range(1000):
        successes = sum(generator.random() < 0.15 for _ in range(200))
        at_the_margin[of_level(share(successes, 200), "model").verdict(10.0, 5.0)] += 1
    assert at_the_margin[EQUIVALENT] <= 60
    assert at_the_margin[DIFFERENT] <= 35
    assert at_the_margin[UNDECIDED] >= 900


def test_a_removal_that_fails_in_one_run_of_five_is_hardly_ever_equivalent_to_one_that_never_fails() -> None:
    generator = random.Random(1)
    runs = [[95.0 if generator.random() < 0.2 else 0.0 for _ in range(5)] for _ in range(200)]
    assert all(of_level(units, "seeds").verdict(0.0, 5.0) != EQUIVALENT for units in runs)


# Chance


def change_of(number: numbers.Reported, paper: float, lost: int, won: int, questions: int) -> Compared:
    """A change of utility that the paper reports, with ours on so many questions."""
    units, kinds = (
        changes(lost, won, questions),
        (kind_of_change(paper), kind_of_change(100 * (won - lost) / questions)),
    )
    one = Compared(number, paper, None, True, of_change(units, "model"), 2.0, *kinds, "")
    return replace(one, verdict=one.verdict_on(paper))


def utilities(questions: int, informed: bool) -> list[Compared]:
    """The 84 changes of utility of table 2: ours are the paper's, or say nothing about them."""
    generator = random.Random(0)
    chosen = [number for number in NUMBERS if number.table == 2 and number.defense != "none"]
    papers = [generator.gauss(0, 6) for _ in chosen]
    ours = papers if informed else generator.sample(papers, len(papers))
    more = [round(questions * change / 100) for change in ours]
    turned = questions // 100
    return [
        change_of(number, paper, turned + max(-each, 0), turned + max(each, 0), questions)
        for number, paper, each in zip(chosen, papers, more, strict=True)
    ]


def of(method: str, victim_model: str = "llama2-7b", table: int = 2) -> numbers.Reported:
    """A number of the paper's, of MMLU."""
    named = (method, "mmlu", 2)
    (first, *_) = [number for number in NUMBERS if (number.defense, number.metric, number.table) == named]
    return replace(first, victim_model=victim_model, table=table)


def test_scores_by_hand() -> None:
    made = [
        change_of(of("sft"), 0.0, 0, 0, 300),
        change_of(of("nad"), 50.0, 0, 150, 300),
        change_of(of("nad", table=4), 50.0, 0, 150, 300),  # the only method of its table
    ]
    found = score(made, same_kind)
    assert (found.count, found.found, found.low, found.high) == (3, 3, 1, 3)
    assert found.mean == pytest.approx(2.0, abs=0.1), "half of the shuffles exchange the two"


def test_methods_change_places_alike_for_all_victims_and_victims_do_not_count() -> None:
    victims = [f"victim {place}" for place in range(16)]
    made = [
        change_of(of(method, victim), paper, 0, won, 300)
        for victim in victims
        for method, paper, won in (("none", 0.0, 0), ("sft", 0.0, 0), ("nad", 50.0, 150))
    ]
    found = score(made, same_kind)
    assert (found.count, found.found, found.low, found.high) == (32, 32, 0, 32), "all of them agree, or none"
    assert found.mean == pytest.approx(16, abs=1)


def test_a_run_that_says_nothing_scores_like_chance_and_one_that_agrees_scores_more() -> None:
    by_chance, real = (score(utilities(2000, informed), same_verdict(EQUIVALENT)) for informed in (False, True))
    assert by_chance.low <= by_chance.found <= by_chance.high
    assert by_chance.found < 30
    assert real.found > 70 > real.high


def test_few_questions_agree_with_nothing_whatever_the_paper_has() -> None:
    """By the former rule (the paper's number lies in our interval) most of these agreed, as they would by chance."""
    made = utilities(50, informed=False)
    assert score(made, same_verdict(EQUIVALENT)).found == 0
    former = score(made, within_interval)
    assert former.found > 84 / 2, "more than half"
    assert former.low <= former.found <= former.high


def within_interval(ours: Compared, papers: Compared) -> bool:
    assert ours.evidence is not None
    low, high = ours.evidence.outer
    return low <= papers.paper <= high


@pytest.fixture(scope="module")
def published() -> list[Compared]:
    folder = Path(__file__).parents[3] / "results/published/smollm2"
    found = compare(Results(files.read_rows(folder), Outcomes(files.read_outcomes(folder))).entries())
    return [one for one in found if one.verdict in COMPARED]


def test_the_audits_example_on_the_published_rows(published: list[Compared]) -> None:
    """Of 56 utilities 23 "agreed" by the former rule; with the paper's methods shuffled 22 (18 to 26) do."""
    utilities = [one for one in published if one.number.metric != "asr"]
    intervals = {}
    for one in utilities:
        assert one.entry is not None
        pair = one.entry.against(one.entry.of_victim)
        assert pair is not None
        intervals[one.number] = paired_bootstrap(*pair)

    def agreed(ours: Compared, papers: Compared) -> bool:
        low, high = intervals[ours.number]
        return round(low, 2) <= round(papers.paper, 2) <= round(high, 2)

    former = score(utilities, agreed)
    assert (former.count, former.found) == (56, 23)
    assert former.mean == pytest.approx(22, abs=1)
    assert (former.low, former.high) == (pytest.approx(18, abs=1), pytest.approx(26, abs=1))
    now = score(utilities, same_verdict(EQUIVALENT))
    assert now.found <= 5
    assert now.low <= now.found <= now.high
    kinds = score(utilities, same_kind)
    assert kinds.found <= kinds.high


def test_the_published_rates_come_in_the_papers_order_and_agree_as_by_chance(published: list[Compared]) -> None:
    rates = [one for one in published if one.number.metric == "asr"]
    found = score(rates, same_verdict(EQUIVALENT))
    assert found.count == 56
    assert found.low <= found.found <= found.high
    order = agreement(rates)
    assert order
    assert order.tau > order.high
