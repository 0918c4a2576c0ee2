"""The leaderboard's figure: ASR against utility lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.io import plots
from benchmark.leaderboard.board import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLORS = ("#0b6e99", "#d1495b", "#2e933c", "#8d5a97", "#e08e0b", "#30475e", "#7a9e1f", "#b0578d")


def draw(made: Board) -> Figure:
    """Draw ASR against utility lost, with the Pareto front; the best defenses are in the lower left corner."""
    figure = plots.blank(width=7.5, rows=1)
    axes = figure.add_subplot()
    front = sorted((standing for standing in made.standings if standing.front == 1), key=lambda one: one.loss.value)
    if front:
        axes.step(
            [one.loss.value for one in front],
            [one.asr.value for one in front],
            where="post",
            color="#999",
            linestyle="--",
            linewidth=1,
            zorder=1,
            label="Pareto front",
        )
    for index, one in enumerate(made.standings):
        label = f"{one.rank}  {one.defense}" if one.rank else one.defense
        marker, color = plots.MARKERS[index % len(plots.MARKERS)], COLORS[index % len(COLORS)]
        axes.scatter(one.loss.value, one.asr.value, marker=marker, color=color, s=60, zorder=2, label=label)
    if made.victim_asr is not None:
        axes.scatter(0, made.victim_asr, marker="x", color="#333", s=50, zorder=2, label="no defense")
    axes.margins(x=0.1)
    axes.set_ylim(-4, 104)
    axes.set_xlabel("utility lost relative to the victim (percentage points)")
    axes.set_ylabel("attack success rate (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure
