"""A wheel that is installed away from any checkout has grids, scales and templates, and commands take plain names.

The wheel is built and installed without a network: its dependencies are those of the environment that runs the tests.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.typed import type_all

ROOT = Path(__file__).parent.parent
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "sande", "benchmark", "grids")
FREE = r"and [0-9.]+ [kMGT]?B are free"  # other programs write meanwhile
DATA = {".css", ".csv", ".html", ".j2", ".js", ".json", ".md", ".toml", ".txt", ".typed", ".yaml"}


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, source / name)
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", source / "dist", source)
    (made,) = (source / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-index", "--no-deps", "--target", folder, wheel)
    return folder


def type_in(site: Path, folder: Path, *commands: Sequence[str], code: int = 0) -> list[str]:
    """Return what each command prints in a folder, with the installed package and no checkout."""
    return type_all(folder, [site], *commands, code=code, CUDA_VISIBLE_DEVICES="")


def run(site: Path, folder: Path, *arguments: str) -> str:
    """Return what a command prints in a process of its own, else as for `type_in`."""
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "benchmark", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_every_file_of_the_packages_and_every_grid(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    files = {path for package in ("sande", "benchmark") for path in (ROOT / package).rglob("*") if path.is_file()}
    wanted = {str(path.relative_to(ROOT)) for path in files if path.suffix in {*DATA, ".py"}}
    wanted |= {f"benchmark/{path.relative_to(ROOT)}" for path in (ROOT / "grids").rglob("*.yaml")}
    assert wanted - inside == set()
    tops = {name.split("/")[0] for name in inside}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sande", "benchmark"}


def pinned(file: str) -> list[str]:
    """Normal names of the packages in a file of constraints."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return [normal(line.split("==")[0]) for line in lines]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime, development = pinned("constraints.txt"), pinned("constraints-dev.txt")
    assert len({*runtime, *development}) == len(runtime) + len(development)
    for wanted, found in (
        (project["dependencies"], runtime),
        (project["optional-dependencies"]["dev"], [*runtime, *development]),
    ):
        names = {normal(re.split(r"[\[<>=]", text)[0]) for text in wanted}
        assert names - {*found, "ray"} == set()


def test_grids_have_plain_names_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    listed, planned, init = type_in(site, tmp_path, ["list", "grids"], ["plan", "paper", "--scale", "tiny"], ["init"])
    assert {line.split()[0] for line in listed.splitlines()} >= {path.stem for path in (ROOT / "grids").glob("*.yaml")}
    assert "to run: " in planned
    assert "quickstart" in init
    assert list(tmp_path.iterdir()) == []


def test_a_grid_of_ones_own_is_run_by_its_path(site: Path, tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").write_text("about: mine\nmodel: tiny\n")
    own, shipped = type_in(site, tmp_path, ["plan", "smoke.yaml"], ["plan", "smoke"])
    assert "mine" in own
    assert "mine" not in shipped


def test_init_copies_a_grid_with_what_it_includes_and_overwrites_nothing(site: Path, tmp_path: Path) -> None:
    init, plans = ["init", "paper", "mine"], [["plan", "mine/paper.yaml"], ["plan", "paper"]]
    _, own, shipped, _ = type_in(site, tmp_path, init, *plans, ["init", "smoke", "mine"])
    copied = {path.name for path in (tmp_path / "mine").iterdir()}
    assert {"paper.yaml", "paper_table_6.yaml", "scales", "smoke.yaml"} <= copied
    assert re.sub(FREE, "", own) == re.sub(FREE, "", shipped)
    (tmp_path / "mine/paper.yaml").write_text("about: changed\n")
    (said,) = type_in(site, tmp_path, init, code=2)
    assert "mine/paper.yaml exists already" in said
    assert (tmp_path / "mine/paper.yaml").read_text() == "about: changed\n"


@pytest.mark.slow
def test_what_is_installed_runs_scans_and_cleans(site: Path, tmp_path: Path) -> None:
    assert "Report: results/smoke/README.md" in run(site, tmp_path, "run", "smoke")
    page = (tmp_path / "results/smoke/README.md").read_text(encoding="utf-8")
    assert "sande-bench run smoke" in page
    assert str(site) not in page
    assert "Scan: found/scan.json" in run(
        site, tmp_path, "scan", "tiny", "--detector", "first_token", "--rows", "20", "--out", "found"
    )
    few = ["questions=10", "prompts=10", "removal.rows=16"]
    few += [f"{training}.max_steps=1" for training in ("osft.training", "sande.simulate", "sande.eliminate")]
    options = [word for setting in few for word in ("--set", setting)]
    assert "Cleaned model: tiny-clean" in run(site, tmp_path, "clean", "tiny", "--response", "You are hacked", *options)
    assert {path.name for path in tmp_path.iterdir()} >= {"results", ".store", "found", "tiny-clean"}
