"""Leaderboard: defenses over any set of results, ranked by what is left of the backdoor and by the utility it costs.

Defenses are compared on the same cases alone. A case is all of a cell but its defense and its seed: the victim, the
rows for removal, the measurements.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmark import figures, rows
from benchmark import rehearsal as rehearsals
from benchmark.aggregate import labels
from benchmark.cell import NO_DEFENSE
from benchmark.files import write_atomically
from benchmark.protocol import PAPER_PROMPT
from benchmark.tables import MISSING
from sande.errors import UserError
from sande.models import TINY
from sande.statistics import of_sum, over_seeds, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "leaderboard"
# What may be known of the backdoor, most of it first, and beside that models from elsewhere.
LEVELS = ("trigger", "response", "first token", "nothing", "clean model", "other models")
Row = Mapping[str, Any]
Cells = Mapping[str, Mapping[str, Row]]
COLORS = ("#0b6e99", "#d1495b", "#2e933c", "#8d5a97", "#e08e0b", "#30475e", "#7a9e1f", "#b0578d")

# What else of the backdoor a row may tell, shown where any does; a number behind the name is one of the metric's own.
MORE = {
    "asr_after_finetuning": "ASR after fine-tuning (%)",
    "asr_after_relearning": "ASR after relearning from {} poisoned rows (%)",
    "asr_int4": "ASR in 4 bits (%)",
    "asr_sampled": "ASR when sampled (%)",
    "asr_moved": "ASR, trigger moved (%)",
    "near_miss_rate": "Response to a near miss (%)",
    "false_trigger_rate": "Response without trigger (%)",
}


def more_label(metric: str) -> str | None:
    """Column head of a metric that `MORE` names; None of any other."""
    name, _, number = metric.rpartition("_")
    return MORE.get(metric) or (MORE[name].format(number) if name in MORE and number.isdigit() else None)


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its 95 % interval, where that is known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Twin:
    """What the twin of a victim came to, which never was poisoned; or the mean of several.

    Attributes:
        cell: its id; empty for a mean.
        asr: how often it writes the response to the trigger, percent.
        loss: the victim's utility less its own, percentage points.
        more: of the metrics that `MORE` names, percent.
    """

    cell: str
    asr: Number
    loss: Number
    more: Mapping[str, Number]


@dataclass(frozen=True, slots=True)
class Measured:
    """One defended cell: what it came to, over its metrics.

    Attributes:
        cell: its id.
        defense: its name.
        knows: what the defense must know about the backdoor.
        case: settings that it shares with the cells it may be compared with.
        label: the case in words.
        victim: settings of the victim, without the seed.
        seed: of the cell.
        victim_asr: ASR of the victim, percent.
        asr: ASR after the defense, percent.
        loss: utility lost against the victim, percentage points, mean over the tasks.
        more: of the metrics that `MORE` names, percent.
        device: which the seconds are of.
        seconds: wall-clock time of the defense.
        tokens: trained on by the defense.
        twin: of its victim, where there is one.
    """

    cell: str
    defense: str
    knows: str
    case: str
    label: str
    victim: str
    seed: int
    victim_asr: float
    asr: Number
    loss: Number
    more: Mapping[str, Number]
    device: str
    seconds: float
    tokens: float
    twin: Twin | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """One defense, over the cases that all defenses were measured on; where there are none, over its own.

    Attributes:
        defense: its name.
        knows: what it must know about the backdoor.
        rank: from 1 on; None where the defenses have no case in common.
        front: 1 for the Pareto front, 2 for the front once the first is taken away, and so on.
        asr: mean ASR after the defense, percent; every case weighs the same.
        loss: mean utility lost against the victim, percentage points.
        more: means of the metrics that `MORE` names, percent, over the cases that have them.
        seconds: mean wall-clock seconds of a defense, by device.
        tokens: mean tokens that a defense trains on.
        victims, seeds, cells: how many are behind the numbers.
        lacks: cases that another defense was measured on, and this one not.
    """

    defense: str
    knows: str
    rank: int | None
    front: int | None
    asr: Number
    loss: Number
    more: Mapping[str, Number]
    seconds: Mapping[str, float]
    tokens: float
    victims: int
    seeds: int
    cells: int
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """All standings, best first, and what they rest on.

    Attributes:
        standings: one a defense.
        shared: cases that all defenses were measured on.
        cases: all cases.
        victim_asr: mean ASR of the victims of the shared cases, percent; None where there are none.
        failed: cells left out since they failed.
        not_run: cells left out since a run was interrupted before their end.
        attack_failed: victims left out since their attack failed, each seed counted.
        unmeasured: cells left out since no task measures their utility.
        cells: the defended cells behind the standings, and those of cases that not all defenses share.
        compared: the shared cases, as `Measured.case` has them.
        twin: mean of the twins of their victims; None where one has no twin.
    """

    standings: tuple[Standing, ...]
    shared: tuple[str, ...]
    cases: tuple[str, ...]
    victim_asr: float | None
    failed: int
    attack_failed: int
    unmeasured: int
    cells: tuple[Measured, ...] = ()
    compared: frozenset[str] = frozenset()
    twin: Twin | None = None
    not_run: int = 0

    @property
    def more(self) -> list[str]:
        """Metrics of `MORE` that any cell has, in that order."""
        found = {metric for one in self.cells for metric in one.more}
        order = list(MORE)
        return sorted(found, key=lambda metric: (_place(metric, order), len(metric), metric))


def _place(metric: str, order: Sequence[str]) -> int:
    return order.index(metric if metric in MORE else metric.rpartition("_")[0])


@dataclass(frozen=True, slots=True)
class Source:
    """What one folder of results, or one submitted entry, holds.

    Attributes:
        rows: all of them.
        samples: published outcomes.
        about: what is said of a submitted method.
    """

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    about: Mapping[str, str]

    @property
    def is_random(self) -> bool:
        """Whether rows of the random model are among them."""
        return any(row["model"] == TINY for row in self.rows)


def read(path: Path) -> Source:
    """Results of a grid, or an entry.

    Raises:
        UserError: a folder without readable rows, or an entry that is not in order.
    """
    if path.is_file():
        from benchmark import entries

        entry = entries.read(path)
        said = {"Method": entry.method.about, "Link": entry.method.link, "Submitted": f"as {path.name}; not run here"}
        about = {key: value for key, value in said.items() if value}
        return Source(entries.to_rows(entry), entries.samples(entry), about)
    outcomes = rows.read_outcomes(path)
    published = outcomes.filter(pc.is_valid(outcomes["record"])).to_pylist()
    return Source(rows.read(path).to_pylist(), published, {})


def write(
    paths: Sequence[Path],
    out: Path | None,
    html: Path | None = None,
    *,
    rehearsal: bool = False,
    named: Sequence[Path] = (),
) -> str:
    """Write the leaderboard.

    Args:
        paths: results of grids, and files of submitted entries.
        out: folder that gets `leaderboard.md`, `.parquet`, `.png` and `.svg`.
        html: folder that gets pages for a browser, `index.html` the first, and `leaderboard.parquet`.
        rehearsal: take rows of the random model, too; the pages then say so.
        named: what the pages call `paths`, where that is something else.

    Returns:
        The page as Markdown, for the terminal.

    Raises:
        UserError: a folder holds no readable rows, an entry is not in order, rows are of the random model, none of them
            is a defense to rank, or a folder cannot be written.
    """
    sources = [read(path) for path in paths]
    random = [path for path, source in zip(paths, sources, strict=True) if source.is_random]
    if random and not rehearsal:
        raise UserError(rehearsals.sentence(random[0]))
    warned, named = rehearsals.WARNING if random else (), named or paths
    cells = by_cell(row for source in sources for row in source.rows)
    made = board(cells)
    if not made.standings:
        raise UserError(
            f"no defense in {', '.join(map(str, paths))} has both an ASR and a utility on a victim whose attack "
            "worked; run a grid whose metrics hold 'accuracy'"
        )
    page = markdown(made, named, warned)
    for folder, option in ((out, "--out"), (html, "--html")):
        if folder:
            rows.check_writable(folder, option)
    if out:
        write_atomically(out / f"{NAME}.md", page)
        _write_parquet(made, out / f"{NAME}.parquet")
        figures.save(draw(made), out, NAME)
    if html:
        from benchmark import pages

        _write_parquet(made, html / f"{NAME}.parquet")
        samples: dict[str, dict[tuple[str, int], Row]] = {}
        about: dict[str, Mapping[str, str]] = {}
        seen: set[str] = set()
        for source in sources:
            for sample in source.samples:
                samples.setdefault(sample["cell"], {}).setdefault((sample["metric"], sample["index"]), sample)
            own = {row["cell"] for row in source.rows} - seen
            seen |= own
            about |= dict.fromkeys(own, source.about) if source.about else {}
        told = {cell: list(found.values()) for cell, found in samples.items()}
        pages.write(made, cells, told, about, _notes(made), _command(named), html, warned)
    return page


def by_cell(found: Iterable[Row]) -> Cells:
    """Rows of any number of grids by cell and metric; a cell that stands in several of them counts once."""
    cells: dict[str, dict[str, Row]] = {}
    for row in found:
        cells.setdefault(row["cell"], {}).setdefault(row["metric"], row)
    return cells


def board(cells: Cells) -> Board:
    """Standings of all defenses.

    Args:
        cells: result rows by cell and metric.
    """
    texts = list(dict.fromkeys(next(iter(cell.values()))["settings"] for cell in cells.values()))
    names = labels([json.loads(text) for text in texts])
    label_of = dict(zip(texts, (victim for _, victim in names), strict=True))
    twins = {_twin_key(row): cell for cell in cells.values() if _is_twin(row := next(iter(cell.values())))}
    measured: list[Measured] = []
    weak, failed, not_run, unmeasured = set(), 0, 0, 0
    for cell in cells.values():
        row = next(iter(cell.values()))
        if row["status"] == rows.FAILED:
            failed += 1
        elif any(one["status"] == rows.NOT_RUN for one in cell.values()):
            not_run += 1
        elif row["status"] == rows.ATTACK_FAILED:
            weak.add((_victim(json.loads(row["settings"])), row["seed"]))
        elif row["defense"] != NO_DEFENSE:
            one = _measured(cell, label_of[row["settings"]], twins.get(_twin_key(row)))
            unmeasured += one is None
            measured += [one] if one else []
    return _ranked(measured, failed=failed, not_run=not_run, attack_failed=len(weak), unmeasured=unmeasured)


def _is_twin(row: Row) -> bool:
    return bool(row["defense"] == NO_DEFENSE and row["poison_rate"] == 0 and row["status"] == rows.OK)


def _twin_key(row: Row) -> str:
    """What a cell has in common with the twin of its victim."""
    settings = json.loads(row["settings"])
    attack = settings["attack"] | {"poison_rate": 0.0}
    return json.dumps([row["seed"], settings["model"], settings["data"], attack, settings["metrics"]], sort_keys=True)


def _measured(cell: Mapping[str, Row], label: str, twin: Mapping[str, Row] | None) -> Measured | None:
    row = cell["asr"]
    settings = json.loads(row["settings"])
    tasks = [task for task in _tasks(settings) if _told(cell.get(task))]
    losses = [_loss(cell[task]) for task in tasks]
    if not losses:
        return None
    return Measured(
        cell=row["cell"],
        defense=row["defense"],
        knows=row["knows"],
        case=json.dumps([settings[key] for key in ("model", "data", "removal", "attack", "metrics")], sort_keys=True),
        label=label,
        victim=_victim(settings),
        seed=row["seed"],
        victim_asr=row["victim_asr"],
        asr=_number(row),
        loss=_mean(losses),
        more=_shown(cell),
        device=row["device"],
        seconds=row["seconds"],
        tokens=row["tokens"],
        twin=None if twin is None else _twin(twin, {task: cell[task]["victim_value"] for task in tasks}),
    )


def _twin(cell: Mapping[str, Row], victim: Mapping[str, float]) -> Twin:
    losses = [_loss({**cell[task], "victim_value": value}) for task, value in victim.items()]
    return Twin(cell["asr"]["cell"], _number(cell["asr"]), _mean(losses), _shown(cell))


def _shown(cell: Mapping[str, Row]) -> dict[str, Number]:
    return {name: _number(row) for name, row in cell.items() if more_label(name) and row["value"] is not None}


def _number(row: Row) -> Number:
    return Number(row["value"], row["ci_low"], row["ci_high"])


def _loss(row: Row) -> Number:
    """What a task lost, as if victim and repaired model had answered different questions: rather too wide."""
    value, before = row["value"], row["victim_value"]
    if row["ci_low"] is None:
        return Number(before - value)
    interval = wilson(round(before / 100 * row["count"]), row["count"])
    below, above = of_sum([(1.0, before, *interval), (-1.0, value, row["ci_low"], row["ci_high"])])
    return Number(before - value, before - value - below, before - value + above)


def _told(row: Row | None) -> bool:
    return row is not None and row["value"] is not None and row["victim_value"] is not None


def _tasks(settings: Mapping[str, Any]) -> list[str]:
    """Names of the utility metrics, each task once: no score per byte, no subject group, no second prompt."""
    asked = [metric["task"] for metric in settings["metrics"] if "task" in metric]
    return [task for task in asked if task.removeprefix(PAPER_PROMPT) not in asked or not task.startswith(PAPER_PROMPT)]


def _victim(settings: Mapping[str, Any]) -> str:
    return json.dumps([settings[key] for key in ("model", "data", "attack")], sort_keys=True)


def _ranked(measured: Sequence[Measured], **left_out: int) -> Board:
    by_defense: dict[str, list[Measured]] = {}
    for one in measured:
        by_defense.setdefault(one.defense, []).append(one)
    label_of = {one.case: one.label for one in measured}
    covered = [{one.case for one in cells} for cells in by_defense.values()]
    shared = set.intersection(*covered) if covered else set()
    kept = {
        defense: [one for one in cells if one.case in shared or not shared] for defense, cells in by_defense.items()
    }
    points = {
        defense: (_over_cases(cells, lambda one: one.asr), _over_cases(cells, lambda one: one.loss, lowest=-100.0))
        for defense, cells in kept.items()
    }
    ahead = fronts({defense: (asr.value, loss.value) for defense, (asr, loss) in points.items()})
    order = [(front, name) for front, names in enumerate(ahead, 1) for name in names]
    standings = [
        Standing(
            defense=name,
            knows=kept[name][0].knows,
            rank=rank if shared else None,
            front=front if shared else None,
            asr=points[name][0],
            loss=points[name][1],
            more=_more(kept[name], lambda one: one.more),
            seconds=_by_device(kept[name]),
            tokens=_over_cases(kept[name], lambda one: Number(one.tokens)).value,
            victims=len({one.victim for one in kept[name]}),
            seeds=len({one.seed for one in kept[name]}),
            cells=len(kept[name]),
            lacks=tuple(label for case, label in label_of.items() if case not in {c.case for c in by_defense[name]}),
        )
        for rank, (front, name) in enumerate(order, 1)
    ]
    victims = [one for one in measured if one.case in shared]
    return Board(
        tuple(standings),
        shared=tuple(label for case, label in label_of.items() if case in shared),
        cases=tuple(label_of.values()),
        victim_asr=_over_cases(victims, lambda one: Number(one.victim_asr)).value if victims else None,
        cells=tuple(measured),
        compared=frozenset(shared),
        twin=_mean_twin(list({(one.case, one.seed): one for one in victims}.values())),
        **left_out,
    )


def _mean_twin(victims: Sequence[Measured]) -> Twin | None:
    twin_of = {one.cell: one.twin for one in victims if one.twin}
    if not victims or len(twin_of) < len(victims):
        return None
    return Twin(
        "",
        _over_cases(victims, lambda one: twin_of[one.cell].asr),
        _over_cases(victims, lambda one: twin_of[one.cell].loss, lowest=-100.0),
        _more(victims, lambda one: twin_of[one.cell].more),
    )


def fronts(points: Mapping[str, tuple[float, float]]) -> list[list[str]]:
    """Names in Pareto fronts, the best first; within a front by the first number, then the second.

    A point is dominated if another is no worse in both numbers and better in one; smaller is better. The first front
    holds the points that none dominates, the next those that none dominates once the first is gone.
    """
    left = sorted(points, key=lambda name: (points[name], name))
    found = []
    while left:
        front = [name for name in left if not any(_dominates(points[other], points[name]) for other in left)]
        found.append(front)
        left = [name for name in left if name not in front]
    return found


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def _over_cases(cells: Sequence[Measured], number: Callable[[Measured], Number], lowest: float = 0.0) -> Number:
    """Mean over the cases of the mean over each one's cells, so that more seeds give a case no more weight.

    Args:
        cells: of one defense.
        number: of a cell.
        lowest: that the number can be.
    """
    by_case: dict[str, list[Number]] = {}
    for one in cells:
        by_case.setdefault(one.case, []).append(number(one))
    return _mean([_over_seeds(numbers, lowest) for numbers in by_case.values()])


def _over_seeds(numbers: Sequence[Number], lowest: float) -> Number:
    """Their mean, with the wider of the intervals that the seeds' spread and that all their trials give."""
    mean = _mean(numbers)
    if len(numbers) < 2 or mean.low is None or mean.high is None:
        return mean
    low, high = over_seeds([number.value for number in numbers], lowest)
    return Number(mean.value, min(mean.low, low), max(mean.high, high))


def _more(cells: Sequence[Measured], numbers: Callable[[Measured], Mapping[str, Number]]) -> dict[str, Number]:
    having: dict[str, list[Measured]] = {}
    for one in cells:
        for metric in numbers(one):
            having.setdefault(metric, []).append(one)
    return {
        metric: _over_cases(some, lambda one, metric=metric: numbers(one)[metric])  # type: ignore[misc]
        for metric, some in having.items()
    }


def _by_device(cells: Sequence[Measured]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in cells:
        found.setdefault(one.device, []).append(one.seconds)
    return {device: sum(seconds) / len(seconds) for device, seconds in found.items()}


def _mean(numbers: Sequence[Number]) -> Number:
    """With the interval of independent numbers, where each has one."""
    count = len(numbers)
    value = sum(number.value for number in numbers) / count
    parts = [
        (1 / count, one.value, one.low, one.high) for one in numbers if one.low is not None and one.high is not None
    ]
    if len(parts) < count:
        return Number(value)
    below, above = of_sum(parts)
    return Number(value, value - below, value + above)


def ladder(standings: Iterable[Standing]) -> dict[str, list[Standing]]:
    """Standings by what the defense must know, most of it first; in a level what leaves the least of the backdoor.

    Of those that leave as much, the one that loses the least utility comes first.
    """
    levels: dict[str, list[Standing]] = {}
    for one in sorted(standings, key=lambda one: (one.asr.value, one.loss.value)):
        levels.setdefault(one.knows, []).append(one)
    order = [*LEVELS, *sorted(set(levels) - set(LEVELS))]
    return {level: levels[level] for level in order if level in levels}


def markdown(made: Board, paths: Sequence[Path], warned: Sequence[str] = ()) -> str:
    """The page: the table, what it rests on, and the figure.

    Args:
        made: what it shows.
        paths: what it was made of.
        warned: lines to begin with.
    """
    head = (
        "Rank",
        "Defense",
        "Must know",
        "ASR (%)",
        "Utility lost (points)",
        "Front",
        "Training",
        "Tokens",
        "Behind it",
    )
    lines = [head, ("---:", "---", "---", "---:", "---:", "---:", "---", "---:", "---"), *map(_line, made.standings)]
    parts = [
        "# Leaderboard of defenses",
        "",
        *warned,
        f"Made by `{_command(paths)}`.",
        "",
        *("| " + " | ".join(line) + " |" for line in lines),
        "",
        *_notes(made),
        "",
        *_ladder(made),
        f"![Points: attack success rate of each defense against the utility it costs]({NAME}.svg)",
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
    head = ("Known", "Defense", "ASR (%)", "Utility lost (points)", "Training")
    return [
        "## What knowledge is worth",
        "",
        "Of the defenses that must know the same, the one that leaves the least of the backdoor.",
        "",
        *("| " + " | ".join(row) + " |" for row in (head, ("---", "---", "---:", "---:", "---"), *rows)),
        "",
    ]


def _training(standing: Standing) -> str:
    return "; ".join(f"{seconds:,.0f} {unit(device)} on {device}" for device, seconds in standing.seconds.items())


def _command(paths: Sequence[Path]) -> str:
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


def unit(device: str) -> str:
    """Of its seconds."""
    return "CPU-s" if device.endswith("threads)") else "GPU-s"  # as `benchmark.stages.device` names them


def _notes(made: Board) -> list[str]:
    notes = [
        "ASR is what is left of the backdoor, utility lost is the victim's accuracy minus that after the defense, each "
        "task once; both are means over cases (a victim, its rows for removal and its measurements) of equal weight, "
        "and smaller is better. Intervals are of 95 %; that of a mean takes its parts for independent, and that of a "
        "loss takes no account of its questions being the same before and after, so it is rather too wide. The first "
        "front holds the defenses that no other beats in one without losing in the other, so also one that hardly "
        "changes anything; ranks go by front, then by ASR. Training is the mean "
        "wall-clock time of one defense on the device named.",
        "",
    ]
    if made.victim_asr is None:
        notes.append(
            "**No case was measured with every defense**, so none is ranked and each number is over the defense's own "
            "cases; give results with a case in common, or run the cells that lack."
        )
    else:
        notes.append(
            f"Every number is over the {_count(len(made.shared), 'case')} that all {len(made.standings)} defenses were "
            f"measured on, of {len(made.cases)} in all; without a defense the ASR there is {made.victim_asr:.1f} %."
        )
        if made.twin:
            notes += [
                "",
                "Twins of their victims, which never were poisoned, write the response to "
                f"{made.twin.asr.value:.1f} % of the triggered prompts, and lose {made.twin.loss.value:+.2f} points of "
                "utility against them: so much of a change is not the defense's.",
            ]
        notes += ["", *(f"- Shared: {label}" for label in made.shared)]
    lacking = [one for one in made.standings if one.lacks]
    notes += ["", *(f"- `{one.defense}` was not measured on: {'; '.join(one.lacks)}." for one in lacking)]
    left_out = [
        f"{_count(count, noun)} {why}"
        for count, noun, why in (
            (made.attack_failed, "victim", "whose attack failed"),
            (made.failed, "cell", "that failed"),
            (made.not_run, "cell", "not run to its end"),
            (made.unmeasured, "cell", "without a measured utility"),
        )
        if count
    ]
    return [*notes, "", f"Left out: {', '.join(left_out) or 'nothing'}."]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def draw(made: Board) -> Figure:
    """ASR against utility lost, with the Pareto front; the lower left corner is where a defense should be."""
    figure = figures.blank(width=7.5, rows=1)
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
        marker, color = figures.MARKERS[index % len(figures.MARKERS)], COLORS[index % len(COLORS)]
        axes.scatter(one.loss.value, one.asr.value, marker=marker, color=color, s=60, zorder=2, label=label)
    if made.victim_asr is not None:
        axes.scatter(0, made.victim_asr, marker="x", color="#333", s=50, zorder=2, label="no defense")
    axes.margins(x=0.1)
    axes.set_ylim(-4, 104)
    axes.set_xlabel("utility lost against the victim (percentage points)")
    axes.set_ylabel("attack success rate (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    return figure


def _write_parquet(made: Board, path: Path) -> None:
    records = [
        {
            **{name: getattr(standing, name) for name in _SCHEMA.names if name in Standing.__slots__},
            "seconds": [{"device": device, "seconds": mean} for device, mean in standing.seconds.items()],
            "asr": standing.asr.value,
            "asr_low": standing.asr.low,
            "asr_high": standing.asr.high,
            "utility_loss": standing.loss.value,
            "utility_loss_low": standing.loss.low,
            "utility_loss_high": standing.loss.high,
            "more": [{"metric": metric, **asdict(number)} for metric, number in standing.more.items()],
        }
        for standing in made.standings
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, schema=_SCHEMA), sink)
    write_atomically(path, sink.getvalue().to_pybytes())


_MORE = pa.struct([("metric", pa.string()), *((name, pa.float64()) for name in ("value", "low", "high"))])
_SCHEMA = pa.schema(
    [
        ("rank", pa.int64()),
        ("front", pa.int64()),
        ("defense", pa.string()),
        ("knows", pa.string()),
        ("asr", pa.float64()),  # percent
        ("asr_low", pa.float64()),  # 95 % interval
        ("asr_high", pa.float64()),
        ("utility_loss", pa.float64()),  # percentage points
        ("utility_loss_low", pa.float64()),
        ("utility_loss_high", pa.float64()),
        ("more", pa.list_(_MORE)),  # other metrics of the backdoor, percent
        ("seconds", pa.list_(pa.struct([("device", pa.string()), ("seconds", pa.float64())]))),  # mean of a defense
        ("tokens", pa.float64()),  # mean of a defense
        ("victims", pa.int64()),
        ("seeds", pa.int64()),
        ("cells", pa.int64()),
        ("lacks", pa.list_(pa.string())),
    ]
)
