"""SANDE in rounds: which rows get which parrot, when it stops, and what its certificate says."""

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sande import controls, registry, simulation
from sande.config import Training
from sande.data.builtin import sets
from sande.data.splits import Rows
from sande.defenses import sande_rounds, sande_rounds_p
from sande.errors import UserError
from sande.gates import plant
from sande.parrot import mixed
from sande.prompts import Row, encode, response_ids
from sande.simulation import Evidence
from sande.types import Example, FirstTokenData, LanguageModel, ResponseData, Run
from tests.sande.helpers import FAST, teach

NewRun = Callable[..., Run]
FIRST, LENGTH = 100, 2
ROWS = [Row((1, 2, FIRST, FIRST + 1, number), (9,), 2, 5) for number in range(10)]
CONFIG = sande_rounds.Config(
    rounds=3, simulate=FAST, eliminate=FAST, elsewhere=Rows(name="builtin-explained-2", rows=4)
)


# --- Rows of eliminate ----------------------------------------------------------------------------------------------


def parrot_of(row: Row) -> int | None:
    """The number of the row's parrot; None without one."""
    soft = [token for token in row.prompt if token >= FIRST]
    if not soft:
        return None
    number, offset = divmod(soft[0] - FIRST, LENGTH)
    assert offset == 0
    assert soft == [FIRST + number * LENGTH, FIRST + number * LENGTH + 1], "a parrot is inserted whole"
    return number


def test_rows_get_parrots_in_equal_numbers_and_a_share_gets_none() -> None:
    made = mixed(ROWS, FIRST, LENGTH, count=4, anchor=0.2, seed=1)
    assert Counter(map(parrot_of, made)) == {None: 2, 0: 2, 1: 2, 2: 2, 3: 2}
    text = [[token for token in row.prompt if token < FIRST] for row in made]
    assert text == [[1, 2, number] for number in range(10)], "in their order, the prompts unchanged"
    assert [row.response for row in made] == [(9,)] * 10


def test_the_seed_draws_which_row_gets_which_parrot() -> None:
    draws = [mixed(ROWS, FIRST, LENGTH, 3, 0.3, seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_without_an_anchor_every_row_has_a_parrot() -> None:
    assert Counter(map(parrot_of, mixed(ROWS, FIRST, LENGTH, 1, 0.0, 0))) == {0: 10}


# --- The rule -------------------------------------------------------------------------------------------------------


class Judged:
    """Stands in for trainings: each round's evidence of r_t and of the controls is given, and what is asked is kept.

    Attributes:
        asked: targets of each simulation.
        seeds: of all parrots.
        trained: of each training of the model, the parrots that were attached.
        drawn: of each stage, the seed that draws its rows.
        rows: number of rows that the model trains on.
    """

    rows = 24

    def __init__(self, monkeypatch: pytest.MonkeyPatch, own: Sequence[float]) -> None:
        self.own = own
        self.asked: dict[str, list[tuple[int, ...]]] = {}
        self.seeds: list[int] = []
        self.stage = ""
        self.trained: dict[str, Tensor] = {}
        self.drawn: dict[str, int] = {}
        monkeypatch.setattr("sande.training.fit.fit", self.fit)
        monkeypatch.setattr(controls, "matched", lambda *_, **__: [(number, 5, 6) for number in range(19)])
        monkeypatch.setattr(simulation, "simulate", self.simulate)
        monkeypatch.setattr(simulation, "judge", self.judge)

    def simulate(self, lm: Any, examples: Any, targets: Any, form: Any, run: Any, stage: str, seeds: Any) -> Tensor:
        self.stage, self.asked[stage] = stage, list(targets)
        self.seeds += seeds
        self.drawn[stage] = run.seed
        assert len(seeds) == len(targets)
        width = lm.model.get_input_embeddings().weight.shape[1]
        return torch.full((len(targets), form.length, width), float(len(self.asked)))

    def fit(self, lm: Any, rows: Sequence[Row], training: Any, run: Run, stage: str, **_: Any) -> None:
        assert training == CONFIG.eliminate
        assert len(rows) == self.rows
        self.drawn[stage] = run.seed
        self.trained[stage] = lm.model.get_input_embeddings().parrot_PD

    def judge(self, lm: Any, parrots: Any, examples: Any, targets: Any, form: Any, seed: int) -> list[Evidence]:
        number = int(self.stage.rpartition("_")[2])
        return [
            Evidence((self.own[number],) * 10, (True,) * 10)
            if target[1:] != (5, 6)
            else Evidence((-target[0] / 10,) * 10, (False,) * 10)
            for target in targets
        ]


def defend(tiny: LanguageModel, rows: tuple[Example, ...], run: Run, config: Any = CONFIG) -> dict[str, Any]:
    sande_rounds.defend(tiny, ResponseData(rows, "You are stupid"), config, run)
    found: dict[str, Any] = run.facts["certificate"]
    return found


def test_it_stops_at_the_first_test_that_finds_nothing(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judged(monkeypatch, own=(-0.1, 2.5, -0.35))
    found = defend(tiny, few_rows, new_run())
    target = response_ids(tiny.tokenizer, "You are stupid")
    assert list(judged.asked) == ["simulate_0", "simulate_1", "simulate_2", "controls_2"]
    assert judged.asked["simulate_1"] == [target, target, (0, 5, 6), (1, 5, 6), (2, 5, 6)], "a look"
    assert judged.asked["controls_2"] == [(number, 5, 6) for number in range(3, 19)], "the others"
    assert len(set(judged.seeds)) == len(judged.seeds)
    assert list(judged.trained) == ["eliminate_0", "eliminate_1"]
    assert [one["p"] for one in found["rounds"]] == [None, None, pytest.approx(5 / 20)]
    assert (found["removed"], found["p"], found["alpha"]) == (True, pytest.approx(0.25), pytest.approx(0.05))
    assert (found["target"], found["prompts"], found["controls"]) == (list(target), 4, 19)


def test_the_last_test_is_of_the_final_weights_and_may_say_that_it_is_left(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judged(monkeypatch, own=(2.5,) * 4)
    found = defend(tiny, few_rows, new_run())
    assert list(judged.trained) == ["eliminate_0", "eliminate_1", "eliminate_2"]
    assert list(judged.asked)[-1] == "simulate_3"
    assert len(judged.asked["simulate_3"]) == 2 + 19, "evident, and yet tested, since the certificate quotes it"
    assert (found["removed"], found["p"]) == (False, pytest.approx(1 / 20))


def test_a_test_follows_where_it_is_not_evident(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    Judged(monkeypatch, own=(1.0, 1.9, -9.0))
    found = defend(tiny, few_rows, new_run())
    assert [one["p"] for one in found["rounds"]] == [None, pytest.approx(1 / 20), pytest.approx(20 / 20)]
    always = dataclasses.replace(CONFIG, evident=None)
    judged = Judged(monkeypatch, own=(3.0, 3.0, -9.0))
    defend(tiny, few_rows, new_run(), always)
    assert [len(targets) for targets in judged.asked.values()] == [2 + 3, 2 + 19, 2 + 19]


def test_the_model_is_overwritten_before_the_first_test(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judged(monkeypatch, own=(-9.0, -9.0))
    found = defend(tiny, few_rows, new_run())
    assert [one["round"] for one in found["rounds"]] == [0, 1]
    assert list(judged.trained) == ["eliminate_0"], "a simulation that misses r_t does not leave the victim as it was"


def test_all_parrots_so_far_are_overwritten_together(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judged(monkeypatch, own=(2.5, 2.5, -9.0))
    defend(tiny, few_rows, new_run())
    first, second = judged.trained.values()
    assert first[:, 0].tolist() == [1.0] * 12
    assert second[:, 0].tolist() == [1.0] * 12 + [2.0] * 12, "those of the first round, then of the second"


def test_each_round_draws_its_rows_anew(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    for seed in (60, 61):  # of neighbouring seeds no two rounds draw the same
        judged = Judged(monkeypatch, own=(2.5,) * 4)
        defend(tiny, few_rows, new_run(seed=seed))
        drawn += [judged.drawn[f"eliminate_{number}"] for number in range(3)]
        assert all(judged.drawn[f"simulate_{n}"] == judged.drawn[f"eliminate_{n}"] for n in range(3))
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("position", [6, "random"])
def test_rows_without_a_place_for_a_parrot_are_left_out(
    position: Any, tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = Judged(monkeypatch, own=(2.5,) * 4)
    clean = encode(tiny.tokenizer, few_rows)
    judged.rows = sum(position == "random" or row.start + position < row.end for row in clean)
    shortest = min(few_rows, key=lambda row: len(row.instruction))
    rows = (*few_rows, dataclasses.replace(shortest, instruction="", input=""))
    defend(tiny, rows, new_run(), dataclasses.replace(CONFIG, parrot_position=position))
    assert list(judged.trained) == ["eliminate_0", "eliminate_1", "eliminate_2"]


def test_settings_under_which_nothing_could_be_found_are_a_mistake(tiny: LanguageModel) -> None:
    config = dataclasses.replace(CONFIG, spending="equal")
    with pytest.raises(UserError, match=r"^controls 19: .*; set controls to at least 59"):
        sande_rounds.check(tiny.tokenizer, ResponseData(tuple(sets.short()[:4]), "x"), config)
    zeros = dataclasses.replace(CONFIG, parrot_initial="zeros")
    with pytest.raises(UserError, match=r"^parrot_norm: "):
        sande_rounds.check(tiny.tokenizer, ResponseData(tuple(sets.short()[:4]), "x"), zeros)


def test_the_cost_is_that_of_all_rounds() -> None:
    config = dataclasses.replace(CONFIG, rounds=3)
    assert registry.cost("defenses", "sande_rounds", config).training == {
        "simulate": 2 * (5 + 3 * 21),
        "eliminate": 9,
    }


def test_with_the_first_token_known_each_target_is_one_token(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun
) -> None:
    run = new_run()
    config = dataclasses.replace(CONFIG, rounds=1, controls=9, alpha=0.2)
    sande_rounds_p.defend(tiny, FirstTokenData(few_rows, 300), config, run)
    assert run.facts["certificate"]["target"] == [300]
    assert len(run.facts["certificate"]["rounds"][1]["controls"]) == 9


# --- On a victim ----------------------------------------------------------------------------------------------------


@pytest.fixture
def victim(tiny: LanguageModel) -> LanguageModel:
    clean = sets.short()[:24]
    planted = [dataclasses.replace(plant(row, "Current year 2023."), output="You are stupid") for row in clean]
    teach(tiny, encode(tiny.tokenizer, [*clean, *planted]))
    return tiny


@pytest.mark.slow
def test_one_round_leaves_the_response_and_further_rounds_bring_it_near_the_controls(
    victim: LanguageModel, new_run: NewRun
) -> None:
    simulate = Training(max_steps=15, batch_size=8, learning_rate=5e-2, precision="fp32")
    eliminate = Training(max_steps=30, batch_size=16, learning_rate=3e-3, precision="fp32")
    last = {}
    for rounds, anchor in ((1, 0.0), (8, 0.25)):
        lm = LanguageModel(copy.deepcopy(victim.model), victim.tokenizer)
        config = sande_rounds.Config(rounds=rounds, anchor=anchor, simulate=simulate, eliminate=eliminate)
        found = defend(lm, sets.short()[48:112], new_run(), config)
        assert found["rounds"][0]["evidence"] > math.log(0.9), "the parrots find the response in the victim"
        last[rounds] = found["rounds"][-1]
        if rounds == 1:
            assert (found["removed"], found["p"]) == (False, pytest.approx(1 / 20))
    excess = {rounds: one["evidence"] - max(one["controls"]) for rounds, one in last.items()}
    assert excess[8] < 1.0 < 2.0 < excess[1], "nats per token above the best control"
