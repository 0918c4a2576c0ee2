"""Matplotlib figures without a display: create and save them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.io.files import write_atomically
from benchmark.io.text import visible
from sande.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MARKERS = "osD^vP*X<>pHd"
ROW = 3.6  # height of a row of panels, inches


def blank(width: float, rows: float) -> Figure:
    """Return a figure without axes; its width is in inches, its height in rows of panels.

    Raises:
        UserError: the environment names a backend that Matplotlib does not have.
    """
    try:
        # Without pyplot there is no global state, and no display is needed.
        from matplotlib.figure import Figure
    except ValueError as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"MPLBACKEND: Matplotlib cannot be loaded ({reason}); remove the variable") from None

    return Figure(figsize=(width, ROW * rows), dpi=150, layout="constrained")


def literal(text: str) -> str:
    """Return a text as Matplotlib draws it unchanged: a dollar begins no formula."""
    return visible(text).replace("$", r"\$")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `NAME.png` and `NAME.svg`; the same figure gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "sande-bench"}):  # else ids in the SVG differ between reports
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, metadata=metadata, bbox_inches="tight")
            write_atomically(folder / f"{name}.{suffix}", buffer.getvalue())
