"""A worker group on a machine on which another Ray runs, too."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.helpers import ROOT

pytestmark = pytest.mark.slow

SECOND = """
import ray
ray.init(address="local", num_cpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
print("there", flush=True)
input()
ray.shutdown()
"""

# A group that is left as a killed stage leaves it: the process that started the group is gone, and with it the group's
# controller. Without a backend no process imports torch.
KILLED = """
import sys, time
from pathlib import Path
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util import placement_group_table
from benchmark.execution import ray_env

folder = sys.argv[1]

def loop():
    Path(folder, "works").touch()
    time.sleep(600)

@ray.remote(num_cpus=0)
class Trial:
    def fit(self):
        ray_env.pass_address()
        scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
        DataParallelTrainer(loop, scaling_config=scaling, run_config=RunConfig(storage_path=folder)).fit()

def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)

def states():
    return [group["state"] for group in placement_group_table().values()]

ray.init(address="local", num_cpus=2, log_to_driver=False, object_store_memory=80 * 2**20)
trial = Trial.remote()
trial.fit.remote()
until(Path(folder, "works").exists, 200)
print(states(), flush=True)
ray.kill(trial)
until(lambda: states() == ["REMOVED"], 60)
print(states(), flush=True)
ray.shutdown()
"""


@pytest.fixture
def _second_ray() -> Iterator[None]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SECOND], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield
        process.communicate("\n", timeout=60)


@pytest.mark.usefixtures("_second_ray")
def test_what_a_killed_group_held_is_free_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["['CREATED']", "['REMOVED']"], done.stderr
