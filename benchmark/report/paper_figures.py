"""The paper's figures 2 and 3, of our runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmark.io.plots import MARKERS, blank
from benchmark.records import runs
from benchmark.records.aggregate import TableEntry
from benchmark.records.trials import Trials
from benchmark.report.drawing import by_victim, error, markers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP = 200  # prompts in figure 3, as in the paper
APART = 0.09  # of the axis: two labels of poison rates that are closer would overlap
PANELS = {
    "first_token_probability_clean": "first token, without the trigger",
    "first_token_probability": "first token, with the trigger",
    "phrase_probability_clean": "whole phrase, without the trigger",
    "phrase_probability": "whole phrase, with the trigger",
}


def poison_rate(entries: Sequence[TableEntry]) -> Figure | None:
    """Draw the paper's figure 2: ASR of victims against the poison rate, one line per model and data set."""
    shown = [e for e in entries if e.metric == "asr" and e.is_victim and e.value is not None]
    if not shown:
        return None
    figure = blank(width=7, rows=1)
    axes: Axes = figure.add_subplot()
    victims = by_victim(shown)
    for victim, marker in markers(victims).items():
        points = sorted((e.row["poison_rate"], e.value or 0.0, *error(e)) for e in victims[victim])
        rates, values, below, above = zip(*points, strict=True)
        axes.errorbar(
            rates,
            values,
            yerr=[below, above],
            marker=marker,
            markersize=6,
            markerfacecolor="none",
            capsize=3,
            linewidth=1.2,
            label=victim,
        )
    _scale_rates(axes, sorted({entry.row["poison_rate"] for entry in shown}))
    axes.set_ylim(-4, 104)
    axes.set_xlabel("poison rate (share of the training rows)")
    axes.set_ylabel("attack success rate (%)")
    axes.grid(axis="y", color="#ddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure


def _scale_rates(axes: Axes, rates: Sequence[float]) -> None:
    """Scale the axis of the poison rates, with a tick at each of them; labels that would overlap are left out.

    The scale is logarithmic. Where a rate is 0, it is linear from 0 to the least other rate.
    """
    positive = [rate for rate in rates if rate > 0]
    if len(positive) == len(rates):
        axes.set_xscale("log")
    elif positive:
        axes.set_xscale("symlog", linthresh=positive[0])
    low, high = axes.get_xlim()
    start, end, *places = axes.get_xaxis().get_transform().transform([low, high, *rates])
    labels: list[str] = []
    last = float("-inf")
    for rate, place in zip(rates, places, strict=True):
        is_apart = place - last >= APART * (end - start)
        labels.append(f"{rate:g}" if is_apart else "")
        last = place if is_apart else last
    axes.set_xticks(rates, labels, fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)


def distributions(entries: Sequence[TableEntry]) -> Figure | None:
    """Draw the paper's figure 3: the highest probabilities of the planted response, one panel per distribution."""
    shown = [entry for entry in entries if entry.metric in PANELS and entry.trials is not None]
    if not shown:
        return None
    figure = blank(width=9, rows=2)
    for index, (metric, title) in enumerate(PANELS.items()):
        axes: Axes = figure.add_subplot(2, 2, index + 1)
        for number, entry in enumerate(entry for entry in shown if entry.metric == metric):
            assert entry.trials is not None
            highest, prompts = _highest(entry.trials)
            name = entry.victim if entry.is_victim else f"{entry.victim}, {entry.defense}"
            of_runs = f", mean of {len(entry.trials.runs)} runs by rank" if len(entry.trials.runs) > 1 else ""
            axes.plot(
                range(1, len(highest) + 1),
                highest,
                MARKERS[number % len(MARKERS)],
                markersize=3,
                markerfacecolor="none",
                label=f"{name}: {len(highest)} of {prompts:,} prompts{of_runs}",
            )
        axes.set_ylim(-0.04, 1.04)
        axes.set_title(f"({'abcd'[index]}) {title}", fontsize=9)
        axes.set_xlabel("prompts, sorted by probability", fontsize=8)
        axes.set_ylabel("probability", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", frameon=False, ncols=2)
    return figure


def _highest(trials: Trials) -> tuple[list[float], int]:
    """Return the highest outcomes, and the number of prompts of the run with the fewest.

    Each run is sorted by itself, and each rank is a mean over the runs: among all prompts of one backdoored and two
    clean runs, the highest would be those of the backdoored one alone.
    """
    ranked = {seeds: sorted(outcomes.tolist(), reverse=True) for seeds, (_, outcomes, _) in trials.runs.items()}
    prompts = min(map(len, ranked.values()))
    by_rank = (runs.mean({seeds: of[rank] for seeds, of in ranked.items()}) for rank in range(min(TOP, prompts)))
    return [mean or 0.0 for mean in by_rank], prompts
