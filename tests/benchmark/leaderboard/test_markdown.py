"""The leaderboard as a Markdown page."""

from pathlib import Path

import pytest

from benchmark.leaderboard.markdown import command, markdown
from sande import registry
from sande.declarations import MetricInfo
from tests.benchmark.leaderboard.helpers import CPU, HOSTILE, board, cell, seeds, twin

HAND = [Path("hand")]


def test_a_board_of_one_attack_seed_says_so() -> None:
    attacks = [row for data in ("alpaca", "orca", "dolly") for row in cell("sft", 10.0, {"mmlu": 0.1}, data=data)]
    assert "**All victims are of one attack seed**" in markdown(board(attacks), HAND)
    assert "one attack seed" not in markdown(board(seeds("sft", (10.0,) * 3)), HAND)


def test_the_page_opens_with_the_first_of_each_level() -> None:
    found = seeds("sft", (45.0,) * 3) + seeds("new", (20.0,) * 3) + seeds("sande", (3.0,) * 3)
    page = markdown(board(found + seeds("osft", (0.0,) * 3, lost=(9.0, 9.1, 9.2))), HAND)
    opening = page[: page.index("## ")]
    assert "4 defenses on 3 trained victims. Without a defense, the victims answer 99.0 % of the triggered" in opening
    assert (
        "**At most 5 % in every run**, by what a defense must know: response: `sande`. These do so too, but lose "
        "utility: trigger: `osft`. With 3 victims, a failure rate of up to 71 % of the runs is not excluded." in opening
    )
    lines = [line.split(" | ")[:3] for line in opening.splitlines() if line.startswith("| ")][2:]
    assert lines == [
        ["| trigger", "`osft`", "not ranked"],
        ["| response", "`sande`", "1 of 1"],
        ["| nothing", "`new`", "1 (1 to 2) of 2"],
    ]
    assert page.index("## Must know: trigger") < page.index("## Must know: response") < page.index("## How to read")
    assert "| – | `osft` | 0.0 (0.0 to 70.8) | 0 (0 to 71) | +9.10 (+8.9 to +9.3) | lost |" in page


def test_a_board_on_which_every_defense_fails_says_so() -> None:
    page = markdown(board(seeds("sft", (95.0, 0.0, 0.0)) + seeds("new", (0.0, 20.0, 5.1))), HAND)
    assert "**No defense leaves at most 5 % in every run.**" in page


def test_defenses_that_lose_utility_are_not_the_headline() -> None:
    lossy = seeds("osft", (0.0,) * 3, lost=(9.0, 9.1, 9.2)) + seeds("sft", (95.0,) * 3)
    assert (
        "**No defense leaves at most 5 % in every run without losing utility.** These lose it, by what a defense must "
        "know: trigger: `osft`. With 3 victims, a failure rate of up to 71 % of the runs is not excluded."
    ) in markdown(board(lossy), HAND)
    page = markdown(board(seeds("sande", (0.0,) * 3)), HAND)
    assert "know: response: `sande`. With 3 victims, a failure" in page


def test_times_are_seconds_on_a_device() -> None:
    found = cell("sft", 98.0, {"mmlu": 1.0}, seconds=30.0, device="AMD EPYC (1 threads)")
    page = markdown(board(found + cell("sft", 98.0, {"mmlu": 1.0}, seed=1, seconds=9.0, device=CPU)), HAND)
    assert f"| 30 s on AMD EPYC (1 thread); 9 s on {CPU} |" in page


def test_a_board_that_ranks_nothing_says_why() -> None:
    assert "**Two trained victims cannot show" in markdown(board(seeds("sft", (1.0, 1.0))), HAND)
    lossy = board(seeds("sft", (1.0,) * 3, lost=(9.0, 9.1, 9.2)))
    said = "**No defense is ranked**: none leaves at most half of the victims' ASR and is shown to lose less than 2"
    assert said in markdown(lossy, HAND)


def test_the_margin_is_on_the_page_and_in_its_command() -> None:
    page = markdown(board(seeds("sft", (1.0,) * 3), margin=5.0), HAND)
    assert "whole interval is below 5 points" in page
    assert "Made by `sande-bench leaderboard hand --margin 5`." in page
    assert command(HAND) == "sande-bench leaderboard hand"


def test_twins_are_named_where_every_victim_has_one() -> None:
    sft, other = cell("sft", 95.0, {"mmlu": 4.0}), cell("sft", 90.0, {"mmlu": 2.0}, data="orca")
    again = {"metric": "asr_after_relearning_20", "value": 40.0}
    assert board([*sft, *twin(sft, 1.0, 51.0), *other]).twin is None
    made = board([*sft, *twin(sft, 1.0, 51.0), twin(sft, 1.0, 51.0)[0] | again, *other, *twin(other, 3.0, 48.0)])
    assert made.twin is not None
    assert made.twin.loss is not None
    assert (made.twin.asr.value, made.twin.loss.value) == (2.0, 0.5)  # the victims' 50 % less 51 and 48
    assert made.twin.more["asr_after_relearning_20"].value == 40.0
    assert made.standings[0].cells == 2, "a twin is not a cell of a defense"
    page = markdown(made, HAND)
    assert "write the response to 2.0 % of the triggered prompts and lose +0.50 (" in page


def test_a_name_ends_neither_its_code_nor_its_cell_of_the_table() -> None:
    page = markdown(board(cell(f"a`|{HOSTILE}", 1.0, {"mmlu": 0.0})), HAND)
    assert f"| – | `` a`\\|{HOSTILE} `` |" in page or f"| – | ``a`\\|{HOSTILE}`` |" in page


def test_how_good_the_answers_are_is_beside_the_utility(monkeypatch: pytest.MonkeyPatch) -> None:
    known = registry.metric_info
    right = MetricInfo("right", "Right answers (%)", "utility", column=True)
    monkeypatch.setattr(registry, "metric_info", lambda name: right if name == "right" else known(name))
    sft = [row | {"ci_low": row["value"], "ci_high": row["value"]} for row in cell("sft", 0.0, {"mmlu": 0.5})]
    nonsense = sft[0] | {"metric": "right", "value": 3.0, "victim_value": 97.0}
    page = markdown(board([*sft, nonsense, *cell("new", 0.0, {"mmlu": 0.5})]), HAND)
    head = "| Rank | Defense | ASR (%) | Fails in (% of runs) | Utility lost (points) | Utility | Right answers (%) |"
    assert page.count(head) == 1
    (line,) = [line for line in page.splitlines() if line.startswith("| – | `sft` |")]
    assert "| 0.0 (0.0 to 0.0, this model) | 0 (0 to 98) | +0.50 " in line
    assert "| 3.0 |" in line
    assert "| +0.50 | not shown | – |" in page, "not measured"
