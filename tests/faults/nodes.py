"""`python -m tests.faults.nodes`: a Ray cluster in a process of its own, as Ray reads its environment only once.

For each line `NAME CPUS` of its input it starts a node, the first one as the head, whose processes have NAME in their
environment, and answers with the cluster's address.
"""

import os
import sys

from ray.cluster_utils import Cluster

cluster = Cluster()
for line in sys.stdin:
    os.environ[sys.argv[1]], cpus = line.split()
    head = {} if cluster.head_node else {"include_dashboard": False, "_system_config": {"health_check_period_ms": 500}}
    cluster.add_node(num_cpus=int(cpus), **head)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
os._exit(0)  # its nodes are ended by whoever has their names
