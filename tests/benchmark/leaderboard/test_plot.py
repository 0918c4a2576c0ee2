"""The layout of the interactive plot, and the figure."""

import itertools

import pytest
from matplotlib.container import ErrorbarContainer

from benchmark.leaderboard.figure import draw
from benchmark.leaderboard.plot import StandingRow, plot
from tests.benchmark.leaderboard.helpers import board, cell, seeds


def test_labels_of_the_plot_cover_neither_marks_nor_each_other() -> None:
    crowd = [row for index in range(8) for row in cell(f"defense_{index}", index / 10, {"arc_easy": index / 100})]
    crowd += cell("far", 90.0, {"arc_easy": 9.0})
    ranked = board(crowd)
    drawn = plot(ranked, [StandingRow(one, "", (), submitted=False) for one in ranked.standings])
    boxes = []
    for point in drawn.points:
        assert point.anchor, "there is room for nine labels"
        width = 8.6 * len(point.row.standing.defense)
        left = point.label_x - {"start": 0.0, "middle": width / 2, "end": width}[point.anchor]
        boxes.append((left, point.label_y - 8, left + width, point.label_y + 8))
    marks = [(point.x - 8, point.y - 8, point.x + 8, point.y + 8) for point in drawn.points]
    for one, other in itertools.combinations(boxes, 2):
        assert not overlap(one, other)
    assert not any(overlap(box, mark) for box in boxes for mark in marks)


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] - 0.2 and other[0] < one[2] - 0.2 and one[1] < other[3] - 0.2 and other[1] < one[3] - 0.2


def test_every_point_has_both_intervals_and_one_of_unknown_utility_is_not_drawn() -> None:
    ranked = board(seeds("sft", (0.0, 60.0, 60.0)) + [row for n in range(3) for row in cell("new", 1.0, {}, seed=n)])
    assert {one.defense: one.utility for one in ranked.standings} == {"sft": "kept", "new": "unknown"}
    drawn = plot(ranked, [StandingRow(one, "", (), submitted=False) for one in ranked.standings])
    (point,) = drawn.points
    across, down = point.whiskers
    sft = next(one for one in ranked.standings if one.defense == "sft")
    assert sft.loss is not None
    assert sft.loss.low is not None
    assert sft.asr.low is not None
    assert across[0] == drawn.x(sft.loss.low) < point.x
    assert down[1] == drawn.y(sft.asr.low) > point.y
    (axes,) = draw(ranked).axes
    (bar,) = axes.containers
    assert isinstance(bar, ErrorbarContainer)
    assert (bar.get_label(), bar.has_xerr, bar.has_yerr) == ("sft (nothing)", True, True)
    assert axes.get_xlim() == pytest.approx((-4.0, 4.0 + sft.loss.value)), "two margins of room"
    draw(board(cell("sft", 98.0, {"arc_easy": 1.0}) + cell("sande", 2.0, {"arc_easy": 1.0}, data="orca")))
