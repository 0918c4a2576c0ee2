"""Backdoors in generative language models and their removal: the methods. Knows nothing of Ray."""

import os

__version__ = "0.1.0"

# PyTorch's threads wait for each other many times a training step. GNU OpenMP lets a waiting thread spin, by default so
# long that beside any other process two threads fall to a tenth of their speed. This bound costs nothing on a quiet
# machine (`python -m benchmark.perf.threads`). It is read when PyTorch is loaded, so it is set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
