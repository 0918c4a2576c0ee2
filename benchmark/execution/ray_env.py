"""Set the variables that Ray, Tune and lm-eval read on import, and hold every use of a part of Ray that is not public.

`benchmark/__init__.py` imports this module, so it runs before any module of the package can import Ray; no module has
to import it for that. It imports Ray only inside the functions that need it, since planning works without.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # two stages may well say the same line
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A run says how many stages have room; Ray would call demand that no autoscaler meets an error.
os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "1" if sys.stdout.isatty() else "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # a grid may name a model's folder from where the run began
# A run on this machine needs one process at first, and its imports take a core: no idle ones beside it.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval has no other way to switch its progress bars off
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Ray shows its token to a cluster that it joins only if told so before it is imported.
if "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or Path("~/.ray/auth_token").expanduser().exists()):
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def job_variables() -> set[str]:
    """Return the names of the variables that a submitted job was given; outside a job none.

    `ray.get_runtime_context()` has them only once Ray is started, and its start is what needs them.
    """
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    config: dict[str, Any] = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))
    return set(config.get("runtime_env", {}).get("env_vars", {}))


def keep_keys_private() -> None:
    """Stop Tune from passing keys of a bucket to its workers.

    It passes them as settings of an actor, which Ray writes into its logs. The nodes of a cluster have their own keys.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if not name.startswith("AWS_")}


def name_process(name: str) -> None:
    """Name this process as Ray's dashboard and `top` are to show it."""
    import ray

    ray._raylet.setproctitle(f"ray::{name}")


def data_parallel_trainer() -> Any:
    """Return Ray Train's plain trainer, the base of TorchTrainer; `ray.train` exports only the older one."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


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
