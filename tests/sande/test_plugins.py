"""Methods of packages that are installed beside the suite, without a change to it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.helpers import MINI, ROOT, TRAINING, Workplace, by_defense

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "forget-it"
version = "1.2.3"
[project.entry-points."sande.defenses"]
forget = "forget_it.defense"
[project.entry-points."sande.metrics"]
length = "forget_it.length"
[tool.setuptools]
packages = ["forget_it"]
"""
DEFENSE = '''
"""Fine-tuning on clean rows, by a package of its own."""

from __future__ import annotations

from sande import types
from sande.config import Training, configuration, setting

from .helper import STAGE


@configuration
class Config:
    """Settings."""

    training: Training = setting(Training(epochs=1.0), "fine-tuning on the clean rows", "made up")


def defend(victim: types.LanguageModel, data: types.CleanData, config: Config, run: types.Run) -> object:
    from sande.prompts import encode
    from sande.training import fit

    fit(victim, encode(victim.tokenizer, data.examples), config.training, run, STAGE)
    return victim.model
'''
METRIC = '''
"""Whether an output is longer than a few characters, by a package of its own."""

from sande.config import configuration, setting
from sande.types import Measurement


@configuration
class Config:
    """Settings."""

    characters: int = setting(3, "characters that an output must exceed", "made up", ge=0)


def names(config):
    return ("longer",)


def reads(config):
    return ()


def measure(model, data, config, seed):
    return [Measurement("longer", tuple(len(example.output) > config.characters for example in data.clean))]
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed a package with a defense and a metric."""
    root = tmp_path_factory.mktemp("plugin")
    package = root / "source/forget_it"
    package.mkdir(parents=True)
    (root / "source/pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text('STAGE = "forget"\n')
    (package / "defense.py").write_text(DEFENSE)
    (package / "length.py").write_text(METRIC)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(root / "site"), str(root / "source")], check=True, cwd=root)
    return root / "site"


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=path_to(site), capture_output=True, text=True, timeout=120
    )


def path_to(*folders: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}


def test_installed_methods_are_listed_shown_and_planned(installed: Path, tmp_path: Path) -> None:
    listed = python(installed, "-m", "benchmark", "list", "defenses")
    abouts = dict(line.split(maxsplit=1) for line in listed.stdout.splitlines())
    assert abouts["forget"] == "Fine-tuning on clean rows, by a package of its own."
    assert "sande" in abouts
    shown = python(installed, "-m", "benchmark", "show", "defenses", "forget").stdout
    assert "knows: Clean rows" in shown
    assert "training.epochs 1.0 " in " ".join(shown.split())
    place = Workplace(tmp_path)
    grid = place.grid("mine", sweep={"defense": ["none", "forget"]}, metrics=["asr", "length"])
    planned = python(installed, "-m", "benchmark", "plan", str(grid), "--store", str(tmp_path / "store"))
    assert "to run: 1 attack, 1 defend, 2 evaluate" in planned.stdout, planned.stderr


def test_planning_loads_no_torch_and_the_code_version_follows_the_plugin_s_own_files(installed: Path) -> None:
    code = (
        "import sys, json\n"
        "from sande import registry\n"
        "versions = [registry.code_version(registry.module_of(kind, name))\n"
        "            for kind, name in (('defenses', 'forget'), ('metrics', 'length'))]\n"
        "assert 'forget_it' not in sys.modules, 'reading is not importing'\n"
        "registry.entry('defenses', 'forget'), registry.entry('metrics', 'length')\n"
        "assert 'torch' not in sys.modules\n"
        "assert registry.plugin_versions() == {'forget-it': '1.2.3'}\n"
        "print(json.dumps(versions))\n"
    )
    before = python(installed, "-c", code)
    assert before.returncode == 0, before.stderr
    helper = installed / "forget_it/helper.py"
    text = helper.read_text()
    helper.write_text(f"# A comment changes nothing.\n{text}")
    commented = python(installed, "-c", code)
    helper.write_text(text.replace("forget", "forgotten"))
    changed = python(installed, "-c", code)
    helper.write_text(text)
    (defense, metric), same, other = (json.loads(done.stdout) for done in (before, commented, changed))
    assert same == [defense, metric]
    assert other[0] != defense, "the defense imports the helper"
    assert other[1] == metric, "the metric does not"


def entry_points(folder: Path, package: str, **points: str) -> Path:
    """What pip leaves of an installed package that has these defenses."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[sande.defenses]", *lines, ""]))
    return folder


def test_clashes_and_broken_plugins_are_one_sentence_each(tmp_path: Path) -> None:
    folder = entry_points(
        tmp_path, "one", sft="one.sft", twice="one.twice", absent="one_is_absent.defense", part="json:loads", no="json"
    )
    entry_points(tmp_path, "two", twice="two.twice")
    code = (
        "import sys\n"
        "from sande import registry\n"
        "from sande.errors import UserError\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        print(registry.entry('defenses', name).__name__)\n"
        "    except UserError as error:\n"
        "        print(error)\n"
    )
    done = python(folder, "-c", code, "sft", "twice", "absent", "part", "no", "osft")
    own, twice, absent, part, no, other = done.stdout.splitlines()
    assert own == "sande.defenses.sft"
    assert "defense 'sft' is the built-in one, not that of package one" in done.stderr
    assert twice == "several packages have a defense called 'twice': one, two; uninstall all but one"
    assert absent.startswith("defense 'absent': its module one_is_absent.defense cannot be imported (")
    assert part == "defense 'part' of package one: its entry point is 'json:loads', but it must name a module"
    assert no == "defense 'no': its module json has no Config; add one, see sande/protocols.py"
    assert other == "sande.defenses.osft"


@pytest.mark.slow
def test_a_cell_runs_with_installed_methods(installed: Path, tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    defense = {"name": "forget", "training": TRAINING}
    grid = place.grid("mine", defense=defense, metrics=[*MINI["metrics"], "length"])
    done = place.run(grid, PYTHONPATH=path_to(installed)["PYTHONPATH"])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = by_defense(place.rows(grid))["forget"]
    (row,) = [row for row in rows if row["metric"] == "longer"]
    assert (row["status"], row["value"], row["knows"]) == ("ok", 100.0, "nothing")
    assert "forget-it 1.2.3" in row["versions"]
