"""Write a comparison with the paper: its page and its Parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmark.grid.cell import NO_DEFENSE
from benchmark.io.files import write_atomically, write_table
from benchmark.io.markdown import MISSING, code, markdown_table, plain
from benchmark.io.units import counted, joined
from benchmark.paper import comparison_files, numbers, protocol
from benchmark.paper.chance import SHUFFLES
from benchmark.paper.compare import CHANGED, COMPARED, KEPT, REMOVED, VERDICTS, Compared, Margins, compare
from benchmark.paper.evidence import DIFFERENT, EQUIVALENT, UNDECIDED
from benchmark.paper.numbers import Reported
from benchmark.paper.scores import Scored, scores
from benchmark.paper.scores import table as score_table
from benchmark.records import erratum, files, mark
from benchmark.records.aggregate import Results
from benchmark.records.rehearsal import WARNING, has_random, refuse_random
from benchmark.records.runs import Basis
from benchmark.records.trials import Outcomes
from sande.errors import UserError

NAME = "comparison"
_DEFAULT = Margins()


def write(folder: Path, margins: Margins = _DEFAULT, *, rehearsal: bool = False) -> str:
    """Write `comparison.md`, `comparison.parquet` and `comparison_scores.parquet` into a results folder.

    Results without a number of the paper get no comparison. One that is there already, as of an earlier version, is
    written again, so that `publish` can make all pages of a folder again.

    Args:
        folder: results of a grid.
        margins: up to which a difference counts as none.
        rehearsal: accept rows of the random model; the page then says so. Also write a page without any number.

    Returns:
        A summary as Markdown, for the terminal.

    Raises:
        UserError: as `read_results`; or the folder has rows of the random model, has no number of the paper, or cannot
            be written.
    """
    table, outcomes = files.read_results(folder)
    if not rehearsal:
        refuse_random(table, folder)
    found = Results(table, Outcomes(outcomes)).entries()
    compared = compare(found, margins)
    if not (_with_ours(compared) or rehearsal or (folder / f"{NAME}.md").is_file()):
        raise UserError(
            f"{folder}: these results have none of the {len(compared)} numbers that the paper reports, so there is "
            "nothing to compare; choose results of one of the paper's experiments, such as those of grids/smollm2.yaml"
        )
    scored = scores(compared)
    warned = [*(WARNING if has_random(table) else ()), *erratum.lines(folder)]
    mark.claim(folder, mark.COMPARISON)
    try:
        write_atomically(folder / f"{NAME}.md", _page(compared, scored, found[0].row["grid"], margins, warned))
        write_table(folder / f"{NAME}.parquet", comparison_files.numbers(compared))
        write_table(folder / f"{NAME}_scores.parquet", comparison_files.scores(scored))
    except OSError as error:
        raise UserError(
            f"{folder}: the comparison cannot be written ({error.strerror}); make the folder writable"
        ) from None
    return "\n".join([*warned, *_summary(compared, scored)])


def _page(
    compared: Sequence[Compared], scored: Sequence[Scored], grid: str, margins: Margins, warned: Sequence[str]
) -> str:
    parts = [
        f"# {code(grid)} compared with the paper",
        "",
        *warned,
        "Made by `sande-bench compare` from `rows.parquet` and `outcomes.parquet`; every number is also in "
        f"`{NAME}.parquet`, and the scores in `{NAME}_scores.parquet`.",
        "",
        *_summary(compared, scored),
        *_explanation(compared, margins),
        *_stand_ins(compared),
        *_differing(compared),
        *_as_near(compared),
        *(line for table in _tables(compared) for line in _table(compared, table)),
        *_protocol(compared),
    ]
    return "\n".join(parts)


def _summary(compared: Sequence[Compared], scored: Iterable[Scored]) -> list[str]:
    differing = len({made.path for one in compared for made in one.deviations})
    judged = [one for one in compared if one.verdict in COMPARED]
    counts = Counter(one.verdict for one in judged)
    shown = [each for each in VERDICTS if each in COMPARED or any(one.verdict == each for one in compared)]
    lines = [_counts(str(table), _of_table(compared, table), shown) for table in _tables(compared)]
    lines.append(_counts("all", compared, shown))
    settings = f" The run differs from the paper's protocol in {counted(differing, 'setting')}."
    return [
        f"Of the {len(compared)} numbers that the paper reports, {len(judged)} are compared: {counts[EQUIVALENT]} are "
        f"equivalent to ours, {counts[DIFFERENT]} are different, {counts[UNDECIDED]} are undecided."
        + (settings if _with_ours(compared) else ""),
        "",
        *_lacking(judged),
        *markdown_table(("Table", "Numbers", *shown), lines, "r" * (2 + len(shown))),
        "",
        *_without(compared),
        *score_table(scored),
    ]


def _with_ours(compared: Iterable[Compared]) -> list[Compared]:
    """Return the numbers that have one of ours beside them, judged or not."""
    return [one for one in compared if one.entry is not None]


def _tables(compared: Iterable[Compared]) -> list[int]:
    """Return the paper's tables of which this run has a number."""
    return sorted({one.number.table for one in _with_ours(compared)})


def _of_table(compared: Iterable[Compared], table: int) -> list[Compared]:
    return [one for one in compared if one.number.table == table]


def _without(compared: Sequence[Compared]) -> list[str]:
    """Return a sentence on the paper's tables of which this run has no number."""
    tables = sorted({one.number.table for one in compared} - set(_tables(compared)))
    names = joined(list(map(str, tables)))
    return [f"This run has no number of table{'s' if tables[1:] else ''} {names}.", ""] if tables else []


def _counts(name: str, compared: Sequence[Compared], verdicts: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(one.verdict for one in compared)
    return (name, str(len(compared)), *(str(counts[verdict]) for verdict in verdicts))


def _lacking(judged: Iterable[Compared]) -> list[str]:
    """Return a sentence on numbers that cannot be judged since their outcomes are missing."""
    missing = sum(one.evidence is None for one in judged)
    if not missing:
        return []
    return [
        f"{missing} of the undecided numbers have no evidence at all: the outcomes of single prompts, ours or the "
        "victim's, are not in `outcomes.parquet`; run the grid again to measure them.",
        "",
    ]


_UNITS: dict[Basis, str] = {
    "seeds": "With several attack seeds, the units of evidence are the seeds, and the verdict is about the method. It "
    "takes many seeds: a few good runs do not exclude a bad one.",
    "victim": "**This victim** marks a verdict from one attack seed with several defense seeds, which are its units. "
    "It is about that one victim.",
    "model": "**This model** marks a verdict from a single run, whose units are prompts or questions. It is about that "
    "one model; another run of the same method may get another verdict.",
}


def _explanation(compared: Iterable[Compared], margins: Margins) -> list[str]:
    found = {one.evidence.basis for one in compared if one.evidence}
    return [
        "## How to read it",
        "",
        "- **Ours** is the mean over seeds, and ↑ or ↓ its change relative to the victim. An ASR is compared as it is, "
        "and so is a utility of the paper's own model on its own data. Another model has another level of utility, so "
        "its *change* is compared. The 95 % interval is that of what is compared. Of several forms of a method the one "
        "that differs from the paper's protocol in the fewest settings is compared, then the one with most seeds, then "
        "the first by its settings, and the others with no number.",
        f"- **equivalent**: there is evidence that the difference is less than {margins.asr:g} points for an ASR, or "
        f"{margins.utility:g} points for a utility. Two one-sided tests at 5 % reject all larger differences: our 90 % "
        "interval lies within that margin of the paper's number.",
        "- **different**: there is evidence that the difference is larger than that margin. Our 95 % interval lies "
        "beyond it.",
        "- **undecided**: neither. A wide interval, from few prompts or few seeds, is always undecided. It never "
        "counts as agreement.",
        *(f"- {text}" for basis, text in _UNITS.items() if basis in found),
        "- **With the paper's methods shuffled**: the same score after the paper's methods changed names at random, "
        f"{SHUFFLES:,} times, each time alike for all of its victims and tables: what a method leaves is alike on all "
        "of them, so the methods are the sample. Victims, which must have a high ASR, are left out. The table has the "
        "mean and the range of 95 % of the shuffles. Shuffled numbers say nothing about the method. So a score within "
        "that range shows no agreement with the paper, however high it is. Of *different* numbers, fewer than by "
        "chance are a good sign.",
        "- **Order of the methods** is Kendall's tau-b between the paper's numbers and ours over the methods of a "
        "victim, mean over the paper's victims and our attack seeds: 1 is the same order, -1 the opposite one. Two "
        "numbers that differ by at most the margin are tied; where all are, there is no order, and nothing counts. "
        "Its interval is over our attack seeds; with one seed there is none.",
        f"- **Kind** is a coarser look without a test. An ASR is removed (at most {REMOVED:g} %), kept (at least "
        f"{KEPT:g} %) or partly removed. A utility is lost or gained (at least {CHANGED:g} points) or kept.",
        "- **attack failed**: the ASR of a victim of ours is under the floor of its grid, so its defenses cannot be "
        "judged. **not comparable**: the level of another model's utility. **victim at chance**: our victims are not "
        "shown to be right more often than by guessing, so they cannot lose what the paper's lose. **failed**: one of "
        "our runs failed. **not run**: this run has no number to compare, or not yet that of all its seeds.",
        "- The paper gives single runs without intervals, and its numbers count as exact here. So *different* can also "
        "come from the noise of its one run.",
        "",
    ]


def _stand_ins(compared: Iterable[Compared]) -> list[str]:
    """Return a list of the paper's victims, each with ours that are compared with it."""
    ours_of: dict[str, dict[str, None]] = {}
    for one in compared:
        if one.entry is not None:
            ours = plain(numbers.column_name(one.entry.row["model"], one.entry.row["dataset"]))
            ours_of.setdefault(one.number.victim, {})[ours] = None
    lines = [
        f"- {victim}: {' and '.join(ours)}{'' if list(ours) == [victim] else ' instead'}"
        for victim, ours in ours_of.items()
    ]
    return ["## Victims", "", *(lines or ["None of the paper's."]), ""]


def _differing(compared: Iterable[Compared]) -> list[str]:
    """Return a list of the rates that differ in kind, which need an explanation."""
    lines = [
        f"- Table {one.number.table}: {', '.join(_line(one)[:2])}: paper {one.number.value:.2f}, ours {_ours(one)}"
        for one in compared
        if one.number.metric == "asr" and one.in_kind is False
    ]
    return ["## Attack success rates that differ in kind", "", *(lines or ["None."]), ""]


def _as_near(compared: Iterable[Compared]) -> list[str]:
    """Return a list of the numbers that several forms of ours could stand for; nothing if there are none."""
    lines = [
        f"- Table {one.number.table}: {', '.join(_line(one)[:3])}: compared is {plain(one.entry.defense)}; as near: "
        f"{plain('; '.join(one.as_near))}"
        for one in compared
        if one.entry is not None and one.as_near
    ]
    return ["## Forms that are equally near to the paper's protocol", "", *lines, ""] if lines else []


def _table(compared: Iterable[Compared], table: int) -> list[str]:
    """Return a section of one table, without the victims and metrics of which this run has no number there."""
    whole = _of_table(compared, table)
    there = {(one.number.victim, one.number.dataset) for one in _with_ours(whole)}
    chosen = [one for one in whole if (one.number.victim, one.number.dataset) in there]
    head = ("Method", "Victim", "Metric", "Paper (%)", "Ours (%)", "Verdict", "Kind: paper, ours")
    left_out = len(whole) - len(chosen)
    more = f"The table's other {counted(left_out, 'number')} are of victims or metrics that this run does not have."
    return [
        f"## Table {table}, {whole[0].number.setting}",
        "",
        *markdown_table(head, map(_line, chosen), "lllrrll"),
        "",
        *([more, ""] if left_out else []),
    ]


def _line(one: Compared) -> tuple[str, ...]:
    number = one.number
    method = number.method
    if number.parrot_position is not None:
        method += f", parrot at {number.parrot_position} (paper: {number.parrot_position + numbers.START})"
    victim = number.victim if number.table not in (5, 7) else f"{number.victim}, {number.trigger}"
    value = f"{number.value:.2f}"
    if number.metric != "asr" and number.defense != NO_DEFENSE:
        value += f" {_arrow(one.paper_change)}"
    about = "" if one.evidence is None or one.evidence.basis == "seeds" else f", this {one.evidence.basis}"
    kinds = "" if one.in_kind is None else f"{one.paper_kind}, {one.our_kind}"
    return (method, victim, number.dataset, value, _ours(one), one.verdict + about, kinds)


def _ours(one: Compared) -> str:
    if one.entry is None or one.entry.value is None:
        return MISSING
    text = f"{one.entry.value:.2f}"
    if one.evidence and not one.by_change:
        text += f" {_between(one.evidence.outer)}"
    if one.number.metric != "asr" and not one.entry.is_victim and one.entry.change is not None:
        text += f" {_arrow(one.entry.change)}"
        if one.evidence and one.by_change:
            text += f" {_between(one.evidence.outer, '+')}"
    return text


def _between(interval: tuple[float, float], sign: str = "") -> str:
    low, high = interval
    return f"({low:{sign}.2f} to {high:{sign}.2f})"


def _arrow(points: float) -> str:
    return f"{'↓' if points < 0 else '↑'}{abs(points):.2f}"


def _protocol(compared: Sequence[Compared]) -> list[str]:
    """Return each deviation with its methods and victims, and the settings that the paper leaves open."""
    run = _with_ours(compared)
    if not run:
        return []
    found: dict[tuple[str, str, str, str], list[Reported]] = {}
    opened: dict[tuple[str, str], list[Reported]] = {}
    for one in run:
        for made in one.deviations:
            ours = protocol.written(made.path, made.actual)
            found.setdefault((made.path, made.given.text(made.path), ours, made.given.source), []).append(one.number)
        for path, value in one.left_open.items():
            opened.setdefault((path, protocol.written(path, value)), []).append(one.number)
    scope = _scope([one.number for one in run])
    head = ("Setting", "Paper", "This run", "Where", "Source")
    lines = [
        (code(path), plain(given), plain(ours), scope(path, numbers), source)
        for (path, given, ours, source), numbers in sorted(found.items(), key=lambda item: _place(item[0][0]))
    ]
    seeds = sorted({one.entry.seeds for one in run if one.entry is not None})
    return [
        "## Deviations from the paper's protocol",
        "",
        *(markdown_table(head, lines, "lllll") if found else ["No setting differs."]),
        "",
        "Deviations of every run of this suite:",
        "",
        *(f"- {line}" for line in protocol.IN_EVERY_RUN),
        "",
        "Where the paper and its published code differ, the protocol is the paper's:",
        "",
        *(f"- {line}" for line in protocol.PAPER_FIRST),
        "",
        "Settings that the paper leaves open, with the values of this run:",
        "",
        f"- seeds: the paper reports single runs; here each number has {' or '.join(map(str, seeds))}",
        *(
            f"- {code(path)}: {plain(value)} ({scope(path, numbers)})"
            for (path, value), numbers in sorted(opened.items())
        ),
        "",
    ]


def _place(path: str) -> tuple[int, str]:
    """Sort key of settings: the order of the stages that they belong to."""
    return ("model", "prompt_format", "data", "attack", "removal", "defense", "metrics").index(path.split(".")[0]), path


def _scope(run: Iterable[Reported]) -> Callable[[str, Sequence[Reported]], str]:
    """Return a function that names the methods and victims of some numbers, unless these are all that were run."""
    victims = {number.victim for number in run}

    def scope(path: str, numbers: Sequence[Reported]) -> str:
        methods = list(dict.fromkeys(number.method for number in numbers)) if path.startswith("defense.") else []
        of = list(dict.fromkeys(number.victim for number in numbers))
        named = [", ".join(names) for names in (methods, of if set(of) != victims else []) if names]
        return "; ".join(named) or "everywhere"

    return scope
