"""A Ray cluster with Ray's own autoscaler, whose machines are sets of processes on this one.

`ray.cluster_utils.AutoscalingCluster` does the same, but its start and its end run `ray stop`, which ends every Ray on
the machine, and it reads a file that Ray's wheels lack.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import ray.util

from tests.faults.harness import NODE, SOON, Faults
from tests.integration.helpers import ROOT, end, wait_until
from tests.integration.test_jobs import free_port

NAME = "autoscaled"  # of all its processes, see `Faults.processes`
UNUSED = (
    *(f"{before}setup_commands" for before in ("", "head_", "worker_")),
    *(f"{node}_start_ray_commands" for node in ("head", "worker")),
    *("initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)
HEAD = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}


class Autoscaled:
    """A head without CPUs, and at first one node of one CPU; the autoscaler brings up to `most` where stages wait."""

    def __init__(self, faults: Faults, most: int) -> None:
        self._faults = faults
        self._temp = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # a socket's path has at most 107 bytes
        address = f"{ray.util.get_node_ip_address()}:{free_port()}"
        self.options = "--address", address
        spot = {"resources": {"CPU": 1, "object_store_memory": 150 * 2**20}, "node_config": {}}
        config = {
            "cluster_name": NAME,
            "max_workers": most,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": address,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {"ray.head.default": HEAD, "spot": spot | {"min_workers": 1, "max_workers": most}},
            "head_node_type": "ray.head.default",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1,
            "file_mounts_sync_continuously": False,
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in UNUSED},
        }
        path = self._temp / "autoscaling.json"
        path.write_text(json.dumps(config))
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--autoscaling-config={path}"]
        command += [f"--port={address.rpartition(':')[2]}", f"--temp-dir={self._temp}", "--num-cpus=0"]
        command += ["--include-dashboard=false", f"--ray-client-server-port={free_port()}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=157286400"]
        command += [f"--{name}-port={free_port()}" for name in ("dashboard-agent-listen", "metrics-export")]
        command += ['--system-config={"health_check_period_ms":500}']
        env = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", NODE: NAME}
        started = subprocess.run(
            command, cwd=ROOT, env=os.environ | faults.environment | env, capture_output=True, text=True, timeout=SOON
        )
        assert started.returncode == 0, started.stdout + started.stderr

    def raylets(self) -> dict[str, int]:
        """The process that makes up each node that stages run on, by the node's id."""
        found = {}
        for pid, node in self._faults.processes().items():
            path = Path(f"/proc/{pid}")
            if node == NAME and (path / "comm").read_text().strip() == "raylet":
                names = dict(each.split("=", 1) for each in (path / "environ").read_text().split("\0") if "=" in each)
                found[names["RAY_OVERRIDE_NODE_ID_FOR_TESTING"]] = pid
        return {name: pid for name, pid in found.items() if not name.endswith("f00000")}

    def kill_node_of(self, worker: int) -> None:
        """All processes of the node that a worker is on, at once; this machine does not come back."""
        raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        assert raylet in self.raylets().values()
        children = [Path(f"/proc/{raylet}/task/{task}/children") for task in os.listdir(f"/proc/{raylet}/task")]
        end([raylet, *(int(pid) for path in children for pid in path.read_text().split())])

    def close(self) -> None:
        """End all of it."""

        def over() -> bool:
            left = [pid for pid, node in self._faults.processes().items() if node == NAME]
            end(left)
            return not left

        assert wait_until(over, SOON)
        shutil.rmtree(self._temp, ignore_errors=True)
