"""The line that every benchmark ends with: name, what was measured, target, met or not."""

from __future__ import annotations


def tell(name: str, measured: float, target: float, unit: str = "x", *, at_most: bool = False) -> None:
    """Print `name: 5.3 x, target at least 5 x, met`.

    Args:
        name: of the benchmark, and what of it.
        measured: a ratio (`x`), or seconds (`s`) or another unit.
        target: of the same unit.
        unit: written behind both numbers.
        at_most: whether the target is an upper bound; else a lower one.
    """
    met = measured <= target if at_most else measured >= target
    bound = "at most" if at_most else "at least"
    print(f"{name}: {measured:.3g} {unit}, target {bound} {target:g} {unit}, {'met' if met else 'NOT met'}")  # noqa: T201
