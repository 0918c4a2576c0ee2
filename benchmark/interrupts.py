"""SIGTERM ends a run as Ctrl-C does: in order, with the rows of what is done, and a sentence how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_received: list[int] = []


def _as_ctrl_c(number: int, frame: Any) -> None:
    _received.append(number)
    signal.raise_signal(signal.SIGINT)  # whose handler is Python's, or Tune's while that runs


def take() -> None:
    """From now on SIGTERM does what SIGINT does; Ray puts a handler of its own there whenever it starts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _as_ctrl_c)


@contextmanager
def orderly() -> Iterator[None]:
    """The same within a block."""
    before = signal.getsignal(signal.SIGTERM)
    _received.clear()
    take()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def sigint_kept() -> Iterator[None]:
    """Around what puts a handler for SIGINT and leaves it there, as Tune does."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def exit_code() -> int:
    """As a shell has it for the signal that came: 143 for SIGTERM, else 130."""
    return 128 + (signal.SIGTERM if _received else signal.SIGINT)
