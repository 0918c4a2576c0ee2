"""From cells to stages: what is left to compute, in which order, and whether it can run."""
