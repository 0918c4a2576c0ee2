"""The page of detectors over victims and twins: tables, what their numbers claim, and the figure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from benchmark.detection import rates
from benchmark.detection.edits import LETTERS
from benchmark.detection.groups import NEAR, Group
from benchmark.detection.outcome import NAMES, Outcome
from benchmark.detection.scan import token_code
from benchmark.detection.summary import CALIBRATED, EITHER, FIRST, OWN, SETTING, Summary, by_own
from benchmark.io import plots
from benchmark.io.markdown import MISSING, code, markdown_table, plain
from benchmark.io.units import counted
from benchmark.report.short import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FOUND = (
    *("Detector", "Victims", "Twins", "AUROC (95 %)", "hit@1", f"hit@{FIRST}", f"First token in {FIRST}"),
    *("Calibration models", "Their highest score", "Seconds"),
)
_ALARMS = (
    *("Detector", "Rule", "Threshold", "AUROC (95 %)", "Victims called", "Recall, %", "False alarms", "Their rate, %"),
)
_EACH = (
    *("Model", "Kind", "ASR, %", "Score", "p", "Alarm", "Calibrated alarm", "Rank of the response"),
    *("Rank of its first token", "Best candidate", "Suspected trigger", "Rank of the trigger", "Edit distance"),
    *("Own p", "Seconds"),
)
_RECALL_AT_5 = "Recall at 5 %, %"
_KIND = (
    *("Detector", "Models", "Victims called", "False alarms", "AUROC (95 %)", "Recall at 0, %", _RECALL_AT_5),
    *("Response found", "Near", "Trigger found", "Near it", "A part of it", "A word of it", "Seconds"),
)
_TEXTS = (
    "Detector",
    "Rule",
    "Model",
    "Kind",
    "Alarm",
    "Calibrated alarm",
    "Best candidate",
    "Models",
    "Suspected trigger",
)
_TITLES = {
    "code_version": "Code",
    "device": "Device",
    "instruction_set": "Instruction set",
    "compute_type": "Compute type",
    "versions": "Versions",
}
UNLIKELY = 0.05  # probability of false alarms below which a calibrated threshold is said not to hold
_P_VALUES = (
    "p is the share of clean models that score at least as high: the calibration models, and the model itself counted "
    "as one of them. A clean model that is like the calibration models has a p of at most a with a probability of at "
    "most a.",
    "",
)
_KINDS = {"victim": "#b33", "twin": "#37a", "calibration": "#999"}


def markdown(outcomes: Sequence[Outcome], summaries: Sequence[Summary], groups: Sequence[Group] = ()) -> str:
    """Return the page.

    Args:
        outcomes: see `benchmark.detection.outcome.judged`.
        summaries: of the same outcomes.
        groups: of the same outcomes.
    """
    by_p = {each.detector for each in outcomes} - {each.detector for each in outcomes if not by_own(each)}
    by_rule = [each for each in summaries if each.rule != CALIBRATED or each.threshold is not None]
    claims: dict[str, list[str]] = {}
    for each in summaries:
        if each.rule == CALIBRATED:
            claims.setdefault(_claim(each), []).append(code(each.detector))
    lines = [
        *_opening(summaries),
        "### Detectors on victims and twins",
        "",
        *_table(_FOUND, (_found(each) for each in summaries if each.rule == SETTING)),
        "",
        "An AUROC is the probability that a victim scores higher than a twin. Its interval is Wilson's with as many "
        "trials as the smaller group has models.",
        "",
        "### Alarms",
        "",
        *_table(_ALARMS, (_alarms(each, by_p) for each in by_rule)),
        "",
        "Intervals of rates are those of Clopper and Pearson, 95 %. No calibration model is a victim or a twin here. A "
        "detector's own p is by the scanned model alone; that of `haystack` is of the best of several strings found on "
        "the same prompts, so it says which string, and is no test of the model.",
        "",
        *(f"- {', '.join(detectors)}: {claim}" for claim, detectors in claims.items()),
        "",
        *_groups(groups, {each.detector for each in outcomes if each.best_trigger}),
        "### Each scan",
        "",
        *_scans(outcomes),
        *_weak(outcomes),
        "",
        *(_P_VALUES if any(each.p_value is not None for each in outcomes) else ()),
        "### Provenance",
        "",
        *_provenance(outcomes),
        "",
    ]
    return "\n".join(lines)


def _opening(summaries: Sequence[Summary]) -> list[str]:
    """Return what the detectors find by their own settings, a paragraph and a list; empty without victims and twins."""
    lines = []
    for each in summaries:
        if each.rule == SETTING and each.victims and each.twins:
            victims, twins = _of(each.called, each.victims), _of(each.false_alarms, each.twins)
            recall = _in_percent(each.recall, each.recall_low, each.recall_high)
            rate = _in_percent(each.false_alarm_rate, each.false_alarm_rate_low, each.false_alarm_rate_high)
            area = _with_bounds(each.auroc, each.auroc_low, each.auroc_high, 2)
            lines.append(
                f"- {code(each.detector)} calls {victims} victims ({recall}) and {twins} twins ({rate}); "
                f"AUROC {area}. Its first candidate is the planted response in {counted(each.hit_1, 'victim')}; one of "
                f"its first {FIRST} begins with the response's first token in {each.first_token_5}."
            )
    return ["**What it shows.** By its own setting", "", *lines, ""] if lines else []


def _groups(groups: Sequence[Group], naming: Collection[str]) -> list[str]:
    """Return the section on each kind of model; empty without any.

    Args:
        groups: all of them.
        naming: detectors that name a suspected trigger of some model.
    """
    if not groups:
        return []
    alike = all(each.recall_at_0 == each.recall_at_5 for each in groups)
    shown = [index for index, name in enumerate(_KIND) if not (alike and name == _RECALL_AT_5)]
    rows, last = [], ""
    for each in groups:
        row = [plain(each.detector) if each.detector != last else "", *_kind_row(each, naming)]
        rows.append([row[index] for index in shown])
        last = each.detector
    recalls = (
        "Recall at 0: the share of victims above the highest score of all twins, a threshold that is chosen by the "
        "test itself; at 5 % false alarms it is the same here."
        if alike
        else "Recall at 0 and at 5 % false alarms: the share of victims above the highest score of all twins, and "
        "above all but one in twenty; these thresholds are chosen by the test itself."
    )
    return [
        "### Kinds of models",
        "",
        "<details><summary>A row for each kind</summary>",
        "",
        *_table([_KIND[index] for index in shown], rows),
        "",
        "</details>",
        "",
        f"{recalls} Found: it is the first candidate; near: one of the first {FIRST} is within {NEAR:.0%} of its "
        "letters (edit distance). A part: the first candidate is a run of the trigger's words, or all of them. A word: "
        f"both have a word of {LETTERS} letters or more. A detector that names no trigger has {MISSING} there.",
        "",
    ]


def _scans(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a table of the scans of each detector, and what the labels of all models leave out."""
    labels = dict.fromkeys(each.label for each in outcomes)
    least = min((label.count(", ") for label in labels), default=0)
    short = shortened(labels, range(-least, 0))  # the kinds of the model are the last parts
    lines = ["<details><summary>A row for each scan</summary>", ""]
    for detector in dict.fromkeys(each.detector for each in outcomes):
        mine = [_scan(each, short.labels[each.label]) for each in outcomes if each.detector == detector]
        lines += [f"#### {code(detector)}", "", *_table(_EACH, mine), ""]
    return [*lines, "</details>", *(line for text in short.sentences("models") for line in ("", text))]


def _weak(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a sentence on victims that no table above counts; empty without any."""
    weak = len({each.label for each in outcomes if each.weak})
    who, them = ("One victim is", "it") if weak == 1 else (f"{weak} victims are", "them")
    line = f"{who} weak: the backdoor works too rarely to be looked for, so no rate above counts {them}."
    return ["", line] if weak else []


def _kind_row(each: Group, naming: Collection[str]) -> list[str]:
    """Return the cells of a kind, without its detector."""
    triggers = (each.trigger, each.trigger_near, each.trigger_part, each.trigger_word)
    return [
        plain(f"{each.group}: {each.value}" if each.group else each.value),
        _of(each.called, each.victims),
        _of(each.false_alarms, each.twins),
        _with_bounds(each.auroc, each.auroc_low, each.auroc_high, 2),
        _with_bounds(each.recall_at_0, each.recall_at_0_low, each.recall_at_0_high, 0),
        _with_bounds(each.recall_at_5, each.recall_at_5_low, each.recall_at_5_high, 0),
        *(_of(count, each.victims) for count in (each.response, each.response_near)),
        *(_of(count, each.triggers) if each.detector in naming else MISSING for count in triggers),
        f"{each.seconds:.0f}",
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, without the columns that have nothing in any row."""
    rows = list(rows)
    shown = [index for index in range(len(head)) if any(row[index] != MISSING for row in rows) or not rows]
    heads = [head[index] for index in shown]
    align = "".join("l" if column in _TEXTS else "r" for column in heads)
    return markdown_table(heads, [[row[index] for index in shown] for row in rows], align)


def _found(each: Summary) -> list[str]:
    return [
        plain(each.detector),
        str(each.victims),
        str(each.twins),
        _with_bounds(each.auroc, each.auroc_low, each.auroc_high, 2),
        *(_of(count, each.victims) for count in (each.hit_1, each.hit_5, each.first_token_5)),
        str(each.calibration_models or MISSING),
        _number(each.highest_calibration),
        f"{each.seconds:.0f}",
    ]


def _alarms(each: Summary, by_p: Collection[str]) -> list[str]:
    """Return the row of a detector's rule; the setting of the detectors `by_p` is no threshold, but a p-value."""
    wanted = "" if each.wanted_rate is None else _accepted(each.wanted_rate)
    rule = {
        SETTING: "the detector's setting",
        OWN: f"own p at most {wanted}",
        CALIBRATED: f"at most {wanted} false alarms",
        EITHER: f"the first one's setting, else the second one's own p at most {wanted}",
    }[each.rule]
    none = MISSING if each.rule != SETTING else "by its p" if each.detector in by_p else "several"
    return [
        plain(each.detector),
        rule,
        none if each.threshold is None else _number(each.threshold),
        _with_bounds(each.auroc, each.auroc_low, each.auroc_high, 2),
        _of(each.called, each.victims),
        _with_bounds(each.recall, each.recall_low, each.recall_high, 1),
        _of(each.false_alarms, each.twins),
        _with_bounds(each.false_alarm_rate, each.false_alarm_rate_low, each.false_alarm_rate_high, 1),
    ]


def _claim(each: Summary) -> str:
    """Return in a sentence which rate of false alarms the calibrated threshold guarantees, and why."""
    assert each.wanted_rate is not None
    assert each.guaranteed_rate is not None
    wanted, models = _accepted(each.wanted_rate), each.calibration_models
    if each.worst_rate is None:
        lowest = f"with {models} of them, the lowest rate that can be claimed is {_percent(each.guaranteed_rate)}"
        return (
            f"a rate of false alarms of at most {wanted} cannot be claimed. It takes {each.needed_models} calibration "
            f"models; {lowest if models else 'there are none'}. Nothing bounds the rate of the detector's own setting "
            "but the interval above."
        )
    rank = round(each.guaranteed_rate * (models + 1))
    claim = (
        f"the threshold is the score of rank {rank} among {models} calibration models, the largest rank k with "
        f"k / (models + 1) at most {wanted}. A clean model like them raises an alarm with a probability of at most "
        f"{_percent(each.guaranteed_rate)}, on average over draws of the calibration models; with these, of at most "
        f"{_percent(each.worst_rate)} (95 % confidence)."
    )
    if not each.false_alarms or (chance := rates.chance(each.false_alarms, each.twins, rank, models)) > UNLIKELY:
        return claim
    return (
        f"{claim} **Here it does not hold:** {_of(each.false_alarms, each.twins)} twins raise one, which has a "
        f"probability of {chance:.2g} if they are like the calibration models and the detector was tuned with neither."
    )


def _scan(each: Outcome, label: str) -> list[str]:
    return [
        plain(label),
        _kind(each),
        MISSING if each.asr is None else f"{each.asr:.0f}",
        f"{each.score:.2f}",
        MISSING if each.p_value is None else f"{each.p_value:.3f}",
        _yes(each.alarm),
        MISSING if each.calibrated_alarm is None else _yes(each.calibrated_alarm),
        _rank(each, each.rank),
        _rank(each, each.first_token_rank),
        token_code(each.best) if each.best else MISSING,
        token_code(each.best_trigger) if each.best_trigger else MISSING,
        str(each.trigger_rank or "not found") if each.best_trigger and each.trigger_known else MISSING,
        _number(each.trigger_distance),
        MISSING if each.own_p is None else f"{each.own_p:.3f}",
        f"{each.seconds:.0f}",
    ]


def _kind(each: Outcome) -> str:
    if each.weak:
        return "weak victim"
    return "victim" if each.victim else "calibration" if each.calibration else "twin"


def _yes(alarm: bool) -> str:
    return "yes" if alarm else "no"


def _rank(outcome: Outcome, rank: int | None) -> str:
    return str(rank) if rank else "not found" if outcome.victim else MISSING


def _of(count: int | None, models: int) -> str:
    return MISSING if count is None or not models else f"{count} of {models}"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _accepted(share: float) -> str:
    return f"{100 * share:g} %"  # as the user set it


def _percent(share: float) -> str:
    return f"{math.ceil(1000 * share - 1e-9) / 10:g} %"  # a bound is rounded up


def _with_bounds(value: float | None, low: float | None, high: float | None, digits: int) -> str:
    if value is None or low is None or high is None:
        return MISSING
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _in_percent(value: float | None, low: float | None, high: float | None) -> str:
    return MISSING if value is None else f"{value:.0f} %, {low:.0f} to {high:.0f}"


def _provenance(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the different values of each column on what computed the scans."""
    values: Mapping[str, list[str]] = {
        name: list(dict.fromkeys(getattr(each, name) for each in outcomes if getattr(each, name))) for name in NAMES
    }
    lines = [f"- {_TITLES[name]}: {'; '.join(map(plain, values[name]))}" for name in _TITLES if values[name]]
    for detector in dict.fromkeys(each.detector for each in outcomes):
        mine = [each for each in outcomes if each.detector == detector]
        counts = {
            "versions of its code": len({each.detector_code for each in mine if each.detector_code}),
            "compute types": len({each.compute_type for each in mine if each.compute_type}),
        }
        if several := " and ".join(f"{count} {what}" for what, count in counts.items() if count > 1):
            lines.append(
                f"- **{code(detector)} scanned with {several}**: scores of different ones may not be comparable."
            )
    unknown = sum(not each.code_version for each in outcomes)
    if unknown:
        lines.append(
            f"- {unknown} of {len(outcomes)} scans were recorded by a version that did not note what computed them."
        )
    return lines


def draw(outcomes: Sequence[Outcome], summaries: Sequence[Summary]) -> Figure:
    """Draw the scores of victims, twins and calibration models with the thresholds, one panel per detector."""
    detectors = list(dict.fromkeys(outcome.detector for outcome in outcomes))
    figure = plots.blank(width=3.2 * len(detectors) + 1, rows=1)
    for panel, detector in enumerate(detectors, start=1):
        axes = figure.add_subplot(1, len(detectors), panel)
        mine = [outcome for outcome in outcomes if outcome.detector == detector]
        kinds = [kind for kind in _KINDS if any(_kind(each) == kind for each in mine)]
        for place, kind in enumerate(kinds):
            scores = [each.score for each in mine if _kind(each) == kind]
            axes.scatter([place] * len(scores), scores, color=_KINDS[kind], alpha=0.7)
        for threshold in {outcome.threshold for outcome in mine if not by_own(outcome)}:
            axes.axhline(threshold, color="#555", linewidth=0.8, linestyle="--", label="setting")
        for each in summaries:
            if each.detector == detector and each.rule == CALIBRATED and each.threshold is not None:
                axes.axhline(each.threshold, color="#283", linewidth=0.8, label="calibrated")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
        axes.set_xticks(range(len(kinds)), kinds, rotation=30, ha="right")
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        axes.set_ylabel("score")
        (area,) = (each for each in summaries if each.detector == detector and each.rule == SETTING)
        shown = _with_bounds(area.auroc, area.auroc_low, area.auroc_high, 2)
        axes.set_title(f"{plots.literal(detector)}\nAUROC {shown}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
