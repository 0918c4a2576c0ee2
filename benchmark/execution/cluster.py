"""Start Ray here or join a cluster, and compute how many stages fit on it."""

from __future__ import annotations

import gc
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from benchmark.execution import ray_env, signals, watch
from benchmark.execution.jobs import shared_environment
from benchmark.grid.resources import Resources
from benchmark.io.network import unreachable, without_secrets
from sande.errors import UserError

STARTS = 4  # of Ray in a run, where its own processes end under it

_connected: list[_Connection] = []  # the outermost block's


@dataclass
class _Connection:
    """Ray as a block has it, and may have it again.

    Attributes:
        address: of the cluster; None where Ray runs on this machine alone.
        groups: as for `cluster`.
        watch: of the processes that this one needs; None before they are there, and where Ray's client hides them.
        starts: how often Ray was started.
    """

    address: str | None
    groups: bool
    watch: watch.Watch | None = None
    starts: int = 0

    def start(self) -> None:
        with signals.held():
            _start(self.address, self.groups)
        signals.take()
        self.starts += 1
        if self.address is None or not self.address.startswith("ray://"):
            self.watch = watch.Watch(_servers(self.address), watch.REACTION * watch.reconnect_seconds())

    def stop(self) -> None:
        if self.watch:
            self.watch.close()
        ray.shutdown()


@contextmanager
def cluster(address: str | None, groups: bool = False) -> Iterator[None]:
    """Have Ray within the block: that of an outer block, the cluster at `address`, or one that ends with the block.

    Args:
        address: of a running cluster; None starts one here.
        groups: whether Ray Train will run worker groups, whose state it reports to Ray's dashboard; without them, a Ray
            started here has no dashboard and is ready a second earlier.

    Raises:
        UserError: the cluster cannot be reached.
    """
    ray_env.keep_keys_private()
    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS") or None if address is None else address  # a submitted job has it
    _check_reachable(address)
    connection = _Connection(address, groups)
    try:
        connection.start()
        _connected.append(connection)
        yield
    finally:
        _connected.clear()
        connection.stop()


def check() -> None:
    """Raise where Ray's own processes ended.

    Raises:
        RayEndedError: the control server is gone, or the raylet of this node.
    """
    for connection in _connected:
        if connection.watch:
            connection.watch.check()


def start_again() -> bool:
    """Start Ray again where it ran on this machine alone, a few times in a run; return whether it did."""
    (connection,) = _connected
    if connection.address is not None or connection.starts >= STARTS:
        return False
    gc.collect()  # handles of what is gone, which their ends would report to a Ray that does not know them
    connection.stop()
    try:
        connection.start()
    except UserError:
        return False
    watch.started_again = True
    return True


def _servers(address: str | None) -> list[watch.Server]:
    """Return the processes without which a driver waits for ever, or is ended by Ray."""
    context = ray.get_runtime_context()
    host, port = context.gcs_address.rsplit(":", 1)
    patience = watch.reconnect_seconds() * (watch.GONE if address else watch.GONE_HERE)
    return [
        watch.Server("control server (GCS)", host.strip("[]"), int(port), patience, vital=True),
        *(
            watch.Server("raylet on this machine", node["NodeManagerAddress"], node["NodeManagerPort"])
            for node in ray.nodes()
            if node["NodeID"] == context.get_node_id()
        ),
    ]


def _start(address: str | None, groups: bool) -> None:
    try:
        ray.init(
            address=address or "local",  # None would also find a cluster of another user on this machine
            logging_level=logging.ERROR,
            log_to_driver=True,
            include_dashboard=None if groups or address else False,
            runtime_env=environment(address),
        )
    except Exception as error:  # Ray raises nothing narrower where it does not start in time
        reason = str(error).strip().split("\n")[0].replace(address or "local", without_secrets(address or "local"))
        if address is None:
            raise UserError(f"Ray did not start here ({reason}); run again when the machine is less busy") from None
        raise _no_cluster(address, reason) from None


def _no_cluster(address: str, reason: str) -> UserError:
    shown = without_secrets(address)
    return UserError(
        f"no Ray cluster at '{shown}' ({reason}); check --address (or RAY_ADDRESS), or remove it to run here"
    )


def _check_reachable(address: str | None) -> None:
    """Refuse an address that does not answer.

    Raises:
        UserError: nothing listens at `[ray://]host:port`, or the address is empty.
    """
    if address is not None and not address.strip():
        raise UserError("--address is empty; set it to host:port of a Ray cluster, or remove it to run here")
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/]+):(?P<port>\d+)", address or "")
    if not address or not found:
        return
    if reason := unreachable(found["host"].strip("[]"), int(found["port"])):
        raise _no_cluster(address, reason)


def worker_resources(resources: Resources) -> dict[str, float]:
    """Return the CPUs and GPUs of one worker as Ray's resources.

    Defaults are those of one node: that with most GPUs or, for a worker without any, that with most CPUs.

    Raises:
        UserError: no node has that many.
    """
    nodes = [_cpus_and_gpus(node) for node in _living()]
    most_gpus = max(gpus for _, gpus in nodes)
    gpu_share = resources.gpus if resources.gpus is not None else float(min(1, most_gpus))
    cpus, gpus = max(nodes, key=lambda node: (node[1], node[0])) if gpu_share else max(nodes)
    cpu_share = resources.cpus or _default_cpus(cpus, gpus, gpu_share, resources.workers)
    if not any(cpu_share <= has_cpus and gpu_share <= has_gpus for has_cpus, has_gpus in nodes):
        raise UserError(
            f"resources: a worker needs {cpu_share} CPUs and {gpu_share:g} GPUs, but the largest node has {cpus} and "
            f"{gpus}; set a lower resources.cpus or resources.gpus"
        )
    return {"CPU": float(cpu_share)} | ({"GPU": gpu_share} if gpu_share else {})


def _default_cpus(cpus: int, gpus: int, gpu_share: float, workers: int) -> int:
    """Return the CPUs of a worker on a node with these CPUs and GPUs, of which it gets a share.

    A node without GPUs is for one group of workers.
    """
    if not gpus:
        return max(1, cpus // workers)
    # With more, workers that share a GPU would leave a part of it without a CPU, and so unused.
    part = min(1.0, gpu_share) if gpu_share else 1.0
    return max(1, int(cpus // gpus * part))


def _living() -> list[Mapping[str, float]]:
    """Return Ray's resources of the living nodes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _cpus_and_gpus(node: Mapping[str, float]) -> tuple[int, int]:
    return int(node.get("CPU", 0)), int(node.get("GPU", 0))


def joined(address: str | None) -> bool:
    """Return whether a run works on a cluster that was there before it, to which nodes may come."""
    return address is not None or bool(os.environ.get("RAY_ADDRESS"))


def capacity(per_worker: Mapping[str, float]) -> int:
    """Return how many workers the cluster's nodes hold at a time now; each is on one node."""
    return sum(min(int(node.get(name, 0) / share + 1e-6) for name, share in per_worker.items()) for node in _living())


def at_once(resources: Resources, per_worker: Mapping[str, float]) -> int:
    """Return how many stages the cluster holds at a time.

    Raises:
        UserError: it holds none; a worker group that cannot be placed would wait without an error.
    """
    workers = capacity(per_worker)
    if workers < resources.least_workers:
        raise UserError(
            f"resources: {resources.least_workers} workers of {per_worker} are more than the cluster has; set lower "
            "ones"
        )
    return max(1, workers // resources.workers)


def environment(address: str | None) -> dict[str, Any] | None:
    """Return the environment for workers on other machines; those here inherit it."""
    passed = shared_environment()
    return {"env_vars": passed} if address and passed else None
