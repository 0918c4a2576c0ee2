"""Simulate what intervals and tests over seeds are worth, for `docs/statistics.md`: its tables and its figure.

A removal works or fails as a whole: one run in five leaves an ASR of 95 %, the others none. Each experiment draws a few
seeds of it, measures each on 100 prompts, and computes the statistics. `python -m benchmark.perf.coverage docs/figures`
prints the tables and draws the figure; it takes minutes. The tests run it with fewer experiments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmark.io.markdown import markdown_table
from benchmark.io.plots import blank, save
from benchmark.records.runs import AboveTwin, Removal, removal
from sande.paired import mcnemar
from sande.statistics import mean_bounds, over_seeds, paired_p, rank_intervals, share_above, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Outcomes = NDArray[np.bool_]  # of shape (seeds, prompts)
Interval = Callable[[Outcomes], tuple[float, float]]  # in percent
Lines = dict[str, dict[int, float]]  # a share for each number of seeds

EXPERIMENTS, PROMPTS = 10_000, 100
FAILS, LEFT = 0.2, 0.95
SEEDS = (2, 3, 5, 10)
LIMIT = 5.0  # percent: an ASR above it is a removal that failed
VICTIMS = 80.0  # points that a parrot recovers from a victim above its twin
FALSE, SIGNIFICANT = 0.07, 0.05


def answers(
    random: np.random.Generator, seeds: int, fails: float = FAILS, left: float = LEFT, works: float = 0.0
) -> Outcomes:
    """Return outcomes of shape (seeds, PROMPTS): each seed's ASR is `left` if it fails, else `works`."""
    true = np.where(random.random((seeds, 1)) < fails, left, works)
    return random.random((seeds, PROMPTS)) < true


def pooled_wilson(outcomes: Outcomes) -> tuple[float, float]:
    """Return Wilson's interval over all prompts of all seeds."""
    return wilson(int(outcomes.sum()), outcomes.size)


def student(outcomes: Outcomes) -> tuple[float, float]:
    """Return Student's interval over seeds, clipped to 0 to 100."""
    return over_seeds((100 * outcomes.mean(1)).tolist())


def two_level_bootstrap(outcomes: Outcomes) -> tuple[float, float]:
    """Return the percentile interval of a bootstrap of seeds, and of prompts within each drawn seed."""
    random = np.random.default_rng(0)
    shares = outcomes.mean(1)[random.integers(len(outcomes), size=(1000, len(outcomes)))]
    means = (random.binomial(PROMPTS, shares) / PROMPTS).mean(1)
    low, high = np.percentile(100 * means, [2.5, 97.5])
    return float(low), float(high)


def bounded(outcomes: Outcomes) -> tuple[float, float]:
    """Return `mean_bounds` over seeds: the interval of tables."""
    return mean_bounds((100 * outcomes.mean(1)).tolist(), 0, 100)


INTERVALS: Mapping[str, Interval] = {
    "mean ASR: Wilson over all prompts": pooled_wilson,
    "mean ASR: Student's t over seeds": student,
    "mean ASR: two-level bootstrap": two_level_bootstrap,
    "mean ASR: bounded mean over seeds (used)": bounded,
}


def mcnemar_p(first: Outcomes, second: Outcomes) -> float:
    """Return the p-value of McNemar's test over all prompts of all seeds."""
    return mcnemar(first.ravel().tolist(), second.ravel().tolist())


def seeds_p(first: Outcomes, second: Outcomes) -> float:
    """Return the p-value of `paired_p`: the test of tables."""
    return paired_p(first.mean(1).tolist(), second.mean(1).tolist())


TESTS = {
    "identical methods: McNemar over all prompts": mcnemar_p,
    "identical methods: paired test over seeds (used)": seeds_p,
}


def coverage(experiments: int, fails: float = FAILS, intervals: Mapping[str, Interval] = INTERVALS) -> Lines:
    """Return how often each interval holds the true mean ASR, by number of seeds."""
    mean, found = 100 * fails * LEFT, _lines(intervals)
    for seeds in SEEDS:
        random = np.random.default_rng(seeds)
        drawn = [answers(random, seeds, fails) for _ in range(experiments)]
        for name, interval in intervals.items():
            found[name][seeds] = float(np.mean([low <= mean <= high for low, high in map(interval, drawn)]))
    return found


def false_positives(experiments: int, fails: float = FAILS) -> Lines:
    """Return how often each test tells two identical methods apart, by number of seeds."""
    found = _lines(TESTS)
    for seeds in (1, *SEEDS):
        random = np.random.default_rng(seeds)
        pairs = [(answers(random, seeds, fails), answers(random, seeds, fails)) for _ in range(experiments)]
        for name, test in TESTS.items():
            found[name][seeds] = float(np.mean([test(*pair) < SIGNIFICANT for pair in pairs]))
    return found


def power(experiments: int) -> Lines:
    """Return how often `paired_p` tells a method that always works from others, by number of seeds."""
    others = {
        "0 % against 60 % in each run: the same test": (1.0, 0.6),
        "0 % against 95 % in 63 runs of 100: the same test": (0.63, 0.95),
        "0 % against 95 % in one run of five: the same test": (FAILS, LEFT),
    }
    found = _lines(others)
    for seeds in SEEDS:
        random = np.random.default_rng(seeds)
        for name, (fails, left) in others.items():
            pairs = [(answers(random, seeds, 0.0), answers(random, seeds, fails, left)) for _ in range(experiments)]
            found[name][seeds] = float(np.mean([seeds_p(*pair) < SIGNIFICANT for pair in pairs]))
    return found


def nested(experiments: int, defense_seeds: int = 2) -> Lines:
    """Return how often `mean_bounds` over attack seeds holds the mean, by where failures come from.

    A run fails because of its attack seed, because of its defense seed, or because of either.
    """
    sources = {
        "the same, two defense seeds each; the attack seed decides": (0.2, 0.0),
        "the same; the defense seed decides": (0.0, 0.2),
        "the same; either can make a run fail": (0.1, 0.1),
    }
    found = _lines(sources)
    for seeds in SEEDS:
        random = np.random.default_rng(seeds)
        for name, (attack, defense) in sources.items():
            failed = random.random((experiments, seeds, 1)) < attack
            failed = failed | (random.random((experiments, seeds, defense_seeds)) < defense)
            units = (random.binomial(PROMPTS, np.where(failed, LEFT, 0.0)) / PROMPTS).mean(2)
            mean = LEFT * (1 - (1 - attack) * (1 - defense))
            found[name][seeds] = float(np.mean([low <= mean <= high for low, high in map(mean_bounds, units.tolist())]))
    return found


def works_every_time(experiments: int) -> Lines:
    """Return how often `share_above` holds the true share of failed runs, by number of seeds."""
    name = "share of runs above 5 %: bounded mean (used)"
    found = _lines([name])
    for seeds in SEEDS:
        random = np.random.default_rng(seeds)
        inside = []
        for _ in range(experiments):
            values = 100 * answers(random, seeds).mean(1)
            _, low, high = share_above([[value] for value in values], LIMIT)
            inside.append(low <= FAILS <= high)
        found[name][seeds] = float(np.mean(inside))
    return found


def ranks(experiments: int) -> Lines:
    """Return how often `rank_intervals` holds the true rank: the least over four methods, by number of seeds."""
    methods = {"a": 0.0, "b": 0.2, "c": 0.5, "d": 0.9}  # how often each fails, best first
    name = "rank among four methods, the worst case: bootstrap (used)"
    found = _lines([name])
    for seeds in SEEDS:
        random = np.random.default_rng(seeds)
        inside = []
        for _ in range(experiments):
            values = {method: answers(random, seeds, fails).mean(1).tolist() for method, fails in methods.items()}
            between = rank_intervals(values).values()
            inside.append([first <= place <= last for place, (first, last) in enumerate(between, start=1)])
        found[name][seeds] = float(np.mean(inside, axis=0).min())
    return found


def verdicts(experiments: int) -> Lines:
    """Return how often `benchmark.records.runs.removal` gives a verdict, by number of seeds.

    No run fails by its ASR; what a fresh parrot recovers differs from the twin's by what each line says, and from the
    victims by far more.
    """
    cases: Mapping[str, tuple[Removal, float, float, float]] = {
        "no difference, deviation 3: removed": ("removed", 0, 0, 3),
        "no difference, deviation 1: removed": ("removed", 0, 0, 1),
        "5 points, deviation 3: removed": ("removed", 5, 0, 3),
        "50 points in one run of five, deviation 1: removed": ("removed", 0, 50, 1),
        "30 points, deviation 15: hidden": ("hidden", 30, 0, 15),
    }
    found = _lines(cases)
    for seeds in SEEDS:
        random, shape = np.random.default_rng(seeds), (experiments, seeds)
        for name, (verdict, mean, rare, deviation) in cases.items():
            drawn = random.normal(mean, deviation, shape) + rare * (random.random(shape) < FAILS)
            victims = AboveTwin([VICTIMS] * seeds)
            said = [removal([[0.0]] * seeds, AboveTwin(differences), victims) for differences in drawn.tolist()]
            found[name][seeds] = said.count(verdict) / experiments
    return found


def _lines(names: Mapping[str, object] | Sequence[str]) -> Lines:
    return {name: {} for name in names}


def as_markdown(title: str, lines: Lines) -> str:
    """Return a table with a row for each line and a column for each number of seeds."""
    seeds = sorted({number for line in lines.values() for number in line})
    head = [title, *(f"{number} seed{'s' * (number > 1)}" for number in seeds)]
    rows = [
        [name, *(f"{line[number]:.2f}" if number in line else "" for number in seeds)] for name, line in lines.items()
    ]
    return "\n".join(markdown_table(head, rows, "l" + "r" * len(seeds)))


def draw(covered: Lines, false: Lines, folder: Path) -> None:
    """Write the figure `coverage.png` and `.svg`: coverage and false positives by number of seeds."""
    figure = blank(width=9, rows=1)
    left, right = figure.subplots(1, 2)
    _panel(left, covered, "how often a 95 % interval holds the mean ASR", 0.9, "at least 0.90")
    _panel(right, false, "how often two identical methods are told apart", FALSE, "at most 0.07")
    left.set_ylim(0, 1.03)
    right.set_ylim(-0.02, 1.03)
    save(figure, folder, "coverage")


def _panel(axes: Axes, lines: Lines, title: str, target: float, meaning: str) -> None:
    axes.axhline(target, color="#999", linewidth=0.8, linestyle="--")
    axes.annotate(meaning, (10, target), ha="right", va="bottom", fontsize=8, color="#666")
    for index, (name, line) in enumerate(lines.items()):
        used = name.endswith("(used)")
        color = "#b33" if used else f"C{index}"
        style = "--" if "bootstrap" in name else "-"  # it lies on Student's line
        axes.plot(
            list(line),
            list(line.values()),
            marker="osD^"[index],
            color=color,
            label=name.split(": ")[1],
            linewidth=1 + used,
            linestyle=style,
        )
    axes.set_xticks(sorted({seeds for line in lines.values() for seeds in line}))
    axes.set_xlabel("seeds", fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="best")


def held(experiments: int) -> Lines:
    """Return how often each interval holds the true value: the first table of the page."""
    return coverage(experiments) | nested(experiments) | works_every_time(experiments) | ranks(experiments // 5)


def told_apart(experiments: int) -> Lines:
    """Return how often a test tells two methods apart, identical ones and others: the second table of the page."""
    return false_positives(experiments) | power(experiments)


def main(folder: Path, experiments: int = EXPERIMENTS) -> None:
    """Print the tables of `docs/statistics.md` and draw its figure."""
    intervals, tests = held(experiments), told_apart(experiments)
    draw({name: intervals[name] for name in INTERVALS}, {name: tests[name] for name in TESTS}, folder)
    print(as_markdown("A 95 % interval holds the true value", intervals), "\n")
    print(as_markdown("A test at 5 % tells two methods apart", tests), "\n")
    print(as_markdown("A true difference from the twins: a board says", verdicts(experiments)), "\n")
    for fails in (0.02, 0.05, 0.1, 0.5):
        used = {"mean ASR: bounded mean over seeds (used)": bounded}
        print(f"fails in {fails:.0%}:", coverage(experiments, fails, used), false_positives(experiments // 5, fails))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
