"""The table of faults, for the terminal and as a page."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.faults.harness import Line

COLUMNS = ("Fault", "Injected", "Recovered", "Stages repeated", "Seconds", "Code")
PAGE = """# Faults

What happens to a grid when something goes wrong. `make faults TABLE=docs/faults.md` lets each of these faults happen
and writes this page; `make faults` alone prints the table. With `FAULT="raylet or head"` only those happen whose tests
have such names, and the page keeps its other lines. *Code* is the commit that a line was made with.

The grid has one victim of the model `tiny`, two defenses and two metrics: six stages. Every process is real, and so is
Ray; the nodes of a cluster are separate sets of its processes on one machine. A file on Python's path
(`tests/faults/hook`) holds the process that is to be hit at a named function, so the moment is certain and the program
itself is unchanged. Only the random kills hit any process of a run, Ray's included, at any moment; `KILLS=5` does fewer
of them.

A fault counts as recovered if one more `sande-bench run` ends without an error and then

- rows and outcomes are those of a run where nothing happened, times and memory aside, and so are all models, byte for
  byte;
- no row and no artifact is there twice, every artifact is undamaged, and no file is half-written;
- no process is left, and nothing in the store's `unfinished/` and `leases/`.

*Injected* is how often the fault happened, *recovered* whether the disturbed run ended in order by itself or it took
the next one, *stages repeated* how many stages began more often than once, as the processes that did them noted it.
Seconds are those of all runs of a line, including Ray's starts.

{table}

{count} kinds of faults, {times} in all, in {seconds:.0f} s; the last ones on {machine}.
"""


def merged(lines: Sequence[Line]) -> list[Line]:
    """One line for each fault, where a fault was tried several times."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.fault, []).append(line)
    return [_sum(same) if len(same) > 1 else same[0] for same in found.values()]


def _sum(lines: Sequence[Line]) -> Line:
    ends = Counter(line.recovered for line in lines)
    recovered = ", ".join(f"{count} {how}" for how, count in sorted(ends.items()))
    return Line(
        lines[0].fault,
        sum(line.injected for line in lines),
        recovered if len(ends) > 1 else lines[0].recovered,
        sum(line.repeated for line in lines),
        sum(line.seconds for line in lines),
        lines[0].code,
    )


def text(lines: Sequence[Line]) -> str:
    """As a Markdown table."""
    lines = merged(lines)
    cells = [
        COLUMNS,
        *((x.fault, str(x.injected), x.recovered, str(x.repeated), f"{x.seconds:.0f}", x.code) for x in lines),
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["| " + " | ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([rows[0], "| " + " | ".join("-" * n for n in widths) + " |", *rows[1:]])


def read(page: str) -> list[Line]:
    """The lines of a page."""
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines() if row.startswith("|")]
    return [
        Line(fault, int(injected), recovered, int(repeated), float(seconds), code)
        for fault, injected, recovered, repeated, seconds, code in rows[2:]
    ]


def page(lines: Sequence[Line], cores: int, before: Sequence[Line] = ()) -> str:
    """The table with what it is about, and the machine.

    Args:
        lines: of this run.
        cores: of this machine.
        before: of an earlier page; those of faults that this run left out stay, where they were.
    """
    made = {line.fault: line for line in merged(lines)}
    shown = [made.pop(line.fault, line) for line in before] + list(made.values())
    return PAGE.format(
        table=text(shown),
        count=len(shown),
        times=sum(line.injected for line in shown),
        seconds=sum(line.seconds for line in shown),
        machine=f"{_processor()}, {cores} cores",
    )


def _processor() -> str:
    found = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line]
    return found[0] if found else platform.machine()
