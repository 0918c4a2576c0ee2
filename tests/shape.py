"""Measure the shape of the code: sizes of functions and files, types and docstrings, circles of imports.

    python -m tests.shape [ROOT]

The counts are those of the table in the design notes: of `benchmark` and `sande`, without the tests. An import inside a
function counts as any other; one for type checkers does not.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("benchmark", "sande")
MOST_LINES = 400
Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(file: Path, root: Path) -> str:
    """Return the dotted name of the module in `file`."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def parsed(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, ast.Module]:
    """Return the syntax tree of each module, by its dotted name."""
    files = sorted(file for package in packages for file in (root / package).rglob("*.py"))
    return {module_name(file, root): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def runtime_nodes(tree: ast.AST, *, functions: bool = True) -> Iterator[ast.AST]:
    """Yield nodes that run: not those for type checkers, and inside of functions only if asked to."""
    for node in ast.iter_child_nodes(tree):
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not for_types and (functions or not isinstance(node, Function | ast.Lambda)):
            yield node
            yield from runtime_nodes(node, functions=functions)


def imported(nodes: Iterable[ast.AST], modules: Iterable[str] | None = None) -> Iterator[str]:
    """Yield the dotted names that import statements load.

    `from a import b` loads `a.b` where that is a module of `modules`, else `a`. Without `modules` it yields both.
    """
    known = None if modules is None else set(modules)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if known is None:
                    yield from (str(node.module), whole)
                else:
                    yield whole if whole in known else str(node.module)


def import_graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Return the modules that each module imports anywhere, inside functions too."""
    return {name: set(imported(runtime_nodes(tree), trees)) & set(trees) - {name} for name, tree in trees.items()}


def by_package(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph of packages and of the modules beside them: `benchmark.io`, `benchmark.pipeline`, ..."""
    packages = {name.rpartition(".")[0] for name in graph} - set(PACKAGES) - {""}

    def room(name: str) -> str:
        first = ".".join(name.split(".")[:2])
        return first if first in packages else name

    rooms: dict[str, set[str]] = {}
    for name, others in graph.items():
        if name not in PACKAGES:
            rooms.setdefault(room(name), set()).update({room(other) for other in others} - {room(name), *PACKAGES})
    return rooms


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of two or more nodes that reach each other, each sorted."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set(), [start]
        while waiting:
            for other in graph.get(waiting.pop(), set()) - seen:
                seen.add(other)
                waiting.append(other)
        reached[start] = seen
    looped = [node for node in graph if node in reached[node]]
    groups = {tuple(sorted(b for b in reached[a] if a in reached.get(b, set()))) for a in looped}
    return [list(group) for group in sorted(groups)]


@dataclass
class Shape:
    """What is counted of the code; lengths in lines."""

    functions: list[int] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    typed: int = 0
    documented: int = 0


def _is_typed(function: Function) -> bool:
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    needed = [one for one in given if one.arg not in {"self", "cls"}]
    return function.returns is not None and all(one.annotation is not None for one in needed)


def measure(root: Path) -> Shape:
    """Count the functions and files of both packages."""
    shape = Shape()
    for name, tree in parsed(root).items():
        file = root / Path(*name.split("."))
        path = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        shape.files[name] = len(path.read_text(encoding="utf-8").splitlines())
        for node in ast.walk(tree):
            if isinstance(node, Function):
                shape.functions.append(int(node.end_lineno or 0) - node.lineno + 1)
                shape.typed += _is_typed(node)
                shape.documented += ast.get_docstring(node) is not None
    return shape


def main() -> None:
    """Print the counts, one a line."""
    root = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1]
    shape, graph = measure(root), import_graph(parsed(root))
    rooms = by_package(graph)
    long = sorted((lines, name) for name, lines in shape.files.items() if lines > MOST_LINES)
    functions = [node for tree in parsed(root).values() for node in ast.walk(tree) if isinstance(node, Function)]
    late = {node for function in functions for node in ast.walk(function)}
    inside = [node for node in late if {one.split(".")[0] for one in imported([node])} & set(PACKAGES)]
    print(f"function lines, median/max: {statistics.median(shape.functions):.0f}/{max(shape.functions)}")
    count = len(shape.functions)
    print(f"functions typed/documented: {shape.typed / count:.0%}/{shape.documented / count:.0%} of {count}")
    print(f"files over {MOST_LINES} lines: {len(long)} of {len(shape.files)}{''.join(f', {n} {k}' for k, n in long)}")
    print(f"median file: {statistics.median(shape.files.values()):.0f} lines")
    print(f"circles of modules: {circles(graph) or 'none'}")
    print(f"circles of packages: {circles(rooms) or 'none'}")
    print(f"imports of the project inside functions: {len(inside)}")
    direct = sum(name.count(".") == 1 for name in shape.files if name.startswith("benchmark."))
    print(f"modules directly in benchmark: {direct}")
    readme = (root / "README.md").read_text(encoding="utf-8")
    print(f"README: {len(readme.splitlines())} lines, {len(readme.split())} words")


if __name__ == "__main__":
    main()
