"""Start Ray here or join a cluster, and compute how many stages fit on it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from benchmark.execution import ray_env, signals
from benchmark.execution.jobs import shared_environment, unreachable
from benchmark.grid.resources import Resources
from sande.errors import UserError


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
    try:
        with signals.held():
            _start(address, groups)
        signals.take()
        yield
    finally:
        ray.shutdown()


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
        reason = str(error).strip().split("\n")[0]
        if address is None:
            raise UserError(f"Ray did not start here ({reason}); run again when the machine is less busy") from None
        raise UserError(
            f"no Ray cluster at '{address}' ({reason}); check --address, or remove it to run here"
        ) from None


def _check_reachable(address: str | None) -> None:
    """Refuse an address that does not answer.

    Raises:
        UserError: nothing listens at `[ray://]host:port`, or the address is empty.
    """
    if address is not None and not address.strip():
        raise UserError("--address is empty; set it to host:port of a Ray cluster, or remove it to run here")
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/]+):(?P<port>\d+)", address or "")
    if not found:
        return
    if reason := unreachable(found["host"], int(found["port"])):
        raise UserError(f"no Ray cluster at '{address}' ({reason}); check --address, or remove it to run here")


def worker_resources(resources: Resources) -> dict[str, float]:
    """Return the CPUs and GPUs of one worker as Ray's resources.

    Raises:
        UserError: no node has that many.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (max(int(node.get(name, 0)) for node in nodes) for name in ("CPU", "GPU"))
    gpu_share = resources.gpus if resources.gpus is not None else float(min(1, gpus))
    cpu_share = resources.cpus or max(1, cpus // max(1, gpus) // (resources.workers if not gpus else 1))
    if cpu_share > cpus or gpu_share > gpus:
        raise UserError(
            f"resources: a worker needs {cpu_share} CPUs and {gpu_share:g} GPUs, but the largest node has {cpus} and "
            f"{gpus}; set a lower resources.cpus or resources.gpus"
        )
    return {"CPU": float(cpu_share)} | ({"GPU": gpu_share} if gpu_share else {})


def joined(address: str | None) -> bool:
    """Return whether a run works on a cluster that was there before it, to which nodes may come."""
    return address is not None or bool(os.environ.get("RAY_ADDRESS"))


def at_once(resources: Resources, per_worker: dict[str, float]) -> int:
    """Return how many stages the cluster holds at a time.

    Raises:
        UserError: it holds none; a worker group that cannot be placed would wait without an error.
    """
    total = ray.cluster_resources()
    fitting = min(int(total.get(name, 0) // (share * resources.workers)) for name, share in per_worker.items())
    if fitting < 1:
        raise UserError(
            f"resources: {resources.workers} workers of {per_worker} are more than the cluster has; set lower ones"
        )
    return fitting


def environment(address: str | None) -> dict[str, Any] | None:
    """Return the environment for workers on other machines; those here inherit it."""
    passed = shared_environment()
    return {"env_vars": passed} if address and passed else None
