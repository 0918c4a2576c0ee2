"""Let SIGTERM end a run as Ctrl-C does: orderly, with the rows of what is done and a sentence on how to continue."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_received: list[int] = []


def _as_ctrl_c(number: int, frame: Any) -> None:
    _received.append(number)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell sets it for a script's commands with `&`
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # whose handler is Python's, or Tune's while that runs


def take() -> None:
    """Let SIGTERM do what SIGINT does from now on; Ray sets its own handler whenever it starts."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _as_ctrl_c)


@contextmanager
def _restored(number: signal.Signals) -> Iterator[None]:
    """Restore the handler of a signal after the block; outside the main thread, where Python forbids it, do nothing."""
    before = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, before)


@contextmanager
def orderly() -> Iterator[None]:
    """Let SIGTERM do what SIGINT does within the block."""
    with _restored(signal.SIGTERM):
        _received.clear()
        take()
        yield


@contextmanager
def sigint_kept() -> Iterator[None]:
    """Restore the handler of SIGINT after the block, where code such as Tune leaves its own."""
    with _restored(signal.SIGINT):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Hold the first SIGINT until the end of the block; Ray's start cannot be interrupted in the middle.

    Raises:
        KeyboardInterrupt: at the end for the held one; at once for a second one, or for SIGTERM, which Ray handles.
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
    """Return the exit code of a shell for the signal: 143 for SIGTERM, else 130."""
    return 128 + (signal.SIGTERM if _received else signal.SIGINT)
