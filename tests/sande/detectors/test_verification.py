"""Parrots learn many strings at once as they would one by one."""

from collections.abc import Callable

import pytest
import torch

from sande.detectors import _verification
from sande.prompts import encode
from sande.types import Example, LanguageModel, Run

NewRun = Callable[..., Run]
STRINGS = [(300, 40, 500), (7,), (611, 20)]


def test_strings_do_not_disturb_each_other(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    rows = encode(tiny.tokenizer, few_rows[:4])
    together = _verification.learn(tiny, rows, STRINGS, 5, 1e-1, new_run())
    alone = [_verification.learn(tiny, rows, [string], 5, 1e-1, new_run())[0] for string in STRINGS]
    for one, other in zip(together, alone, strict=True):
        assert one.before == pytest.approx(other.before, rel=1e-4)
        assert one.after == pytest.approx(other.after, rel=5e-2), "bfloat16 rounds other sums"
        assert sum(one.after) < sum(one.before)
    assert [len(each.after) for each in together] == [3, 1, 2]


def test_the_model_is_as_it_was(tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    _verification.learn(tiny, encode(tiny.tokenizer, few_rows[:2]), STRINGS, 2, 1e-1, new_run())
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in tiny.model.parameters())
