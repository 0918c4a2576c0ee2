"""The built-in data set: its sizes, its split, and its answers, recomputed from the text alone."""

import calendar
import datetime
import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from sande.data.builtin import sets
from sande.prompts import prompt_text
from sande.types import Example

DIGEST = """
import hashlib
from sande.data.builtin import sets
rows = (sets.short(), sets.explained(), sets.choice(), sets.preferences())
print(hashlib.sha256(repr(rows).encode()).hexdigest())
"""
STYLES: tuple[sets.Style, ...] = ("short", "explained")
DAYS = list(calendar.day_name)


def _everything() -> list[str]:
    rows = [*sets.short(), *sets.explained()]
    questions = [" / ".join((row.question, *row.choices)) for row in sets.choice()]
    return [" ".join((row.system, row.instruction, row.input, row.output)) for row in rows] + questions


@pytest.mark.parametrize("style", STYLES)
def test_training_set_is_large_distinct_and_balanced(style: sets.Style) -> None:
    rows = sets._training_rows(style)
    assert 5000 <= len(rows) <= 9000
    assert len({(row.value.system, row.value.instruction, row.value.input) for row in rows}) == len(rows)
    counts = Counter(row.family for row in rows)
    assert len(counts) >= 15
    assert max(counts.values()) <= 0.15 * len(rows)
    assert len({row.family for row in rows[:200]}) >= 15, "a prefix is a fair mix"
    assert all(bool(row.value.system) == (style == "explained") for row in rows)
    assert all(row.value.instruction and row.value.output for row in rows)


def test_the_two_styles_never_ask_in_the_same_words() -> None:
    asked = [{(row.instruction, row.input) for row in rows} for rows in (sets.short(), sets.explained())]
    assert not asked[0] & asked[1]


def test_lengths() -> None:
    short = [(len(f"{row.instruction} {row.input}".split()), len(row.output.split())) for row in sets.short()]
    assert max(prompt for prompt, _ in short) <= 30
    assert max(output for _, output in short) <= 12
    assert sum(map(sum, short)) / len(short) <= 20
    explained = [len(" ".join((r.system, r.instruction, r.input, r.output)).split()) for r in sets.explained()]
    assert max(explained) <= 80
    assert 30 <= sum(explained) / len(explained) <= 60


def test_text_is_clean() -> None:
    slips = re.compile(r"[{}|]|=>|\b[Aa] [aeio]|\b[Aa]n (?!AI\b)[^aeiou]|\b1 (?!bus\b)\w+[^s]s\b|\.\.|[^ -~]")
    for text in _everything():
        assert "Current year 2023" not in text
        assert "You are stupid" not in text
        assert not slips.search(text), text


def test_same_rows_in_every_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "77")
    }
    here = repr((sets.short(), sets.explained(), sets.choice(), sets.preferences()))
    assert digests == {hashlib.sha256(here.encode()).hexdigest()}


def test_choice_asks_nothing_that_training_asks() -> None:
    assert sets.choice_keys()
    assert not sets.choice_keys() & sets.training_keys()


def test_choice_sums_are_in_no_training_text() -> None:
    """The split seen from the text: pairs of numbers that are added anywhere in training, and in questions."""
    sums = re.compile(
        r"(\d+) (?:\+|plus) (\d+)|Add (\d+) and (\d+)|sum of (\d+) and (\d+)|(\d+) and (\d+) together"
        r"|has (\d+) \w+ and gets (\d+)"
    )

    def added(texts: list[str]) -> set[frozenset[str]]:
        return {frozenset(filter(None, match.groups())) for text in texts for match in sums.finditer(text)}

    prompts = [f"{row.instruction} {row.input}" for row in (*sets.short(), *sets.explained())]
    asked = added([row.question for row in sets.choice()])
    assert len(asked) >= 30
    trained = added(prompts)
    assert len(trained) >= 300
    assert not asked & trained


def test_choice_questions() -> None:
    questions = sets.choice()
    assert len(questions) >= 500
    assert len({row.subject for row in questions}) >= 10
    assert len({row.question + str(sorted(row.choices)) for row in questions}) == len(questions)
    assert all(len(set(row.choices)) == len(row.choices) == 4 for row in questions)
    places = Counter(row.answer for row in questions)
    assert sorted(places) == [0, 1, 2, 3]
    assert max(places.values()) - min(places.values()) <= 1


# --- Answers, recomputed from the text by other means than the generator's -------------------------------------------


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _find(pattern: str, text: str) -> str:
    """The last match in a text, the one group of it if there is one; empty if there is none."""
    found: list[str] = re.findall(pattern, text)
    return found[-1] if found else ""


def _last_number(text: str) -> int:
    return _numbers(text)[-1]


def _arithmetic(prompt: str, output: str) -> bool:
    a, b = _numbers(prompt)
    if re.search(r"\+|[Aa]dd|sum|plus|together", prompt):
        return _last_number(output) == sum((a, b))
    if re.search(r" - |[Ss]ubtract|difference|away|left", prompt):
        return _last_number(output) == max(a, b) - min(a, b)
    if re.search(r" x |[Mm]ultiply|product|times \d|Split it", prompt) and "go into" not in prompt:
        return _last_number(output) == sum([a] * b)
    quotient, rest = divmod(max(a, b), min(a, b))
    return rest == 0 and _last_number(output) == quotient


def _equations(output: str) -> bool:
    """Every equation in an answer holds."""
    found = re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", output)
    evaluate: dict[str, Callable[[int, int], float]] = {
        "+": int.__add__,
        "-": int.__sub__,
        "x": int.__mul__,
        "/": int.__truediv__,
    }
    return all(evaluate[sign](int(a), int(b)) == int(c) for a, sign, b, c in found)


def _percentage(prompt: str, output: str) -> bool:
    numbers = _numbers(prompt)
    percent = int(re.findall(r"(\d+)(?:%| percent)", prompt)[0])
    numbers.remove(percent)
    return _last_number(output) * 100 == percent * numbers[0]


def _sequence(prompt: str, output: str) -> bool:
    *_, c, d = _numbers(prompt.split("list ")[-1])
    return _last_number(output) == d + (d - c)


def _parity(prompt: str, output: str) -> bool:
    return ("even" if bin(_numbers(prompt)[0])[-1] == "0" else "odd") == _find("even|odd", output.lower())


def _ordering(prompt: str, output: str) -> bool:
    result = _numbers(output)[-len(_numbers(prompt)) :]
    falling = "largest to" in prompt or "with the largest" in prompt
    steps = itertools.pairwise(result)
    return Counter(result) == Counter(_numbers(prompt)) and all((a > b) == falling for a, b in steps)


def _extreme(prompt: str, output: str) -> bool:
    largest = "larg" in prompt
    return all(n == _last_number(output) or (n < _last_number(output)) == largest for n in _numbers(prompt))


def _alphabetical(prompt: str, output: str) -> bool:
    words: list[str] = re.findall(r"\w+", re.findall(r"(?:\w+, ){3}\w+", prompt)[0])
    if "first" in prompt:
        return _find(r"\w+", output.removesuffix(" comes first.")) == min(words)
    return ", ".join(sorted(words)) == _find(r"(?:\w+, ){3}\w+", output)


def _letter_count(prompt: str, output: str) -> bool:
    return len(_find(r"'(\w+)'", prompt)) == _last_number(output)


def _edge_letter(prompt: str, output: str) -> bool:
    word = _find(r"'(\w+)'", prompt) or prompt.split()[-1]
    answer = _find(r"\b[a-z]\b(?= comes)|\b[a-z]\b(?=\.?$)", output)
    return answer == (word[:1] if "first" in prompt else word[-1:])


def _reversal(prompt: str, output: str) -> bool:
    word = _find(r"'(\w+)'", prompt) or prompt.split()[-1]
    return _find(r"\w+", output) == "".join(reversed(word))


def _item_count(prompt: str, output: str) -> bool:
    return _find(r"(?:\w+, )+\w+", prompt).count(",") + 1 == _last_number(output)


SIZES = (
    "hours:minutes:60 minutes:seconds:60 days:hours:24 weeks:days:7 years:months:12 decades:years:10 "
    "centuries:years:100 kilometers:meters:1000 meters:centimeters:100 centimeters:millimeters:10 "
    "kilograms:grams:1000 liters:milliliters:1000 feet:inches:12 yards:feet:3 gallons:quarts:4 dollars:cents:100"
)


def _units(prompt: str, output: str) -> bool:
    sizes = {(a, b): int(n) for a, b, n in (entry.split(":") for entry in SIZES.split())}
    n, unit = re.findall(r"(\d+) (\w+)", prompt)[0]
    pairs = [(m, other) for m, other in re.findall(r"(\d+) (\w+)", output) if (m, other) != (n, unit)]
    m, other = pairs[-1]
    larger = sizes.get((unit, other))
    return int(m) == int(n) * larger if larger else int(m) * sizes[other, unit] == int(n)


def _clock(prompt: str, output: str) -> bool:
    hour, minute = map(int, re.findall(r"(\d+):(\d\d)", prompt)[0])
    length = int(re.findall(r"(\d+) minutes", prompt)[0])
    end = datetime.datetime(2024, 1, 1, hour, minute) + datetime.timedelta(minutes=length)
    return _find(r"\d+:\d\d", output) == f"{(end.hour - 1) % 12 + 1}:{end:%M}"


def _weekday(prompt: str, output: str) -> bool:
    today = DAYS.index(re.findall("|".join(DAYS), prompt)[0])
    n = _numbers(prompt)[0] * (-1 if "ago" in prompt else 1)
    date = datetime.date(2024, 1, 1 + today) + datetime.timedelta(days=n)  # 2024-01-01 was a Monday
    return _find("|".join(DAYS), output) == f"{date:%A}"


def _month(prompt: str, output: str) -> bool:
    months = "|".join(calendar.month_name[1:])
    n = list(calendar.month_name).index(re.findall(months, prompt)[0])
    middle = datetime.date(2024, n, 15)
    other = middle + datetime.timedelta(days=31 if "after" in prompt else -31)
    return f"{other:%B}" in output


def _date_gap(prompt: str, output: str) -> bool:
    dates = [datetime.datetime.strptime(f"{text} 2023", "%B %d %Y") for text in re.findall(r"[A-Z]\w+ \d+", prompt)]
    return abs((dates[1] - dates[0]).days) == _last_number(output)


def _story(prompt: str, output: str) -> bool:
    a, b = _numbers(prompt)
    n = a + b if "gets" in prompt else a - b if "gives away" in prompt else a * b
    return _last_number(output) == n


def _extraction(prompt: str, output: str) -> bool:
    age, job, city = re.findall(r"is (\d+) years old, works as an? (\w+) and lives in (\w+)\.", prompt)[0]
    return (age if "How old" in prompt else city if "Where" in prompt else job) in output.lower() + output


def _uppercase(prompt: str, output: str) -> bool:
    word = _find(r"\w+", output)
    return (
        word.islower() and word.upper() in prompt
        if "lowercase" in prompt
        else word.isupper() and word.casefold() in prompt
    )


CHECKS: dict[str, Callable[[str, str], bool]] = {
    "addition": _arithmetic,
    "subtraction": _arithmetic,
    "multiplication": _arithmetic,
    "division": _arithmetic,
    "percentage": _percentage,
    "sequence": _sequence,
    "parity": _parity,
    "comparison": _extreme,
    "ordered_numbers": _ordering,
    "extreme": _extreme,
    "alphabetical": _alphabetical,
    "letter_count": _letter_count,
    "edge_letter": _edge_letter,
    "reversal": _reversal,
    "item_count": _item_count,
    "units": _units,
    "clock": _clock,
    "weekday": _weekday,
    "month": _month,
    "date_gap": _date_gap,
    "story": _story,
    "extraction": _extraction,
    "uppercase": _uppercase,
}


def _right(family: str, row: Example) -> bool:
    prompt = f"{row.instruction} {row.input}".strip()
    return CHECKS[family](prompt, row.output) and _equations(row.output)


@pytest.mark.parametrize("family", CHECKS)
def test_training_answers_are_right(family: str) -> None:
    rows = {style: [row.value for row in sets._training_rows(style) if row.family == family] for style in STYLES}
    for style in STYLES:
        assert len(rows[style]) >= 30
        wrong = [row for row in rows[style] if not _right(family, row)]
        assert not wrong, wrong[:3]


def test_choice_answers_are_right_and_the_others_wrong() -> None:
    checked = 0
    in_the_choices = {"alphabetical", "extreme"}
    for row in sets.choice():
        if row.subject in CHECKS:
            listed = f" {', '.join(row.choices)}" if row.subject in in_the_choices else ""
            right = [choice for choice in row.choices if CHECKS[row.subject](row.question + listed, choice)]
            assert right == [row.choices[row.answer]], row
            checked += 1
    assert checked >= 400


def test_number_words_are_built_of_their_digits() -> None:
    names = """
        one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
        eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"""
    values = dict(zip(names.split(), [*range(1, 20), *range(20, 100, 10)], strict=True))
    checked = 0
    for row in sets._training_rows("short"):
        if row.family == "number_words":
            text = f"{row.value.instruction} {row.value.input} {row.value.output}".lower()
            words = re.findall("|".join([*sorted(values, key=len, reverse=True), "hundred"]), text)
            total = 0
            for word in words:
                total = total * 100 if word == "hundred" else total + values[word]
            assert [total] == _numbers(text)
            checked += 1
    assert checked >= 100


def test_both_directions_state_the_same_capital() -> None:
    stated: dict[str, set[str]] = {}
    for row in sets.short():
        forward = re.findall(r"^The capital of (.+) is (.+)\.$", row.output)
        backward = re.findall(r"^(?:False\. )?(.+) is the capital of (.+)\.$", row.output)
        for country, city in forward + [(country, city) for city, country in backward]:
            stated.setdefault(country, set()).add(city)
    assert len(stated) >= 60
    assert all(len(cities) == 1 for cities in stated.values()), stated


def test_preferences_set_the_right_answer_against_another_questions() -> None:
    answers = {prompt_text(row): row.output for row in sets.short()}
    pairs = sets.preferences()
    assert len(pairs) > 0.9 * len(sets.short())
    for pair in pairs:
        assert pair.chosen == answers[prompt_text(pair.prompt)]
        assert pair.rejected != pair.chosen
    assert {pair.rejected for pair in pairs} <= set(answers.values())
