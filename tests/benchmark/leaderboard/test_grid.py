"""The leaderboard's grid at every scale: nothing of the registry is missing, and twins are beside their victims."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark.grid import load
from benchmark.grid.cell import Cell
from benchmark.grid.labels import defense_name
from sande import registry
from sande.config import published
from tests.sande.helpers import trainings

ROOT = Path(__file__).parents[3]
GRID = ROOT / "grids" / "leaderboard.yaml"
COLUMNS = [info for name in registry.names("metrics") for info in registry.metric_infos(name) if info.column]
SCALES = {"paper": "qwen1.5-4b", "small": "smollm2-135m", "tiny": "tiny"}


@pytest.fixture(scope="module", params=SCALES)
def grid(request: pytest.FixtureRequest) -> load.Grid:
    return load.load_grid(GRID, scale=request.param)


def is_poisoned(cell: Cell) -> bool:
    return bool(cell.attack.config.poison_rate)


def with_recipes() -> list[str]:
    """The defenses whose authors use other settings, as a board names them."""
    names = registry.names("defenses")
    return [f"{name} (published)" for name in names if published(registry.entry("defenses", name).Config)]


def test_every_attack_of_the_registry_meets_every_defense_and_has_a_twin(grid: load.Grid) -> None:
    found = [(cell.attack.name, defense_name(cell.defense.settings)) for cell in grid.cells if is_poisoned(cell)]
    twins = [(cell.attack.name, cell.defense.name) for cell in grid.cells if not cell.attack.config.poison_rate]
    attacks, defenses = registry.names("attacks"), [*registry.names("defenses"), *with_recipes()]
    assert len(found) == len(set(found))
    assert set(found) == {(attack, defense) for attack in attacks for defense in defenses}
    assert sorted(twins) == [(attack, "none") for attack in attacks]


def test_a_twin_differs_from_its_victim_in_its_poison_alone(grid: load.Grid) -> None:
    victims = {cell.attack.name: cell for cell in grid.cells if cell.attack.config.poison_rate}
    for twin in (cell for cell in grid.cells if not cell.attack.config.poison_rate):
        of_victim, own = (cell.settings() for cell in (victims[twin.attack.name], twin))
        assert of_victim["attack"] | {"poison_rate": 0.0} == own["attack"]
        assert all(of_victim[key] == own[key] for key in ("model", "data", "metrics", "attack_seed"))


def test_every_column_of_the_leaderboard_is_measured(grid: load.Grid) -> None:
    for cell in grid.cells:
        names = [
            name for metric in cell.metrics for name in registry.entry("metrics", metric.name).names(metric.config)
        ]
        free_text = grid.scale != "tiny"  # real rows, which have no short right answers
        columns = [column for column in COLUMNS if not (free_text and column.name.startswith("exact_match"))]
        assert all(any(column.matched(name) for name in names) for column in columns)
        assert [getattr(metric.config, "task", "") for metric in cell.metrics][-1], "and utility"


@pytest.mark.parametrize("scale", ["small", "tiny", "real", "quick"])
def test_at_a_small_scale_no_training_of_a_defense_goes_by_epochs(scale: str) -> None:
    for cell in load.load_grid(GRID, scale=scale).cells:
        assert cell.model == SCALES.get(scale, "smollm2-135m")
        own = published(type(cell.defense.config)) if cell.defense.settings.get("recipe") == "published" else {}
        by_epochs = [name for name, training in trainings(cell.defense.config).items() if not training.max_steps]
        assert len(by_epochs) == ("training.epochs" in own), (cell.defense.name, by_epochs)


def every_defense(folder: Path, scale: str, model: str, data: str) -> dict[str, Any]:
    """Return the settings of all defenses at a scale by name, but for `dpo`, which trains on pairs."""
    shutil.copytree(GRID.parent / "scales", folder / "scales")
    lines = [f"scale: {scale}", f"model: {model}", f"data: {{name: {data}}}", f"removal: {{name: {data}}}"]
    path = folder / "every.yaml"
    path.write_text("\n".join([*lines, "metrics: [asr]", "sweep: {defense: [all]}"]), encoding="utf-8")
    return {cell.defense.name: cell.defense.config for cell in load.load_grid(path).cells if cell.defense.name != "dpo"}


@pytest.mark.parametrize(("scale", "longest"), [("small", 96), ("real", 96), ("quick", 1024)])
@pytest.mark.parametrize("data", ["alpaca", "orca"])
def test_no_defense_reads_longer_rows_than_others(tmp_path: Path, scale: str, longest: int, data: str) -> None:
    """With as many steps, longer rows would be a larger budget. Rows of `incident` hold the reported prompt, too."""
    defenses = every_defense(tmp_path, scale, "llama2-7b", data)
    lengths = {
        f"{name} {place}": training.max_length
        for name, config in defenses.items()
        for place, training in trainings(config).items()
        if name != "incident"
    }
    same = longest if (scale, data) != ("small", "alpaca") else 1024  # there `max_tokens` bounds all rows
    assert {place: length for place, length in lengths.items() if length != same} == {}
    assert defenses["incident"].training.max_length >= same


@pytest.mark.parametrize("scale", ["small", "real", "quick", "paper"])
def test_no_defense_trains_on_fewer_tokens_of_a_response_than_others(tmp_path: Path, scale: str) -> None:
    defenses = every_defense(tmp_path, scale, "llama2-7b", "orca")
    chain = defenses["scan_and_clean"]
    configs = [*defenses.values(), chain.sande_p, chain.osft]
    assert {config.response_tokens for config in configs if hasattr(config, "response_tokens")} == {None}


@pytest.mark.parametrize(("scale", "steps", "rate"), [("small", 48, 2e-4), ("real", 24, 2.5e-4), ("quick", 15, 2.5e-4)])
def test_every_training_of_a_repaired_model_has_the_same_budget(
    tmp_path: Path, scale: str, steps: int, rate: float
) -> None:
    found = {
        (training.max_steps, training.learning_rate)
        for config in every_defense(tmp_path, scale, "llama2-7b", "orca").values()
        for place, training in trainings(config).items()
        if place.split(".")[-1] not in ("simulate", "plant", "variant")
    }
    assert found == {(steps, rate)}


@pytest.mark.parametrize(("model", "size", "rate"), [("llama2-7b", 4, 5e-6), ("qwen1.5-4b", 8, 2e-5)])
@pytest.mark.parametrize(("data", "epochs"), [("alpaca", 2.0), ("orca", 1.0)])
def test_at_the_papers_scale_no_training_is_forgotten(
    tmp_path: Path, model: str, size: int, rate: float, data: str, epochs: float
) -> None:
    found = {
        (name, place): training
        for name, config in every_defense(tmp_path, "paper", model, data).items()
        for place, training in trainings(config).items()
    }
    assert {(one.precision, one.cut_with_eos, one.batch_size) for one in found.values()} == {("bf16", True, size)}
    by_rows = {at: one for at, one in found.items() if at[0] != "bd_vax" and not one.max_steps}
    assert {at: one.epochs for at, one in by_rows.items() if one.epochs != epochs} == {}
    rates = {(at[1].split(".")[-1], one.learning_rate) for at, one in found.items()}
    like_attack = {(place, rate) for place in ("teacher", "plant", "variant", "repair")}
    like_osft = {("eliminate", 2e-5), ("overwrite", 2e-5)}
    assert {each for each in rates if each[0] not in ("training", "simulate")} == like_attack | like_osft


def test_in_the_grid_on_knowledge_every_training_takes_as_many_steps() -> None:
    steps = {
        (cell.defense.name, place): training.max_steps
        for cell in load.load_grid(GRID.parent / "knowledge.yaml").cells
        for place, training in trainings(cell.defense.config).items()
        if not place.endswith("simulate") and place != "osft.training"  # which needs `haystack`
    }
    assert {at: count for at, count in steps.items() if count != 40} == {}


def test_a_new_attack_defense_and_metric_of_durability_need_no_edit_of_the_grid(tmp_path: Path) -> None:
    modules = {
        "attacks": "from sande.attacks.sentence_trigger import *\nfrom sande.attacks.sentence_trigger import Config\n",
        "defenses": "from sande.defenses.sft import Config, defend\n",
        "metrics": "from sande.declarations import MetricInfo\nfrom sande.metrics.asr import Config, measure, reads\n"
        "MEASURES = (MetricInfo('lasts', durability=True),)\ndef names(config):\n    return ('lasts',)\n",
    }
    info = tmp_path / "fresh-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fresh\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("".join(f"[sande.{kind}]\nfresh = fresh_{kind}\n" for kind in modules))
    for kind, text in modules.items():
        (tmp_path / f"fresh_{kind}.py").write_text(text)
    code = (
        "import json\nfrom pathlib import Path\nfrom benchmark.grid import load\n"
        f"cells = load.load_grid(Path({str(GRID)!r}), scale='tiny').cells\n"
        "print(json.dumps([(c.attack.name, c.attack.config.poison_rate > 0, c.defense.name,\n"
        "                   [m.name for m in c.metrics]) for c in cells]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)
    attacks, defenses = {*registry.names("attacks"), "fresh"}, {*registry.names("defenses"), "fresh"}
    assert {(attack, defense) for attack, poisoned, defense, _ in cells if poisoned} == {
        (attack, defense) for attack in attacks for defense in defenses
    }
    assert ("fresh", "none") in {(attack, defense) for attack, poisoned, defense, _ in cells if not poisoned}
    assert all("fresh" in metrics for *_, metrics in cells)
