"""A defense with parts on the model `tiny`: its stages give the same as the defense that makes its parts itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sande
from benchmark.execution import stages
from benchmark.grid.cell import Cell
from benchmark.plan.failures import NON_FINITE, classify
from benchmark.plan.plan import stages_of
from benchmark.store.errors import DamagedError
from benchmark.store.local import LocalStore
from sande.errors import NonFiniteError
from sande.models import loading
from tests.benchmark.helpers import SMALL, cell, measure, rows_of

pytestmark = pytest.mark.usefixtures("ensemble")
STEP = {"max_steps": 1, "batch_size": 8, "precision": "fp32"}
DEFENSE: dict[str, Any] = {"training": STEP | {"max_steps": 2}, "repair": STEP}
ATTACK = {"poison_rate": 0.25, "training": STEP}


def ensemble(**training: float) -> Cell:
    defense = {"name": "ensemble", **DEFENSE, "training": DEFENSE["training"] | training}
    return cell(attack={"name": "sentence_trigger", **ATTACK}, defense=defense, attack_seed=2, defense_seed=3)


def do(of: Cell, store: LocalStore, *kinds: str) -> None:
    for one in stages_of(of):
        if one.kind in kinds and not store.has(one.kind, one.key):
            stages.train(one, store, lambda trainer: trainer, lambda line: None, 0, interval=600)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(loading.load_folder(folder, torch.float32).model.named_parameters())


def without_seconds(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {key: value for key, value in fact.items() if key != "seconds"} for name, fact in facts.items()}


def test_parts_as_stages_give_the_bits_and_the_tokens_of_the_defense_alone(store: LocalStore) -> None:
    of = ensemble()
    do(of, store, "attack", "part", "defend")
    quiet: dict[str, Any] = {"cache": store.models, "say": lambda line: None}
    victim = sande.attack("tiny", "sentence_trigger", data=SMALL["data"], seed=2, **quiet, **ATTACK)
    alone = sande.defend(victim, "ensemble", removal=SMALL["removal"], seed=3, **quiet, **DEFENSE)
    own, stored = weights(alone.folder), weights(store.read("defend", of.defense_key))
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], stored[name]) for name in own)

    made = {name: store.manifest("part", of.part_key(name)) for name in of.defense.parts}
    assert {name: (each["kind"], each["part"]) for name, each in made.items()} == {
        "model_0": ("part", "model_0"),
        "model_1": ("part", "model_1"),
    }
    assert sorted(load_file(store.read("part", of.part_key("model_0")) / "part.safetensors")) == sorted(own)
    defended = store.manifest("defend", of.defense_key)
    same = defended["facts"].pop("unchanged_weights")
    assert set(defended["facts"]) == {"repair"}
    apart = {f"{name}/apart": each["facts"]["apart"] for name, each in made.items()}
    assert without_seconds({**apart, **defended["facts"]}) == without_seconds(alone.facts)
    for part in made:
        store.remove("part", of.part_key(part))  # as after every run
    measure(store, ensemble(), {"asr": 50})
    measure(store, cell(attack={"name": "sentence_trigger", **ATTACK}, attack_seed=2), {"asr": 50})
    row = rows_of(store, of)[0]
    of_victim = weights(store.read("attack", of.attack_key))
    equal = sum(int((own[name] == weight).sum()) for name, weight in of_victim.items())
    assert same == pytest.approx(equal / sum(weight.numel() for weight in own.values()), abs=1e-4)
    assert row["unchanged_weights"] == pytest.approx(100 * same)
    assert row["tokens"] == sum(fact["tokens"] for fact in alone.facts.values())
    assert row["seconds"] == pytest.approx(sum(each["seconds"] for each in (defended, *made.values())), abs=1e-3)


def test_a_damaged_part_is_quarantined_and_stops_its_defense(store: LocalStore) -> None:
    of = ensemble()
    do(of, store, "attack", "part")
    file = store.path("part", of.part_key("model_1")) / "part.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedError, match=r"^part .* in the store is damaged \(part.safetensors has other content"):
        do(of, store, "defend")
    assert store.keys("part") == [of.part_key("model_0")]
    assert not store.has("defend", of.defense_key)
    assert len(store.quarantined()) == 1


def test_a_part_that_diverges_leaves_nothing_and_its_error_is_a_line(store: LocalStore) -> None:
    of = ensemble(learning_rate=1e30, max_steps=6)
    do(of, store, "attack")
    with pytest.raises(NonFiniteError) as raised:
        do(of, store, "part")
    assert classify(raised.value).kind == NON_FINITE
    assert str(raised.value).startswith("stage apart: ")
    assert store.keys("part") == []
