"""Print the line with which every benchmark ends: name, measurement, target, met or not."""

from __future__ import annotations


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
