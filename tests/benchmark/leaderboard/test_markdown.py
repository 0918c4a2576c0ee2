"""The leaderboard as a Markdown page."""

from pathlib import Path

from benchmark.leaderboard.markdown import markdown
from benchmark.leaderboard.rank import ladder
from tests.benchmark.leaderboard.helpers import board, cell


def test_each_level_of_knowledge_shows_what_leaves_the_least_of_the_backdoor(tmp_path: Path) -> None:
    made = board(
        [
            *cell("sft", 95.0, {"mmlu": 0.0}),
            *cell("new", 20.0, {"mmlu": 2.0}),
            *cell("sande", 3.0, {"mmlu": 1.5}),
            *cell("osft", 0.0, {"mmlu": 1.0}),
        ]
    )
    assert [(level, found[0].defense) for level, found in ladder(made.standings).items()] == [
        ("trigger", "osft"),
        ("response", "sande"),
        ("nothing", "new"),
    ]
    page = markdown(made, [tmp_path])
    section = page[page.index("## What knowledge is worth") :]
    assert "| nothing | `new` | 20.0 | +2.00 | 60 GPU-s on NVIDIA H100 80GB HBM3 |" in section
    assert "`sft`" not in section
    assert section.index("| trigger |") < section.index("| response |") < section.index("| nothing |")


def test_without_a_shared_case_or_a_second_level_there_is_no_ladder(tmp_path: Path) -> None:
    apart = [*cell("osft", 0.0, {"mmlu": 1.0}), *cell("sft", 95.0, {"mmlu": 0.0}, data="orca")]
    alike = [*cell("sft", 95.0, {"mmlu": 1.0}), *cell("new", 20.0, {"mmlu": 0.0})]
    for found in (apart, alike):
        assert "What knowledge is worth" not in markdown(board(found), [tmp_path])
