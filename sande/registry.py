"""Registry of entries: files in `attacks/`, `objectives/`, `defenses/`, `metrics/` and `detectors/`, and plug-ins.

A file's name is its key; a name that begins with `_` marks shared code, not an entry. A plug-in is a module that an
installed package registers under an entry point `sande.attacks`, `sande.defenses` and so on; the entry point's name is
its key. Built-in names take precedence over plug-ins.

Importing an entry must not import torch (entries import it inside their functions), so that listing, showing and
planning are quick. `code_version` hashes the code that an entry's result depends on.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import itertools
import json
import pkgutil
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import sande
from sande import plugins, types
from sande.config import configure
from sande.declarations import Cost, MetricInfo
from sande.errors import UserError

KINDS = ("attacks", "objectives", "defenses", "metrics", "detectors")
_ROOT = Path(sande.__file__).parent
_NOT_HASHED = ("sande", "sande.declarations", "sande.registry")
_DECLARATIONS = ("LIBRARIES", "MEASURES", "SHOWN_BY", "cost")
_NOT_WRITTEN = ("ctx", "kind")  # fields of nodes: what a name's place says already, and a `u` before text


@functools.cache
def names(kind: str) -> tuple[str, ...]:
    """Return the keys of all entries of a kind, built-in and plug-in, sorted."""
    return tuple(sorted({*_own(kind), *(point.name for point in _plugins(kind))}))


@functools.cache
def module_of(kind: str, name: str) -> str:
    """Return the dotted name of an entry's module, without importing it.

    Raises:
        UserError: no entry has that name (the message lists all names), or several plug-ins have it.
    """
    if name not in names(kind):
        raise UserError(f"no {_one(kind)} is called '{name}'; there are: {', '.join(names(kind))}")
    points = [point for point in _plugins(kind) if point.name == name]
    if name in _own(kind):
        for point in points:
            warnings.warn(
                f"{_one(kind)} '{name}' is the built-in one, not that of package {_package(point)}", stacklevel=2
            )
        return f"sande.{kind}.{name}"
    if len(points) > 1:
        packages = ", ".join(sorted(map(_package, points)))
        raise UserError(f"several packages have a {_one(kind)} called '{name}': {packages}; uninstall all but one")
    if points[0].attr:
        raise UserError(
            f"{_one(kind)} '{name}' of package {_package(points[0])}: its entry point is '{points[0].value}', but "
            "it must name a module"
        )
    return points[0].module


def entry(kind: str, name: str) -> ModuleType:
    """Import the module of one entry.

    Raises:
        UserError: as `module_of`; or as `sande.plugins.load`.
    """
    dotted = module_of(kind, name)
    if name in _own(kind):
        return importlib.import_module(dotted)
    return plugins.load(kind, name, dotted)


def usable(kind: str) -> tuple[str, ...]:
    """Return the keys of all entries of a kind that can be imported; warn of plug-ins that cannot."""
    found = list(_own(kind))
    for name in set(names(kind)) - _own(kind):
        try:
            entry(kind, name)
        except UserError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
        else:
            found.append(name)
    return tuple(sorted(found))


@functools.cache
def _own(kind: str) -> frozenset[str]:
    modules = pkgutil.iter_modules([str(_ROOT / kind)])
    return frozenset(module.name for module in modules if not module.name.startswith("_"))


@functools.cache
def _plugins(kind: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=f"sande.{kind}"))


def plugin_versions() -> dict[str, str]:
    """Return the versions of installed packages with plug-ins, by package name."""
    points = [point for kind in KINDS for point in _plugins(kind)]
    return {point.dist.name: point.dist.version for point in points if point.dist}


def _package(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else point.module


def _one(kind: str) -> str:
    return kind.removesuffix("s")


def config(kind: str, name: str, values: Mapping[str, Any]) -> Any:
    """Return the entry's `Config`: its defaults, overridden by `values`."""
    return configure(entry(kind, name).Config, values, f"{_one(kind)} {name}")


def knowledge(defense: str) -> type[types.Knowledge]:
    """Return the type that the defense's `defend` declares for `data`, which is what the defense may know."""
    defend = getattr(entry("defenses", defense), "defend", None)
    declared = getattr(defend, "__annotations__", {}).get("data")
    known = getattr(types, declared.rpartition(".")[2], None) if isinstance(declared, str) else declared
    if not (isinstance(known, type) and issubclass(known, types.Knowledge)):
        raise UserError(f"defense '{defense}': `data` of its `defend` has no type of sande.types; annotate it with one")
    return known


def metric_infos(metric: str) -> tuple[MetricInfo, ...]:
    """Return what a metric declares of its measurements; for one that declares nothing, a default for each name."""
    module = entry("metrics", metric)
    declared: tuple[MetricInfo, ...] = getattr(module, "MEASURES", ())
    return declared or tuple(map(MetricInfo, module.names(module.Config())))


def shown_by(attack: str) -> str:
    """Return the measurement that shows an attack's backdoor and has its floor: `asr`, unless it declares one."""
    declared: str = getattr(entry("attacks", attack), "SHOWN_BY", "asr") if attack in names("attacks") else "asr"
    return declared


def libraries(kind: str, name: str) -> tuple[str, ...]:
    """Return the packages that an entry declares to compute its outcomes, as `LIBRARIES`; most declare none."""
    declared: tuple[str, ...] = getattr(entry(kind, name), "LIBRARIES", ())
    return declared


def judges_answers(metric: str) -> bool:
    """Return whether a metric has answers judged by the attack's objective, as its declarations say."""
    return any(info.kind in ("backdoor", "text") for info in metric_infos(metric))


def needs_whole_model(metric: str) -> bool:
    """Return whether a metric declares that it cannot measure a model of which each worker holds a shard."""
    return any(info.whole_model for info in metric_infos(metric))


def metric_info(measurement: str) -> MetricInfo:
    """Return label, kind and direction of a measurement by its name in results.

    A name that no metric declares is of `utility` (see `sande.declarations.MetricInfo`).
    """
    found = _declared(measurement)
    return found[1] if found else MetricInfo(measurement)


def metric_of(measurement: str) -> str:
    """Return the key of the metric that declares a measurement, by its name in results; empty where none does."""
    found = _declared(measurement)
    return found[0] if found else ""


@functools.cache
def _declared(measurement: str) -> tuple[str, MetricInfo] | None:
    """Return the metric that declares a measurement, and its declaration.

    Built-in metrics take precedence over plug-ins, which are imported only for names that no built-in metric declares.
    """
    own = sorted(_own("metrics"))
    for metric in itertools.chain(own, (name for name in usable("metrics") if name not in own)):
        for info in metric_infos(metric):
            if matched := info.matched(measurement):
                return metric, matched
    return None


def durability_metrics() -> tuple[str, ...]:
    """Return keys of the metrics that show how long a removal lasts, sorted."""
    return tuple(name for name in usable("metrics") if any(info.durability for info in metric_infos(name)))


def column_order(measurement: str) -> tuple[bool, str, int]:
    """Return a sort key for columns: durability first, then by name, numbers in it ascending."""
    name, _, number = measurement.rpartition("_")
    numbered = number.isdigit()
    return (
        not metric_info(measurement).durability,
        name if numbered else measurement,
        int(number) if numbered else -1,
    )


def cost(kind: str, name: str, config: Any) -> Cost:
    """Return the compute that an entry declares for these settings; one that declares none has the defaults."""
    declared = getattr(entry(kind, name), "cost", None)
    made: Cost = declared(config) if declared else Cost()
    return made


def answer_length(metric: str, config: Any) -> int | None:
    """Return the tokens of the answers in which a metric looks for the planted response; None: it looks in none."""
    declared = getattr(entry("metrics", metric), "answer_length", None)
    return int(declared(config)) if declared else None


def parts(defense: str, config: Any) -> tuple[str, ...]:
    """Return the names of a defense's parts with these settings; most defenses have none (`sande.parts`)."""
    declared = getattr(entry("defenses", defense), "parts", None)
    return tuple(declared(config)) if declared else ()


def summary(module: ModuleType) -> str:
    """Return the first line of an entry's docstring."""
    return (module.__doc__ or "").strip().split("\n")[0]


@functools.cache
def code_version(module: str) -> str:
    """Return a hash of a module and of all modules of `sande` and of the module's own package that it imports.

    Imports count anywhere in the file. Comments, docstrings and layout do not count, nor does what a method only
    declares (`sande.declarations`), nor this module, which finds code and computes nothing. So a better sentence or
    forecast retrains no victim, and every other change of code does, and so does the content of the TOML and text files
    of a package. Every version of Python finds the same hash. The function reads the files and imports nothing.
    """
    digest = hashlib.sha256()
    for name in sorted(_imports(module)):
        digest.update(_content(name))
    return digest.hexdigest()[:16]


@functools.cache
def _content(module: str) -> bytes:
    """Return what of a module and its data files counts; kept, as every entry imports most of `sande`."""
    code, _ = _parsed(_text(module))
    found = [f"{module}\n{code}\n".encode()]
    for file in _data_files(module):
        content = file.read_bytes()
        found.append(json.dumps(tomllib.loads(content.decode())).encode() if file.suffix == ".toml" else content)
    return b"".join(found)


def _imports(module: str) -> set[str]:
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += _imported(name)
    return found


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    """Return the modules of `sande` and of a module's own package that it imports anywhere."""
    packages = {"sande", module.partition(".")[0]}
    own = [name for name in dict.fromkeys(_names_imported(module)) if name.partition(".")[0] in packages]
    return tuple(name for name in own if name not in _NOT_HASHED and _path(name))


def _names_imported(module: str) -> Iterator[str]:
    path = _path(module)
    package = module if path and path.name == "__init__.py" else module.rpartition(".")[0]
    _, imports = _parsed(_text(module))
    for node in imports:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _path(module: str) -> Path | None:
    top, *parts = module.split(".")
    if top == "sande":
        base = _ROOT.joinpath(*parts)
        return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)
    spec = importlib.util.find_spec(top)
    for part in parts:  # `find_spec` of the whole name would import the packages on the way
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _data_files(module: str) -> list[Path]:
    """Return the TOML and text files of a package, which hold a part of what it computes; none of a plain module."""
    path = _path(module)
    if path is None or path.name != "__init__.py":
        return []
    return sorted(file for file in path.parent.iterdir() if file.suffix in (".toml", ".txt"))


def _text(module: str) -> str:
    path = _path(module)
    if path is None:
        raise LookupError(f"no file of module {module}")
    return path.read_text(encoding="utf-8")


@functools.cache
def _parsed(text: str) -> tuple[str, tuple[ast.Import | ast.ImportFrom, ...]]:
    """Return what counts of a module's text, and its imports; kept by text, so that a changed file is parsed anew."""
    tree = ast.parse(text)
    code = _written(ast.Module(_without_declarations(tree.body), type_ignores=[]))
    return code, tuple(node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))


def _written(value: Any) -> str:
    """Return a part of a syntax tree as text, without docstrings, the same in every version of Python.

    `ast.unparse` writes the quotes of f-strings in another way from 3.12 on, and `ast.dump` leaves out empty fields
    from 3.13 on. Here absent and empty fields are always left out, so that a field of a later version, such as
    `type_params`, changes no code that does without. Strings are in ASCII: what `repr` escapes is a matter of versions.

    Args:
        value: node, list of nodes, or value of a field.
    """
    if isinstance(value, list):
        return f"[{','.join([_written(each) for each in value])}]"
    if not isinstance(value, ast.AST):
        return ascii(value)
    fields = [(name, _field(value, name)) for name, _ in ast.iter_fields(value) if name not in _NOT_WRITTEN]
    texts = [f"{name}={_written(field)}" for name, field in fields if field is not None and field != []]
    return f"{type(value).__name__}({','.join(texts)})"


def _field(node: ast.AST, name: str) -> Any:
    """Return a field of a node: a body without its docstring, an f-string with its neighboring texts joined."""
    value = getattr(node, name, None)
    if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return value if ast.get_docstring(node, clean=False) is None else node.body[1:] or [ast.Pass()]
    return _joined(node.values) if isinstance(node, ast.JoinedStr) else value


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """Return the parts of an f-string with one text between two fields; versions may split it, or add an empty one."""
    joined: list[ast.expr] = []
    for value in values:
        last = joined[-1] if joined else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            joined[-1] = ast.Constant(str(last.value) + str(value.value))
        elif not isinstance(value, ast.Constant) or value.value:
            joined.append(value)
    return joined


def _without_declarations(statements: list[ast.stmt]) -> list[ast.stmt]:
    """Leave out `LIBRARIES`, `MEASURES`, `SHOWN_BY` and `cost`, unless other code of the module uses them."""
    kept = [statement for statement in statements if _defined(statement) not in _DECLARATIONS]
    if len(kept) == len(statements):
        return statements  # as most modules, which need not be looked through
    used = {node.id for statement in kept for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return statements if used & set(_DECLARATIONS) else kept


def _defined(statement: ast.stmt) -> str:
    """Return the name that a function or a plain assignment defines; empty for other statements."""
    if isinstance(statement, ast.FunctionDef):
        return statement.name
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return next((target.id for target in targets if isinstance(target, ast.Name)), "")
