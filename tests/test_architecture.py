"""Which way imports go, and how large files are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shape import MOST_LINES, by_package, circles, import_graph, imported, measure, parsed

ROOT = Path(__file__).parent.parent
TREES = parsed(ROOT)
GRAPH = import_graph(TREES)
HEAVY = {"ray", "torch", "transformers", "lm_eval", "datasets"}
# These modules run stages, so they may load Ray and torch when they are imported.
RUNNING = {f"benchmark.execution.{name}" for name in ("autoscaling", "cluster", "driver", "elastic", "fitting")}
RUNNING |= {f"benchmark.execution.{name}" for name in ("nodes", "room", "searcher", "trial")}
RUNNING |= {"benchmark.search.judge", "benchmark.search.run", "benchmark.search.trial", "benchmark.__main__"}
PLANNING = [name for name in TREES if name.startswith("benchmark.") and name not in RUNNING and ".perf." not in name]


def test_imports_have_no_circle() -> None:
    assert "sande.config" in GRAPH["sande.attacks.sentence_trigger"], "the graph sees imports"
    assert circles(GRAPH) == []


def test_packages_import_each_other_one_way() -> None:
    assert circles(by_package(GRAPH)) == []


def test_a_circle_is_found_through_an_import_inside_a_function() -> None:
    trees = {"a.one": ast.parse("from a import two"), "a.two": ast.parse("def f():\n    from a.one import x")}
    assert circles(import_graph(trees)) == [["a.one", "a.two"]]


def test_no_file_is_long() -> None:
    assert {name: lines for name, lines in measure(ROOT).files.items() if lines > MOST_LINES} == {}


@pytest.mark.parametrize("module", [name for name in TREES if name.split(".")[0] == "sande"])
def test_sande_imports_neither_ray_nor_benchmark(module: str) -> None:
    packages = {name.split(".")[0] for name in imported(ast.walk(TREES[module]))}
    assert not packages & {"ray", "benchmark"}


def test_input_and_output_know_nothing_of_the_rest() -> None:
    within = {name for name in GRAPH if name.startswith("benchmark.io.")}
    used = {other for name in within for other in GRAPH[name]}
    assert {name for name in used if name.startswith("benchmark.")} <= within


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_sande_alone_loads_next_to_nothing() -> None:
    run_python("import sys, sande; assert not {'ray', 'benchmark', 'torch'} & set(sys.modules)")


@pytest.mark.slow
def test_sande_with_everything_that_trains_loads_no_ray() -> None:
    run_python("import sys, sande.api, sande.training.fit, sande.parrot; assert 'ray' not in sys.modules")


def test_planning_loads_neither_ray_nor_torch() -> None:
    run_python(
        "import importlib, sys\n"
        f"for name in {PLANNING!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = {HEAVY!r} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'"
    )


def test_the_guide_names_every_module() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    kinds = ("attacks", "objectives", "defenses", "metrics", "detectors")
    entries = {f"sande.{kind}" for kind in kinds} | {"benchmark.perf"}
    files = [name for name in TREES if name.rpartition(".")[0] not in {*entries, ""} and name not in entries]
    files = [name for name in files if not (ROOT / Path(*name.split("."))).is_dir() and "__main__" not in name]
    assert [name for name in files if f" {name.rpartition('.')[2]}.py" not in tree] == []
