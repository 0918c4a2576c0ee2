"""Which way imports go: sande knows nothing of Ray or of benchmark, and planning loads neither Ray nor torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "sande").rglob("*.py"))
# What may import Ray and torch, or is no module to import.
RUNNING = {"__init__", "__main__", "cluster", "execute", "search", "searcher", "stage_trial", "trials"}
PLANNING = sorted({file.stem for file in (ROOT / "benchmark").glob("*.py")} - RUNNING)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names behind import statements; of `from a import b` both a and a.b, since b may be a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not in functions, not for type checkers."""
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not for_types and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from on_import(node)


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_sande_imports_neither_ray_nor_benchmark(file: Path) -> None:
    packages = {name.split(".")[0] for name in imported(ast.walk(parsed(file)))}
    assert not packages & {"ray", "benchmark"}


def test_imports_within_sande_have_no_cycle() -> None:
    names = {module_name(file) for file in FILES}
    graph = {module_name(file): names & set(imported(on_import(parsed(file)))) for file in FILES}
    assert graph["sande.attacks.sentence_trigger"] >= {"sande.config", "sande.types"}, "the graph sees imports"
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_sande_alone_loads_next_to_nothing() -> None:
    run_python("import sys, sande; assert not {'ray', 'benchmark', 'torch'} & set(sys.modules)")


@pytest.mark.slow
def test_sande_with_everything_that_trains_loads_no_ray() -> None:
    run_python("import sys, sande, sande.training, sande.parrot, sande.models; assert 'ray' not in sys.modules")


@pytest.mark.parametrize("module", PLANNING)
def test_planning_loads_neither_ray_nor_torch(module: str) -> None:
    run_python(
        f"import sys, benchmark.{module}\n"
        "heavy = {'ray', 'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
