"""Set the variables that Ray, Tune and lm-eval read on import, and hold every use of a part of Ray that is not public.

`benchmark/__init__.py` imports this module, so it runs before any module of the package can import Ray; no module has
to import it for that. It imports Ray only inside the functions that need it, since planning works without.

`tests/benchmark/execution/test_ray_env.py` looks for all of these parts in the installed release of Ray, and
`tests/test_public.py` for others elsewhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # two stages may well say the same line
    "RAY_AIR_NEW_OUTPUT": "0",
    # A run says how many stages have room; Ray would call demand that no autoscaler meets an error.
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_COLOR_PREFIX": "1" if sys.stdout.isatty() else "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a grid may name a model's folder from where the run began
    # A run on this machine needs one process at first, and its imports take a core: no idle ones beside it.
    "RAY_prestart_worker_first_driver": "0",
    # A submitted job has the variables of `benchmark.execution.jobs` already, and its driver names them once more for
    # clusters that it joins. Their values are equal, but without this Ray refuses a variable that both name.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
for _name, _value in VARIABLES.items():
    os.environ.setdefault(_name, _value)
os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval has no other way to switch its progress bars off
# Ray shows its token to a cluster that it joins only if told so before it is imported.
if "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or Path("~/.ray/auth_token").expanduser().exists()):
    os.environ.setdefault("RAY_AUTH_MODE", "token")

# A resource of the head node of every cluster, and of no other node.
HEAD = "node:__internal_head__"


def keep_keys_private() -> None:
    """Stop Tune from passing keys of a bucket to its workers.

    It passes them as settings of an actor, which Ray writes into its logs. The nodes of a cluster have their own keys.
    Tune has no setting for that.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith("AWS_")}


def pass_address() -> None:
    """Tell the processes of the worker groups that this process will start which Ray they belong to.

    Where a group's controller dies, an actor of Ray Train frees what the group held. It learns of the death by Ray's
    state API, which looks for a Ray on the actor's machine: of two there it chooses none, or the wrong one. Ray Train
    has no setting for the address, but a list of variables that it passes on.
    """
    import ray
    from ray.train.v2._internal import constants

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    constants.ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


def name_process(name: str) -> None:
    """Name this process as Ray's dashboard and `top` are to show it; Ray names a trial's after its class alone."""
    import ray

    ray._raylet.setproctitle(f"ray::{name}")


def job_client(url: str, send: Callable[..., Any]) -> Any:
    """Return Ray's client of a job server, with its requests sent by `send`; Ray itself sets them no limits.

    Args:
        url: of the dashboard.
        send: called like `requests.request`.
    """
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]  # its module has no types
        def _do_request(
            self, method: str, endpoint: str, *, data: bytes | None = None, json_data: Any = None, **more: Any
        ) -> Any:
            kept = {"cookies": self._cookies, "headers": self._headers, "verify": self._verify}
            return send(method, self._address + endpoint, data=data, json=json_data, **kept, **more)

    return Client(url)
