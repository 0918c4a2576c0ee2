"""`python -m tests.faults.nodes`: a Ray cluster in a process of its own, as Ray reads its environment only once.

For each line `NAME CPUS` of its input it starts a node, the first one as the head, whose processes have NAME in their
environment, and answers with the cluster's address.
"""

import os
import signal
import sys
from contextlib import suppress
from typing import Any

from ray.cluster_utils import Cluster


def reap(*_: Any) -> None:
    """A raylet that ended is gone at once, as where `ray start` left it to init: its workers see so, and end."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


signal.signal(signal.SIGCHLD, reap)
cluster = Cluster()
for line in sys.stdin:
    os.environ[sys.argv[1]], cpus = line.split()
    head = {} if cluster.head_node else {"include_dashboard": False, "_system_config": {"health_check_period_ms": 500}}
    cluster.add_node(num_cpus=int(cpus), **head)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
os._exit(0)  # its nodes are ended by whoever has their names
