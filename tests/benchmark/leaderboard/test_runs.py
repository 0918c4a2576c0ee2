"""Runs from rows made by hand."""

import json
import math
from typing import Any

import pytest

from benchmark.grid.levels import together
from benchmark.leaderboard.board import Number
from benchmark.leaderboard.runs import by_cell, runs_of
from benchmark.records import schema
from sande.statistics import wilson
from tests.benchmark.leaderboard.helpers import cell, outcomes, twin


def test_a_task_counts_once() -> None:
    losses = {"arc_easy": 4.0, "arc_easy_norm": 40.0, "paper_arc_easy": 20.0, "mmlu": 2.0, "mmlu_stem": 30.0}
    (one,) = runs_of(by_cell(cell("sft", 98.0, losses))).runs
    assert one.loss is not None
    assert one.loss.value == pytest.approx(3.0)
    (one,) = runs_of(by_cell(cell("sft", 98.0, {"paper_arc_easy": 20.0}))).runs
    assert one.loss is not None
    assert one.loss.value == pytest.approx(20.0)


def test_a_setting_of_a_defense_may_be_called_metrics() -> None:
    """Two runs that it alone separates are named by it."""
    found = [row for value in (3, 4) for row in cell("sft", 98.0, {"mmlu": 1.0}, setting={"metrics": value})]
    assert [one.defense for one in runs_of(by_cell(found)).runs] == ["sft, metrics=3", "sft, metrics=4"]


def test_a_case_may_have_more_metrics_of_one_seed() -> None:
    first, second = (cell("sft", 98.0, {"mmlu": 2.0}, seed=seed) for seed in (0, 1))
    settings = json.loads(second[0]["settings"])
    settings["metrics"] = [*settings["metrics"], {"name": "asr_int4"}]
    further = [row | {"settings": json.dumps(settings)} for row in (*second, second[0] | {"metric": "asr_int4"})]
    cases = {one.case for one in runs_of(by_cell(first + further)).runs}
    assert len(cases) == 1
    settings["metrics"][0] = {"name": "asr", "new_tokens": 24}
    other = [row | {"settings": json.dumps(settings)} for row in second]
    assert len({one.case for one in runs_of(by_cell(first + other)).runs}) == 2, "another measure, another case"


@pytest.mark.parametrize("gone", ["value", "victim_value"])
def test_one_task_without_a_value_makes_the_utility_unknown(gone: str) -> None:
    found = cell("sft", 98.0, {"arc_easy": 4.0, "mmlu": 2.0})
    (one,) = runs_of(by_cell([*found[:-1], found[-1] | {gone: None}])).runs
    assert one.loss is None
    (one,) = runs_of(by_cell(found[:-1])).runs
    assert one.loss is None, "nor is the mean over the tasks that happen to be there"


def test_a_loss_is_paired_where_the_outcomes_of_both_models_are_known() -> None:
    found = cell("sft", 98.0, {"mmlu": 10.0}) + cell("none", 99.0, {"mmlu": 0.0})
    found = [row | {"ci_low": 30.0, "ci_high": 50.0} if row["metric"] == "mmlu" else row for row in found]
    before, after = [1.0] * 50 + [0.0] * 50, [1.0] * 40 + [0.0] * 60
    ids = {row["defense"]: row["cell"] for row in found}
    known = outcomes({(ids["none"], "mmlu"): before, (ids["sft"], "mmlu"): after})
    (paired,) = runs_of(by_cell(found), known).runs
    (unpaired,) = runs_of(by_cell(found)).runs
    assert paired.loss is not None
    assert unpaired.loss is not None
    assert paired.loss.value == unpaired.loss.value == 10.0
    assert (paired.loss.low, paired.loss.high) == pytest.approx((5.0, 16.0), abs=1.0)  # 10 of 100 questions changed
    reach = math.hypot(wilson(50, 100)[1] - 50.0, 10.0)
    assert unpaired.loss.high == pytest.approx(10.0 + reach)
    assert paired.answers["mmlu"].values.tolist() == [[0.0] * 40 + [100.0] * 10 + [0.0] * 50]
    fewer = outcomes({(ids["none"], "mmlu"): before[:-1], (ids["sft"], "mmlu"): after})
    assert runs_of(by_cell(found), fewer).runs[0].loss == unpaired.loss, "not of the same questions"


def test_answers_are_compared_with_a_victim_that_was_measured_by_further_metrics() -> None:
    victim, defended = cell("none", 99.0, {"mmlu": 0.0}), cell("sft", 98.0, {"mmlu": 10.0})
    more = json.loads(victim[0]["settings"])
    more["metrics"].append({"name": "asr_moved"})
    victim = [row | {"settings": json.dumps(more)} for row in victim]
    of_twin = twin(defended, 0.0, 60.0)
    answers = {victim[0]["cell"]: [1.0, 1.0], defended[0]["cell"]: [0.0, 1.0], of_twin[0]["cell"]: [1.0, 0.0]}
    known = outcomes({(of, "mmlu"): values for of, values in answers.items()})
    (run,) = runs_of(by_cell([*victim, *defended, *of_twin]), known).runs
    assert run.answers["mmlu"].values.tolist() == [[100.0, 0.0]]
    assert run.twin is not None
    assert run.twin.answers["mmlu"].values.tolist() == [[0.0, 100.0]]


def test_a_failed_cell_has_its_victim_s_values_where_any_row_tells_them() -> None:
    again = {"metric": "asr_after_relearning_20", "value": 60.0, "victim_value": 97.0}
    sft = cell("sft", 2.0, {"mmlu": 3.0}, victim_asr=98.0)
    failed = cell("new", 0.0, {"mmlu": 0.0}, status=schema.FAILED)
    found = runs_of(by_cell([*sft, sft[0] | again, *failed]))
    _, new = found.runs
    assert (new.flaw, new.victim_asr, new.asr.value, new.loss) == ("failed", 98.0, 98.0, Number(0.0, 0.0, 0.0))
    assert new.more["asr_after_relearning_20"].value == 97.0
    alone = runs_of(by_cell(failed))
    assert (alone.runs, alone.left_out) == ([], 1)


def test_an_unverified_cell_does_not_tell_the_values_of_a_victim() -> None:
    entry = cell("new", 0.0, {"mmlu": 0.0}, victim_asr=91.0)
    failed = cell("sft", 0.0, {"mmlu": 0.0}, status=schema.FAILED)
    found = runs_of(by_cell(entry + failed), entries={entry[0]["cell"]}, unverified={entry[0]["cell"]})
    assert [(one.defense, one.is_entry, one.verified) for one in found.runs] == [("new", True, False)]
    assert found.left_out == 1


def test_an_entry_s_cell_without_a_victim_has_an_asr_and_no_utility() -> None:
    entry = [row | {"victim_value": None, "victim_asr": None} for row in cell("new", 30.0, {"mmlu": 0.0})]
    (one,) = runs_of(by_cell(entry), entries={entry[0]["cell"]}, unverified={entry[0]["cell"]}).runs
    assert (one.victim_asr, one.asr.value, one.loss) == (None, 30.0, None)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("nothing", ""), "nothing"),
        (("nothing", "trigger"), "trigger"),
        (("response", "trigger"), "trigger"),
        (("first token", "nothing"), "first token"),
        (("clean model", "nothing"), "clean model"),
        (("clean model", "trigger"), "trigger and clean model"),
        (("clean model and trigger", "trigger"), "trigger and clean model"),
        (("a plug-in's", ""), "a plug-in's"),
    ],
)
def test_a_level_is_what_defense_and_search_know_together(parts: tuple[str, ...], expected: str) -> None:
    assert together(*parts) == expected


def test_a_run_has_the_twin_of_its_victim() -> None:
    sft = cell("sft", 95.0, {"mmlu": 4.0})
    other: list[dict[str, Any]] = cell("sft", 90.0, {"mmlu": 2.0}, data="orca")
    one, another = runs_of(by_cell([*sft, *twin(sft, 1.0, 51.0), *other])).runs
    assert another.twin is None
    assert one.twin is not None
    assert one.twin.asr.value == 1.0
    assert one.twin.loss == Number(-1.0)  # the victim's 50 % less 51
