"""Experiments over the methods in `sande`: grids of cells, executed on Ray, stored, tabulated."""
