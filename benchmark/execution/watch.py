"""Notice that Ray itself ended under a run. A raylet ends with each of its agents, and Tune would then wait for ever.

A thread looks whether Ray's control server (GCS) and the raylet of this node still listen. It calls nothing of Ray,
since such a call may not return any more. What waits for Ray in a loop asks `Watch.check` in each round.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LOOK = 2.0  # seconds between two looks
PATIENCE = 6.0  # seconds without an answer after which a process on this machine counts as ended
# Ray's setting: seconds after which a process ends itself, without a sentence, if it cannot reach the control server.
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
# Parts of that time. On a cluster the control server may come back. Then the rows of what is done have to be written.
GONE, GONE_HERE, REACTION = 0.4, 0.1, 0.5
started_again = False  # Ray, in this process
_OWN = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL)  # reasons of this process, not of the other


class RayEndedError(BaseException):
    """Ray's own processes ended. Not an Exception, which Tune answers by calls to Ray that would not return."""


@dataclass(frozen=True, slots=True)
class Server:
    """A process of Ray that a driver needs.

    Attributes:
        name: for a sentence.
        host: where it listens.
        port: of the same.
        patience: seconds without an answer after which it counts as ended.
        vital: whether Ray ends the driver without it.
    """

    name: str
    host: str
    port: int
    patience: float = PATIENCE
    vital: bool = False

    def answers(self) -> bool:
        """Return whether it listens."""
        try:
            socket.create_connection((self.host, self.port), timeout=PATIENCE).close()
        except OSError as error:
            return error.errno in _OWN
        return True


def reconnect_seconds() -> float:
    """Return the seconds of `RECONNECT`."""
    return float(os.environ.get(RECONNECT, "60"))


def _end_process(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
    os._exit(1)


class Watch:
    """Watch the processes of Ray that a driver needs, in a thread, until `close`.

    Attributes:
        ended: a sentence on the one that ended; empty while all live.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        reaction: float,
        look: float = LOOK,
        end: Callable[[str], None] = _end_process,
    ) -> None:
        """Begin to watch.

        Args:
            servers: processes to watch.
            reaction: seconds from the end of a vital process until `end` is called, unless this watch is closed.
            look: seconds between two looks.
            end: ends this process with a sentence.
        """
        self.ended = ""
        self._servers, self._look, self._reaction, self._end = servers, look, reaction, end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what was noticed.

        Raises:
            RayEndedError: a process ended that the driver needs.
        """
        if self.ended:
            raise RayEndedError(self.ended)

    def close(self) -> None:
        """Stop watching."""
        self._over.set()

    def _watch(self) -> None:
        silent: dict[Server, float] = {}  # since when
        while not self._over.wait(self._look):
            for server in self._servers:
                if server.answers():
                    silent.pop(server, None)
                elif time.monotonic() - silent.setdefault(server, time.monotonic()) >= server.patience:
                    self.ended = f"Ray's {server.name} ended"
                    if server.vital and not self._over.wait(self._reaction):
                        self._end(f"{self.ended}; run again to continue")
                    return
