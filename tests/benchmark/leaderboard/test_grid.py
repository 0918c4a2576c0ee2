"""The leaderboard's grid at every scale: nothing of the registry is missing, and twins are beside their victims."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.grid import load
from sande import registry
from sande.config import Training

ROOT = Path(__file__).parents[3]
GRID = ROOT / "grids" / "leaderboard.yaml"
COLUMNS = [info for name in registry.names("metrics") for info in registry.metric_infos(name) if info.column]
SCALES = {"paper": "qwen1.5-4b", "small": "smollm2-135m", "tiny": "tiny"}


@pytest.fixture(scope="module", params=SCALES)
def grid(request: pytest.FixtureRequest) -> load.Grid:
    return load.load_grid(GRID, scale=request.param)


def test_every_attack_of_the_registry_meets_every_defense_and_has_a_twin(grid: load.Grid) -> None:
    found = [(cell.attack.name, cell.defense.name) for cell in grid.cells if cell.attack.config.poison_rate]
    twins = [(cell.attack.name, cell.defense.name) for cell in grid.cells if not cell.attack.config.poison_rate]
    attacks, defenses = registry.names("attacks"), registry.names("defenses")
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
        assert all(any(column.matched(name) for name in names) for column in COLUMNS)
        assert [getattr(metric.config, "task", "") for metric in cell.metrics][-1], "and utility"


@pytest.mark.parametrize("scale", ["small", "tiny"])
def test_at_a_small_scale_no_training_of_a_defense_goes_by_epochs(scale: str) -> None:
    def trainings(config: object) -> list[Training]:
        values = [getattr(config, name) for name in getattr(config, "__dataclass_fields__", ())]
        own = [value for value in values if isinstance(value, Training)]
        return own + [one for value in values if not isinstance(value, Training) for one in trainings(value)]

    for cell in load.load_grid(GRID, scale=scale).cells:
        assert cell.model == SCALES[scale]
        assert all(training.max_steps for training in trainings(cell.defense.config)), cell.defense.name


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
