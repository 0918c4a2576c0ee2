"""The table and the page around it."""

from tests.faults import table
from tests.faults.harness import Line

LINES = [Line("a flood", 2, "by the next run", 1, 12.4), Line("a fire", 1)]


def test_every_fault_is_a_line() -> None:
    assert table.text(LINES).splitlines() == [
        "| Fault   | Injected | Recovered       | Stages repeated | Seconds |",
        "| ------- | -------- | --------------- | --------------- | ------- |",
        "| a flood | 2        | by the next run | 1               | 12      |",
        "| a fire  | 1        | NO              | 0               | 0       |",
    ]


def test_a_fault_that_was_tried_often_is_one_line() -> None:
    often = [Line("a flood", 1, "by the run itself", 1, 2.4), *LINES, Line("a flood", 1, "by the next run", 2, 1.4)]
    assert table.merged(often) == [
        Line("a flood", 4, "2 by the next run, 1 by the run itself", 4, 2.4 + 12.4 + 1.4),
        Line("a fire", 1),
    ]


def test_the_page_says_how_many_how_long_and_where() -> None:
    page = table.page(LINES, cores=3)
    assert table.text(LINES) in page
    assert "2 faults in 12 s, on " in page
    assert page.endswith("3 cores.\n")
