"""Why a stage failed: one line for its row, and of which kind, which decides whether it helps to try it again."""

from __future__ import annotations

import faulthandler
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from benchmark.files import FullError, full
from benchmark.store import DamagedError
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
OTHER = "other"
KINDS = (MISTAKE, NON_FINITE, OUT_OF_MEMORY, LOST_WORKER, LOST_NODE, TIMEOUT, FULL_DISK, DAMAGED, INTERRUPTED, OTHER)

# In lower case, in messages of CUDA, cuBLAS and cuDNN, of PyTorch's CPU allocator, of Python, and of Ray.
_SHORT = ("out of memory", "_alloc_failed", "can't allocate memory", "memoryerror", "low on memory")
# In lower case, in what Ray says of a machine or a process that is gone, also where a worker group has lost it.
_NODE = ("node has died", "node died", "node was terminated", "nodediederror", "node is dead", "preempted")
_WORKER = ("actordiederror", "actor died", "actor is dead", "workercrashed", "actorunavailable", "rayactorerror")


class Failure(str):
    """The one line, which reads as text; `kind` is one of `KINDS`."""

    kind: str

    def __new__(cls, line: str, kind: str) -> Failure:
        """The line with its kind."""
        assert kind in KINDS, kind
        made = super().__new__(cls, line)
        made.kind = kind
        return made


UNFINISHED = Failure("not finished, the run was interrupted; run again to go on", INTERRUPTED)


class StageError(Exception):
    """What a stage says of its end in a worker group, carried as text and kind."""

    def __init__(self, line: str, kind: str = OTHER) -> None:
        super().__init__(line)
        self.kind = kind


def kind_of(error: str) -> str:
    """The kind of a line, of one that was made without any `OTHER`."""
    return error.kind if isinstance(error, Failure) else OTHER


def interrupted(errors: Mapping[str, str]) -> bool:
    """Whether the user ended what these errors are of."""
    return INTERRUPTED in map(kind_of, errors.values())


def because_of(cause: str) -> Failure:
    """Of a stage that needs one that failed: of the same kind."""
    return Failure(f"needs a stage that failed: {cause}", kind_of(cause))


def classify(error: BaseException) -> Failure:
    """An error as one line for a row; of an unexpected one the traceback goes to the log."""
    text = str(error).strip()
    if isinstance(error, UserError):
        kinds = {FullError: FULL_DISK, DamagedError: DAMAGED}
        return Failure(text, kinds.get(type(error), MISTAKE))
    if isinstance(error, NonFiniteError):
        return Failure(text, NON_FINITE)
    if isinstance(error, StageError):
        return Failure(text, OUT_OF_MEMORY if out_of_memory(error) else error.kind)
    kind = OUT_OF_MEMORY if out_of_memory(error) else FULL_DISK if full(error) else lost(error) or OTHER
    if kind == OTHER:
        traceback.print_exception(error, file=sys.stderr)
    return Failure(f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}", kind)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: the machine's or a GPU's, in this process or in a worker's."""
    text = str(error).lower()
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # PyTorch's, or Ray's
    return known or any(sign in text for sign in _SHORT)


def lost(error: BaseException) -> str:
    """`LOST_NODE` or `LOST_WORKER`, where Ray says that a process went without a word; else nothing."""
    text = f"{type(error).__name__} {error}".lower()
    if any(sign in text for sign in _NODE):
        return LOST_NODE
    return LOST_WORKER if any(sign in text for sign in _WORKER) else ""


@contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """End this process where the block takes longer, whatever it hangs in; where that is goes to its log."""
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()
