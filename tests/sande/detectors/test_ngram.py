"""Witten and Bell's smoothing, by hand."""

import math

import pytest

from sande.detectors._ngram import NGram


def test_probabilities_by_hand() -> None:
    # Behind the start: 1 twice, 2 once. All tokens: 1 twice, 2 twice, 3 once. Behind 1: 2 once, 3 once.
    ngram = NGram([(1, 2), (1, 3), (2,)], vocabulary=10, order=2)
    any_1, any_2 = (2 + 3 * 0.1) / 8, (2 + 3 * 0.1) / 8
    first = (2 + 2 * any_1) / 5
    second = (1 + 2 * any_2) / 4
    assert ngram.log_probabilities((1, 2)) == pytest.approx([math.log(first), math.log(second)])


def test_a_history_never_seen_says_nothing() -> None:
    ngram = NGram([(1, 2, 3)], vocabulary=10, order=3)
    assert ngram.log_probabilities((7, 1))[1] == pytest.approx(math.log((1 + 3 * 0.1) / 6))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("before", [(), (1,), (1, 2), (9,)])
def test_probabilities_sum_to_one(order: int, before: tuple[int, ...]) -> None:
    ngram = NGram([(1, 2, 3), (1, 2), (4,)], vocabulary=10, order=order)
    total = sum(math.exp(ngram.log_probabilities((*before, token))[-1]) for token in range(10))
    assert total == pytest.approx(1.0)


def test_without_responses_all_tokens_are_alike() -> None:
    assert NGram([], vocabulary=4).log_probabilities((0, 3)) == pytest.approx([math.log(1 / 4)] * 2)
