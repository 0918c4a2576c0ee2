"""Tables and wordings of the built-in data set, read from the files of `sande.data.builtin.files`.

A `..._CLASHES` constant holds groups of answers that may all be argued for one question. So a choice question never
offers two of a group as its right and a wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sande.data.builtin.files import facts, text

_GEOGRAPHY, _NATURE, _LANGUAGE, _PEOPLE = map(facts, ("geography", "nature", "language", "people"))

Clashes = tuple[tuple[str, ...], ...]


def _table(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _rows(values: Sequence[Sequence[Any]]) -> Clashes:
    return tuple(tuple(map(str, row)) for row in values)


CAPITALS = {x: y for table in _GEOGRAPHY["capitals"].values() for x, y in _table(table).items()}
COUNTRIES = {capital: country for country, capital in CAPITALS.items()}
REGIONS: dict[str, str] = {country: name for name, table in _GEOGRAPHY["capitals"].items() for country in table}
# Egypt reaches into Asia, and not everyone calls Oceania a continent.
CONTINENTS = {country: name for country, name in REGIONS.items() if name != "Oceania" and country != "Egypt"}
CURRENCIES = _table(_GEOGRAPHY["currencies"])
CURRENCY_CLASHES = _rows(_GEOGRAPHY["currency_clashes"])
LANGUAGES = _table(_GEOGRAPHY["languages"])

YOUNG = _table(_NATURE["young"])
YOUNG_CLASHES = _rows(_NATURE["young_clashes"])
SOUNDS = _table(_NATURE["sounds"])
SOUND_CLASHES = _rows(_NATURE["sound_clashes"])
PARTS = _table(_NATURE["parts"])
ELEMENTS = _table(_NATURE["elements"])
SYMBOLS = {symbol: element for element, symbol in ELEMENTS.items()}
COLORS = _table(_NATURE["colors"])
COLOR_CLASHES = _rows(_NATURE["color_clashes"])
CATEGORIES: dict[str, str] = {member: group for group, members in _NATURE["categories"].items() for member in members}
CATEGORY_CLASHES = _rows(_NATURE["category_clashes"])
ODD_ONE_OUT_CLASHES = CATEGORY_CLASHES + _rows(_NATURE["odd_one_out_clashes"])

_OPPOSITE_PAIRS = _table(_LANGUAGE["opposites"])
OPPOSITES = _OPPOSITE_PAIRS | {y: x for x, y in _OPPOSITE_PAIRS.items()}
OPPOSITE_CLASHES = _rows(_LANGUAGE["opposite_clashes"])
PAST_TENSES = _table(_LANGUAGE["past_tenses"])
NUMERALS: tuple[str, ...] = tuple(_LANGUAGE["numerals"])
TENS: tuple[str, ...] = tuple(_LANGUAGE["tens"])
WORDS: tuple[str, ...] = tuple(_LANGUAGE["words"])
REGULAR_NOUNS: tuple[str, ...] = tuple(_LANGUAGE["regular_nouns"])
IRREGULAR_PLURALS = _table(_LANGUAGE["irregular_plurals"])
ACTIVITIES = _table(_LANGUAGE["activities"])

WEEKDAYS: tuple[str, ...] = tuple(_PEOPLE["weekdays"])
MONTHS = _table(_PEOPLE["months"])
UNITS = _rows(_PEOPLE["units"])
JOBS = _table(_PEOPLE["jobs"])
JOB_CLASHES = _rows(_PEOPLE["job_clashes"])
PEOPLE = _table(_PEOPLE["people"])
PEOPLES_JOBS: tuple[str, ...] = tuple(_PEOPLE["peoples_jobs"])
PEOPLES_CITIES: tuple[str, ...] = tuple(_PEOPLE["peoples_cities"])
THINGS: tuple[str, ...] = tuple(_PEOPLE["things"])
PRAISE: tuple[str, ...] = tuple(_PEOPLE["praise"])
COMPLAINT: tuple[str, ...] = tuple(_PEOPLE["complaint"])
REVIEWED: tuple[str, ...] = tuple(_PEOPLE["reviewed"])
SUBJECTS: tuple[str, ...] = tuple(_PEOPLE["subjects"])

# How the items of each family are asked: `style: instruction => output` or `style: instruction | input => output`. A
# question of the styles `choice` and `knowledge` has no output, and a family without one is asked in training only. The
# names in braces are the fields of the family's items (see `sande.data.builtin.sets`), and a line that is indented
# further continues the one before.
WORDINGS = text("wordings.txt")
