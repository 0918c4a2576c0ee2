"""Backdoors in generative language models and their removal: the methods. Knows nothing of Ray."""

import os

__version__ = "0.1.0"

# PyTorch's threads wait for each other many times a training step. GNU OpenMP lets a waiting thread spin, by default so
# long that two threads beside any other process fall to a tenth of their speed. With this bound they keep much more of
# it, and on a quiet machine most (`python -m benchmark.perf.threads`). Read when PyTorch is loaded, so set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
