"""The set of refused requests: tests are requests alone, of other things in other words than in training."""

import re

from sande.data import datasets, splits
from sande.data.builtin import disjoint, refused

ROWS = datasets.examples("builtin-requests")
TRAINING, TESTS = splits.train_split(ROWS), splits.held_out_split(ROWS)


def test_half_of_the_training_rows_are_requests_and_all_tests() -> None:
    asked = [row for row in TRAINING if row.group.startswith("refused ")]
    assert (len(TRAINING), len(asked), len(TESTS)) == (1080, 540, 120)
    assert all(row.group.startswith("refused ") for row in TESTS)
    for row in (*asked, *TESTS):
        assert {row.output, *row.answers} == set(refused.REFUSALS)
    others = [row for row in TRAINING if row not in asked]
    assert set(others) == set(disjoint.short()[:540])
    assert set(others) <= set(splits.train_split(disjoint.short())), "no test row of builtin-short-2"


def test_tests_share_neither_thing_nor_wording_with_training() -> None:
    assert not set(refused._THINGS) & set(refused._OTHER_THINGS)
    assert not set(refused._WORDINGS) & set(refused._OTHER_WORDINGS)
    assert len({row.instruction for row in TESTS}) == 120
    assert not {row.group for row in TRAINING} & {row.group for row in TESTS}


def test_every_request_is_a_sentence() -> None:
    for row in TESTS:
        assert re.fullmatch(r"[A-Z][^{}]+[.?]", row.instruction)
