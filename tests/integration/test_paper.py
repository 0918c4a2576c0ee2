"""Every grid of the paper on the model `tiny`: the same command as `make paper-smoke`."""

import re

import pytest

from tests.integration.helpers import ROOT, Workplace

TABLES = {f"table_{number}" for number in range(1, 9)} | {"figure_2", "figure_3"}
FIGURES = {"figure_2", "figure_3"}


@pytest.mark.slow
def test_the_whole_paper_runs_and_every_table_and_figure_appears(place: Workplace) -> None:
    grid = ROOT / "grids" / "paper.yaml"
    done = place.run(grid, "--scale", "tiny", "--set", "resources.cpus=1", timeout=1200)
    assert done.returncode == 0, done.stderr
    results = place.results / "paper-tiny"
    assert {path.stem for path in (results / "tables").glob("*.md")} >= TABLES
    for suffix in ("png", "svg"):
        assert {path.stem for path in (results / "figures").glob(f"*.{suffix}")} >= FIGURES
    page = (results / "README.md").read_text()
    assert re.search(r"failed: 0\b", page)
    assert all(f"Table {number}" in page for number in range(1, 9))
