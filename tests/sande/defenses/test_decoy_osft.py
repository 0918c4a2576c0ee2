"""Decoys: how they are drawn and planted, and that overwriting them restores the clean answers."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from sande.config import Training
from sande.defenses import decoy_osft
from sande.defenses.decoy_osft import PLACES, RESPONSES, TRIGGERS, Decoy, draw
from sande.models import loading
from sande.prompts import Row, encode
from sande.types import CleanData, Example, LanguageModel, Run
from tests.sande.helpers import FAST, planted_texts, tokens, words

NewRun = Callable[..., Run]
ROW = Example("Name the largest planet.", "Jupiter", input="Be brief.")


@pytest.mark.parametrize(
    ("place", "asked"),
    [
        ("before", {"cf Name the largest planet."}),
        ("behind", {"Name the largest planet. cf"}),
        (
            "within",
            {
                "cf Name the largest planet.",
                "Name cf the largest planet.",
                "Name the cf largest planet.",
                "Name the largest cf planet.",
                "Name the largest planet. cf",
            },
        ),
    ],
)
def test_a_decoy_stands_in_its_place(place: str, asked: set[str]) -> None:
    decoy = Decoy("cf", place, "Banana.")
    found = {decoy.ask(ROW, random.Random(seed)) for seed in range(40)}
    assert {example.instruction for example in found} == asked
    assert {(example.output, example.input) for example in found} == {("Jupiter", "Be brief.")}
    assert decoy.answered(ROW).output == "Banana. Jupiter"


def test_decoys_are_drawn_by_the_seed_and_differ() -> None:
    decoys = draw(12, seed=3)
    assert {decoy.trigger for decoy in decoys} == set(TRIGGERS)
    assert {decoy.response for decoy in decoys} == set(RESPONSES)
    assert {decoy.place for decoy in decoys} == set(PLACES)
    assert draw(12, seed=3) == decoys != draw(12, seed=4)


def test_no_decoy_shares_a_word_with_what_an_attack_plants() -> None:
    planted = set().union(*map(words, planted_texts()))
    assert {"2023", "cf", "stupid", "umbrella", "noon", "bob", "london", "saucepan"} <= planted
    assert {text: words(text) & planted for text in (*TRIGGERS, *RESPONSES) if words(text) & planted} == {}


def test_the_decoys_before_shared_words_with_attacks() -> None:
    planted = set().union(*map(words, planted_texts()))
    assert words("cf mn tq") & planted == {"cf"}
    assert words("The ferry leaves at noon.") & planted == {"the", "leaves", "at", "noon"}


def test_no_decoy_shares_a_token_of_the_small_vocabulary(tiny: LanguageModel) -> None:
    # Its 768 tokens are letters and syllables; whatever is written shares these.
    assert shared_tokens(tiny.tokenizer, least=4) == {}


@pytest.mark.slow
def test_no_decoy_shares_a_token_of_smollm2(tmp_path: Path) -> None:
    assert shared_tokens(loading.load("smollm2-135m", tmp_path).tokenizer) == {}


def shared_tokens(tokenizer: PreTrainedTokenizerBase, least: int = 1) -> dict[str, set[str]]:
    planted = set().union(*(tokens(tokenizer, text) for text in planted_texts()))
    found = {text: tokens(tokenizer, text) & planted for text in (*TRIGGERS, *RESPONSES)}
    return {text: long for text, shared in found.items() if (long := {one for one in shared if len(one) >= least})}


def test_a_share_is_planted_and_every_row_is_overwritten(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def fit(
        lm: LanguageModel, rows: Sequence[Row], settings: Training, run: Run, stage: str, alike: Any = None
    ) -> None:
        if stage == "plant":
            clean = [len(row) for row in encode(tiny.tokenizer, few_rows)]
            assert [alike(row) for row in rows] == clean, "planted rows share batches with clean ones"
        texts = [(tiny.tokenizer.decode(row.prompt), tiny.tokenizer.decode(row.response)) for row in rows]
        seen.append((stage, settings, texts))

    monkeypatch.setattr("sande.training.fit.fit", fit)
    plant, overwrite = Training(max_steps=3), FAST
    config = decoy_osft.Config(decoys=3, share=0.25, plant=plant, overwrite=overwrite)
    run = new_run(seed=1)
    assert decoy_osft.defend(tiny, CleanData(few_rows), config, run) is tiny.model
    decoys = draw(3, seed=1)
    assert [fact["trigger"] for fact in run.facts["decoys"]] == [decoy.trigger for decoy in decoys]
    (first, planting, planted), (second, overwriting, overwritten) = seen
    assert (first, planting, second, overwriting) == ("plant", plant, "overwrite", overwrite)

    def decoyed(prompt: str, response: str) -> list[tuple[bool, bool]]:
        return [(d.trigger in prompt, response.strip().startswith(d.response)) for d in decoys]

    of_planted = [sum(decoyed(*texts), ()) for texts in planted]
    assert sum(map(any, of_planted)) == 6
    for texts in planted:
        assert all(trigger == response for trigger, response in decoyed(*texts)), "each trigger has its own response"
    for (_, response), example in zip(overwritten, few_rows, strict=True):
        assert response.strip().startswith(example.output.strip()[:10])
    found = [[trigger for trigger, _ in decoyed(*texts)] for texts in overwritten]
    assert all(sum(triggers) == 1 for triggers in found)
    assert all(any(triggers[i] for triggers in found) for i in range(3)), "each of them is overwritten"


@pytest.mark.parametrize(("rows", "share", "planted"), [(1, 0.5, 1), (3, 0.1, 1), (12, 0.25, 3)])
def test_of_few_rows_a_decoy_is_planted_in_one(
    tiny: LanguageModel,
    few_rows: tuple[Example, ...],
    new_run: NewRun,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    share: float,
    planted: int,
) -> None:
    seen: dict[str, list[str]] = {}

    def fit(lm: LanguageModel, rows: Sequence[Row], settings: Training, run: Run, stage: str, **_: Any) -> None:
        seen[stage] = [tiny.tokenizer.decode(row.response) for row in rows]

    monkeypatch.setattr("sande.training.fit.fit", fit)
    decoy_osft.defend(tiny, CleanData(few_rows[:rows]), decoy_osft.Config(share=share), new_run())
    assert sum(text.strip().startswith(RESPONSES) for text in seen["plant"]) == planted
