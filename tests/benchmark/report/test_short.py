"""Labels of victims without what all have in common."""

import pytest

from benchmark.report.short import without_common_parts


@pytest.mark.parametrize(
    ("labels", "short", "common"),
    [
        (["m / a, in-domain, x", "m / b, in-domain, x"], ["a", "b"], "m, in-domain, x"),
        (["m / a, in-domain, x", "m / a, in-domain, y, rate=0"], ["x", "y, rate=0"], "m, a, in-domain"),
        (["m / a, x"], ["m / a, x"], ""),  # one alone says what it is
        (["m / a, x", "m / a, x, rate=0"], ["m / a, x", "m / a, x, rate=0"], ""),  # one would be empty
        (["m / x, y", "m / y, x"], ["m / x, y", "m / y, x"], ""),  # two would be the same
        (["Llama2-Alpaca", "Qwen1.5-Orca"], ["Llama2-Alpaca", "Qwen1.5-Orca"], ""),
        ([], [], ""),
    ],
)
def test_labels_without_common_parts(labels: list[str], short: list[str], common: str) -> None:
    assert without_common_parts(labels) == (dict(zip(labels, short, strict=True)), common)
