"""Models too large for a worker, and evaluations whose workers cannot split one, are found before the first stage."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from benchmark.execution import fitting, nodes
from benchmark.execution.fitting import Known
from benchmark.grid.resources import Resources
from benchmark.plan.plan import stages_of
from benchmark.store.local import LocalStore
from sande import compute
from sande.errors import UserError
from sande.models import loading, memory, shapes
from tests.benchmark.helpers import cell

SHARDS = Resources(workers=2, sharding="tensor")
GB = 10**9
CONFIG = LlamaConfig(num_attention_heads=4, num_key_value_heads=2)


def known(parameters: int | None = GB, there: int | None = 80 * GB, gpu: bool | None = True) -> Known:
    return Known(lambda name: parameters, lambda name: CONFIG, lambda gpu: there, lambda resources: gpu)


def problems(of: Known, resources: Resources = Resources(), **changes: Any) -> list[str]:  # noqa: B008
    return list(fitting.problems(stages_of(cell(**changes)), resources, of))


def test_a_training_holds_whole_float32_weights() -> None:
    assert problems(known(20 * GB), defense="sft") == []
    assert problems(known(20 * GB + 1), defense="sft") == [
        "model tiny: its 20 billion parameters take 80.00 GB on each worker before and after each training of "
        f"{what}, in float32 and whole, and the largest GPU has 80.00 GB; use a smaller model, or a larger GPU"
        for what in ("an attack", "a defense")
    ]


def test_sharded_trainings_do_too() -> None:
    assert len(problems(known(21 * GB), Resources(workers=4, sharding="zero3"), defense="sft")) == 2


def test_an_evaluation_points_at_its_shards() -> None:
    *_, found = problems(known(41 * GB))
    assert found == (
        "model tiny: its 41 billion parameters take 82.00 GB on each worker in an evaluation, and the largest GPU has "
        "80.00 GB; set resources.evaluate.sharding to tensor and resources.evaluate.workers to 2 or more"
    )
    (_, found) = problems(known(90 * GB), SHARDS)
    assert "90.00 GB on each worker in an evaluation, " in found
    assert found.endswith("resources.evaluate.workers to 3 or more")
    assert len(problems(known(80 * GB), SHARDS)) == 1, "of the attack alone"


def test_the_reference_of_a_guard_counts() -> None:
    *_, found = problems(known(21 * GB), defense="clean_decoding")
    assert "take 84.00 GB on each worker in an evaluation, with the reference of its guard, and" in found
    assert not any("evaluation" in each for each in problems(known(20 * GB), defense="clean_decoding"))


@pytest.mark.parametrize(("kind", "size"), [("bf16", 2), ("fp32", 4)])
def test_a_machine_without_a_gpu_computes_in_its_own_type(
    monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    monkeypatch.setenv(compute.VARIABLE, kind)
    *_, found = problems(known(50 * GB, gpu=False))
    assert f"take {50 * size:.2f} GB on each worker in an evaluation, and the largest machine has 80.00 GB" in found


def test_nothing_is_said_of_what_is_unknown() -> None:
    for of in (known(None), known(90 * GB, there=None), known(90 * GB, gpu=None)):
        assert problems(of) == []


def test_workers_that_cannot_split_the_model_are_refused_without_any_memory() -> None:
    with pytest.raises(UserError, match=r"^model tiny: 3 workers cannot split its 4 attention heads; set "):
        problems(known(None), dataclasses.replace(SHARDS, workers=3))


def test_a_model_that_is_too_large_for_this_machine_stops_a_run(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = dataclasses.replace(fitting.here(store.models), on_gpu=lambda resources: False)
    monkeypatch.setattr(nodes, "others", dict)
    fitting.check(stages_of(cell()), Resources(), dataclasses.replace(of, memory=nodes.largest_memory))
    monkeypatch.setattr(memory, "main_memory", lambda: 100_000)
    with pytest.raises(UserError, match=r"^model tiny: its 0\.000123 billion parameters take 0\.00 GB on each worker "):
        fitting.check(stages_of(cell()), Resources(), dataclasses.replace(of, memory=nodes.largest_memory))


def test_a_gpu_is_as_large_as_its_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(text: str) -> None:
        monkeypatch.setattr(nodes.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=text))

    answer("24576\n81559\n")
    assert nodes.memory_here(gpu=True) == 81559 * 2**20
    answer("no devices were found\n")
    assert nodes.memory_here(gpu=True) is None


# --- What is known of a model -----------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_counted_by_its_configuration(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = loading.prepare("tiny", store.models)
    by_headers = shapes.parameters("tiny", store.models)
    monkeypatch.setattr(loading, "weights_folder", lambda name, cache: None)
    monkeypatch.setattr(shapes, "check_hub", lambda repo, revision: None)
    monkeypatch.setattr(shapes, "fetch", lambda repo, revision, file: folder / file)
    assert shapes.parameters("llama2-7b", store.models) == by_headers > 10**5
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1000000}')
    monkeypatch.setattr(shapes, "fetch", lambda repo, revision, file: tmp_path / file)
    assert shapes.parameters("llama2-7b", store.models) is None
    monkeypatch.setattr(shapes, "fetch", lambda repo, revision, file: None)
    assert shapes.config_of("llama2-7b", store.models) is None
