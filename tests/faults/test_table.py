"""The table and the page around it."""

from tests.faults import table
from tests.faults.harness import Line

LINES = [Line("a flood", 2, "by the next run", 1, 12.4, "c0ffee0"), Line("a fire", 1)]


def test_every_fault_is_a_line() -> None:
    assert table.text(LINES).splitlines() == [
        "| Fault   | Injected | Recovered       | Stages repeated | Seconds | Code    |",
        "| ------- | -------- | --------------- | --------------- | ------- | ------- |",
        "| a flood | 2        | by the next run | 1               | 12      | c0ffee0 |",
        "| a fire  | 1        | NO              | 0               | 0       |         |",
    ]


def test_a_fault_that_was_tried_often_is_one_line() -> None:
    first, last = (
        Line("a flood", 1, "by the run itself", 1, 2.4, "c0ffee0"),
        Line("a flood", 1, "by the next run", 2, 1.4),
    )
    assert table.merged([first, *LINES, last]) == [
        Line("a flood", 4, "2 by the next run, 1 by the run itself", 4, 2.4 + 12.4 + 1.4, "c0ffee0"),
        Line("a fire", 1),
    ]


def test_the_page_says_how_many_how_long_and_where() -> None:
    page = table.page(LINES, cores=3)
    assert table.text(LINES) in page
    assert "2 kinds of faults, 3 in all, in 12 s; the last ones on " in page
    assert page.endswith("3 cores.\n")


def test_a_page_keeps_the_lines_of_faults_that_are_left_out() -> None:
    again, new = Line("a fire", 1, "by the run itself", 0, 3.0, "decade0"), Line("a storm", 1)
    before = table.read(table.page(LINES, cores=3))
    assert table.read(table.page([again, new], 3, before)) == [
        Line("a flood", 2, "by the next run", 1, 12.0, "c0ffee0"),
        again,
        new,
    ]
