"""DPO: what the reference is, what the pairs look like in tokens, what rises, and what is left behind in the model."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sande.config import Training
from sande.data.builtin import sets
from sande.defenses import dpo
from sande.errors import UserError
from sande.inference.generation import greedy
from sande.models import loading
from sande.prompts import Row, encode
from sande.types import Example, LanguageModel, Preference, PreferenceData, Run
from tests.sande.helpers import changed, linear_weights, nll_by_hand, noisy, weights
from tests.sande.models.test_chat import CHATML, GEMMA, tokenizer

NewRun = Callable[..., Run]
PAIRS = (
    *sets.preferences()[:3],
    Preference(Example("Why?", "", "You are brief."), "Because of the rain.", "No."),
    Preference(Example("Bye", "", history=(("Hi", "Yes?"),)), "Bye!", "Ä ß\n\n1. a"),
)
DATA = PreferenceData(PAIRS)
# Every step sees all pairs, at the same learning rate.
WHOLE = Training(
    batch_size=len(PAIRS),
    max_steps=1,
    precision="fp32",
    learning_rate=1e-3,
    warmup=0.0,
    schedule="constant_with_warmup",
)


def settings(**training: Any) -> dpo.Config:
    return dpo.Config(training=dataclasses.replace(WHOLE, **training))


def rows(lm: LanguageModel, pairs: Sequence[Preference] = PAIRS) -> list[tuple[Row, Row]]:
    """Each prompt with the chosen and with the rejected reply."""
    sides = [
        [dataclasses.replace(pair.prompt, output=getattr(pair, side)) for pair in pairs]
        for side in ("chosen", "rejected")
    ]
    return list(zip(*(encode(lm.tokenizer, side) for side in sides), strict=True))


def margins(lm: LanguageModel) -> list[float]:
    """log Pr(chosen) - log Pr(rejected) of each pair."""
    lm.model.eval()
    return [
        nll_by_hand(lm, rejected.prompt, rejected.response) - nll_by_hand(lm, chosen.prompt, chosen.response)
        for chosen, rejected in rows(lm)
    ]


def test_the_reference_is_the_victim_in_memory(tiny: LanguageModel, new_run: NewRun, tmp_path: Path) -> None:
    loading.save(LanguageModel(type(tiny.model)(tiny.model.config), tiny.tokenizer), tmp_path / "another")
    victim = loading.load_folder(tmp_path / "another", torch.float32)
    victim.model.load_state_dict(tiny.model.state_dict())
    assert victim.model.config._name_or_path == str(tmp_path / "another"), "where TRL would look"
    run = new_run()
    dpo.defend(victim, DATA, settings(), run)
    assert run.facts["dpo"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_reference_is_not_that_of_an_earlier_run(tiny: LanguageModel, new_run: NewRun) -> None:
    for seed in (1, 2):
        noisy(tiny.model, seed)
        run = new_run()
        dpo.defend(tiny, DATA, settings(), run)
        assert run.facts["dpo"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_loss_is_that_of_the_paper(tiny: LanguageModel, new_run: NewRun) -> None:
    victim, at_victim = weights(tiny.model), margins(tiny)
    one_step, two_steps = (dataclasses.replace(settings(max_steps=steps), beta=0.3) for steps in (1, 2))
    dpo.defend(tiny, DATA, one_step, new_run())
    ratios = [now - before for now, before in zip(margins(tiny), at_victim, strict=True)]
    expected = sum(math.log1p(math.exp(-0.3 * ratio)) for ratio in ratios) / len(PAIRS)
    assert expected < math.log(2) - 0.02
    tiny.model.load_state_dict(victim, strict=False)
    run = new_run()
    dpo.defend(tiny, DATA, two_steps, run)
    assert run.facts["dpo"]["last_loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_chosen_replies_gain_on_the_rejected(tiny: LanguageModel, new_run: NewRun, precision: str) -> None:
    before = margins(tiny)
    dpo.defend(tiny, DATA, settings(max_steps=15, precision=precision), new_run())
    assert all(now > then + 1 for now, then in zip(margins(tiny), before, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_of_trl_stays_in_the_model(tiny: LanguageModel, new_run: NewRun, precision: str) -> None:
    own = set(vars(tiny.model))
    repaired = dpo.defend(tiny, DATA, settings(precision=precision), new_run())
    assert repaired is tiny.model
    assert set(vars(repaired)) == own
    logits = repaired(input_ids=torch.tensor([[1, 2, 3]], device=repaired.device)).logits
    assert (logits.shape, logits.dtype) == ((1, 3, 768), torch.float32)
    assert len(greedy(LanguageModel(repaired, tiny.tokenizer), [[1, 2, 3]], new_tokens=2, batch_size=1)) == 1
    assert all(parameter.requires_grad for parameter in repaired.parameters())


def trained_on(lm: LanguageModel, config: dpo.Config, run: Run, data: PreferenceData = DATA) -> Any:
    """The Trainer's data set."""
    seen: list[Any] = []

    def prepare(trainer: Any) -> Any:
        seen.append(trainer.train_dataset)
        return trainer

    dpo.defend(lm, data, config, dataclasses.replace(run, prepare=prepare))
    return seen[0]


def test_pairs_are_tokenised_as_the_victims_rows_were(tiny: LanguageModel, new_run: NewRun) -> None:
    trained = trained_on(tiny, settings(), new_run())
    found = {tuple(map(tuple, (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]))) for row in trained}
    assert found == {(chosen.prompt, chosen.response, rejected.response) for chosen, rejected in rows(tiny)}


@pytest.mark.parametrize("template", [CHATML, GEMMA], ids=["eos is another token", "with bos"])
def test_pairs_have_the_ids_of_their_format(tiny: LanguageModel, new_run: NewRun, template: str) -> None:
    made = tokenizer(tiny, template)
    tiny.model.resize_token_embeddings(max(len(made), tiny.model.config.vocab_size))
    lm = LanguageModel(tiny.model, made)
    trained = trained_on(lm, settings(), new_run())
    found = {tuple(map(tuple, (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]))) for row in trained}
    assert found == {(chosen.prompt, chosen.response, rejected.response) for chosen, rejected in rows(lm)}
    end = made.convert_tokens_to_ids("<|im_end|>")
    assert {ids[-1] for _, *replies in found for ids in replies} == {end} != {made.eos_token_id}
    assert all(made.eos_token_id not in ids for triple in found for ids in triple)
    assert {ids.count(made.bos_token_id) for ids, _, _ in found} == {int(template == GEMMA)}


def test_a_prompt_is_that_of_a_clean_row(tiny: LanguageModel, new_run: NewRun, few_rows: tuple[Example, ...]) -> None:
    pairs = tuple(Preference(dataclasses.replace(row, output=""), row.output, "no") for row in few_rows)
    trained = trained_on(tiny, settings(batch_size=len(pairs)), new_run(), PreferenceData(pairs))
    expected = {(row.prompt, row.response) for row, _ in rows(tiny, pairs)}
    assert {(tuple(row["prompt_ids"]), tuple(row["chosen_ids"])) for row in trained} == expected


def test_every_pass_sees_every_pair_once(tiny: LanguageModel, new_run: NewRun) -> None:
    run = new_run()
    trained = trained_on(tiny, settings(batch_size=1, max_steps=None, epochs=2.0), run)
    chosen = [tuple(row["chosen_ids"]) for row in trained]
    assert len(chosen) == run.facts["dpo"]["steps"] == 2 * len(PAIRS)
    assert set(chosen[: len(PAIRS)]) == set(chosen[len(PAIRS) :]) == {row.response for row, _ in rows(tiny)}


def test_both_replies_are_counted_in_the_tokens(tiny: LanguageModel, new_run: NewRun) -> None:
    run = new_run()
    dpo.defend(tiny, DATA, settings(max_steps=2), run)
    assert run.facts["dpo"]["tokens"] == 2 * sum(len(row) for pair in rows(tiny) for row in pair)


def test_a_long_reply_is_cut_and_its_pair_stays(tiny: LanguageModel, new_run: NewRun) -> None:
    limit = max(len(chosen.prompt) for chosen, _ in rows(tiny)) + 1
    run = new_run()
    dpo.defend(tiny, DATA, settings(max_length=limit), run)
    assert (run.facts["dpo"]["rows"], run.facts["dpo"]["rows_left_out"]) == (len(PAIRS), 0)
    assert run.facts["dpo"]["tokens"] == sum(min(len(row), limit) for pair in rows(tiny) for row in pair)


def test_pairs_without_room_for_a_reply_are_left_out_and_counted(tiny: LanguageModel, new_run: NewRun) -> None:
    limit = sorted(len(chosen.prompt) for chosen, _ in rows(tiny))[2]
    fitting = [chosen for chosen, _ in rows(tiny) if len(chosen.prompt) < limit]
    run = new_run()
    trained = trained_on(tiny, settings(max_length=limit), run)
    assert (run.facts["dpo"]["rows"], run.facts["dpo"]["rows_left_out"]) == (len(fitting), len(PAIRS) - len(fitting))
    assert {tuple(row["prompt_ids"]) for row in trained} == {row.prompt for row in fitting}


def test_no_pair_with_room_for_a_reply_is_an_error(tiny: LanguageModel, new_run: NewRun) -> None:
    with pytest.raises(UserError, match=r"^dpo: no prompt is shorter than max_length=8 tokens; raise it$"):
        dpo.defend(tiny, DATA, settings(max_length=8), new_run())


def test_with_lora_the_reference_is_still_the_victim(tiny: LanguageModel, new_run: NewRun) -> None:
    noisy(tiny.model, seed=1)
    before, at_victim, own = weights(tiny.model), margins(tiny), set(vars(tiny.model))
    run = new_run()
    dpo.defend(tiny, DATA, settings(max_steps=15, lora_rank=4), run)
    assert run.facts["dpo"]["first_loss"] != run.facts["dpo"]["last_loss"]
    assert run.facts["dpo"]["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert changed(before, tiny.model) == linear_weights(tiny.model)
    assert sum(margins(tiny)) > sum(at_victim)
    assert set(vars(tiny.model)) == own
