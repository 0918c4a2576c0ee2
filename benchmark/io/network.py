"""Servers that may not answer, and addresses that may hold a password."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

CONNECT_SECONDS = 5.0  # for a connection to a server, its name's look-up included
HIDDEN = "***"

# A password before the host, also one with a slash in it, and a token as the only name of a web address. Addresses such
# as sftp://me@host and abfs://container@account name no secret.
_PASSWORD = re.compile(r"//[^\s/]*:[^\s]*@|\bhttps?://[^\s/?#]*@", re.IGNORECASE)
_PARAMETER = re.compile(r"[?&;#][\w.%-]*(?:token|secret|passw|pwd|key|sig|auth|credential)[\w.%-]*=", re.IGNORECASE)


def holds_secret(text: str) -> bool:
    """Return whether a text looks as if it held a URI with a password (`//user:password@`, `?token=`)."""
    return bool(_PASSWORD.search(text) or _PARAMETER.search(text))


def without_secrets(address: str) -> str:
    """Return an address for a message: without what is before an @ and after a question mark or a hash."""
    shown = re.sub(r"^(\w[\w+.-]*://)?.*@", rf"\1{HIDDEN}@", address, flags=re.DOTALL)
    return re.sub(r"([?#]).+", rf"\1{HIDDEN}", shown, flags=re.DOTALL)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns, or raise what it raises; where it takes longer, its thread is left behind.

    Raises:
        TimeoutError: it took longer than `seconds`.
    """
    ended: list[T] = []
    raised: list[BaseException] = []

    def caught() -> None:
        try:
            ended.append(work())
        except BaseException as error:  # raised again below
            raised.append(error)

    thread = threading.Thread(target=caught, daemon=True)  # the end of this process does not wait for it
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not ended:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return ended[0]


def unreachable(host: str, port: int) -> str:
    """Return why no server can be connected to within `CONNECT_SECONDS`, or an empty text."""
    try:
        within(CONNECT_SECONDS, lambda: socket.create_connection((host, port), timeout=CONNECT_SECONDS).close())
    except (OSError, OverflowError, ValueError) as error:  # ValueError: a name that no host can have
        return str(error)
    return ""
