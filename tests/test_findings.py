"""The tables of docs/findings/ say what the published results that their section links to say."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sande import registry

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs/findings").glob("*.md"))
DEFENSES = frozenset(registry.names("defenses"))
# Sections whose tables hold means that the results do not: over victims of several labels.
BY_HAND = ("Clean a model, knowing nothing", "Why parrots fall short at small scale")
LEFT_OUT = ("rows.parquet", "outcomes.parquet")  # single cells, of which there are too many to miss a number


def sections() -> dict[str, str]:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    parts = re.split(r"^#+ (.*)\n", text, flags=re.MULTILINE)
    return {head: text for head, text in zip(parts[1::2], parts[2::2], strict=True) if "\n| " in text}


def table_rows(text: str) -> list[tuple[str | None, list[float]]]:
    """Each row of the tables with a number that has decimals: the defense that it names, if it names one, and these."""
    found = []
    for line in text.splitlines():
        names = [name for name in re.findall(r"`(\w+)`", line.split("|")[1]) if name in DEFENSES] if "|" in line else []
        numbers = [float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+", line)] if line.startswith("|") else []
        found += [(names[0] if names else None, numbers)] if numbers else []
    return found


def floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield abs(value)
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from floats(each)


@cache
def published(name: str) -> dict[str | None, frozenset[str]]:
    """All numbers of a folder's tables as they may be written, by defense; by None those of all."""
    found: dict[str | None, set[str]] = {None: set()}
    for path in sorted((ROOT / "results" / "published" / name).rglob("*.parquet")):
        if path.name in LEFT_OUT:
            continue
        for row in pq.read_table(path).to_pylist():
            written = {f"{number:.{digits}f}" for number in floats(row) for digits in (1, 2)}
            label = str(row.get("row") or row.get("defense") or "").split(",")[0]
            found[None] |= written
            found.setdefault(label, set()).update(written)
    return {label: frozenset(numbers) for label, numbers in found.items()}


@pytest.mark.parametrize("section", [head for head in sections() if head not in BY_HAND])
def test_numbers_of_the_tables_are_published(section: str) -> None:
    text = sections()[section]
    names = sorted(set(re.findall(r"results/published/([\w-]+)/", text)))
    assert names, "the section links to no published results"
    known = [published(name) for name in names]
    for defense, numbers in table_rows(text):
        at_hand = frozenset().union(*(one.get(defense, one[None]) for one in known))
        missing = [number for number in numbers if not {f"{number:.1f}", f"{number:.2f}"} & at_hand]
        assert not missing, f"{defense}: {missing} stand in no table of {', '.join(names)}"


def test_a_number_that_is_not_published_is_noticed() -> None:
    known = published("quickstart")
    assert "94.0" in known["sft"]
    assert "94.0" not in known["osft"]
    assert table_rows("| `sft` | 3 | 94.0 (87.5 to 97.2) |\n\ntext 1.5") == [("sft", [94.0, 87.5, 97.2])]
