"""Where a training is cut off, another goes on from its checkpoints, and ends with the same bits."""

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sande import registry
from sande.config import Training
from sande.models import loading
from sande.prompts import Row, encode
from sande.training import checkpoints
from sande.training import fit as training_fit
from sande.training.fit import fit
from sande.types import Example, LanguageModel, Run
from tests.sande.helpers import FAST, NEVER, TRAINING_DEFENSES, KilledError, data_of, killed, shortened, weights

NewRun = Callable[..., Run]
STEPS = 4


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def without_seconds(facts: dict[str, Any]) -> Any:
    def strip(value: Any) -> Any:
        return {k: strip(v) for k, v in value.items() if "seconds" not in k} if isinstance(value, dict) else value

    return strip(json.loads(json.dumps(facts)))


@pytest.fixture
def rows(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> list[Row]:
    return encode(tiny.tokenizer, few_rows)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", TRAINING_DEFENSES)
def test_a_defense_killed_in_its_first_and_in_its_last_training_ends_with_the_same_bits(
    name: str,
    tiny: LanguageModel,
    few_rows: tuple[Example, ...],
    new_run: NewRun,
    tmp_path: Path,
) -> None:
    defense = registry.entry("defenses", name)
    data, config = data_of(registry.knowledge(name), tiny, few_rows), shortened(defense.Config, max_steps=STEPS)

    def defend(run: Run) -> dict[str, Tensor]:
        victim = loading.copied(tiny)  # a new process has nothing of what a dead one did to the model
        return weights(defense.defend(victim, data, config, run))

    undisturbed, counted = killed(new_run(), tmp_path / "undisturbed", interval=NEVER)
    expected = defend(undisturbed)
    trainings, rest = divmod(counted.steps, STEPS)
    assert rest == 0
    assert files(tmp_path / "undisturbed") == [], "what is done within the interval writes nothing"

    # Both die at the end of the last step but one, of the first and of the last training, which is not written down.
    first, _ = killed(new_run(), tmp_path / "kept", after=3)
    with pytest.raises(KilledError):
        defend(first)
    second, _ = killed(new_run(), tmp_path / "kept", after=(trainings - 1) * STEPS + 1)
    with pytest.raises(KilledError):
        defend(second)
    last, counted = killed(new_run(), tmp_path / "kept")
    assert same(defend(last), expected)
    assert without_seconds(last.facts) == without_seconds(undisturbed.facts)
    assert counted.steps == 2, "what was done before is not done again"


def trained(lm: LanguageModel, rows: list[Row], settings: Training, run: Run) -> dict[str, Tensor]:
    fresh = loading.copied(lm)
    fit(fresh, rows, settings, run, "attack")
    return weights(fresh.model)


def cut_off(lm: LanguageModel, rows: list[Row], settings: Training, run: Run, folder: Path, after: int) -> Path:
    """Trains, dies after so many steps, and gives the folder of the checkpoints."""
    with pytest.raises(KilledError):
        trained(lm, rows, settings, killed(run, folder, after)[0])
    return folder / "1-attack" / f"1-workers-{settings.precision}"


def test_adapters_alone_are_kept_and_end_with_the_same_bits(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Path
) -> None:
    settings = dataclasses.replace(FAST, max_steps=4, lora_rank=2, precision="bf16", learning_rate=1e-2)
    expected = trained(tiny, rows, settings, new_run())
    kept = cut_off(tiny, rows, settings, new_run(), tmp_path, after=3)
    names = load_file(kept / "checkpoint-2" / "model.safetensors")
    assert names
    assert all("lora_" in name for name in names)
    assert same(trained(tiny, rows, settings, killed(new_run(), tmp_path)[0]), expected)


def truncate(folder: Path) -> None:
    data = (folder / "optimizer.pt").read_bytes()
    (folder / "optimizer.pt").write_bytes(data[: len(data) // 2])


TEARS: dict[str, Callable[[Path], None]] = {
    "never finished": lambda folder: (folder / "complete.json").unlink(),
    "a file is gone": lambda folder: (folder / "scheduler.pt").unlink(),
    "a file is cut": truncate,
    "half a mark": lambda folder: (folder / "complete.json").write_text('{"files": {'),
    "a mark of nothing": lambda folder: (folder / "complete.json").write_text("{}"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_ignored_for_the_one_before(
    tear: str, tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Path
) -> None:
    settings = dataclasses.replace(FAST, max_steps=5)
    expected = trained(tiny, rows, settings, new_run())
    kept = cut_off(tiny, rows, settings, new_run(), tmp_path, after=4)
    assert sorted(path.name for path in kept.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    TEARS[tear](kept / "checkpoint-3")
    said: list[str] = []
    last, counted = killed(new_run(say=said.append), tmp_path)
    assert same(trained(tiny, rows, settings, last), expected)
    assert counted.steps == 3
    assert said == ["attack: resuming from checkpoint-2"]


def test_of_a_finished_training_only_what_it_made_is_left(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = killed(new_run(), tmp_path)
    expected = trained(tiny, rows, FAST, first)
    assert files(tmp_path) == [tmp_path / "1-attack.safetensors"]
    # However a finished training was spread over workers, its weights are all there is to it.
    monkeypatch.setattr(training_fit, "_layout", lambda sharding, precision: "2-workers")
    again, counted = killed(new_run(), tmp_path)
    assert same(trained(tiny, rows, FAST, again), expected)
    assert counted.steps == 0
    assert again.facts == first.facts


def test_checkpoints_of_another_number_of_workers_are_left_alone(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(FAST, max_steps=4)
    cut_off(tiny, rows, settings, new_run(), tmp_path, after=3)
    monkeypatch.setattr(training_fit, "_layout", lambda sharding, precision: "2-workers")
    again, counted = killed(new_run(), tmp_path)
    trained(tiny, rows, settings, again)
    assert counted.steps == 4


def test_checkpoints_of_another_compute_type_are_left_alone(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Path
) -> None:
    settings = dataclasses.replace(FAST, max_steps=4)
    cut_off(tiny, rows, settings, new_run(), tmp_path, after=3)
    again, counted = killed(new_run(), tmp_path)
    trained(tiny, rows, dataclasses.replace(settings, precision="bf16"), again)
    assert counted.steps == 4
    assert again.facts["attack"]["compute_type"] == "bf16"


def test_seconds_of_all_processes_are_counted(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Path
) -> None:
    settings = dataclasses.replace(FAST, max_steps=4)
    kept = cut_off(tiny, rows, settings, new_run(), tmp_path, after=3)
    mark = json.loads((kept / "checkpoint-2" / "complete.json").read_text())
    (kept / "checkpoint-2" / "complete.json").write_text(
        json.dumps(mark | {"seconds": 1000.0, "stage_seconds": 2000.0})
    )
    last, _ = killed(new_run(), tmp_path)
    trained(tiny, rows, settings, last)
    assert last.checkpoints is not None
    assert last.checkpoints.earlier == 2000.0
    assert 1000 < last.facts["attack"]["seconds"] < 1100


def test_a_checkpoint_is_due_after_the_interval_and_not_before(
    tiny: LanguageModel, rows: list[Row], new_run: NewRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()  # a second at each look
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: float(next(clock)))
    steps: list[int] = []
    monkeypatch.setattr(checkpoints.Progress, "complete", lambda self, step: (steps.append(step), self._all.saved()))
    trained(tiny, rows, dataclasses.replace(FAST, max_steps=12), killed(new_run(), tmp_path, interval=5.0)[0])
    assert 1 <= len(steps) <= 4
    assert 12 not in steps
