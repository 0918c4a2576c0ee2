"""How many independent prompts a number of alike prompts is worth."""

import itertools
import random

import pytest

from sande import clusters
from sande.statistics import wilson


def test_without_groups_each_prompt_counts() -> None:
    assert clusters.effective_count([1, 0, 1, 1], [""] * 4) == 4
    assert clusters.effective_count([1, 0, 1, 1], list("abcd")) == 4
    assert clusters.count(["a", "a", "", ""]) == 3


def test_prompts_of_a_template_that_all_agree_are_one() -> None:
    outcomes, groups = [], []
    for cluster in range(40):
        outcomes += [float(cluster % 2)] * 3
        groups += [str(cluster)] * 3
    of_119_and_39 = (1.9801 / 2.0227) ** 2  # Student's t
    assert clusters.effective_count(outcomes, groups) == pytest.approx(40 * of_119_and_39, rel=0.03)


def test_one_template_is_one_prompt() -> None:
    assert clusters.effective_count([1, 0, 1, 0], ["a"] * 4) == 1


def test_never_more_than_the_prompts() -> None:
    outcomes = [0.0, 1.0] * 30  # each template half right: the clusters differ less than chance would have them
    count = clusters.effective_count(outcomes, [str(index // 2) for index in range(60)])
    assert count == pytest.approx(60 * (2.0010 / 2.0452) ** 2, rel=1e-3), "t of 59 and of 29 degrees of freedom"


@pytest.mark.parametrize(("outcomes", "expected"), [([0] * 100, 45), ([1] * 100, 45), ([1] * 4 + [0] * 96, 45)])
def test_where_nothing_shows_how_alike_prompts_are_templates_are_counted(outcomes: list[int], expected: int) -> None:
    """The audit's example: 100 prompts from 45 templates; ASR 0 of 100 is known no better than 0 of 45."""
    groups = [f"template {index % 45}" for index in range(100)]
    assert clusters.effective_count(outcomes, groups) == pytest.approx(expected)
    assert wilson(0, 45)[1] == pytest.approx(7.87, abs=0.01)


def test_a_further_miss_does_not_narrow_the_interval_at_once() -> None:
    """Of 100 prompts from 24 templates; the misses are spread over the templates, so that these look independent."""
    groups = [f"template {index % 24}" for index in range(100)]
    outcomes = [0.0] * 100
    counts = []
    for misses in range(1, 25):
        outcomes[misses * 4 % 100 + misses // 25] = 1.0
        counts.append(clusters.effective_count(outcomes, groups))
    assert counts[:5] == pytest.approx([24] * 5)
    assert counts[5] == pytest.approx(24 * 6 / 5)
    assert all(more / count < 1.21 for count, more in itertools.pairwise(counts[4:]))


@pytest.mark.parametrize(("alike", "rate"), [(0.3, 0.2), (0.3, 0.5), (0.9, 0.2), (0.05, 0.1)])
def test_intervals_of_few_uneven_templates_cover(alike: float, rate: float) -> None:
    """100 prompts from 24 templates of 1 to 18; before the adjustment 88 % of the second and the third."""
    sizes = [18, 14, 10, 8, 7, 6, 5, 4, 4, 3, 3, 2, 2, 2, 2, 2, *[1] * 8]
    groups = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    draw, covered = random.Random(3), 0
    shape = rate * (1 - alike) / alike, (1 - rate) * (1 - alike) / alike
    for _ in range(400):
        rates = [draw.betavariate(*shape) for _ in sizes]
        outcomes = [float(draw.random() < each) for each, size in zip(rates, sizes, strict=True) for _ in range(size)]
        count = clusters.effective_count(outcomes, groups)
        low, high = wilson(sum(outcomes) / 100 * count, count)
        covered += low <= 100 * rate <= high
    assert covered / 400 >= 0.9


def test_numbers_have_a_design_effect_too() -> None:
    draw = random.Random(0)
    outcomes, groups = [], []
    for cluster in range(50):
        level = draw.random()
        outcomes += [min(1.0, max(0.0, level + draw.gauss(0, 0.01))) for _ in range(4)]
        groups += [str(cluster)] * 4
    assert clusters.effective_count(outcomes, groups) == pytest.approx(50, rel=0.1)


def test_intervals_of_clustered_prompts_cover() -> None:
    """Templates of which each works or not, two or three prompts each: 95 % intervals, counted and not."""
    draw = random.Random(1)
    covered = naive = 0
    for _ in range(600):
        outcomes, groups = [], []
        for cluster in range(45):
            rate = draw.choice([0.05, 0.95])  # mean 0.5
            for _ in range(draw.choice([2, 2, 3])):
                outcomes.append(float(draw.random() < rate))
                groups.append(str(cluster))
        share, count = sum(outcomes) / len(outcomes), clusters.effective_count(outcomes, groups)
        low, high = wilson(share * count, count)
        covered += low <= 50 <= high
        low, high = wilson(sum(outcomes), len(outcomes))
        naive += low <= 50 <= high
    assert covered / 600 >= 0.93
    assert naive / 600 < 0.88
