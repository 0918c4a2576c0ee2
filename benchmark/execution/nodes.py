"""Check every node of a cluster before the first stage: versions, code, store, data and models.

One short task on each node looks, all at the same time, and a problem is a sentence that names the node. The node of
the driver is not asked, since `benchmark.plan.preflight` looks there; so nothing is added on a single machine. Results
are not looked for: the driver alone writes them.
"""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import sande
from benchmark.grid import sources
from benchmark.grid.cell import Cell
from benchmark.grid.keys import declared_versions, library_version, library_versions, program
from benchmark.io.remote import is_uri
from benchmark.store.protocol import Store
from benchmark.store.remote import open_store
from sande import threat
from sande.errors import UserError
from sande.models import catalog, gguf, memory
from sande.models.checks import fetch

ANSWER = 120.0  # seconds in which a node must answer; a cold process imports for some of them
SEEN = 15.0  # seconds in which a file that the driver wrote must be seen, as shared file systems keep listings for some
SHOWN = 5  # problems in one sentence


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node must have.

    Attributes:
        store: location of the store.
        mark: a folder in it that the driver made; None for a remote store, which is known by its URI.
        versions: of libraries and of Python, by name.
        code: version of this project, and a hash of its files.
        models: by name, facts that differ where the model does, see `model_facts`.
        data: by name and kind, the fingerprint of a data set.
    """

    store: str
    mark: str | None
    versions: Mapping[str, str]
    code: tuple[str, str]
    models: Mapping[str, str]
    data: Mapping[tuple[str, str], str]


def check(cells: Iterable[Cell], store: Store) -> None:
    """Check all nodes that may run stages, but for this one.

    Raises:
        UserError: a node lacks something, has something else, or does not answer.
    """
    if not (nodes := others()):
        return
    mark = store.scratch("nodes")
    try:
        made = wanted(cells, store, mark)
        if problems := ask(nodes, made):
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise UserError(f"the cluster is not ready: {'; '.join(problems[:SHOWN])}{more}")
    finally:
        shutil.rmtree(mark, ignore_errors=True)


def others() -> dict[str, str]:
    """Return the names of the living nodes with CPUs, other than the driver's, by id."""
    here = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU", 0) > 0
    }


def ask(nodes: Mapping[str, str], made: Wanted, seconds: float = ANSWER) -> list[str]:
    """Return the problems of some nodes, each with the name of its node; every node is asked at the same time."""
    # Ray imports this module there; that it cannot is a finding, too.
    task = ray.remote(num_cpus=0, max_retries=0)(problems)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(made): name
        for node, name in nodes.items()
    }
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    found = [
        f"node {asked[ref]}: {problem}" for ref in answered for problem in _answer(functools.partial(ray.get, ref))
    ]
    for ref in silent:
        ray.cancel(ref, force=True)
        found.append(f"node {asked[ref]} did not answer in {seconds:.0f} s; check it, or remove it from the cluster")
    return sorted(found)


def _answer(get: Callable[[], list[str]]) -> list[str]:
    try:
        return get()
    except Exception as error:  # whatever is wrong there
        lines = str(error).strip().splitlines() or [type(error).__name__]
        lacking = next((line for line in lines if "ModuleNotFoundError" in line or "ImportError" in line), "")
        if lacking:
            return [f"sande-bench cannot be imported ({lacking.strip()}); install it there as on the driver's machine"]
        return [f"it cannot run a task ({lines[-1].strip()}); check its log"]


def largest_memory(gpu: bool) -> int | None:
    """Return the bytes of the largest GPU of all nodes or, with False, of the largest machine; None: unknown."""
    found = [memory_here(gpu)]
    if nodes := others():
        task = ray.remote(num_cpus=0, max_retries=0)(memory_here)
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        try:
            asked = [task.options(scheduling_strategy=place).remote(gpu) for place in places]
            found += ray.get(asked, timeout=ANSWER)
        except Exception:  # whatever is wrong there, `check` says
            return None
    return max((size for size in found if size), default=None)


def memory_here(gpu: bool) -> int | None:
    """Return the bytes of this node's largest GPU, without a context on it, or of the machine; None: unknown."""
    if not gpu:
        return memory.main_memory()
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=ANSWER).stdout
        return max(int(line) for line in answer.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def wanted(cells: Iterable[Cell], store: Store, mark: Path) -> Wanted:
    """Return what the nodes must have for some cells."""
    cells = tuple(cells)
    local = not is_uri(store.location)
    return Wanted(
        store=store.location,
        mark=str(mark) if local else None,
        versions=versions() | _declared(cells),
        code=code(),
        models={name: model_facts(name) for name in {name for cell in cells for name in sources.models(cell)}},
        data={key: sources.fingerprint(*key) for key in {key for cell in cells for key in sources.data_sets(cell)}},
    )


def _declared(cells: Iterable[Cell]) -> dict[str, str]:
    """Return the versions of the libraries that metrics declare, which are in the keys of their evaluations."""
    measured = {(metric.name, threat.objective(cell.attack.config)) for cell in cells for metric in cell.metrics}
    return {name: version for each in measured for name, version in declared_versions(*each).items()}


def problems(made: Wanted) -> list[str]:
    """Return what is wrong on this node, a clause each."""
    return [*_versions(made), *_files(made), *_store(made)]


def versions() -> dict[str, str]:
    """Return the versions on this machine that must be the same everywhere."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "ray": ray.__version__, **library_versions()}


@functools.cache
def code() -> tuple[str, str]:
    """Return the version of this project here, and a hash of its files."""
    content = program()
    try:
        return version("sande-bench"), content
    except PackageNotFoundError:  # a job has an unpacked copy
        return sande.__version__, content


def model_facts(name: str) -> str:
    """Return a text that differs where a model does, without reading its weights: names and sizes of its files.

    Raises:
        UserError: the model is not there.
    """
    if adapter := catalog.adapter_of(name):
        return f"{_sizes(adapter.folder)} on {model_facts(adapter.base)}"
    if catalog.is_folder(name):
        return _sizes(Path(name))
    if name not in catalog.NAMED and (file := gguf.file_of(name)):
        return f"{file.name} {file.stat().st_size}"
    identity = catalog.identify(name)
    if catalog.made_here(name):
        return identity
    repo, revision = identity.split("@")
    if fetch(repo, revision, "config.json") is None:
        raise UserError(f"model '{name}' is not in the local cache; fetch it once, or remove HF_HUB_OFFLINE")
    return identity


def _sizes(folder: Path) -> str:
    found = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return " ".join(f"{name} {size}" for name, size in sorted(found.items()))


def _versions(made: Wanted) -> Iterator[str]:
    here = versions()
    for name, number in made.versions.items():
        if (found := here.get(name) or library_version(name)) != number:
            yield f"{name} is {found}, and {number} where the run was started; install {name}=={number} there"
    number, content = code()
    if (number, content) != made.code:
        what = f"sande-bench is {number}, and {made.code[0]}" if number != made.code[0] else "its sande-bench has other"
        what += "" if number != made.code[0] else " files than that"
        yield f"{what} where the run was started; install the same there, or use 'sande-bench submit', which brings it"


def _files(made: Wanted) -> Iterator[str]:
    looks: Sequence[tuple[str, str, Callable[[], str]]] = [
        *((f"model {name}", facts, functools.partial(model_facts, name)) for name, facts in made.models.items()),
        *((f"data set {of[0]}", facts, functools.partial(sources.fingerprint, *of)) for of, facts in made.data.items()),
    ]
    for what, facts, look in looks:
        try:
            if look() != facts:
                yield f"{what} has other files than where the run was started; use a folder that all nodes share"
        except UserError as error:
            yield f"{what}: {error}"
        except OSError as error:
            yield f"{what} cannot be read ({error.strerror}); use a folder that all nodes share"


def _store(made: Wanted) -> Iterator[str]:
    try:
        store = open_store(made.store, create=False)
        if not store.exists:
            yield f"store {made.store} is not there; mount it at the same path, or use a URI for --store"
        elif made.mark and not _seen(Path(made.mark)):
            yield f"store {made.store} is another folder than that of the driver; mount the same one, or use a URI"
        else:
            store.check_writable()
    except UserError as error:
        yield str(error)


def _seen(mark: Path) -> bool:
    end = time.monotonic() + SEEN
    while not mark.is_dir():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
