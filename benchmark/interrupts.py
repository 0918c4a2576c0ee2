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
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell leaves it to what a script starts with `&`
        raise KeyboardInterrupt
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


@contextmanager
def held() -> Iterator[None]:
    """Around Ray's start, which cannot be broken off in its middle: the first SIGINT waits for the block's end.

    Raises:
        KeyboardInterrupt: at the end, for that; at once for a second one, or for SIGTERM, whose handler is Ray's here.
    """
    came: list[int] = []

    def wait(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, wait)
    try:
        yield
    except SystemExit:
        _received.append(signal.SIGTERM)
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def exit_code() -> int:
    """As a shell has it for the signal that came: 143 for SIGTERM, else 130."""
    return 128 + (signal.SIGTERM if _received else signal.SIGINT)
