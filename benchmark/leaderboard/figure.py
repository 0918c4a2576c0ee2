"""The leaderboard's figure: ASR against utility lost, with intervals of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.io import plots
from benchmark.leaderboard.board import Board, Number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLORS = ("#0b6e99", "#d1495b", "#2e933c", "#8d5a97", "#e08e0b", "#30475e", "#7a9e1f", "#b0578d")


def draw(made: Board) -> Figure:
    """Draw ASR against utility lost, with both 95 % intervals; the best defenses are in the lower left corner.

    A defense that lacks runs has no mark: beside those of others, it would be compared with them.
    """
    figure = plots.blank(width=7.5, rows=1)
    axes = figure.add_subplot()
    for index, (one, loss) in enumerate((one, one.loss) for one in made.complete if one.loss):
        marker = plots.MARKERS[index % len(plots.MARKERS)]
        color = COLORS[(index + index // len(plots.MARKERS)) % len(COLORS)]  # no pair twice, as both have eight
        axes.errorbar(
            loss.value,
            one.asr.value,
            xerr=_reach(loss),
            yerr=_reach(one.asr),
            fmt=marker,
            color=color,
            ecolor=(color, 0.35),
            elinewidth=1,
            markersize=7,
            label=plots.literal(f"{one.defense} ({one.knows})"),
        )
    if made.victim_asr is not None:
        axes.scatter(0, made.victim_asr, marker="x", color="#333", s=50, zorder=3, label="no defense")
    losses = [0.0, *(one.loss.value for one in made.complete if one.loss)]
    room = 2 * made.margin or 1.0
    axes.set_xlim(min(losses) - room, max(losses) + room)  # wider intervals are cut
    axes.axvline(made.margin, color="#999", linestyle=":", linewidth=1, zorder=1, label="margin of utility")
    axes.set_ylim(-4, 104)
    axes.set_xlabel("utility lost relative to the victim (percentage points)")
    axes.set_ylabel("attack success rate (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure


def _reach(number: Number) -> list[list[float]] | None:
    """Return how far an interval reaches below and above its number, as matplotlib takes it."""
    if number.low is None or number.high is None:
        return None
    return [[max(0.0, number.value - number.low)], [max(0.0, number.high - number.value)]]
