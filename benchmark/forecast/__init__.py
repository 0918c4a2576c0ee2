"""Cost, wall time and disk of a plan, before it runs."""
