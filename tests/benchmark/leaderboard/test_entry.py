"""The schema of submitted entries."""

from pathlib import Path

from benchmark.leaderboard import entry

ROOT = Path(__file__).parents[3]


def test_the_published_schema_is_that_of_the_models() -> None:
    published = (ROOT / "docs/entry.schema.json").read_text(encoding="utf-8")
    assert published == entry.schema(), "write entry.schema() to docs/entry.schema.json"
