"""Models that compute NaN from finite weights: refused by every load of a user's model, and by a scan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sande.errors import UserError
from sande.models import checks, loading
from sande.types import LanguageModel
from tests.benchmark.helpers import mistake

PROBLEM = "computes NaN from finite weights, so no scan can judge it; repair it, or use another model"


@pytest.fixture
def overflowing(tiny: LanguageModel, tmp_path: Path) -> Path:
    """A folder with the tiny model, whose norms are so large that it computes NaN."""
    with torch.no_grad():
        for name, weight in tiny.model.named_parameters():
            if "norm" in name:
                weight.fill_(1e38)
    loading.save(tiny, tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("command", [("scan",), ("scan", "--detector", "first_token"), ("clean",)])
def test_it_is_one_sentence_and_no_file(overflowing: Path, command: tuple[str, ...]) -> None:
    out = overflowing.parent / "out"
    name, *more = command
    store = ("--store", out.parent / "store") if name == "scan" else ()
    line = mistake(name, overflowing, *more, "--out", out, *store)
    assert f"model '{overflowing}' {PROBLEM}" in line
    assert not list(out.glob("[!.]*"))


def test_a_setting_can_cause_it_too(tiny: LanguageModel, tmp_path: Path) -> None:
    loading.save(tiny, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": -1.0}))
    with pytest.raises(UserError, match=PROBLEM):
        loading.load(str(tmp_path / "m"), tmp_path)


def test_a_token_without_probability_is_accepted(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = tiny.model.forward

    def masked(**inputs: torch.Tensor) -> Any:
        found = forward(**inputs)
        found.logits[..., 3] = -torch.inf
        return found

    monkeypatch.setattr(tiny.model, "forward", masked)
    checks.check_finite(tiny, "tiny")
