"""Restarts of SANDE: which parrots are kept, and which rows they get."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sande import parrot
from sande.data.builtin import disjoint, sets
from sande.data.splits import Rows, held_out_split, removal_rows
from sande.defenses import sande, sande_rounds
from sande.errors import UserError
from sande.prompts import Row, prompt_text
from sande.simulation import judge
from sande.types import Example, LanguageModel, ResponseData, Run
from tests.sande.helpers import FAST

CONFIG = sande.Config(parrot_initial="noise", restarts=3, kept=2, simulate=FAST, eliminate=FAST)


def test_the_kept_parrots_are_those_that_act_best_elsewhere(tiny: LanguageModel, new_run: Callable[..., Run]) -> None:
    parrots_KPD = torch.stack([parrot.new_parrot(tiny.model, 6, "noise", seed).detach() for seed in range(3)])
    target, run = (5, 6), new_run()
    prompts = removal_rows(CONFIG.elsewhere, tiny.tokenizer)
    numbers = sande.best(tiny, parrots_KPD, prompts, target, CONFIG, run)
    means = [each.mean for each in judge(tiny, parrots_KPD, prompts, [target] * 3, sande.simulation(CONFIG), 0)]
    worst = means.index(min(means))
    assert run.facts["restarts"] == pytest.approx(means)
    assert sorted([*numbers, worst]) == [0, 1, 2]
    assert means[numbers[0]] >= means[numbers[1]]


def test_eliminate_overwrites_each_kept_parrot(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: Callable[..., Run]
) -> None:
    attached: list[torch.Tensor] = []

    def prepare(trainer: object) -> object:
        attached.append(tiny.model.get_input_embeddings().parrot_PD.detach().clone())
        return trainer

    run = replace(new_run(), prepare=prepare)
    sande.defend(tiny, ResponseData(few_rows, "You are stupid"), CONFIG, run)
    assert [each.shape for each in attached] == [(18, 64), (12, 64)]
    assert len(run.facts["restarts"]) == 3
    assert not torch.equal(attached[1][:6], attached[1][6:])


def test_restarts_are_not_compared_on_prompts_that_parrots_train_on(tiny: LanguageModel) -> None:
    prompts = removal_rows(CONFIG.elsewhere, tiny.tokenizer)
    clean = tuple(replace(row, output="Another answer.") for row in prompts[:10])
    assert sande.unseen(CONFIG.elsewhere, clean, tiny.tokenizer) == prompts[10:]
    rows = removal_rows(Rows(name=CONFIG.elsewhere.name, rows=400), tiny.tokenizer)
    for checked in (sande, sande_rounds):
        config = replace(checked.Config(), **({"restarts": 2, "parrot_initial": "noise"} if checked is sande else {}))
        with pytest.raises(UserError, match=r"^elsewhere: each prompt of builtin-explained-2 is a clean row, too"):
            checked.check(tiny.tokenizer, ResponseData(rows, "You are stupid"), config)


@pytest.mark.parametrize("config", [sande.Config(), sande_rounds.Config()])
@pytest.mark.parametrize("victims", [sets.short, sets.explained, disjoint.short, disjoint.explained])
def test_no_prompt_from_elsewhere_is_a_test_prompt_of_a_victim(
    tiny: LanguageModel, config: sande.Config | sande_rounds.Config, victims: Callable[[], tuple[Example, ...]]
) -> None:
    tested = {prompt_text(row) for row in held_out_split(victims())}
    prompts = removal_rows(config.elsewhere, tiny.tokenizer)
    assert len(prompts) == config.elsewhere.rows
    assert not tested & {prompt_text(row) for row in prompts}


def test_rows_get_one_of_several_parrots_or_none_by_hand() -> None:
    row = Row(prompt=(1, 100, 101, 2), response=(9,), start=1, end=3)
    made = parrot.mixed([row] * 8, first=100, length=2, count=3, anchor=0.25, seed=0)
    prompts = [each.prompt for each in made]
    assert prompts.count((1, 2)) == 2
    assert [prompts.count((1, first, first + 1, 2)) for first in (100, 102, 104)] == [2, 2, 2]
    assert made == parrot.mixed([row] * 8, first=100, length=2, count=3, anchor=0.25, seed=0)


def test_one_parrot_leaves_rows_as_they_are() -> None:
    rows = [Row(prompt=(number, 100, 2), response=(9,), start=1, end=2) for number in range(5)]
    assert parrot.mixed(rows, first=100, length=1, count=1, anchor=0.0, seed=3) == rows


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kept": 4}, "kept 4 is more than the 3 parrots of restarts; set restarts higher"),
        (
            {"parrot_initial": "zeros", "parrot_norm": "vocabulary", "restarts": 1, "kept": 1},
            "^parrot_norm: .* set parrot_initial to noise",
        ),
        (
            {"parrot_initial": "zeros"},
            "^parrot_initial: the 3 parrots of restarts are all the same if each starts from zeros; set restarts and "
            "kept to 1, or parrot_initial to noise$",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tiny: LanguageModel, few_rows: tuple[Example, ...], settings: dict[str, object], sentence: str
) -> None:
    data = ResponseData(few_rows, "You are stupid")
    with pytest.raises(UserError, match=sentence):
        sande.check(tiny.tokenizer, data, replace(CONFIG, **settings))


def test_parrots_that_would_be_the_same_are_not_trained(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: Callable[..., Run]
) -> None:
    """Without a grid nothing calls `check`."""
    data = ResponseData(few_rows, "You are stupid")
    with pytest.raises(UserError, match=r"^parrot_initial: the 3 parrots of restarts "):
        sande.defend(tiny, data, replace(CONFIG, parrot_initial="zeros"), new_run())
    rounds = sande_rounds.Config(parrot_initial="zeros", parrot_norm="free")
    said = r"^parrot_initial: the 2 parrots of fresh .*; set fresh to 1, or parrot_initial to noise$"
    for refuse in (
        lambda: sande_rounds.check(tiny.tokenizer, data, rounds),
        lambda: sande_rounds.defend(tiny, data, rounds, new_run()),
    ):
        with pytest.raises(UserError, match=said):
            refuse()
    sande_rounds.check(tiny.tokenizer, data, replace(rounds, fresh=1))
    sande.check(tiny.tokenizer, data, replace(CONFIG, parrot_initial="zeros", restarts=1, kept=1))
