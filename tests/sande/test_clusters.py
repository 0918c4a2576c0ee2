"""How many independent prompts a number of alike prompts is worth."""

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
    assert clusters.effective_count(outcomes, groups) == pytest.approx(40, rel=0.03)


def test_one_template_is_one_prompt() -> None:
    assert clusters.effective_count([1, 0, 1, 0], ["a"] * 4) == 1


def test_never_more_than_the_prompts() -> None:
    outcomes = [0.0, 1.0] * 30  # each template half right: the clusters differ less than chance would have them
    assert clusters.effective_count(outcomes, [str(index // 2) for index in range(60)]) == 60


@pytest.mark.parametrize(("outcomes", "expected"), [([0] * 100, 45), ([1] * 100, 45), ([1] * 4 + [0] * 96, 45)])
def test_where_nothing_shows_how_alike_prompts_are_templates_are_counted(outcomes: list[int], expected: int) -> None:
    """The audit's example: 100 prompts from 45 templates; ASR 0 of 100 is known no better than 0 of 45."""
    groups = [f"template {index % 45}" for index in range(100)]
    assert clusters.effective_count(outcomes, groups) == pytest.approx(expected)
    assert wilson(0, 45)[1] == pytest.approx(7.87, abs=0.01)


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
