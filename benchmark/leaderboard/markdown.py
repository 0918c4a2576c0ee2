"""The leaderboard as a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmark.io.markdown import MISSING, markdown_table
from benchmark.leaderboard.board import Board, Number, Standing, unit
from benchmark.leaderboard.rank import ladder

NAME = "leaderboard"


def markdown(made: Board, paths: Sequence[Path], warned: Sequence[str] = ()) -> str:
    """Return the page: the standings, notes on them, the knowledge ladder and the figure.

    Args:
        made: what it shows.
        paths: of the results and entries that it is made from.
        warned: lines at the top.
    """
    head = ("Rank", "Defense", "Must know", "ASR (%)", "Utility lost (points)", "Front", "Training", "Tokens", "Cells")
    parts = [
        "# Leaderboard of defenses",
        "",
        *warned,
        f"Made by `{command(paths)}`.",
        "",
        *markdown_table(head, map(_line, made.standings), "rllrrrlrl"),
        "",
        *notes(made),
        "",
        *_ladder(made),
        f"![Points: attack success rate of each defense against the utility lost]({NAME}.svg)",
        "",
    ]
    return "\n".join(parts)


def _ladder(made: Board) -> list[str]:
    levels = [found[0] for found in ladder(made.standings).values()]
    if not made.shared or len(levels) < 2:
        return []
    rows = [
        (one.knows, f"`{one.defense}`", f"{one.asr.value:.1f}", f"{one.loss.value:+.2f}", _training(one))
        for one in levels
    ]
    return [
        "## What knowledge is worth",
        "",
        "For each level of knowledge, the defense with the lowest ASR.",
        "",
        *markdown_table(("Known", "Defense", "ASR (%)", "Utility lost (points)", "Training"), rows, "llrrl"),
        "",
    ]


def _training(standing: Standing) -> str:
    return "; ".join(f"{seconds:,.0f} {unit(device)} on {device}" for device, seconds in standing.seconds.items())


def command(paths: Sequence[Path]) -> str:
    """Return the command that makes the leaderboard from these paths."""
    return f"sande-bench leaderboard {' '.join(map(str, paths))}"


def _line(standing: Standing) -> tuple[str, ...]:
    return (
        str(standing.rank or MISSING),
        f"`{standing.defense}`",
        standing.knows,
        f"{standing.asr.value:.1f}{_interval(standing.asr, '.1f')}",
        f"{standing.loss.value:+.2f}{_interval(standing.loss, '+.1f')}",
        str(standing.front or MISSING),
        _training(standing),
        f"{standing.tokens:,.0f}",
        f"{_count(standing.victims, 'victim')}, {_count(standing.seeds, 'seed')}, {_count(standing.cells, 'cell')}",
    )


def _interval(number: Number, form: str) -> str:
    return "" if number.low is None else f" ({number.low:{form}} to {number.high:{form}})"


def notes(made: Board) -> list[str]:
    """Return how to read the numbers, as lines of Markdown: paragraphs, lists, `code` and **strong** alone."""
    lines = [
        "ASR is the attack success rate after the defense. Utility lost is the victim's accuracy minus the accuracy "
        "after the defense; each task counts once. Both are means over cases (a victim, its rows for removal and its "
        "measurements) of equal weight; smaller is better. Intervals are 95 %. The interval of a mean assumes "
        "independent parts. The interval of a loss ignores that the questions are the same before and after, so it is "
        "too wide. Front 1 is the Pareto front: for no defense in it is another at least as good in both numbers and "
        "better in one, which can also be true of a defense that changes almost nothing. Defenses are ranked by front, "
        "then by ASR. Training is the mean wall-clock time of one defense on the named device.",
        "",
    ]
    if made.victim_asr is None:
        lines.append(
            "**No case was measured with every defense**, so no defense is ranked, and each number is a mean over the "
            "defense's own cases. Use results with a case in common, or run the missing cells."
        )
    else:
        lines.append(
            f"Every number is a mean over the {_count(len(made.shared), 'case')} that all {len(made.standings)} "
            f"defenses were measured on, of {len(made.cases)} in all. Without a defense, the mean ASR of these cases "
            f"is {made.victim_asr:.1f} %."
        )
        if made.twin:
            lines += [
                "",
                f"Clean twins of the victims (poison rate 0) write the response to {made.twin.asr.value:.1f} % of the "
                f"triggered prompts and lose {made.twin.loss.value:+.2f} points of utility relative to the victims. "
                "A change of this size is not due to a defense.",
            ]
        lines += ["", *(f"- Shared: {label}" for label in made.shared)]
    lacking = [one for one in made.standings if one.lacks]
    lines += ["", *(f"- `{one.defense}` was not measured on: {'; '.join(one.lacks)}." for one in lacking)]
    left_out = [
        f"{_count(count, noun)} {why}"
        for count, noun, why in (
            (made.attack_failed, "victim", "whose attack failed"),
            (made.failed, "cell", "that failed"),
            (made.not_run, "cell", "not finished"),
            (made.unmeasured, "cell", "without a measured utility"),
        )
        if count
    ]
    return [*lines, "", f"Left out: {', '.join(left_out) or 'nothing'}."]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
