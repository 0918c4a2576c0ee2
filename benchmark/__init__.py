"""Experiments over the methods in `sande`: grids of cells, executed on Ray, stored, tabulated."""

# Both set variables that libraries read on import: OpenMP below PyTorch, and Ray. Every import of a module of this
# package runs these lines first, so no other module has to see to it.
import sande as sande
from benchmark import ray_env as ray_env
