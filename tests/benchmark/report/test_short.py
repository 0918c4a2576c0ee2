"""Labels of victims without what all have in common."""

import pytest

from benchmark.report.short import MANY, Short, shortened


@pytest.mark.parametrize(
    ("labels", "short", "common"),
    [
        (["m / a, in-domain, x", "m / b, in-domain, x"], ["a", "b"], "m, in-domain, x"),
        (["m / a, in-domain, x", "m / a, in-domain, y, rate=0"], ["x", "y, rate=0"], "m, a, in-domain"),
        (["m / a, x"], ["m / a, x"], ""),  # one alone says what it is
        (["m / a, x", "m / a, x, rate=0"], ["x", "x, rate=0"], "m, a"),  # one would be empty
        (["m / x, y", "m / y, x"], ["m / x, y", "m / y, x"], ""),  # two would be the same
        (["Llama2-Alpaca", "Qwen1.5-Orca"], ["Llama2-Alpaca", "Qwen1.5-Orca"], ""),
        ([], [], ""),
    ],
)
def test_labels_without_common_parts(labels: list[str], short: list[str], common: str) -> None:
    assert shortened(labels) == Short(dict(zip(labels, short, strict=True)), common)


def test_many_labels_leave_out_the_model_data_and_domain_that_most_have() -> None:
    many = [f"m / a, in-domain, x={at}, y=1" for at in range(MANY)]
    found = shortened([*many, "n / a, in-domain, x=0, y=2", "m / b, out-of-domain, x=0, y=1"])
    assert list(found.labels.values())[MANY - 1 :] == [
        f"x={MANY - 1}, y=1",
        "n, x=0, y=2",
        "b, out-of-domain, x=0, y=1",
    ]
    assert found.sentences() == ["Where a label says nothing else: m, a, in-domain."]
    assert shortened([*many[: MANY - 1], "n / a, in-domain"]).usual == "", "of few labels"
    assert shortened([*(f"m / a, {at}" for at in range(MANY)), "n / a, 0"]).usual == "m", "without a domain"


def test_no_part_is_left_out_that_makes_two_labels_alike() -> None:
    labels = [*(f"m / a, x={at}" for at in range(MANY)), "n / a, x=0", "n / a, m, x=0"]
    found = shortened(labels)
    assert len(set(found.labels.values())) == len(labels)


def test_other_labels_have_places_of_their_own() -> None:
    labels = [f"{'seen ' * (at % 2)}model {at}, lr {1 + (at == 0)}, seed {at}" for at in range(MANY + 1)]
    found = shortened(labels, range(-2, 0))
    assert list(found.labels.values())[:2] == ["model 0, lr 2, seed 0", "seen model 1, seed 1"]
    assert found.sentences("models") == ["Where a label says nothing else: lr 1."]
