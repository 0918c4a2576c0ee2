"""Experiments over the methods in `sande`: grids of cells, executed on Ray, stored, tabulated."""

import sande as sande  # sets how PyTorch's threads wait, before any module of this package loads PyTorch
