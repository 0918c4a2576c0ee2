"""The shape of a table: its labels, and victims without any defense."""

from benchmark.records.aggregate import TableEntry
from benchmark.report import tables
from benchmark.report.layouts import ASR
from tests.benchmark.report.test_figures import entry


def lines(found: list[TableEntry]) -> list[str]:
    return tables.markdown(ASR, found).splitlines()[2:]


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
