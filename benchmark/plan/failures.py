"""Why a stage failed: one line for its row, and its kind, which decides whether the stage is tried again."""

from __future__ import annotations

import faulthandler
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from benchmark.io.files import FullError, is_disk_full
from benchmark.io.text import visible
from benchmark.store.errors import DamagedError
from sande.errors import NonFiniteError, UserError

MISTAKE = "user's mistake"
NON_FINITE = "non-finite loss"
OUT_OF_MEMORY = "out of memory"
LOST_WORKER = "lost worker"
LOST_NODE = "lost node"
TIMEOUT = "timeout"
FULL_DISK = "full disk"
DAMAGED = "damaged artifact"
INTERRUPTED = "interrupted"
UNSCORABLE = "cannot be scored"  # of single measurements; the cell's others have values
OTHER = "other"
KINDS = (
    MISTAKE,
    NON_FINITE,
    OUT_OF_MEMORY,
    LOST_WORKER,
    LOST_NODE,
    TIMEOUT,
    FULL_DISK,
    DAMAGED,
    INTERRUPTED,
    UNSCORABLE,
    OTHER,
)

# Kinds by the type of an error of `ray.exceptions`. A lost actor has one type for all reasons, see `lost_component`.
_BY_TYPE = {
    OUT_OF_MEMORY: ("OutOfMemoryError",),
    FULL_DISK: ("OutOfDiskError",),
    LOST_NODE: ("NodeDiedError", "LocalRayletDiedError"),
    LOST_WORKER: ("WorkerCrashedError",),
}
# In lower case, in messages of CUDA, cuBLAS and cuDNN, of PyTorch's CPU allocator, of Python, and of Ray.
_SHORT = ("out of memory", "_alloc_failed", "can't allocate memory", "memoryerror", "low on memory")
# In lower case, in Ray's messages about a lost node or worker, also where a worker group hands them on as text.
_NODE = ("node has died", "node died", "node was terminated", "nodediederror", "node is dead", "preempted")
_WORKER = (
    "actordiederror",
    "actor died",
    "actor is dead",
    "workercrashed",
    "actorunavailable",
    "rayactorerror",
    "actor is temporarily unavailable",
    "worker health check failed",
    # A group may end with what gloo or NCCL of another worker says of a lost one, before Ray misses it.
    "gloo/transport",
    "remote process exited",
)


class Failure(str):
    """One line of text with its `kind`, one of `KINDS`."""

    kind: str

    def __new__(cls, line: str, kind: str) -> Failure:
        """Return the line with its kind."""
        assert kind in KINDS, kind
        made = super().__new__(cls, line)
        made.kind = kind
        return made


UNFINISHED = Failure("not finished, the run was interrupted; run again to go on", INTERRUPTED)


class StageError(Exception):
    """A stage failed in a worker group, which hands on line and kind."""

    def __init__(self, line: str, kind: str = OTHER) -> None:
        super().__init__(line)
        self.kind = kind


def kind_of(error: str) -> str:
    """Return the kind of a line; `OTHER` for plain text."""
    return error.kind if isinstance(error, Failure) else OTHER


def interrupted(errors: Mapping[str, str]) -> bool:
    """Return whether the user interrupted the run that these errors are from."""
    return INTERRUPTED in map(kind_of, errors.values())


def because_of(cause: str) -> Failure:
    """Return the failure, of the same kind, of a stage that needs one that failed."""
    return Failure(f"needs a stage that failed: {cause}", kind_of(cause))


def classify(error: BaseException) -> Failure:
    """Return an error as one line for a row; print the traceback of an unexpected one to the log."""
    text = visible(str(error).strip(), keep="\n")  # it may hold any text of a model, and goes into rows
    if isinstance(error, UserError):
        kinds = {FullError: FULL_DISK, DamagedError: DAMAGED}
        return Failure(text, kinds.get(type(error), MISTAKE))
    if isinstance(error, NonFiniteError):
        return Failure(text, NON_FINITE)
    if isinstance(error, StageError):
        return Failure(text, OUT_OF_MEMORY if out_of_memory(error) else error.kind)
    kind = _kind_by_type(error)
    kind = kind or (
        OUT_OF_MEMORY if out_of_memory(error) else FULL_DISK if is_disk_full(error) else lost_component(error) or OTHER
    )
    if kind == OTHER:
        sys.stderr.write(visible("".join(traceback.format_exception(error)), keep="\n"))
    return Failure(f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}", kind)


def _kind_by_type(error: BaseException) -> str:
    """Return the kind that the type of Ray's error implies; empty for other errors, and for a lost actor."""
    return next((kind for kind, names in _BY_TYPE.items() if isinstance(error, _ray_types(*names))), "")


def _ray_types(*names: str) -> tuple[type[BaseException], ...]:
    """Return exceptions of Ray by name; none where Ray was not imported, as then no error is one of them."""
    exceptions = sys.modules.get("ray.exceptions")
    return tuple(getattr(exceptions, name) for name in names) if exceptions else ()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports too little memory, of the machine or a GPU, in this process or in a worker."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, or Ray's
        return True
    return not _kind_by_type(error) and any(sign in str(error).lower() for sign in _SHORT)


def lost_component(error: BaseException) -> str:
    """Return `LOST_NODE` or `LOST_WORKER` where Ray reports a dead node or worker, else an empty string.

    An actor that died with its node has the type of any lost actor, so there the message decides.
    """
    if kind := _kind_by_type(error):
        return kind if kind in (LOST_NODE, LOST_WORKER) else ""
    text = f"{type(error).__name__} {error}".lower()
    if any(sign in text for sign in _NODE):
        return LOST_NODE
    is_actor = isinstance(error, _ray_types("RayActorError"))
    return LOST_WORKER if is_actor or any(sign in text for sign in _WORKER) else ""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End this process where the block takes longer, whatever blocks it, and write the stack to its log."""
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()
