"""Make runs of defenses from result rows: their numbers, their victims, and what separates two runs of one defense."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from benchmark.grid import prompt_format
from benchmark.grid.cell import NO_DEFENSE
from benchmark.grid.labels import defense_name, flatten, labels, shorten, varying
from benchmark.grid.levels import together
from benchmark.leaderboard.board import FAILED, NOT_RUN, Cells, Number, Row, Run, Twin
from benchmark.plan.failures import UNSCORABLE
from benchmark.records import schema
from benchmark.records.recovery import twin_attack
from benchmark.records.runs import Pair
from sande import registry
from sande.crossed import Answers
from sande.paired import paired_bootstrap
from sande.statistics import of_sum, wilson

if TYPE_CHECKING:
    from benchmark.records.trials import Outcomes

Settings = Mapping[str, Any]
SEARCHED = "searched"  # column of rows: the level of knowledge by which a search found the settings


@dataclass(slots=True)
class Found:
    """Runs in the rows of a board, and the victims without one.

    Attributes:
        runs: of defenses, measured or failed.
        victims: values of each victim by metric, percent, by case and attack seed.
        weak: victims whose attack failed or whose ASR is low on purpose, by settings and seed.
        left_out: number of failed or unfinished cells whose victim has no values.
    """

    runs: list[Run] = field(default_factory=list)
    victims: dict[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)
    weak: set[tuple[str, int]] = field(default_factory=set)
    left_out: int = 0


def by_cell(found: Iterable[Row]) -> Cells:
    """Return the rows of any number of grids by cell and metric; a cell that several grids have counts once."""
    cells: dict[str, dict[str, Row]] = {}
    for row in found:
        cells.setdefault(row["cell"], {}).setdefault(row["metric"], row)
    return cells


def runs_of(
    cells: Cells, outcomes: Outcomes | None = None, entries: Collection[str] = (), unverified: Collection[str] = ()
) -> Found:
    """Return the runs of all defenses.

    A cell that failed has the values of its victim: a crash removes no backdoor. One that is not finished has them as
    well, but counts nowhere.

    Args:
        cells: result rows by cell and metric.
        outcomes: of the same cells; with those of a cell and of its victim, the interval of its lost utility is paired.
        entries: ids of the cells that submitted entries have.
        unverified: ids of those whose victim the board does not have.
    """
    firsts = {cell: next(iter(rows.values())) for cell, rows in cells.items()}
    settings: dict[str, Settings] = {cell: json.loads(row["settings"]) for cell, row in firsts.items()}
    label_of = dict(zip(settings, (victim for _, victim in labels(list(settings.values()))), strict=True))
    defended = [cell for cell, row in firsts.items() if row["defense"] != NO_DEFENSE]
    called = {cell: defense_name(settings[cell]["defense"], firsts[cell]["defense"]) for cell in defended}
    named = _contenders({cell: (name, settings[cell]) for cell, name in called.items()}, unverified)
    plain = {_victim_key(settings[cell]): cell for cell in cells if cell not in named and _is_done(cells[cell])}
    twins = {key: cells[cell] for key, cell in plain.items() if firsts[cell]["poison_rate"] == 0}
    asked = {_asked_key(settings[cell]): cell for cell in plain.values()}
    victims = _victims({cell: rows for cell, rows in cells.items() if cell not in unverified}, settings)
    found = Found()
    for cell, row in firsts.items():
        own = settings[cell]
        victim = victims.get(_victim_key(own))
        if row["status"] == schema.ATTACK_FAILED or _asr_hides(row, own):
            found.weak.add((_victim_of(own), own["attack_seed"]))
            continue
        if cell not in named:
            continue
        if _is_done(cells[cell]):
            paired = Paired(outcomes, cell, asked.get(_asked_key(own), ""))
            numbers = _measured(cells[cell], own, paired, twins.get(_twin_key(own)))
        elif victim:
            numbers = {**of_victim(victim), "flaw": FAILED if row["status"] == schema.FAILED else NOT_RUN}
        else:
            found.left_out += 1
            continue
        searched = row.get(SEARCHED) or ""
        run = Run(
            cell=cell,
            defense=named[cell],
            knows=together(row["knows"], searched),
            case=_key({**own, "metrics": _compared(own["metrics"])}, "model", "data", "removal", "attack", "metrics"),
            label=label_of[cell],
            victim=_victim_of(own),
            attack_seed=own["attack_seed"],
            defense_seed=own["defense_seed"],
            is_entry=cell in entries,
            verified=cell not in unverified,
            searched=searched,
            **numbers,
        )
        found.runs.append(run)
        if victim:
            # Cells of a case may differ in what else was measured, so each adds what it knows.
            known = found.victims.get((run.case, run.attack_seed), {})
            found.victims[run.case, run.attack_seed] = {**victim, **known}
    return found


def of_victim(values: Mapping[str, float]) -> dict[str, Any]:
    """Return the numbers of a run that are the victim's own.

    Args:
        values: of the victim by metric, percent.
    """
    more = {name: Number(value, value, value) for name, value in values.items() if registry.metric_info(name).column}
    asr = values["asr"]
    return {"victim_asr": asr, "asr": Number(asr, asr, asr), "loss": Number(0.0, 0.0, 0.0), "more": more}


def _contenders(cells: Mapping[str, tuple[str, Settings]], unverified: Collection[str]) -> dict[str, str]:
    """Return the name of each defended cell's defense, with the settings that separate cells of the same run.

    A defense whose settings follow from its victim (a rule of the grid) stays one defense. Where several cells have the
    same case and seeds, the settings that differ among them separate the defenses.
    """
    groups: dict[tuple[str, bool], dict[str, list[str]]] = {}
    for cell, (name, own) in cells.items():
        run = _key(own, "model", "data", "removal", "attack", "metrics", "attack_seed", "defense_seed")
        groups.setdefault((name, cell in unverified), {}).setdefault(run, []).append(cell)
    named = {}
    for (name, _), same_run in groups.items():
        flat = {cell: _of_defense(cells[cell][1]) for some in same_run.values() for cell in some}
        paths = set[str]().union(*(varying(flat[cell] for cell in some) for some in same_run.values()))
        for cell, values in flat.items():
            parts = [f"{short}={values.get(path)}" for path, short in shorten(paths).items()]
            named[cell] = ", ".join([name, *parts])
    return named


def _of_defense(settings: Settings) -> dict[str, Any]:
    """Return the settings of a cell's defense by path; one that is called `metrics` is a setting like the others."""
    section = "defense."
    return {path.removeprefix(section): value for path, value in flatten(settings["defense"], section)}


@dataclass(frozen=True, slots=True)
class Paired:
    """Outcomes of a cell and of its victim on the same questions, where both are known."""

    outcomes: Outcomes | None
    cell: str
    victim: str

    def of(self, task: str) -> tuple[Pair, list[str]] | None:
        """Return the outcomes of a task before and after, question by question, and the group of each question.

        Returns:
            None unless both cells have outcomes of the same number of questions.
        """
        if self.outcomes is None:
            return None
        own, before = (self.outcomes.trials({(0, 0): cell}, task) for cell in (self.cell, self.victim))
        if own is None or before is None or len(own.outcomes) != len(before.outcomes):
            return None
        pair = own.paired(before)
        if pair is None or len(pair[0]) < len(own.outcomes):
            return None
        return pair, own.groups_with(before)


def _measured(cell: Mapping[str, Row], own: Settings, paired: Paired, twin: Mapping[str, Row] | None) -> dict[str, Any]:
    """Return the numbers of a measured run."""
    row = cell["asr"]
    before = {name: one["victim_value"] for name, one in cell.items()}
    made = None
    if twin is not None:
        of_twin = replace(paired, cell=twin["asr"]["cell"])
        made = Twin(of_twin.cell, _number(twin["asr"]), more=_more(twin), **_lost(twin, own, before, of_twin))
    return {
        "victim_asr": row["victim_asr"],
        "asr": _number(row),
        "more": _more(cell),
        "device": _computed_on(row),
        **{name: row[name] for name in ("seconds", "tokens")},
        **_lost(cell, own, before, paired),
        "twin": made,
    }


def _computed_on(row: Row) -> str:
    """Return the device and the compute type of the defense; of an earlier version, those of the evaluation."""
    stage = "defense_" if row["defense_device"] else ""
    return ", ".join(filter(None, (row[f"{stage}device"], row[f"{stage}compute_type"])))


def _lost(cell: Mapping[str, Row], own: Settings, before: Mapping[str, float | None], paired: Paired) -> dict[str, Any]:
    """Return the mean over the tasks of what is lost of the victim's values, and what is lost in each question.

    The mean is None unless every task has both values; questions are known where all tasks have outcomes of both.
    """
    import numpy as np

    losses, answers = [], {}
    for task in _tasks(own):
        row, victim = cell.get(task), before.get(task)
        if row is None or row["value"] is None or victim is None:
            return {"loss": None}
        found = paired.of(task)
        losses.append(_task_loss(row, victim, paired_bootstrap(*found[0], found[1]) if found else None))
        if found:
            (first, second), groups = found
            answers[task] = Answers(100 * (np.array([first]) - np.array([second])), groups)
    known = answers if len(answers) == len(losses) else {}
    return {"loss": mean_of_parts(losses) if losses else None, "answers": known}


def _task_loss(row: Row, before: float, change: tuple[float, float] | None) -> Number:
    """Return the loss of a task.

    Args:
        row: of the task after the defense.
        before: the victim's value, percent.
        change: paired 95 % interval of the change; None: the questions of the two models count as independent.
    """
    lost = before - row["value"]
    if change:
        return Number(lost, min(lost, -change[1]), max(lost, -change[0]))
    if row["ci_low"] is None:
        return Number(lost)
    interval = wilson(round(before / 100 * row["count"]), row["count"])
    below, above = of_sum([(1.0, before, *interval), (-1.0, row["value"], row["ci_low"], row["ci_high"])])
    return Number(lost, lost - below, lost + above)


def mean_of_parts(numbers: Sequence[Number]) -> Number:
    """Return the mean, with the interval for independent numbers if each number has one."""
    count = len(numbers)
    value = sum(number.value for number in numbers) / count
    parts = [
        (1 / count, one.value, one.low, one.high) for one in numbers if one.low is not None and one.high is not None
    ]
    if len(parts) < count:
        return Number(value)
    below, above = of_sum(parts)
    return Number(value, value - below, value + above)


def _asr_hides(row: Row, own: Settings) -> bool:
    """Return whether the ASR, by which a board ranks, does not show the backdoor, as of one that is dormant."""
    return row["poison_rate"] != 0 and row["victim_asr"] is not None and row["victim_asr"] < own["asr_floor"]


def _tasks(settings: Settings) -> list[str]:
    """Return the names of the utility metrics, each task once: no score by length, subject group or second prompt."""
    asked = [metric["task"] for metric in settings["metrics"] if "task" in metric]
    return [task for task in asked if registry.metric_info(task).variant_of not in asked]


def _more(cell: Mapping[str, Row]) -> dict[str, Number]:
    columns = (name for name, row in cell.items() if row["value"] is not None and registry.metric_info(name).column)
    return {name: _number(cell[name]) for name in columns}


def _number(row: Row) -> Number:
    return Number(row["value"], row["ci_low"], row["ci_high"])


def _is_done(cell: Mapping[str, Row]) -> bool:
    """Return whether a cell has its values; those of a backdoor that cannot be scored may be missing, except ASR."""
    return all(map(_has_value, cell.values())) and "asr" in cell and cell["asr"]["value"] is not None


def _has_value(row: Row) -> bool:
    info = registry.metric_info(row["metric"])
    may_lack = row.get("failure") == UNSCORABLE and (info.durability or info.kind == "backdoor")
    return bool(row["status"] == schema.OK or may_lack)


def _victims(cells: Cells, settings: Mapping[str, Settings]) -> dict[str, dict[str, float]]:
    """Return the values of each victim by metric, from its own cell or from any that was made of it."""
    found: dict[str, dict[str, float]] = {}
    for cell, rows in cells.items():
        if _is_done(rows) and rows["asr"]["victim_asr"] is not None:
            of = found.setdefault(_victim_key(settings[cell]), {})
            of |= {name: value for name, value in _victim_values(rows).items() if name not in of}
    return found


def _victim_values(cell: Mapping[str, Row]) -> dict[str, float]:
    values = {name: row["victim_value"] for name, row in cell.items()} | {"asr": cell["asr"]["victim_asr"]}
    return {name: value for name, value in values.items() if value is not None}


def _key(settings: Settings, *names: str) -> str:
    """Return these settings and the prompt format, of which all of a run's models have one."""
    found = [*(settings[name] for name in names), settings.get(prompt_format.SETTING)]
    return json.dumps(found, sort_keys=True)


def _compared(metrics: Sequence[Settings]) -> list[Settings]:
    """Return the metrics by which defenses are ranked; others may be measured of some seeds alone, as durability is."""
    return [metric for metric in metrics if metric["name"] in ("asr", "accuracy")]


def _victim_of(settings: Settings) -> str:
    return _key(settings, "model", "data", "attack")


def _victim_key(settings: Settings) -> str:
    """Return what a victim with its measurements shares with the cells that are made of it."""
    return _key(settings, "model", "data", "attack", "metrics", "attack_seed")


def _asked_key(settings: Settings) -> str:
    """Return what a victim shares with the cells that are made of it and answer the same questions."""
    return _victim_key({**settings, "metrics": _compared(settings["metrics"])})


def _twin_key(settings: Settings) -> str:
    """Return the same of the clean twin of that victim."""
    return _victim_key({**settings, "attack": twin_attack(settings["attack"])})
