"""Tables over seeds: intervals, marks, how often a defense fails, and what each number holds for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.collections import LineCollection

from benchmark.records import aggregate
from benchmark.records.aggregate import TableEntry
from benchmark.records.files import write_rows
from benchmark.records.trials import Outcomes, Trials
from benchmark.report import figures, page, tables
from benchmark.report.drawing import REACH
from benchmark.report.figures import ROOM
from benchmark.report.layouts import ASR, COST, EVERY_TIME, UTILITY, layout
from benchmark.report.marks import judge
from sande import crossed
from sande.clusters import effective_count
from sande.crossed import Answers
from sande.paired import paired_bootstrap
from sande.statistics import benjamini_hochberg, mean_bounds, of_one_model, paired_p, wilson
from tests.benchmark.paper.helpers import Results

PART = "quickstart"
COMPARED = replace(ASR, compares=True)


def share(percent: float) -> list[float]:
    return [float(index < percent) for index in range(100)]


def measured(metric: str = "asr", **defenses: Sequence[float] | dict[tuple[int, int], float]) -> Results:
    """Measurements of each defense in percent: one for each seed, or by attack and defense seed."""
    results = Results()
    for defense, values in defenses.items():
        runs = values if isinstance(values, dict) else {(seed, seed): value for seed, value in enumerate(values)}
        for (attack, defense_seed), value in runs.items():
            results.measure(PART, defense, metric, share(value), attack_seed=attack, defense_seed=defense_seed)
    return results


def entries(results: Results) -> list[TableEntry]:
    rows, outcomes = results.tables
    return layout(PART).arrange(aggregate.Results(rows, Outcomes(outcomes)).entries(PART))


def written(table: tables.Table, results: Results) -> tuple[dict[str, str], str]:
    """Cells of a table by defense, and its note."""
    text = tables.markdown(table, entries(results))
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return {line[0].strip(" `"): line[-1].strip() for line in lines[2:]}, text.strip().splitlines()[-1]


def test_three_runs_without_a_backdoor_do_not_exclude_one_with_it() -> None:
    found, note = written(ASR, measured(none=[99, 100, 98], osft=[0, 0, 0]))
    assert found["osft"] == "0.0 (0.0 to 70.8)"  # 0.0 to 1.3 when prompts were pooled
    assert note.endswith("With 3 attack seeds, intervals include the spread between runs.")


def test_a_change_has_its_interval_in_a_table_that_compares_nothing(tmp_path: Path) -> None:
    """9 of 100 questions are lost; where none changed, others may."""
    results = measured("builtin-choice", none=[50], sft=[41], osft=[50])
    found, note = written(UTILITY, results)
    low, high = paired_bootstrap(share(50), share(41))
    assert found["sft"].endswith(f"41.00 ↓9.00 ({low:+.1f} to {high:+.1f})")
    assert found["osft"].endswith("50.00 ↑0.00 (-3.6 to +3.6)")
    assert "intervals are of this model alone" in note
    tables.write(UTILITY, entries(results), tmp_path, PART, "utility")
    of = {row["row"]: row for row in pq.read_table(tmp_path / "utility.parquet").to_pylist()}
    assert (of["sft"]["change_low"], of["sft"]["change_high"]) == (low, high)
    assert of["none"]["change_low"] is None


def test_one_run_is_said_to_be_of_this_model_alone() -> None:
    found, note = written(ASR, measured(none=[99], osft=[0]))
    low, high = wilson(0, 100)
    assert found["osft"] == f"0.0 ({low:.1f} to {high:.1f})"
    assert "intervals are of this model alone" in note
    assert "attack seeds" not in note


def test_defense_seeds_of_one_victim_hold_for_this_victim() -> None:
    runs = {(0, 0): 0.0, (0, 1): 90.0, (0, 2): 0.0}
    found, note = written(ASR, measured(none=[99], osft=runs))
    low, high = mean_bounds([0.0, 90.0, 0.0], 0, 100)
    assert found["osft"] == f"30.0 ({low:.1f} to {high:.1f}), of 3 runs", "the victim has one run"
    assert "intervals are of this victim alone" in note


def test_intervals_over_runs_are_marked_among_those_of_one_run() -> None:
    results = measured(none=[99], osft=[0], sande={(0, 0): 0.0, (0, 1): 0.0})
    found, note = written(ASR, results)
    one, two = (f"({low:.1f} to {high:.1f})" for low, high in (wilson(0, 100), mean_bounds([0.0, 0.0], 0, 100)))
    assert (found["osft"], found["sande"]) == (f"0.0 {one}", f"0.0 {two}, of 2 runs")
    assert (
        "Cells marked *of N runs* (`sande`) have an interval over runs, all others one within a single run, such as "
        "over its prompts. Intervals of the two kinds cannot be compared."
    ) in note
    lost = next(row for row in results.rows if row["defense"] == "sande")
    results.rows.append(lost | {"defense_seed": 2, "status": "failed", "value": None, "cell": "another"})
    assert written(ASR, results)[0]["sande"] == f"0.0 {two}, of 2 runs [1 of 3 seeds failed]"
    assert "runs" not in written(COST, results)[0]["sande"], "no interval"
    assert "of N runs" not in written(ASR, measured(none=[99, 98], sande=[0, 1, 2]))[1], "all over runs"
    of_utility = measured("builtin-choice", none=[50, 50], osft=[50], sande=[49, 48])
    assert "*of N runs* (`sande`)" in written(UTILITY, of_utility)[1], "the victim shows no interval"


def test_defense_seeds_are_no_more_attack_seeds() -> None:
    runs = {(attack, defense): 60.0 * (attack == 2) for attack in range(3) for defense in range(4)}
    few, many = (written(ASR, measured(none=[99, 99, 99], osft=osft))[0] for osft in ([0, 0, 60], runs))
    assert few == many


def test_a_defense_that_fails_at_times_is_shown_as_such() -> None:
    nested = {(0, 0): 0.0, (0, 1): 95.0, (1, 0): 0.0, (1, 1): 0.0, (2, 0): 0.0, (2, 1): 5.0}
    found, note = written(EVERY_TIME, measured(none=[99, 99, 99], osft=nested, sft=[90, 90, 90]))
    low, high = (100 * bound for bound in mean_bounds([0.5, 0.0, 0.0]))
    assert found == {
        "osft": f"16.7 ({low:.1f} to {high:.1f}), of 6",
        "sft": f"100.0 ({100 * mean_bounds([1.0] * 3)[0]:.1f} to 100.0), of 3",
    }
    assert "With 3 attack seeds" in note


def test_how_often_a_defense_fails_is_not_asked_of_one_run() -> None:
    assert EVERY_TIME.chosen(entries(measured(none=[99], osft=[0]))) == []
    found, note = written(EVERY_TIME, measured(none=[99], osft=[0], nad=[], sft={(0, 0): 90.0, (0, 1): 90.0}))
    assert list(found) == ["sft"]
    assert "A defense with fewer than two measured runs on a victim has no number for it: `osft`." in note
    assert "fewer than two" not in written(EVERY_TIME, measured(none=[99, 99], osft=[0, 0]))[1]


def test_changes_are_tested_over_seeds() -> None:
    values = {"none": [90, 95, 99, 97], "sft": [91, 94, 99, 97], "osft": [0, 10, 3, 3]}
    results = measured(**values)
    found, note = written(COMPARED, results)
    assert "Paired test over seeds, Benjamini-Hochberg over the table, 5 %." in note
    marks = judge(entries(results))
    p_values = [paired_p(values["none"], values[name]) for name in ("sft", "osft")]
    assert [mark.p for mark in marks] == pytest.approx([None, *benjamini_hochberg(p_values)])
    assert [mark.significant for mark in marks] == [False, False, True]
    assert found["osft"].startswith("**4.0**")


def test_identical_defenses_of_which_one_failed_once_are_not_told_apart() -> None:
    results = measured(none=[99] * 5, sft=[0, 0, 95, 0, 0], osft=[0, 0, 0, 0, 0])
    found, _ = written(COMPARED, results)
    assert (found["sft"][:5], found["osft"][:7]) == ("19.0 ", "**0.0**")
    near, _ = written(COMPARED, measured(none=[99] * 5, sft=[0, 0, 24, 0, 0], osft=[0, 0, 0, 0, 0]))
    assert (near["sft"][:7], near["osft"][:7]) == ("**≈4.8*", "**0.0**")


def test_two_seeds_never_tell_defenses_apart_and_far_ones_are_no_tie() -> None:
    found, _ = written(COMPARED, measured(none=[99, 99], sft=[90, 92], dpo=[4, 6], osft=[0, 0]))
    assert (found["sft"][:5], found["dpo"][:7], found["osft"][:7]) == ("91.0 ", "**≈5.0*", "**0.0**")


def test_three_seeds_suffice_only_where_all_changes_are_alike() -> None:
    for sft, is_significant in (([0, 1, 2], True), ([91, 94, 99], False)):
        results = measured(none=[90, 95, 99], sft=sft, osft=[0, 10, 3])
        assert judge(entries(results))[-1].significant == is_significant


def test_a_defense_with_a_failed_run_is_not_the_best() -> None:
    results = measured(none=[99, 99, 99], sft=[50, 60, 70], osft=[0, 0, 0], nad=[80, 80, 80])
    lost = next(row for row in results.rows if row["defense"] == "osft")
    lost |= {"status": "failed", "value": None, "ci_low": None, "ci_high": None, "count": None}
    found, _ = written(COMPARED, results)
    assert found["osft"].startswith("0.0 (")
    assert found["osft"].endswith("[1 of 3 seeds failed]")
    assert found["sft"].startswith("**60.0**")


def test_one_lucky_run_is_not_the_best_of_means_over_seeds() -> None:
    results = measured(none=[99] * 4, sft=[90, 92, 95, 91], nad=[1, 2, 60, 70], sande_p={(1, 1): 1})
    found, note = written(COMPARED, results)
    assert (found["sande_p"][:4], found["nad"][:8]) == ("1.0 ", "**33.2**")
    said = "Not tested against the best of a column, as too few seeds or outcomes are common to both: `sande_p`."
    assert said in note
    marks = dict(zip(("none", "sft", "nad", "sande_p"), judge(entries(results)), strict=True))
    assert [name for name, mark in marks.items() if mark.untested] == ["sande_p"]
    assert "Not tested" not in written(COMPARED, measured(none=[99] * 3, sft=[9, 9, 9], nad=[1, 2, 3]))[1]


def test_of_equally_many_seeds_those_of_most_defenses_compete() -> None:
    shifted = {(seed, seed): 0.0 for seed in (1, 2, 3)}
    found, _ = written(COMPARED, measured(none=[99] * 4, osft=shifted, sft=[90, 92, 95], nad=[50, 60, 70]))
    assert (found["osft"][:4], found["nad"][:8]) == ("0.0 ", "**60.0**")


def test_a_defense_without_outcomes_is_untested_and_no_tie() -> None:
    *others, last = entries(measured(none=[99], sft=[3], osft=[0], nad=[1]))
    marks = judge([*others, replace(last, trials=None)])
    assert [mark.tie for mark in marks] == [False, True, False, False]
    assert [mark.untested for mark in marks] == [False, False, False, True]


def test_one_run_left_of_several_is_not_tested_with_the_others() -> None:
    results = measured(none=[99, 99, 99], sft=[50, 60, 70], osft=[0])
    marks = dict(zip(("none", "sft", "osft"), judge(entries(results)), strict=True))
    assert marks["osft"].p is None
    assert marks["sft"].p is not None
    _, note = written(COMPARED, results)
    assert "With 3 attack seeds" in note
    assert "this model alone" in note


def test_parquet_says_what_intervals_hold_for(tmp_path: Path) -> None:
    results = measured(none=[99] * 3, osft={(0, 0): 0.0, (1, 1): 0.0, (2, 2): 95.0, (2, 3): 0.0}, sft=[50])
    write_rows(results.rows, [results.tables[1]], tmp_path)
    page.write(tmp_path)
    lines: dict[str, dict[str, Any]] = {
        line["row"]: line for line in pq.read_table(tmp_path / "tables/asr.parquet").to_pylist()
    }
    assert [lines[name]["interval_of"] for name in ("none", "osft", "sft")] == ["seeds", "seeds", "model"]
    assert (lines["osft"]["seeds"], lines["osft"]["attack_seeds"]) == (4, 3)
    assert lines["osft"]["runs_above_5"] == pytest.approx(100 * 0.5 / 3)
    assert (lines["sft"]["runs_above_5"], lines["none"]["runs_above_5"]) == (None, 100.0)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "### Runs in which the defense fails (%)" in text


def test_bars_say_what_their_intervals_hold_for() -> None:
    for values, text in (([99, 98, 99], "over attack seeds"), ([99], "of each model alone")):
        figure = figures.draw("asr", entries(measured(none=values, osft=[0] * len(values))))
        assert figure is not None
        assert figure.axes[0].get_xlabel().endswith(text)


def bars(results: Results) -> tuple[list[tuple[float, float, float]], str]:
    """Ends and height of each interval in the figure of ASR against changes of utility, and the note below it."""
    figure = figures.draw("asr_utility", entries(results))
    assert figure is not None
    segments = [
        each for of in figure.axes[0].collections if isinstance(of, LineCollection) for each in of.get_segments()
    ]
    return [(each[0, 0], each[1, 0], each[0, 1]) for each in segments], figure.get_supxlabel()


def with_utility(asr: dict[str, float], **tasks: dict[str, float]) -> Results:
    """One run of each defense, with utility by task and defense."""
    results = measured(**{defense: [value] for defense, value in asr.items()})
    for task, values in tasks.items():
        for defense, value in values.items():
            results.measure(PART, defense, task, share(value), attack_seed=0, defense_seed=0)
    return results


def test_changes_of_utility_are_drawn_with_their_intervals() -> None:
    asr = {"none": 99.0, "sft": 90.0, "osft": 0.0, "nad": 0.0}
    (sft, *near), note = bars(with_utility(asr, mmlu={"none": 50, "sft": 41, "osft": 50, "nad": 48}))
    assert sft == pytest.approx((*paired_bootstrap(share(50), share(41)), 90.0)), "as in the table"
    assert len(near) == 2, "the victim has none"
    assert 0.5 < abs(near[0][2] - near[1][2]) < 2 * REACH, "neither covers the other"
    assert note == ""


def test_the_interval_of_several_tasks_is_that_of_their_mean() -> None:
    changed = {"none": 50.0, "sft": 41.0}
    ((low, high, _),), _ = bars(with_utility({"none": 99.0, "sft": 90.0}, mmlu=changed, arc_easy=changed))
    lost = Answers(100 * (np.array([share(41)]) - np.array([share(50)])), ())
    assert (low, high) == pytest.approx(crossed.interval([lost, lost]))


def test_a_far_wider_interval_is_cut_and_the_figure_says_so() -> None:
    results = measured(none=[99, 99], sft=[90, 90])
    for seed, (before, after) in enumerate(((50, 45), (50, 55))):
        for defense, value in (("none", before), ("sft", after)):
            results.measure(PART, defense, "mmlu", share(value), attack_seed=seed, defense_seed=seed)
    ((low, high, _),), note = bars(results)
    assert low < -2 * ROOM < 2 * ROOM < high
    assert note == "Intervals that reach further are cut at the edge of the figure."


def test_probabilities_above_a_half_are_counted_by_run() -> None:
    results = Results()
    for seed in range(3):
        results.measure("paper_figure_3", "none", "phrase_probability", [0.9] * (seed + 1) + [0.1] * 9, seed=seed)
    rows, outcomes = results.tables
    made = aggregate.Results(rows, Outcomes(outcomes)).entries("paper_figure_3")
    mean, above = layout("paper_figure_3").arrange(made)
    shares = [100 * count / (9 + count) for count in (1, 2, 3)]
    assert above.value == pytest.approx(sum(shares) / 3)
    assert (above.low, above.high) == pytest.approx(mean_bounds(shares, 0, 100))
    assert mean.basis == "seeds"


def test_probabilities_above_a_half_of_one_run_count_templates() -> None:
    """20 templates of 5 prompts, which are all above a half or all below."""
    index, templates = np.arange(100), np.arange(100) // 5
    outcomes = np.where(templates < 10, 0.9, 0.1)
    row: dict[str, Any] = {"defense": "none", "poison_rate": 0.05, "parrot_position": None}
    trials = Trials({(1, 1): (index, outcomes, templates)})
    mean = TableEntry(
        "none", "v", "phrase_probability", 50.0, None, None, None, 1, 0, 0, {}, row, {(1, 1): 50.0}, trials=trials
    )
    _, above = layout("paper_figure_3").arrange([mean])
    count = effective_count((outcomes > 0.5).tolist(), [str(number) for number in templates])
    assert (above.low, above.high) == of_one_model(0.5, count)
    assert 15 < count <= 20


def test_prompts_of_one_template_count_together() -> None:
    results = measured(none=[99], sft=[90], osft=[80])
    rows, outcomes = results.tables
    for templates, is_significant in ((100, True), (5, False)):
        names = pa.array([str(index * templates // 100) for index in outcomes["index"].to_pylist()])
        clustered = outcomes.drop_columns([n for n in outcomes.column_names if n == "cluster"])
        known = Outcomes(clustered.append_column("cluster", names))
        marks = judge(aggregate.Results(rows, known).entries(PART))
        assert marks[-1].significant == is_significant
