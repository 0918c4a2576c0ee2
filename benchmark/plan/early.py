"""Checks that a run makes before anything else."""

from __future__ import annotations

import os

from sande.compute import VARIABLE, compute_type


def check_compute_type() -> None:
    """Refuse a wrong SANDE_COMPUTE_TYPE, with which every stage would fail; import no torch.

    `sande.compute` itself has no such function, as a change of its code would change the keys of all stages.

    Raises:
        UserError: the variable is set, and is no compute type.
    """
    if os.environ.get(VARIABLE):
        compute_type.__wrapped__()  # not cached: this process may yet get another one
