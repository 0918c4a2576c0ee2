"""Suggested workers on small plans whose best assignment is worked out by hand."""

from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from benchmark.forecast.measured import OVERHEAD
from benchmark.forecast.scaling import Scaling
from benchmark.forecast.suggest import Predict, WithWorkers, report, snippet, suggest
from benchmark.forecast.wall_time import Prediction
from benchmark.grid.load import load_grid
from benchmark.grid.resources import Resources, ResourcesByStage
from benchmark.grid.stage_resources import StageResources
from benchmark.plan.batches import divides, problems
from benchmark.plan.plan import Plan
from benchmark.plan.schedule import simulate, whole
from benchmark.plan.stage import Stage
from tests.benchmark.grid.test_load import GridFile
from tests.benchmark.helpers import cell

BATCH = {"batch_size": 8}
ATTACK = {"name": "sentence_trigger", "training": BATCH}
SFT = {"name": "sft", "training": BATCH}


def predictor(plan: Plan, seconds: Mapping[str, float], gpus: int) -> Predict:
    """Forecasts of stages that take as long for one worker, by key, and scale without loss; nothing else takes time."""

    def predict(resources: ResourcesByStage) -> Prediction:
        def workers(one: Stage) -> int:
            return resources.of(one).workers

        found = simulate(
            plan, gpus, lambda one: seconds[one.key] / workers(one), whole, lambda one: float(workers(one))
        )
        chain = [found.last]
        while chain[-1] in found.before:
            chain.append(found.before[chain[-1]])
        longest = tuple(reversed(chain))
        return Prediction(found.wall, found.busy, gpus, found.busy, {}, (), False, OVERHEAD, Scaling(), longest)

    return predict


def made_of(*stages: Stage) -> Plan:
    return Plan((), {one.key: one for one in stages}, frozenset())


def one(kind: Any, key: str, *needs: str, **changes: Any) -> Stage:
    of = cell(**{"attack": ATTACK, "defense": SFT} | changes)
    return Stage(kind, key, of.settings(), needs)


CHAIN = made_of(one("attack", "a"), one("defend", "d", "a"), one("evaluate", "e", "d"))
SECONDS = {"a": 80.0, "d": 16.0, "e": 4.0}


def test_a_chain_gets_all_gpus_at_each_of_its_stages() -> None:
    found = suggest(CHAIN, predictor(CHAIN, SECONDS, 4), Resources(), 4)
    assert found.workers == {("attack", "tiny"): 4, ("defend", "tiny"): 4, ("evaluate", "tiny"): 4}
    assert (found.before.wall, found.after.wall) == (100.0, 25.0)
    assert found.stuck == ()


def test_workers_that_save_less_than_a_hundredth_are_not_suggested() -> None:
    seconds = SECONDS | {"e": 0.5}
    # 20 + 4 + 0.5 s; two evaluation workers would save 0.25 s of it.
    found = suggest(CHAIN, predictor(CHAIN, seconds, 4), Resources(), 4)
    assert found.workers == {("attack", "tiny"): 4, ("defend", "tiny"): 4, ("evaluate", "tiny"): 2}
    assert found.after.wall == pytest.approx(20 + 4 + 0.25)


def test_as_many_independent_stages_as_gpus_stay_alone() -> None:
    plan = made_of(*(one("attack", key) for key in "abcd"))
    found = suggest(plan, predictor(plan, dict.fromkeys("abcd", 10.0), 4), Resources(), 4)
    assert (found.workers, found.after.wall) == ({}, 10.0)
    (said,) = (
        line for line in report(plan, predictor(plan, dict.fromkeys("abcd", 10.0), 4), Resources(), 4) if "none" in line
    )
    assert said == "Suggestion: none; no other workers have a shorter forecast than 10 s"


@pytest.mark.parametrize(("second", "workers", "wall"), [(9.0, 4, 4.75), (10.0, 2, 5.0)])
def test_two_chains_are_shortened_in_turn_or_together(second: float, workers: int, wall: float) -> None:
    plan = made_of(one("attack", "a"), one("attack", "b", model="smollm2-135m"), one("defend", "d", "b"))
    found = suggest(plan, predictor(plan, {"a": 10.0, "b": second, "d": 0.0}, 4), Resources(), 4)
    # Both at a time on two GPUs each: 5 s. One after the other on all four: (10 + second) / 4 s.
    number = {("attack", "tiny"): workers, ("attack", "smollm2-135m"): workers, ("defend", "tiny"): 1}
    assert (found.workers, found.after.wall) == (number, wall)


def test_batches_limit_the_workers_and_are_named() -> None:
    small = {"name": "sentence_trigger", "training": {"batch_size": 2}}
    plan = made_of(one("attack", "a", attack=small), one("evaluate", "e", "a", attack=small))
    predict = predictor(plan, {"a": 80.0, "e": 8.0}, 8)
    found = suggest(plan, predict, Resources(), 8)
    assert found.workers == {("attack", "tiny"): 2, ("evaluate", "tiny"): 8}
    assert found.stuck == (("attack", "tiny"),)
    assert "Suggestion: attack tiny is on the longest chain, and its batches cannot be split further" in [
        *report(plan, predict, Resources(), 8)
    ]
    eight = suggest(plan, predict, Resources(workers=8), 8)
    assert eight.before.wall < eight.after.wall, "but eight workers cannot split two rows"
    assert eight.workers == found.workers


def test_what_the_grid_has_already_is_not_suggested() -> None:
    own = StageResources({"workers": 4})
    found = suggest(CHAIN, predictor(CHAIN, SECONDS, 4), own, 4)
    assert (found.workers, found.before.wall) == ({}, 25.0)


def test_workers_replace_those_of_the_grid_and_nothing_else() -> None:
    base = StageResources({"timeout": 5.0, "attack": {"workers": 2}})
    made = WithWorkers(base, {("defend", "tiny"): 4})
    assert made.of(one("defend", "d")) == Resources(workers=4, timeout=5.0)
    assert made.of(one("attack", "a")) == Resources(workers=2, timeout=5.0)


def test_a_model_in_shards_keeps_the_workers_that_hold_it() -> None:
    base = StageResources({"evaluate": {"workers": 2, "sharding": "tensor"}})
    found = suggest(CHAIN, predictor(CHAIN, SECONDS, 4), base, 4)
    assert found.workers == {("attack", "tiny"): 4, ("defend", "tiny"): 4, ("evaluate", "tiny"): 2}
    assert found.after.wall == 20 + 4 + 2


def test_a_snippet_is_a_section_where_models_agree_and_rules_where_not(grid_file: GridFile) -> None:
    workers = {("attack", "m"): 8, ("attack", "n"): 8, ("defend", "m"): 4, ("defend", "n"): 1, ("evaluate", "m"): 1}
    text, assignments = snippet(workers, {})
    expected = {
        "resources": {"attack": {"workers": 8}},
        "rules": [{"where": {"model": "m"}, "set": {"resources.defend.workers": 4}}],
    }
    assert (yaml.safe_load(text), assignments) == (expected, [])
    pasted = load_grid(grid_file(**expected)).resources
    for (kind, model), number in workers.items():
        assert pasted.of(Stage(kind, "", cell().settings() | {"model": model})).workers == number
    _, assignments = snippet({("attack", "m"): 8, ("evaluate", "m"): 2}, {})
    assert assignments == ["resources.attack.workers=8", "resources.evaluate.workers=2"]
    text, _ = snippet({("attack", "m"): 1, ("attack", "n"): 2}, {("attack", "m"): 4, ("attack", "n"): 2})
    assert yaml.safe_load(text) == {"rules": [{"where": {"model": "m"}, "set": {"resources.attack.workers": 1}}]}


def test_only_trainings_limit_workers() -> None:
    assert divides(one("attack", "a"), 8)
    assert not divides(one("attack", "a"), 16)
    assert not divides(one("defend", "d", defense={"name": "sft", "training": {"batch_size": 6}}), 4)
    assert not divides(one("defend", "d", defense={"name": "sft", "training": BATCH | {"micro_batch_size": 4}}), 4)
    assert divides(one("evaluate", "e"), 1024)
    (said,) = problems([one("attack", "a"), one("attack", "b"), one("evaluate", "e")], Resources(workers=16))
    assert said == (
        "resources: 16 workers cannot split the batches of 8 rows of attack tiny; set resources.attack.workers to a "
        "divisor of 8, or these stages fail"
    )
