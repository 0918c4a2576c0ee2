"""The shape of a table: its labels, and victims without any defense."""

from dataclasses import replace

from benchmark.records.aggregate import TableEntry
from benchmark.report import tables
from benchmark.report.layouts import ASR, BACKDOOR, COST
from tests.benchmark.report.test_figures import entry


def lines(found: list[TableEntry], table: tables.Table = ASR) -> list[str]:
    return tables.markdown(table, found).splitlines()[2:]


def of(kind: str, count: int, *defenses: str) -> list[TableEntry]:
    return [entry(name, f"tiny / a, in-domain, {kind} {at}", 50.0) for at in range(count) for name in defenses]


def test_columns_leave_out_what_all_victims_have() -> None:
    found = lines(of("kind", 2, "none", "sft"))
    assert found[0] == "| Defense | kind 0 | kind 1 |"
    assert found[-1].endswith(" All victims: tiny, a, in-domain.")


def test_one_victim_keeps_its_label() -> None:
    assert lines(of("kind", 1, "none", "sft"))[0] == "| Defense | tiny / a, in-domain, kind 0 |"


def test_of_many_victims_those_without_a_defense_stand_below() -> None:
    names = ["none", "sft", "dpo", "nad", "osft", "crow", "wanda", "merge", "sande", "sande_p"]
    found = lines([*of("kind", 5, *names), *of("twin", 4, "none")])
    assert found[0] == "| Defense | kind 0 | kind 1 | kind 2 | kind 3 | kind 4 |"
    below = found.index("Victims without any defense:")
    assert found[below - 1] == ""
    assert found[below + 2 : below + 5] == ["| Victim | `none` |", "| --- | ---: |", "| twin 0 | 50.0 (47.0 to 53.0) |"]
    few = lines([*of("kind", 5, *names), *of("twin", 1, "none")])
    assert few[0] == "| Defense | kind 0 | kind 1 | kind 2 | kind 3 | kind 4 | twin 0 |"


def test_many_victims_are_the_rows() -> None:
    found = lines(of("kind", 7, "none", "sft"))
    assert found[0] == "| Victim | `none` | `sft` |"
    assert found[2].startswith("| kind 0 | ")


def backdoor(found: list[TableEntry]) -> list[TableEntry]:
    metrics = ("asr", "asr_starts_with", "false_trigger_rate")
    return [replace(each, metric=metric) for each in found for metric in metrics]


def test_of_a_single_defense_metrics_are_the_columns() -> None:
    found = lines(backdoor(of("kind", 2, "none")), BACKDOOR)
    assert found[0] == "| Victim | asr_starts_with | false_trigger_rate |"
    cell = "50.0 (47.0 to 53.0)"
    assert found[2:5] == [f"| kind 0 | {cell} | {cell} |", f"| kind 1 | {cell} | {cell} |", ""]
    assert lines(of("kind", 2, "none"))[0] == "| Victim | `none` |", "a table of one metric"
    assert lines(of("kind", 1, "none"))[0] == "| Defense | tiny / a, in-domain, kind 0 |", "of one victim"
    some = lines(backdoor(of("kind", 2, "none"))[:-1], BACKDOOR)
    assert some[3] == f"| kind 1 | {cell} | – |"


def test_a_victim_is_named_on_its_first_row_and_twins_stand_below() -> None:
    twins = [replace(each, row={**each.row, "poison_rate": 0.0}) for each in of("twin", 2, "none")]
    found = lines(backdoor([*of("kind", 7, "none", "sft"), *twins]), BACKDOOR)
    assert found[0] == "| Victim | Metric | `none` | `sft` |"
    assert [line.split("|")[1] for line in found[2:5]] == [" kind 0 ", "  ", " kind 1 "]
    below = found.index("Victims without any defense:")
    assert found[below + 2] == "| Victim | asr_starts_with | false_trigger_rate |"
    assert found[below + 4].startswith("| twin 0 | ")
    other = lines(backdoor([*of("kind", 7, "none", "sft"), *of("victim", 2, "none")]), BACKDOOR)
    assert "Victims without any defense:" not in other, "which are no twins"


def test_a_victim_costs_no_defense() -> None:
    found = of("kind", 1, "none", "sft")
    assert [each.defense for each in COST.chosen(found)] == ["sft"]
