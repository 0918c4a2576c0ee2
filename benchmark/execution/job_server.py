"""The job server of a Ray cluster, as a client that trusts it with nothing but the token.

Ray's client waits without limit, reads answers of any size into memory, and follows redirects. Here a request has
`ANSWER_SECONDS`, an answer `MOST_ANSWER` bytes, and a redirect is refused, since the token would go with it.
"""

from __future__ import annotations

import io
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmark.execution import ray_env
from benchmark.io.network import unreachable, within, without_secrets
from sande.errors import UserError

if TYPE_CHECKING:
    import requests
    from ray.job_submission import JobSubmissionClient

ANSWER_SECONDS = 60.0  # for one request and its whole answer, an upload included
MOST_ANSWER = 16 * 2**20  # bytes; thousands of jobs have less
PORT = 8265
_NO_AGENT = "No available agent"  # Ray's words; the agent starts after the dashboard, or never if its port is taken
_LONGEST_REASON = 200  # characters of what a server says
_JOB = re.compile(r"[A-Za-z0-9][\w.:+-]{0,199}", re.ASCII)


class _AnswerError(Exception):
    """A server answered, but with what no job server of Ray says; the text has the problem and the fix."""


def connect(address: str) -> JobSubmissionClient:
    """Return a client of the cluster's job server, with the user's token (`RAY_AUTH_TOKEN`, or Ray's file in ~/.ray).

    Raises:
        UserError: the server cannot be reached, is not a Ray head, or refuses the token.
    """
    host, port, url = _parts(address)
    if reason := unreachable(host, port):
        raise UserError(
            f"no Ray cluster at '{address}' ({reason}); check --address, and that its dashboard listens there"
        )
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it on import
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # else Ray takes RAY_ADDRESS, which is not a dashboard
    import ray  # noqa: F401  # with its loggers

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)  # this module reports uploads and tokens itself
    with answering(address):
        client: JobSubmissionClient = ray_env.job_client(url, _send)
        return client


def _parts(address: str) -> tuple[str, int, str]:
    """Return host, port and URL of a dashboard.

    Raises:
        UserError: it is not an address of one, or holds a password.
    """
    shown = without_secrets(address)
    if shown != address:
        raise UserError(
            f"--address {shown}: Ray sends no user name, password or parameter of an address; remove it, and set "
            "RAY_AUTH_TOKEN to the cluster's token"
        )
    host = port = None
    if address.isprintable() and " " not in address:
        try:
            parts = urlsplit(address if "://" in address else f"http://{address}")
            host, port = parts.hostname, parts.port
        except ValueError:  # a port that is none, a bracket without its other half
            host = None
    if not host or parts.scheme not in ("http", "https") or port == 0:
        raise UserError(f"--address {address}: not the address of a Ray dashboard; use one such as http://host:{PORT}")
    port = port or (443 if parts.scheme == "https" else PORT)
    return host, port, f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path}"


def check_id(job: str) -> None:
    """Refuse what is not an id of a job; it becomes a part of an address.

    Raises:
        UserError: it is not one.
    """
    if not _JOB.fullmatch(job):
        raise UserError(f"job {job}: not the id of a job; use one that 'sande-bench status' lists")


def _send(method: str, url: str, **more: Any) -> requests.Response:
    """Send one request; return its answer, wholly read.

    Raises:
        TimeoutError: it took longer than `ANSWER_SECONDS`.
        _AnswerError: the answer is too large, or a redirect.
        AuthenticationError: the token is missing or refused.
        requests.RequestException: there is no answer, or none that can be read.
    """
    from ray.exceptions import AuthenticationError

    answer = within(ANSWER_SECONDS, lambda: _exchange(method, url, time.monotonic() + ANSWER_SECONDS, more))
    if answer.is_redirect:
        target = without_secrets(answer.headers["location"])[:_LONGEST_REASON]
        raise _AnswerError(f"it redirects to {target}; set --address to the server itself")
    if answer.status_code in (401, 403):
        raise AuthenticationError(answer.text[:_LONGEST_REASON])
    return answer


def _exchange(method: str, url: str, end: float, more: dict[str, Any]) -> requests.Response:
    """Send one request; return its answer with the body in memory."""
    import requests

    body = bytearray()
    asked = requests.request(method, url, timeout=ANSWER_SECONDS, stream=True, allow_redirects=False, **more)
    with asked as answer:
        for piece in answer.iter_content(2**16):
            body += piece
            if len(body) > MOST_ANSWER:
                limit = MOST_ANSWER // 2**20
                raise _AnswerError(f"an answer is larger than {limit} MiB; set --address to a Ray dashboard")
            if time.monotonic() > end:
                raise TimeoutError
    whole = requests.Response()
    whole.status_code, whole.headers, whole.reason, whole.url = answer.status_code, answer.headers, answer.reason, url
    whole.raw, whole.encoding = io.BytesIO(body), "utf-8"
    return whole


@contextmanager
def answering(address: str, job: str = "") -> Iterator[None]:
    """Raise what goes wrong with a server as a mistake of the user.

    Raises:
        UserError: instead of any error but those.
    """
    import requests
    from ray.exceptions import AuthenticationError

    place = f"--address {address}"
    try:
        yield
    except UserError:
        raise
    except AuthenticationError as error:
        answer = "refuses this token" if "invalid" in str(error).lower() else "requires a token"
        raise UserError(
            f"{place}: the cluster {answer}; set RAY_AUTH_TOKEN, or ~/.ray/auth_token, to the one that "
            "'ray get-auth-token' shows on its head"
        ) from None
    except requests.exceptions.InvalidHeader:  # whose text holds the token
        raise UserError(
            "RAY_AUTH_TOKEN: this token, or that in ~/.ray/auth_token, holds a character that no header may have; set "
            "it to what 'ray get-auth-token' shows on the head"
        ) from None
    except (TimeoutError, requests.Timeout):
        raise UserError(
            f"{place}: no whole answer within {ANSWER_SECONDS:g} s; check the address, and run again when the cluster "
            "is less busy"
        ) from None
    except _AnswerError as error:
        raise UserError(f"{place}: {error}") from None
    except Exception as error:  # the client reads whatever a server says, and raises whatever that leads to
        reason = str(error).strip().split("\n")[0][:_LONGEST_REASON] or type(error).__name__
        if job and "404" in reason:
            raise UserError(
                f"job {job}: not known to the cluster at {address}; use one that 'sande-bench status --address "
                f"{address}' lists"
            ) from None
        if _NO_AGENT in reason:
            raise UserError(
                f"{place}: Ray's agent on the head, which starts jobs, is not there; wait until it has started. A "
                "second head on one machine needs its own --dashboard-agent-listen-port"
            ) from None
        raise UserError(
            f"{place}: no usable job server ({reason}); check the address, and that the head has ray[default]"
        ) from None
