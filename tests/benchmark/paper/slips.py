"""The paper's slips: printed changes that are not the printed value minus the printed baseline."""

from benchmark.paper.numbers import Reported, baseline, reported


def arithmetic_slips() -> dict[Reported, float]:
    """Return the change that the paper should print, at its two decimals, by the number with another one."""
    numbers = reported()
    changes = {number: round(number.value - baseline(number, numbers).value, 2) for number in numbers}
    return {number: change for number, change in changes.items() if number.change not in (None, change)}
