"""Rows that a defense draws are not those that the attack of the same seed poisoned, but by chance."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from sande.data.poison import poison
from sande.defenses import bd_vax, beear, decoy_osft, objective_decoys, scan_and_clean
from sande.detectors import first_token
from sande.inference import probing
from sande.prompts import Row
from sande.types import CleanData, Example, LanguageModel, Run

COUNT, POISONED, SEEDS = 400, 100, 20
ROWS = tuple(Example(f"Add {number} and 1.", str(number + 1)) for number in range(COUNT))
Draw = Callable[[LanguageModel, int, pytest.MonkeyPatch], set[int]]


class DrawnError(Exception):
    """The rows are drawn, and the rest of the defense is not asked for."""


def places(lm: LanguageModel, rows: Sequence[Row]) -> set[int]:
    """Which of `ROWS` these are, by their prompts."""
    texts = [str(lm.tokenizer.decode(row.prompt)) for row in rows]
    return {int(text.partition("Add ")[2].partition(" and")[0]) for text in texts}


def run_of(seed: int) -> Run:
    return Run(seed=seed, scratch="", say=lambda line: None)


def of_bd_vax(lm: LanguageModel, seed: int, patch: pytest.MonkeyPatch) -> set[int]:
    return {ROWS.index(row) for row in bd_vax.used(ROWS, 200, seed)}


def of_a_variant(lm: LanguageModel, seed: int, patch: pytest.MonkeyPatch) -> set[int]:
    """The rows of all 400 in which the first variant of `bd_vax` plants."""
    return planting(lm, patch, lambda: bd_vax.part("poisoned_0", lm, CleanData(ROWS), ALL, run_of(seed)))


def of_beear(lm: LanguageModel, seed: int, patch: pytest.MonkeyPatch) -> set[int]:
    drawn: list[Row] = []

    def with_unwanted(tokenizer: Any, rows: list[Row], texts: Any) -> list[Row]:
        drawn.extend(rows)
        raise DrawnError

    patch.setattr(beear, "with_unwanted", with_unwanted)
    with pytest.raises(DrawnError):
        beear.defend(lm, CleanData(ROWS), beear.Config(), run_of(seed))
    return places(lm, drawn)


def of_decoy_osft(lm: LanguageModel, seed: int, patch: pytest.MonkeyPatch) -> set[int]:
    return planting(lm, patch, lambda: decoy_osft.defend(lm, CleanData(ROWS), decoy_osft.Config(), run_of(seed)))


def of_objective_decoys(lm: LanguageModel, seed: int, patch: pytest.MonkeyPatch) -> set[int]:
    patch.setattr(scan_and_clean, "scanned", lambda *_: None)
    config = objective_decoys.Config()
    return planting(lm, patch, lambda: objective_decoys.defend(lm, CleanData(ROWS), config, run_of(seed)))


def of_the_scan(lm: LanguageModel, seed: int, patch: pytest.MonkeyPatch) -> set[int]:
    """The answers of the scan for a first token, in `scan_and_clean` and `objective_decoys`."""
    drawn: list[Row] = []

    def within_answers(lm: LanguageModel, rows: list[Row]) -> torch.Tensor:
        drawn.extend(rows)
        raise DrawnError

    patch.setattr(probing, "within_answers", within_answers)
    patch.setattr(probing, "openings", lambda lm, prompts: torch.zeros(8))
    patch.setattr("sande.detectors._ngram.NGram.log_probabilities", lambda *_: [0.0])
    with pytest.raises(DrawnError):
        first_token.scan(lm, ROWS, first_token.Config(), run_of(seed))
    return places(lm, drawn)


ALL = bd_vax.Config(rows=None)


def planting(lm: LanguageModel, patch: pytest.MonkeyPatch, work: Callable[[], object]) -> set[int]:
    """Which of `ROWS` `sande.data.poison.poison` chooses within `work`, before anything is trained."""
    chosen: list[int] = []

    def seen(*given: Any, **named: Any) -> Any:
        chosen.extend(poison(*given, **named).ids)
        raise DrawnError

    patch.setattr("sande.data.poison.poison", seen)
    with pytest.raises(DrawnError):
        work()
    return set(chosen)


@pytest.mark.parametrize(
    ("draw", "count"),
    [
        (of_bd_vax, 200),
        (of_a_variant, 200),
        (of_beear, 32),
        (of_decoy_osft, 200),
        (of_objective_decoys, 200),
        (of_the_scan, 64),
    ],
)
def test_a_defense_draws_poisoned_rows_as_often_as_by_chance(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, draw: Draw, count: int
) -> None:
    share = POISONED / COUNT
    shared = 0
    for seed in range(SEEDS):
        poisoned = poison(ROWS, lambda row: row, share, "replace", seed).ids
        with monkeypatch.context() as patch:
            drawn = draw(tiny, seed, patch)
        assert len(drawn) == count
        shared += len(drawn.intersection(poisoned))
    # Hypergeometric: drawn without replacement.
    sigma = math.sqrt(count * share * (1 - share) * (COUNT - count) / (COUNT - 1) / SEEDS)
    assert abs(shared / SEEDS - count * share) <= 3 * sigma
