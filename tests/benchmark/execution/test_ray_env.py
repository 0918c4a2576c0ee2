"""What the suite uses of Ray that is not public: each part must be there, and must do what it is used for."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.train.v2._internal import constants
from ray.train.v2.api import data_parallel_trainer
from ray.tune.execution import class_cache

from benchmark.execution import ray_env
from tests.integration.helpers import ROOT

CHANGED = f"Ray {ray.__version__} changed what benchmark/execution/ray_env.py uses"


def test_tune_passes_no_keys_of_a_bucket_to_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", {"AWS_SECRET_ACCESS_KEY", "RAY_TRAIN_V2_ENABLED"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")

    def passed() -> set[str]:
        made = class_cache._ActorClassCache().get(type("Trial", (), {}))
        return set(made._default_options["runtime_env"]["env_vars"])

    assert {"AWS_SECRET_ACCESS_KEY", "RAY_TRAIN_V2_ENABLED"} <= passed(), f"{CHANGED}: Tune no longer reads the names"
    ray_env.keep_keys_private()
    assert passed() >= {"RAY_TRAIN_V2_ENABLED"}
    assert "AWS_SECRET_ACCESS_KEY" not in passed(), f"{CHANGED}: Tune passes keys of a bucket to its workers"


def test_tune_has_names_to_take_the_keys_from() -> None:
    assert hasattr(class_cache, "ENV_VARS_TO_PROPAGATE"), (
        f"{CHANGED}: class_cache has no ENV_VARS_TO_PROPAGATE; see where Tune now passes variables, or bound Ray"
    )


def test_ray_train_passes_the_address_of_its_ray_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "of another Ray")
    monkeypatch.setattr(constants, "ENV_VARS_TO_PROPAGATE", set(constants.ENV_VARS_TO_PROPAGATE))
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    ray_env.pass_address()
    assert data_parallel_trainer.get_env_vars_to_propagate()["RAY_ADDRESS"] == "10.0.0.1:6379", (
        f"{CHANGED}: the controller of a worker group is not told its address"
    )


def test_a_process_gets_the_name_of_its_stage() -> None:
    code = (
        "from pathlib import Path; from benchmark.execution import ray_env; ray_env.name_process('attack tiny'); "
        "print(Path('/proc/self/cmdline').read_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "ray::attack tiny" in done.stdout, f"{CHANGED}: it cannot name a process; {done.stderr[-500:]}"


@cache
def read_by_ray() -> bytes:
    """Return all text of Ray's own modules and libraries in which the name of a setting may be."""
    root = Path(ray.__file__).parent
    files = [path for path in root.rglob("*.py") if not {"thirdparty_files", "rllib", "tests"} & set(path.parts)]
    return b"".join(path.read_bytes() for path in [*files, *root.glob("_raylet.*so")])


# Settings of Ray's core have a prefix that its source does not repeat.
@pytest.mark.parametrize(
    "name", [*ray_env.VARIABLES, "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_JOB_STOP_WAIT_TIME_S"]
)
def test_ray_still_reads_each_variable_that_is_set_for_it(name: str) -> None:
    wanted = name.encode(), name.removeprefix("RAY_").encode()
    found = any(re.search(rb"\b" + each + rb"\b", read_by_ray()) for each in wanted)
    assert found, f"{CHANGED}: nothing in it reads {name}; find what replaces it, or remove it"


def test_the_head_of_a_cluster_still_has_its_resource() -> None:
    name = ray_env.HEAD.removeprefix("node:").encode()
    assert name in read_by_ray(), f"{CHANGED}: no resource {ray_env.HEAD}, so worker groups cannot be placed"


def test_rays_range_has_an_upper_bound_that_includes_the_tested_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    ranges = {
        re.sub(r"^ray(\[.+\])?", "", name) for name in [*project["dependencies"], *extras] if name.startswith("ray[")
    }
    assert len(ranges) == 1, "Ray has one range"
    (found,) = ranges
    bounds = re.fullmatch(r">=([\d.]+),<([\d.]+)", found)
    assert bounds, "with a lower and an upper bound"
    lowest, above, here = (tuple(map(int, each.split("."))) for each in (*bounds.groups(), ray.__version__))
    assert lowest <= here < above
