"""Layouts: the tables and figures of each grid; the paper's grids have those of the paper, all others `GENERIC`.

To add a table, add a line to a layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from benchmark.paper import numbers
from benchmark.records import runs
from benchmark.records.aggregate import Label, TableEntry
from benchmark.records.metrics import PROBABILITY_METRICS, is_backdoor, is_part, is_quality, is_utility
from benchmark.records.recovery import RECOVERY
from benchmark.records.runs import FAILED_REMOVAL, FAILED_RUNS, RECOVERY_MARGIN
from benchmark.records.schema import Row
from benchmark.report.tables import Table, as_in_paper, cost, failures, rate, recovered, utility
from sande.clusters import effective_count
from sande.metrics.accuracy import PAPER as SPACED_LETTERS
from sande.metrics.accuracy import PUBLISHED as LETTERS
from sande.statistics import of_one_model

ABOVE_HALF = "_above_half"


@dataclass(frozen=True, slots=True)
class Layout:
    """The tables and figures of one grid.

    Attributes:
        tables: written if there are numbers for them.
        figures: names of figures, drawn if there are numbers for them.
        details: further tables, folded up on the page.
        title: of its section in a report on several grids.
        label: returns the row and column of a result row; None: made from the settings that vary.
        cases: name of the table of sampled answers.
    """

    tables: tuple[Table, ...]
    figures: tuple[str, ...] = ()
    details: tuple[Table, ...] = ()
    title: str = ""
    label: Label | None = None
    cases: str = "case_study"

    def arrange(self, entries: Iterable[TableEntry]) -> list[TableEntry]:
        """Return the entries in the order of the table's rows: with labels as in the paper, else as they come."""
        return list(entries) if self.label is None else sorted(_with_shares(entries), key=_place)


def _place(entry: TableEntry) -> tuple[int, float, int, bool, int]:
    """Sort key: method, swept setting, the paper's prompt before lm-eval's, task."""
    methods, tasks = list(numbers.METHOD_NAMES), ["asr", *numbers.TASK_NAMES, *PROBABILITY_METRICS]
    defense, task = entry.row["defense"], _questions(entry.metric).removesuffix(ABOVE_HALF)
    return (
        methods.index(defense) if defense in methods else len(methods),
        entry.row["poison_rate"] or 0.0,
        entry.row["parrot_position"] or 0,
        is_utility(entry.metric) and task == entry.metric,
        tasks.index(task) if task in tasks else len(tasks),
    )


def _with_shares(entries: Iterable[TableEntry]) -> Iterable[TableEntry]:
    """Yield the entries, and after a mean of probabilities the share of probabilities above 1/2."""
    for entry in entries:
        yield entry
        if entry.metric in PROBABILITY_METRICS and entry.trials is not None:
            shares = entry.trials.shares_above(0.5)
            if len(shares) > 1:
                low, high = runs.interval(entry.metric, shares, 0)
            else:
                above = (entry.trials.outcomes > 0.5).astype(float)
                count = effective_count(above.tolist(), entry.groups_with(entry.trials))
                low, high = of_one_model(float(above.mean()), count)
            yield replace(
                entry, metric=entry.metric + ABOVE_HALF, value=runs.mean(shares), low=low, high=high, change=None
            )


ASR = Table(
    "asr",
    "Attack success rate (%)",
    "Share of triggered test prompts whose answer contains the planted response, or achieves another objective of the "
    "attack, with its 95 % interval. Lower is better; `none` is the victim itself.",
    lambda metric: metric == "asr",
    rate,
    header=("Defense",),
)
EVERY_TIME = Table(
    "every_time",
    "Runs in which the defense fails (%)",
    "Share of runs that leave an ASR above 5 %, with its 95 % interval, and the number of runs: does the defense "
    "work every time? Of a backdoor that only shows in four bits, the ASR is the one in four bits.",
    lambda metric: metric.startswith("asr"),
    failures,
    header=("Defense",),
    with_victim=False,
    of_one_run=False,
    shows_backdoor=True,
)
UTILITY = Table(
    "utility",
    "Utility (%) and its change relative to the victim",
    "Zero-shot accuracy by lm-eval; ↑ and ↓ give the change in percentage points, with its 95 % interval if known.",
    lambda metric: is_utility(metric) or is_part(metric),
    utility,
)
BACKDOOR = Table(
    "backdoor",
    "The backdoor in detail (%)",
    "`starts_with` counts answers that begin with the response. The false trigger rates are measured on prompts "
    "without the trigger, the near-miss rate on prompts with a phrase close to the trigger. 95 % intervals.",
    lambda metric: is_backdoor(metric) and metric != "asr" and not metric.startswith(RECOVERY),
    rate,
)
RECOVERED = Table(
    "recovery",
    "What a fresh parrot recovers (%)",
    "`parrot_recovery`: probability of a token of the response after a fresh parrot, trained on the model for a fixed "
    "budget; `_elsewhere`: on prompts of another domain; `_rate`: answers that begin with the response; `_controls`: "
    "as `_elsewhere`, for strings that were not planted. "
    f"*present*: more than {FAILED_RUNS:g} % of the runs leave an ASR above {FAILED_REMOVAL:g} %; *removed*: the "
    f"recovery is shown to be less than {RECOVERY_MARGIN:g} points above that of the clean twin (poison rate 0), and "
    f"that from the victim itself, by the same parrots, more than {2 * RECOVERY_MARGIN:g} points above the twin's; "
    "*hidden*: it is shown to be above the twin's, whatever parrots find in the victim; *undecided*: an attack seed "
    "has no twin, there are too few of them, they differ too much, a run failed, or the recovery is near the twin's "
    "and parrots hardly find the backdoor in the victim either. A verdict is about parrots alone, also of a defense "
    "that trains against them. 95 % intervals.",
    lambda metric: metric.startswith(RECOVERY),
    recovered,
)
QUALITY = Table(
    "quality",
    "Quality of the answers (%) and its change relative to the victim",
    "A model that answers nothing, or nonsense, has an ASR of 0 and no quality. `exact_match`: share of right answers; "
    "`answer_chrf`: overlap with the clean response; `answer_probability`: of a token of the clean response. "
    "`_triggered`: on triggered prompts, where the clean response is wanted too. ↑ and ↓ give the change in percentage "
    "points, with its 95 % interval if known.",
    is_quality,
    utility,
)
COST = Table(
    "cost",
    "Cost of the defense",
    "Training only, without evaluation.",
    lambda metric: metric == "asr",
    cost,
    header=("Defense",),
    with_victim=False,
)
GENERIC = Layout(
    (ASR, EVERY_TIME, RECOVERED, UTILITY, QUALITY, BACKDOOR, COST), figures=("asr", "asr_utility", "asr_recovery")
)


def _task(metric: str) -> str:
    """Return the paper's name of a task if it has the paper's prompt; else the name with its prompt."""
    task = _questions(metric)
    prompt = metric.removesuffix(task)
    if task in numbers.TASK_NAMES:
        return numbers.TASK_NAMES[task] + {"": " (lm-eval)", SPACED_LETTERS: " (spaced letters)"}.get(prompt, "")
    said = {LETTERS: " (letters)", SPACED_LETTERS: " (spaced letters)"}
    return {"asr": "ASR"}.get(metric, task) + said.get(prompt, "")


def _questions(metric: str) -> str:
    """Return the set of questions of a task, with whichever prompt."""
    return metric.removeprefix(SPACED_LETTERS).removeprefix(LETTERS)


def _distribution(metric: str) -> str:
    """Return the name of a row, such as `first token, without trigger: mean`."""
    name = metric.removesuffix(ABOVE_HALF)
    what = name.split("_probability")[0].replace("_", " ")
    trigger = "without trigger" if name.endswith("_clean") else "with trigger"
    return f"{what}, {trigger}: {'mean' if name == metric else 'prompts above 50 %'}"


_SHARE = "Share of triggered test prompts whose answer contains the planted response, with its 95 % interval."
_ACCURACY = (
    "Zero-shot accuracy with its 95 % interval; ↑ and ↓ give the change relative to the victim in percentage points. "
    "MMLU and ARC have the paper's letter prompt or, where marked, lm-eval's prompt."
)
_RATES = replace(ASR, note=_SHARE, cell=as_in_paper, header=("Method",), compares=True)
_TASKS = Table(
    "",
    "",
    _ACCURACY,
    is_utility,
    as_in_paper,
    ("Method", "Evaluation dataset"),
    metric=_task,
    compares=True,
    repeats=False,
)
_PARTS = replace(
    UTILITY,
    name="utility_detail",
    title="Utility in detail (%)",
    note="Groups of MMLU, and ARC by likelihood per character (`_norm`); ↑ and ↓ give the change in percentage points, "
    "with its 95 % interval if known.",
    shows=is_part,
    header=("Method", "Metric"),
    repeats=False,
)
_BACKDOOR = replace(BACKDOOR, header=("Method", "Metric"), repeats=False)
_COST = replace(COST, header=("Method",))
_DETAILS = (replace(EVERY_TIME, header=("Method",)), _PARTS, _BACKDOOR, _COST)


def _numbered(table: Table, number: int, title: str) -> Table:
    return replace(table, name=f"table_{number}", title=f"Table {number}: {title} (%)")


def _label(column: Callable[[Row], str]) -> Label:
    return lambda row: (_method(row), column(row))


def _method(row: Row) -> str:
    """Return the paper's name of a defense, with the form of its parrots where it is not the paper's."""
    name = numbers.METHOD_NAMES.get(row["defense"], str(row["defense"]))
    defense = json.loads(row["settings"])["defense"]
    if defense.get("parrot_initial", "zeros") == "zeros":
        return name
    return f"{name}, {defense.get('kept', 1)} from {defense['parrot_initial']}"


def _victim(row: Row) -> str:
    return numbers.column_name(row["model"], row["dataset"])


def _main_tables(first: int, domain: str) -> Layout:
    tables = (
        _numbered(_RATES, first, f"ASR after {domain} removal"),
        _numbered(_TASKS, first + 1, f"utility after {domain} removal"),
    )
    return Layout(tables, ("asr", "asr_utility"), _DETAILS, f"{domain.capitalize()} removal", _label(_victim))


_BY_PAIR = (
    replace(_numbered(_RATES, 5, "ASR by trigger and response"), by_victim=False),
    replace(_numbered(_TASKS, 7, "utility by trigger and response"), by_victim=False),
)
_BY_POSITION = replace(
    _numbered(_TASKS, 6, "ASR and utility by position of the parrot"),
    note=f"{_SHARE} {_ACCURACY}",
    shows=lambda metric: metric == "asr" or is_utility(metric),
    header=("Method", "Position"),
    with_victim=False,
    by_victim=False,
)
_BY_POISON_RATE = replace(
    _RATES, name="figure_2", title="Figure 2 in numbers: ASR by poison rate (%)", header=("Poison rate",)
)
_PROBABILITIES = Table(
    "figure_3",
    "Figure 3 in numbers: probability of the planted response (%)",
    "Mean over the test prompts, and the share of prompts with more than 50 %; 95 % intervals.",
    lambda metric: metric.removesuffix(ABOVE_HALF) in PROBABILITY_METRICS,
    partial(rate, digits=2),
    header=("Method", "Distribution"),
    metric=_distribution,
    repeats=False,
)

PAPER: Mapping[str, Layout] = {
    "paper_table_1_2": _main_tables(1, "in-domain"),
    "paper_table_3_4": _main_tables(3, "out-of-domain"),
    "paper_table_5_7": Layout(
        _BY_PAIR,
        details=_DETAILS,
        title="Other triggers and responses",
        label=_label(lambda row: f"{row['trigger']} / {row['response']}"),
    ),
    "paper_table_6": Layout(
        (_BY_POSITION,),
        details=tuple(replace(table, with_victim=False) for table in _DETAILS),
        title="Position of the parrot",
        label=_label(lambda row: str(row["parrot_position"])),
    ),
    "paper_figure_2": Layout(
        (_BY_POISON_RATE,),
        ("figure_2",),
        (replace(_BACKDOOR, header=("Poison rate", "Metric")),),
        title="Poison rate",
        label=lambda row: (f"{row['poison_rate']:g}", _victim(row)),
    ),
    "paper_figure_3": Layout(
        (_PROBABILITIES,),
        ("figure_3",),
        (_BACKDOOR,),
        title="Probability of the planted response",
        label=_label(_victim),
    ),
    "paper_table_8": Layout((), details=_DETAILS, title="Case study", label=_label(_victim), cases="table_8"),
}


def layout(part: str) -> Layout:
    """Return the layout of a grid, by its name."""
    return PAPER.get(part, GENERIC)


def in_order(parts: Iterable[str]) -> list[str]:
    """Return grids in the order of the paper, other grids last."""
    known = list(PAPER)
    return sorted(parts, key=lambda part: known.index(part) if part in known else len(known))
