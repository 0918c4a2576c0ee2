"""Experiments over the methods in `sande`: grids of cells, executed on Ray, stored, tabulated."""

# Both set variables that libraries read when they are loaded: OpenMP below PyTorch, and Ray.
import sande as sande
from benchmark import ray_env as ray_env
