"""Print the line with which every benchmark ends: name, measurement, target, met or not; and read it again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LINE = re.compile(
    r"(?P<name>\S.*): (?P<measured>\S+) (?P<unit>\S+), target (?P<bound>at (?:least|most)) (?P<target>\S+) (?P=unit), "
    r"(?P<met>met|NOT met)"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measurement with its target.

    Attributes:
        name: name of the benchmark and its quantity.
        measured: ratio (`x`), seconds (`s`), or a number of another unit, to three digits.
        unit: of both numbers.
        bound: `at least` or `at most`.
        target: target in the same unit.
        met: whether the target is met.
    """

    name: str
    measured: float
    unit: str
    bound: str
    target: float
    met: bool


def tell(name: str, measured: float, target: float, unit: str = "x", *, at_most: bool = False) -> None:
    """Print `name: 5.3 x, target at least 5 x, met`.

    Args:
        name: name of the benchmark and its quantity.
        measured: ratio (`x`), seconds (`s`), or a number of another unit.
        target: target in the same unit.
        unit: printed behind both numbers.
        at_most: whether the target is an upper bound; else a lower one.
    """
    met = measured <= target if at_most else measured >= target
    bound = "at most" if at_most else "at least"
    print(f"{name}: {measured:.3g} {unit}, target {bound} {target:g} {unit}, {'met' if met else 'NOT met'}")


def figures(lines: Iterable[str]) -> list[Figure]:
    """Return the measurements among printed lines."""
    found = [match for line in lines if (match := _LINE.fullmatch(line.rstrip("\n")))]
    return [
        Figure(
            name=each["name"],
            measured=float(each["measured"]),
            unit=each["unit"],
            bound=each["bound"],
            target=float(each["target"]),
            met=each["met"] == "met",
        )
        for each in found
    ]
