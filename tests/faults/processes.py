"""Processes as /proc shows them: which one is it, what is it, and does it still live."""

from contextlib import suppress
from pathlib import Path

# Workers of a cluster that are Ray's own, and stay.
OF_RAY = tuple(f"ray::{name}" for name in ("IDLE", "DashboardAgent", "RuntimeEnvAgent", "_AutoscalingCoordinatorActor"))
# Of Ray's processes that a run starts on its machine: what each is, by a part of its command line.
OF_A_RUN = {
    "the control server (GCS)": "/gcs/gcs_server ",
    "the raylet": "/raylet/raylet ",
    "the runtime env agent": "RuntimeEnvAgent",
    "the dashboard agent": "DashboardAgent",
    "the dashboard": "/dashboard/dashboard.py",
    "the log monitor": "/log_monitor.py",
    "the autoscaler's monitor": "/monitor.py",
}


def began(pid: int) -> str | None:
    """Of a living process, which one it is among all that have this number; None of one that ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else rest[18]


def what(title: str) -> str:
    for name, part in OF_A_RUN.items():
        if part in title:
            return name
    return "a worker" if title.startswith("ray::") or "default_worker.py" in title else "another process"


def descendants(pid: int) -> list[int]:
    """Living processes below one, however deep."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # gone meanwhile
            found += [int(child) for child in path.read_text().split() if began(int(child))]
    return found + [below for child in found for below in descendants(child)]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def working(pid: int) -> bool:
    """Whether a process is none of Ray's own workers."""
    return not title(pid).startswith(OF_RAY)


def has_a_job(pid: int) -> bool:
    """Whether a process of the cluster is a worker with a job."""
    return working(pid) and title(pid).startswith("ray::")


def living(pid: int) -> bool:
    return began(pid) is not None
