"""Python loads this at its start in every process of a run under test, as its folder is on PYTHONPATH.

It changes nothing that the program does. It notes in the folder SANDE_FAULTS which processes there are and which stages
begin, and where a fault is armed it lets it happen at that place, once, in one process:

processes           a line each: process id, when it started, and its node if it is of the cluster
stages              a line each time that a stage begins: process id, store, kind, key
armed/<name>.json   {"point": "module:function", "action": ..., "stage": ..., "path": ..., "call": ...}
fired/<name>.<pid>  the same file, as soon as that process is there

Actions: `hold` waits until the file in fired/ is gone, `after` the same at the function's end; `half` lets a file be
written by half, and holds; `nan` makes a loss NaN. A stage begins with its kind and names its method; a path is a part
of that of the file that is written; of several calls in a process that fit, the given one is taken, from 1.
"""

import contextlib
import functools
import importlib.abc
import importlib.util
import json
import os
import pathlib
import sys
import time

FOLDER = pathlib.Path(os.environ.get("SANDE_FAULTS", "/nowhere"))
POINTS = {
    "benchmark.execution.stages": ("train", "evaluate"),
    "benchmark.io.files": ("atomically",),
    "benchmark.store.local": ("LocalStore._move_in",),
    "sande.training.fit": ("ResponseLoss.forward",),
    "sande.inference.generation": ("greedy",),
}
stage = ""  # that this process is doing
calls = {}


def log(name, *words):
    with (FOLDER / name).open("a") as file:  # one write of a short line, which the system does not mix with others
        file.write(" ".join(map(str, words)) + "\n")


def fired(point, path=""):
    """The fault that happens here and now, as its mark and its action, or None."""
    for armed in FOLDER.glob("armed/*.json"):
        try:
            fault = json.loads(armed.read_text())
        except FileNotFoundError:  # another process was faster
            continue
        if fault["point"] != point or not stage.startswith(fault["stage"]) or fault["path"] not in path:
            continue
        calls[armed.name] = calls.get(armed.name, 0) + 1
        if calls[armed.name] != fault["call"]:
            continue
        mark = FOLDER / "fired" / f"{armed.stem}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            armed.rename(mark)
            return mark, fault["action"]
    return None


def hold(mark):
    while mark.exists():
        time.sleep(0.02)


class Halting:
    """A file whose first write of more than a few bytes stops in its middle."""

    def __init__(self, file, mark):
        self._file, self._mark = file, mark

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        if self._mark is not None and len(data) > 8:
            half = len(data) // 2
            self._file.write(data[:half])
            self._file.flush()
            hold(self._mark)
            self._mark = None
            return half + self._file.write(data[half:])
        return self._file.write(data)


def watched(point, function):
    @functools.wraps(function)
    def call(*arguments, **options):
        global stage
        if point.startswith("benchmark.execution.stages:"):
            what, store = arguments[:2]
            method = what.settings["attack" if what.kind == "attack" else "defense"]["name"]
            stage = f"{what.kind} {method}"
            if arguments[4:5] in ((), (0,)):  # of a group of workers, the first one
                log("stages", os.getpid(), store.location, what.kind, what.key)
        found = fired(point)
        if found and found[1] == "hold":
            hold(found[0])
        result = function(*arguments, **options)
        if found and found[1] == "after":
            hold(found[0])
        if found and found[1] == "nan":
            return result | {"loss": result["loss"] * float("nan")}
        return result

    return call


def watched_file(point, atomically):
    @functools.wraps(atomically)
    @contextlib.contextmanager
    def call(path):
        found = fired(point, str(path))
        with atomically(path) as file:
            yield Halting(file, found[0]) if found else file

    return call


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in POINTS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            for function in POINTS[name]:
                owner, point = module, f"{name}:{function}"
                *within, last = function.split(".")
                for part in within:
                    owner = getattr(owner, part)
                wrap = watched_file if last == "atomically" else watched
                setattr(owner, last, wrap(point, getattr(owner, last)))

        spec.loader.exec_module = exec_module
        return spec


if FOLDER.is_dir():
    since = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    log("processes", os.getpid(), since, os.environ.get("SANDE_FAULTS_NODE", ""))
    sys.meta_path.insert(0, Finder())
