"""A real server of the S3 protocol on loopback, which can be made to fail and to be slow."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

SECRET = "planted+secret/value"


def never(method: str, path: str) -> int | None:
    """No fault."""


class Silent(WSGIRequestHandler):
    def log(self, *args: Any, **more: Any) -> None:
        pass


class Server:
    """The server, and what is to go wrong: a function of method and path that gives a status, or None."""

    def __init__(self) -> None:
        app = DomainDispatcherApplication(create_backend_app)
        self.fault: Callable[[str, str], int | None] = never
        self.failed = 0

        def faulty(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
            status = self.fault(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            if status is None:
                return app(environ, start)
            self.failed += 1
            start(f"{status} Injected", [("Content-Length", "0")])
            return [b""]

        self._server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=Silent)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """By which a client finds it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "planted-id",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # that it is tried again is for us to see to
        }

    def close(self) -> None:
        self._server.shutdown()


def failing_and_slow() -> Callable[[str, str], int | None]:
    """Of eleven requests three fail, and one of seventeen takes half a second more."""
    count = itertools.count()

    def fault(method: str, path: str) -> int | None:
        number = next(count)
        if number % 17 == 0:
            time.sleep(0.5)
        return {3: 500, 8: 503, 9: 429}.get(number % 11)

    return fault
