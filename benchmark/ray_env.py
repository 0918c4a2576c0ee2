"""Set the variables that Ray, Tune and lm-eval read when they are imported; the package imports this module first."""

import os
import sys
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # two stages may well say the same line
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_COLOR_PREFIX", "1" if sys.stdout.isatty() else "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # a grid may name a model's folder from where the run began
# A run on this machine needs one process at first, and its imports take a core: no idle ones beside it.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval has no other way to switch its progress bars off
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# Ray shows its token to a cluster that it joins only if told so before it is imported.
if "ray" not in sys.modules and (os.environ.get("RAY_AUTH_TOKEN") or Path("~/.ray/auth_token").expanduser().exists()):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
