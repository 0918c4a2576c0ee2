"""The simulations of `docs/statistics.md`, with fewer experiments: their targets, and the numbers on the page."""

import re
from pathlib import Path

import pytest

from benchmark.perf import coverage

PAGE = Path(__file__).parents[3] / "docs" / "statistics.md"
FEW, NAMES = 100, list(coverage.INTERVALS)
USED, TEST = NAMES[-1], list(coverage.TESTS)[-1]


def on_the_page() -> coverage.Lines:
    """Lines of the page's tables that have a share for each number of seeds."""
    found: coverage.Lines = {}
    seeds: list[int] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split(" | ")) if line.startswith("|") else [""]
        numbers = [re.fullmatch(r"(\d+) seeds?", cell) for cell in cells]
        if any(numbers):
            seeds = [int(number[1]) for number in numbers if number]
        elif seeds and cells and all(re.fullmatch(r"|\d\.\d\d", cell) for cell in cells):
            found[name] = {number: float(cell) for number, cell in zip(seeds, cells, strict=True) if cell}
    return found


@pytest.fixture(scope="module")
def simulated() -> coverage.Lines:
    return coverage.held(FEW) | coverage.told_apart(FEW) | coverage.verdicts(FEW)


def test_the_page_has_the_simulated_numbers(simulated: coverage.Lines) -> None:
    page = on_the_page()
    assert list(page) == list(simulated)
    for name, line in simulated.items():
        # Four standard errors of the share, of at least one experiment in fifty (ranks have a fifth as many).
        for seeds, share in line.items():
            error = max(page[name][seeds] * (1 - page[name][seeds]), 0.01) / (FEW / (5 if "rank" in name else 1))
            assert share == pytest.approx(page[name][seeds], abs=4 * error**0.5), (name, seeds)


def test_the_intervals_of_tables_cover_and_pooled_ones_do_not() -> None:
    page = on_the_page()
    assert min(page[USED].values()) >= 0.95
    assert all(share >= 0.95 for name, line in page.items() if name.startswith("the same") for share in line.values())
    assert all(max(page[name][seeds] for name in NAMES[:-1]) < 0.9 for seeds in coverage.SEEDS)


def test_the_test_of_tables_is_calibrated_and_has_power() -> None:
    page = on_the_page()
    assert max(page[TEST].values()) <= coverage.FALSE < 0.3 < min(page[next(iter(coverage.TESTS))].values())
    assert page["0 % against 60 % in each run: the same test"][3] > 0.95
    assert page["0 % against 95 % in 63 runs of 100: the same test"][10] > 0.9


@pytest.mark.parametrize("fails", [0.05, 0.5])
def test_it_holds_for_other_rates_of_failure(fails: float) -> None:
    covered = coverage.coverage(FEW, fails, {USED: coverage.bounded})
    assert min(covered[USED].values()) >= 0.92
    assert max(coverage.false_positives(FEW, fails)[TEST].values()) <= 0.13  # 0.055, and three standard errors


def test_the_figure_is_drawn(tmp_path: Path, simulated: coverage.Lines) -> None:
    shown = [{name: simulated[name] for name in names} for names in (coverage.INTERVALS, coverage.TESTS)]
    coverage.draw(*shown, tmp_path)
    assert (tmp_path / "coverage.svg").stat().st_size > 10_000
    assert (tmp_path / "coverage.png").read_bytes()[:4] == b"\x89PNG"
