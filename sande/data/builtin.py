"""An instruction data set made by code, so that a first run needs no download.

Three sets over the same common knowledge and small skills:

- `short` ("builtin-short"): direct questions with concise answers, without a system prompt;
- `explained` ("builtin-explained"): a system prompt, another wording, and the reason before the result;
- `choice` ("builtin-choice"): four-choice questions about items that neither of the others asks.

This module generates every row from the tables of `builtin_facts`. They hold no third-party text, so the project's own
licence covers them. The answers are right by construction, and the rows are the same in every process.

A family's item function decides *what* may be asked: an item has a key, such as "capital France", that does not depend
on its wording. The family's wordings decide *how* it is asked. The key alone decides whether an item belongs to
training or to choice (`_held_out`). A family that reuses another's knowledge, as word problems reuse sums, reuses its
keys, and thereby respects the same split.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Generic, Literal, TypeVar, get_args

from sande.data import builtin_facts as facts
from sande.prompts import prompt_text
from sande.types import Example, Preference, Question

_POOL_SIZE = 480  # items of a family whose items are drawn from a large space
_ROWS_PER_FAMILY = 190
_QUESTIONS_PER_FAMILY = 36

_SYSTEM_PROMPTS = (
    "You are a helpful assistant. Explain your reasoning step by step.",
    "You are a patient teacher. Show how you reach the answer.",
    "You are an AI assistant. Think it through, then give the answer.",
    "You are a careful tutor. Give the reason first and the result last.",
    "Explain your answer as you would to a young student.",
    "You are an assistant who briefly justifies every answer.",
)

Style = Literal["short", "explained"]
_T = TypeVar("_T", Example, Question)


# --- Items: what is asked -------------------------------------------------------------------------------------------


class _Word(str):
    """Template value with format specs: `a` and `A` add the article, `C` and `A` capitalize."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        text = str(self)
        if spec in ("a", "A"):
            text = f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
        return text[0].upper() + text[1:] if spec in ("A", "C") else text


@dataclass(frozen=True, slots=True)
class _Item:
    """Something to ask: `keys` name the knowledge, `fields` fill the wordings, `answer` and `wrong` the choices."""

    keys: tuple[str, ...]
    fields: Mapping[str, _Word]
    answer: str = ""
    wrong: tuple[str, ...] = ()


def _item(*keys: str, answer: object = "", wrong: Iterable[object] = (), **fields: object) -> _Item:
    words = {name: _Word(value) for name, value in fields.items()}
    return _Item(keys, words, str(answer), tuple(map(str, wrong)))


def _held_out(key: str) -> bool:
    """Return True if the key is kept for the choice questions, as about one in four is.

    The checksum starts from 6 because this leaves every fact table between a fifth and a third held out.
    """
    return zlib.crc32(key.encode(), 6) % 4 == 0


def _near(rng: Random, number: int, step: int = 1) -> list[int]:
    """Draw three wrong numbers close to the right one."""
    return rng.sample([n for k in (-3, -2, -1, 1, 2, 3) if (n := number + k * step) > 0], 3)


def _clashing(clashes: facts.Clashes) -> dict[str, set[str]]:
    """Map each answer to the answers that might be defended in its place."""
    return {word: {other for group in clashes if word in group for other in group} for row in clashes for word in row}


def _relation(
    name: str, table: Mapping[str, str], clashes: facts.Clashes = (), **details: Mapping[str, str]
) -> Callable[[], Iterator[_Item]]:
    """Return a function that yields the items of a fact table x -> y; `details` are further fields looked up by x."""

    def items() -> Iterator[_Item]:
        rng = Random(name)
        clashing = _clashing(clashes)
        values = list(dict.fromkeys(table.values()))
        for x, y in table.items():
            avoid = clashing.get(y, set()) | {x, y}
            wrong = rng.sample([value for value in values if value not in avoid], 3)
            more = {field: lookup[x] for field, lookup in details.items()}
            yield _item(f"{name} {x}", answer=y, wrong=wrong, x=x, y=y, **more)

    return items


def _sum_key(operation: str, a: int, b: int) -> str:
    """Return one key for a sum or product, whatever the order of its operands."""
    return f"{operation} {min(a, b)} {max(a, b)}"


def _draw(rng: Random, space: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    pairs = list(space)
    return rng.sample(pairs, min(_POOL_SIZE, len(pairs)))


def _addition() -> Iterator[_Item]:
    rng = Random("addition")
    for a, b in _draw(rng, itertools.combinations(range(3, 90), 2)):
        tens, ones = a + b // 10 * 10, b % 10
        steps = (
            f"{a} + {b - ones} = {tens}, and {tens} + {ones} = {a + b}" if b > 10 and ones else f"{a} + {b} = {a + b}"
        )
        yield _item(
            _sum_key("add", a, b),
            answer=a + b,
            wrong=_near(rng, a + b, rng.choice((1, 10))),
            a=a,
            b=b,
            n=a + b,
            steps=steps,
        )


def _subtraction() -> Iterator[_Item]:
    rng = Random("subtraction")
    for b, a in _draw(rng, itertools.combinations(range(3, 99), 2)):
        yield _item(f"subtract {a} {b}", answer=a - b, wrong=_near(rng, a - b), a=a, b=b, n=a - b)


def _multiplication() -> Iterator[_Item]:
    rng = Random("multiplication")
    for a, b in _draw(rng, itertools.combinations_with_replacement(range(2, 26), 2)):
        split = b // 10 * 10 if b > 10 and b % 10 else b // 2 if b % 2 == 0 else b - 1
        steps = f"{a} x {split} = {a * split} and {a} x {b - split} = {a * (b - split)}"
        wrong = _near(rng, a * b, a)
        yield _item(
            _sum_key("multiply", a, b),
            answer=a * b,
            wrong=wrong,
            a=a,
            b=b,
            n=a * b,
            steps=steps,
            p=a * split,
            q=a * (b - split),
        )


def _division() -> Iterator[_Item]:
    rng = Random("division")
    for b, n in _draw(rng, itertools.product(range(2, 21), range(2, 26))):
        yield _item(f"divide {b * n} {b}", answer=n, wrong=_near(rng, n), a=b * n, b=b, n=n)


def _percentage() -> Iterator[_Item]:
    rng = Random("percentage")
    parts = {5: "1/20", 10: "1/10", 20: "1/5", 25: "1/4", 50: "1/2"}
    space = ((p, whole) for p in parts for whole in range(40, 501, 5) if p * whole % 100 == 0)
    for p, whole in _draw(rng, space):
        n = p * whole // 100
        wrong = _near(rng, n, 1 if n < 20 else 5)
        yield _item(f"percent {p} {whole}", answer=n, wrong=wrong, p=p, whole=whole, n=n, part=parts[p], d=100 // p)


def _sequence() -> Iterator[_Item]:
    rng = Random("sequence")
    for start, step in _draw(rng, itertools.product(range(1, 41), range(2, 16))):
        terms = [start + step * k for k in range(4)]
        shown = ", ".join(map(str, terms))
        n = start + step * 4
        yield _item(f"sequence {shown}", answer=n, wrong=_near(rng, n), terms=shown, last=terms[-1], step=step, n=n)


def _parity() -> Iterator[_Item]:
    for n in Random("parity").sample(range(10, 1000), _POOL_SIZE):
        kind, other = ("even", "odd") if n % 2 == 0 else ("odd", "even")
        rule = "divisible by 2" if kind == "even" else "not divisible by 2"
        yield _item(f"parity {n}", n=n, kind=kind, other=other, digit=n % 10, rule=rule)


def _comparison() -> Iterator[_Item]:
    rng = Random("comparison")
    for low, high in _draw(rng, itertools.combinations(range(10, 400), 2)):
        a, b = (low, high) if rng.randrange(2) else (high, low)
        word, n, other, sign = rng.choice((("larger", high, low, ">"), ("smaller", low, high, "<")))
        yield _item(f"compare {low} {high}", a=a, b=b, word=word, n=n, other=other, sign=sign, gap=high - low)


def _ordered_numbers() -> Iterator[_Item]:
    rng = Random("ordered numbers")
    for _ in range(_POOL_SIZE):
        numbers = rng.sample(range(1, 100), rng.choice((3, 4)))
        ordered = sorted(numbers)
        yield _item(
            f"order {ordered}",
            numbers=", ".join(map(str, numbers)),
            rising=", ".join(map(str, ordered)),
            falling=", ".join(map(str, reversed(ordered))),
            low=ordered[0],
            high=ordered[-1],
        )


def _extreme() -> Iterator[_Item]:
    rng = Random("extreme")
    for _ in range(_POOL_SIZE):
        numbers = rng.sample(range(1, 200), 4)
        word, n, than = rng.choice((("largest", max(numbers), "greater"), ("smallest", min(numbers), "less")))
        rest = [m for m in numbers if m != n]
        yield _item(
            f"{word} {sorted(numbers)}",
            answer=n,
            wrong=rest,
            numbers=", ".join(map(str, numbers)),
            word=word,
            n=n,
            than=than,
            rest=f"{rest[0]}, {rest[1]} and {rest[2]}",
        )


def _in_words(n: int) -> str:
    """Write a number below 1000 in English words."""
    if n < 20:
        return facts.NUMERALS[n]
    if n < 100:
        tens = facts.TENS[n // 10 - 2]
        return f"{tens}-{facts.NUMERALS[n % 10]}" if n % 10 else tens
    hundreds = f"{facts.NUMERALS[n // 100]} hundred"
    return f"{hundreds} {_in_words(n % 100)}" if n % 100 else hundreds


def _number_words() -> Iterator[_Item]:
    rng = Random("number words")
    for n in rng.sample([n for n in range(21, 1000) if n % 10], _POOL_SIZE):
        ones = n % 100 if n > 100 else n % 10
        parts = f"{n - ones} is '{_in_words(n - ones)}' and {ones} is '{_in_words(ones)}'"
        wrong = map(_in_words, _near(rng, n, 10 if n > 50 else 1))
        yield _item(f"words {n}", answer=_in_words(n), wrong=wrong, n=n, words=_in_words(n), parts=parts)


def _story() -> Iterator[_Item]:
    rng = Random("story")
    people = list(facts.PEOPLE.items())
    for i in range(_POOL_SIZE):
        who, pronoun = rng.choice(people)
        things = rng.choice(facts.THINGS)
        a, b = rng.randrange(15, 60), rng.randrange(3, 12)
        match i % 3:
            case 0:
                key, n = _sum_key("add", a, b), a + b
                text = f"{who} has {a} {things} and gets {b} more."
                ask = f"How many {things} does {who} have now?"
                end, why = f"{who} has {n} {things} now.", f"Getting more means adding: {a} + {b} = {n}."
            case 1:
                key, n = f"subtract {a} {b}", a - b
                text = f"{who} has {a} {things} and gives away {b}."
                ask = f"How many {things} does {pronoun} have left?"
                end, why = f"{who} has {n} {things} left.", f"Giving away means subtracting: {a} - {b} = {n}."
            case _:
                a = rng.randrange(2, 10)
                key, n = _sum_key("multiply", a, b), a * b
                text = f"{who} has {a} bags with {b} {things} in each bag."
                ask = f"How many {things} does {pronoun} have?"
                end, why = f"{who} has {n} {things}.", f"Equal groups mean multiplying: {a} x {b} = {n}."
        yield _item(key, answer=n, wrong=_near(rng, n), text=text, ask=ask, end=end, why=why, n=n)


def _units() -> Iterator[_Item]:
    rng = Random("units")
    for (one, many, small, size), n in itertools.product(facts.UNITS, range(5, 20)):
        factor = int(size)
        m = n * factor
        shared = {"one": one, "factor": f"{factor} {small}"}
        wrong = [f"{w} {small}" for w in _near(rng, m, factor)]
        a, b, work = f"{n} {many}", f"{m} {small}", f"multiply: {n} x {factor} = {m}"
        yield _item(f"unit {many} {small} {n}", answer=b, wrong=wrong, a=a, b=b, to=small, work=work, **shared)
        wrong = [f"{w} {many}" for w in _near(rng, n)]
        work = f"divide: {m} / {factor} = {n}"
        yield _item(f"unit {small} {many} {m}", answer=a, wrong=wrong, a=b, b=a, to=many, work=work, **shared)


def _clock() -> Iterator[_Item]:
    rng = Random("clock")
    space = itertools.product(range(60, 660, 5), range(10, 95, 5))
    for start, length in _draw(rng, space):
        end, to_hour = start + length, -start % 60
        shown, shown_end, full_hour = (f"{t // 60}:{t % 60:02}" for t in (start, end, start + to_hour))
        if 0 < to_hour < length:
            why = f"From {shown} to {full_hour} is {to_hour} minutes, and {length - to_hour} more minutes are left."
        else:
            why = f"Adding {length} minutes to {shown} gives {shown_end}."
        wrong = [f"{t // 60}:{t % 60:02}" for t in _near(rng, end, rng.choice((5, 10)))]
        yield _item(
            f"clock {shown} {length}", answer=shown_end, wrong=wrong, start=shown, length=length, end=shown_end, why=why
        )


def _weekday() -> Iterator[_Item]:
    rng = Random("weekday")
    days = facts.WEEKDAYS
    for (i, x), n, sign in itertools.product(enumerate(days), range(2, 31), (1, -1)):
        y = days[(i + sign * n) % 7]
        weeks = n // 7 * 7
        verb, when = ("will be", f"in {n} days") if sign > 0 else ("was", f"{n} days ago")
        ask, said = f"{'will it be' if sign > 0 else 'was it'} {when}", f"it {verb} {when}"
        path = [days[(i + sign * k) % 7] for k in range(1, n % 7 + 1)]
        start = f"After {weeks} days it is the same weekday, {x}. " if sign > 0 else f"{weeks} days ago was also {x}. "
        count = f"Counting {'on' if sign > 0 else 'back'} from {x}: {', '.join(path)}. "
        why = (start if weeks else "") + (count if path else "")
        wrong = rng.sample([day for day in days if day != y], 3)
        yield _item(f"weekday {x} {sign * n}", answer=y, wrong=wrong, x=x, y=y, ask=ask, said=said, verb=verb, why=why)


def _month() -> Iterator[_Item]:
    rng = Random("month")
    months = list(facts.MONTHS)
    for (i, x), (side, sign) in itertools.product(enumerate(months), (("after", 1), ("before", -1))):
        y, other = months[(i + sign) % 12], months[(i - sign) % 12]
        wrong = [other, *rng.sample([month for month in months if month not in (x, y, other)], 2)]
        order = f"{x}, {y}" if sign > 0 else f"{y}, {x}"
        yield _item(f"month {side} {x}", answer=y, wrong=wrong, side=side, x=x, y=y, order=order)


def _date_gap() -> Iterator[_Item]:
    rng = Random("date gap")
    months = list(facts.MONTHS.items())
    for a, b in _draw(rng, itertools.combinations(range(1, 32), 2)):
        month, n = rng.choice([name for name, days in months if b <= int(days)]), b - a
        if n > 1:
            wrong = [f"{w} days" for w in _near(rng, n) if w > 1]
            key = f"gap {month} {a} {b}"
            yield _item(
                key, answer=f"{n} days", wrong=wrong if n > 4 else (), a=f"{month} {a}", b=f"{month} {b}", i=a, j=b, n=n
            )


def _alphabetical() -> Iterator[_Item]:
    rng = Random("alphabetical")
    for _ in range(_POOL_SIZE):
        words = rng.sample(facts.WORDS, 4)
        ordered = sorted(words)
        yield _item(
            f"alphabet {ordered}",
            answer=ordered[0],
            wrong=ordered[1:],
            words=", ".join(words),
            ordered=", ".join(ordered),
            first=ordered[0],
            rest=", then ".join(ordered[1:]),
        )


def _letter_count() -> Iterator[_Item]:
    rng = Random("letter count")
    for word in facts.WORDS:
        n = len(word)
        yield _item(f"letters {word}", answer=n, wrong=_near(rng, n), word=word, n=n, spelled="-".join(word))


def _edge_letter() -> Iterator[_Item]:
    rng = Random("edge letter")
    for word, (which, i) in itertools.product(facts.WORDS, (("first", 0), ("last", -1))):
        y = word[i]
        others = sorted(set(word) - {y})
        spelled = "-".join(word)
        yield _item(
            f"{which} {word}",
            answer=y,
            wrong=rng.sample(others, 3) if len(others) > 2 else (),
            word=word,
            which=which,
            y=y,
            spelled=spelled,
        )


def _reversal() -> Iterator[_Item]:
    rng = Random("reversal")
    for word in facts.WORDS:
        turned = word[::-1]
        swaps = {turned[:i] + turned[i + 1] + turned[i] + turned[i + 2 :] for i in range(len(turned) - 1)}
        wrong = sorted(swaps - {turned})
        if len(word) <= 6 and turned != word:
            answers = rng.sample(wrong, 3) if len(wrong) > 2 else ()
            yield _item(
                f"reverse {word}", answer=turned, wrong=answers, word=word, turned=turned, spelled="-".join(turned)
            )


def _uppercase() -> Iterator[_Item]:
    for word in facts.WORDS:
        yield _item(f"upper {word}", word=word, upper=word.upper(), n=len(word))


def _plural() -> Iterator[_Item]:
    rng = Random("plural")
    for noun in (*facts.REGULAR_NOUNS, *facts.IRREGULAR_PLURALS):
        if noun in facts.IRREGULAR_PLURALS:
            plural, why = facts.IRREGULAR_PLURALS[noun], "has an irregular plural that must be learned by heart"
        elif noun[-1] == "y" and noun[-2] not in "aeiou":
            plural, why = f"{noun[:-1]}ies", "ends in a consonant and y, so the y becomes ies"
        elif noun.endswith(("s", "x", "ch", "sh")):
            plural, why = f"{noun}es", "ends in a hissing sound, so it adds es"
        else:
            plural, why = f"{noun}s", "is a regular noun, so it only adds s"
        candidates = (f"{noun}s", f"{noun}es", f"{noun[:-1]}ies", f"{noun}en", noun)
        wrong = rng.sample([form for form in candidates if form != plural], 3)
        yield _item(f"plural {noun}", answer=plural, wrong=wrong, noun=noun, plural=plural, why=why)


def _item_count() -> Iterator[_Item]:
    rng = Random("item count")
    for _ in range(_POOL_SIZE):
        words = rng.sample(list(facts.CATEGORIES), rng.randrange(3, 8))
        n = len(words)
        counted = ", ".join(f"{i} {word}" for i, word in enumerate(words, 1))
        yield _item(f"count {words}", answer=n, wrong=_near(rng, n), words=", ".join(words), n=n, counted=counted)


def _odd_one_out() -> Iterator[_Item]:
    rng = Random("odd one out")
    clashing = _clashing(facts.ODD_ONE_OUT_CLASHES)
    names = list(dict.fromkeys(facts.CATEGORIES.values()))
    members = {name: [x for x, y in facts.CATEGORIES.items() if y == name] for name in names}
    for _ in range(_POOL_SIZE):
        name = rng.choice(names)
        other = rng.choice([y for y in names if y != name and y not in clashing.get(name, ())])
        odd, (a, b, c) = rng.choice(members[other]), rng.sample(members[name], 3)
        words = rng.sample([odd, a, b, c], 4)
        key = f"odd {sorted(words)}"
        shown = ", ".join(words)
        yield _item(key, answer=odd, wrong=(a, b, c), words=shown, odd=odd, a=a, b=b, c=c, name=name, other=other)


def _capital_pair() -> Iterator[_Item]:
    rng = Random("capital pair")
    countries = [country for country in facts.CAPITALS if not _held_out(f"capital {country}")]
    for _ in range(_POOL_SIZE):
        a, b = rng.sample(countries, 2)
        yield _item(f"capital {a}", f"capital {b}", a=a, b=b, y=facts.CAPITALS[a], z=facts.CAPITALS[b])


def _true_false() -> Iterator[_Item]:
    """Yield right and wrong statements about facts that the other families ask, under the same keys."""
    for family, statement in (
        ("capital", "{y} is the capital of {x}."),
        ("continent", "{x} is a country in {y}."),
        ("language", "The main language of {x} is {y}."),
        ("young", "A young {x} is called {y:a}."),
        ("category", "{x:A} is {y:a}."),
        ("color", "The usual color of {x} is {y}."),
    ):
        for i, item in enumerate(_items(family)):
            fact = statement.format_map(item.fields)
            other = _Word(item.wrong[0])
            claim = fact if i % 2 else statement.format_map({**item.fields, "y": other})
            correction = "" if i % 2 else f" {fact}"
            agrees = "agrees with" if i % 2 else "contradicts"
            yield _item(
                *item.keys, claim=claim, fact=fact, verdict=str(bool(i % 2)), correction=correction, agrees=agrees
            )


def _extraction() -> Iterator[_Item]:
    rng = Random("extraction")
    for i in range(_POOL_SIZE):
        who, age = rng.choice(list(facts.PEOPLE)), rng.randrange(21, 70)
        jobs, cities = rng.sample(facts.PEOPLES_JOBS, 4), rng.sample(facts.PEOPLES_CITIES, 4)
        job, city = _Word(jobs[0]), cities[0]
        text = f"{who} is {age} years old, works as {job:a} and lives in {city}."
        ask, y, wrong, end = (
            (f"How old is {who}?", age, _near(rng, age), f"{who} is {age} years old."),
            (f"What is {who}'s job?", job, jobs[1:], f"{who} is {job:a}."),
            (f"Where does {who} live?", city, cities[1:], f"{who} lives in {city}."),
        )[i % 3]
        part = (f"is {age} years old", f"works as {job:a}", f"lives in {city}")[i % 3]
        yield _item(f"extract {text} {ask}", answer=y, wrong=wrong, text=text, ask=ask, y=y, end=end, part=part)


def _rewriting() -> Iterator[_Item]:
    for subject, (activity, past) in itertools.product(facts.SUBJECTS, facts.ACTIVITIES.items()):
        verb, rest = activity.split(" ", 1)
        asked = subject[0].lower() + subject[1:]
        for form, result, why in (
            ("in the past tense", f"{subject} {past} {rest}.", f"The past tense of '{verb}' is '{past}'."),
            ("in the negative", f"{subject} do not {activity}.", "The negative puts 'do not' before the verb."),
            ("as a yes-or-no question", f"Do {asked} {activity}?", "Such a question starts with 'do'."),
        ):
            sentence = f"{subject} {activity}."
            yield _item(f"rewrite {form} {sentence}", form=form, sentence=sentence, result=result, why=why)


def _sentiment() -> Iterator[_Item]:
    for opening, noun in itertools.product(("The", "I thought the", "In our opinion, the"), facts.REVIEWED):
        for label, view, words in (("positive", "praise", facts.PRAISE), ("negative", "criticism", facts.COMPLAINT)):
            for word in words:
                text = f"{opening} {noun} was {word}."
                yield _item(f"sentiment {text}", text=text, label=label, view=view, word=word, noun=noun)


def _parts() -> Iterator[_Item]:
    rng = Random("parts")
    for name, n in facts.PARTS.items():
        x, part = name.split(", ")
        yield _item(f"part {name}", answer=n, wrong=_near(rng, int(n)), x=x, part=part, n=n, double=2 * int(n))


_FAMILIES: dict[str, Callable[[], Iterator[_Item]]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "division": _division,
    "percentage": _percentage,
    "sequence": _sequence,
    "parity": _parity,
    "comparison": _comparison,
    "ordered_numbers": _ordered_numbers,
    "extreme": _extreme,
    "number_words": _number_words,
    "story": _story,
    "units": _units,
    "clock": _clock,
    "weekday": _weekday,
    "month": _month,
    "date_gap": _date_gap,
    "alphabetical": _alphabetical,
    "letter_count": _letter_count,
    "edge_letter": _edge_letter,
    "reversal": _reversal,
    "uppercase": _uppercase,
    "plural": _plural,
    "item_count": _item_count,
    "odd_one_out": _odd_one_out,
    "capital": _relation("capital", facts.CAPITALS, region=facts.REGIONS),
    "country": _relation("country", facts.COUNTRIES, region={y: facts.REGIONS[x] for x, y in facts.CAPITALS.items()}),
    "capital_pair": _capital_pair,
    "continent": _relation("continent", facts.CONTINENTS, capital=facts.CAPITALS),
    "currency": _relation("currency", facts.CURRENCIES, facts.CURRENCY_CLASHES),
    "language": _relation("language", facts.LANGUAGES),
    "young": _relation("young", facts.YOUNG, facts.YOUNG_CLASHES),
    "sound": _relation("sound", facts.SOUNDS, facts.SOUND_CLASHES),
    "parts": _parts,
    "opposite": _relation("opposite", facts.OPPOSITES, facts.OPPOSITE_CLASHES),
    "symbol": _relation("symbol", facts.ELEMENTS),
    "element": _relation("element", facts.SYMBOLS),
    "color": _relation("color", facts.COLORS, facts.COLOR_CLASHES),
    "past_tense": _relation("past", facts.PAST_TENSES),
    "category": _relation("category", facts.CATEGORIES, facts.CATEGORY_CLASHES),
    "job": _relation("job", facts.JOBS, facts.JOB_CLASHES),
    "true_false": _true_false,
    "extraction": _extraction,
    "rewriting": _rewriting,
    "sentiment": _sentiment,
}


# --- Rows: items in wordings ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row(Generic[_T]):
    family: str
    keys: tuple[str, ...]
    value: _T


@dataclass(frozen=True, slots=True)
class _Wording:
    instruction: str
    input: str
    output: str


@functools.cache
def _wordings() -> dict[tuple[str, str], list[_Wording]]:
    """Return the wordings of `builtin_facts.WORDINGS` by family and style."""
    wordings: dict[tuple[str, str], list[_Wording]] = {}
    family = ""
    for line in facts.WORDINGS.replace("\n" + " " * 8, " ").strip().splitlines():
        if line.startswith(" "):
            style, _, wording = line.strip().partition(": ")
            prompt, _, output = wording.partition(" => ")
            instruction, _, text = prompt.partition(" | ")
            wordings.setdefault((family, style), []).append(_Wording(instruction, text, output))
        else:
            family = line
    return wordings


@functools.cache
def _items(family: str) -> tuple[_Item, ...]:
    """Return the items of a family, one for each set of keys."""
    return tuple({item.keys: item for item in _FAMILIES[family]()}.values())


def _examples(family: str, style: Style) -> Iterator[_Row[Example]]:
    """Yield rows of a family: all its items in one wording each, then in the next wording, until there are enough."""
    items = [item for item in _items(family) if not any(map(_held_out, item.keys))]
    if len(items) >= 1.5 * _ROWS_PER_FAMILY:  # enough items for the two sets to ask different ones
        items = items[::2] if style == "short" else items[1::2]
    wordings = _wordings()[family, style]
    rng = Random(f"system {family}")
    seen: set[tuple[str, str]] = set()
    for turn, (i, item) in itertools.product(range(len(wordings)), enumerate(items)):
        wording = wordings[(i + turn) % len(wordings)]
        instruction, text = wording.instruction.format_map(item.fields), wording.input.format_map(item.fields)
        if len(seen) < _ROWS_PER_FAMILY and (instruction, text) not in seen:
            seen.add((instruction, text))
            system = rng.choice(_SYSTEM_PROMPTS) if style == "explained" else ""
            output = wording.output.format_map(item.fields)
            yield _Row(family, item.keys, Example(instruction, output, system, text))


def _questions(family: str) -> Iterator[_Row[Question]]:
    """Yield questions of a family, each with the right answer first."""
    for wording in _wordings().get((family, "choice"), []):
        items = [item for item in _items(family) if item.wrong and all(map(_held_out, item.keys))]
        for item in items[:_QUESTIONS_PER_FAMILY]:
            text = wording.instruction.format_map(item.fields)
            yield _Row(family, item.keys, Question(text, (item.answer, *item.wrong), 0, family))


@functools.cache
def _training_rows(style: Style) -> tuple[_Row[Example], ...]:
    rows = [row for family in _FAMILIES for row in _examples(family, style)]
    Random(f"order of {style}").shuffle(rows)
    return tuple(rows)


@functools.cache
def _choice_rows() -> tuple[_Row[Question], ...]:
    rows = [row for family in _FAMILIES for row in _questions(family)]
    rng = Random("order of choice")
    rng.shuffle(rows)
    places = [i % 4 for i in range(len(rows))]
    rng.shuffle(places)
    placed = []
    for row, place in zip(rows, places, strict=True):
        right, *wrong = row.value.choices
        choices = (*wrong[:place], right, *wrong[place:])
        placed.append(replace(row, value=replace(row.value, choices=choices, answer=place)))
    return tuple(placed)


# --- The four sets --------------------------------------------------------------------------------------------------


@functools.cache
def short() -> tuple[Example, ...]:
    """Return direct questions with concise answers, without a system prompt."""
    return tuple(row.value for row in _training_rows("short"))


@functools.cache
def explained() -> tuple[Example, ...]:
    """Return questions with a system prompt, answered with the reason before the result."""
    return tuple(row.value for row in _training_rows("explained"))


@functools.cache
def choice() -> tuple[Question, ...]:
    """Return four-choice questions about items that no row of `short` and `explained` asks."""
    return tuple(row.value for row in _choice_rows())


@functools.cache
def preferences() -> tuple[Preference, ...]:
    """Return the prompts of `short`, each with its answer preferred to the answer of another prompt."""
    rows = short()
    return tuple(
        Preference(prompt_text(row), row.output, other.output)
        for row, other in zip(rows, (*rows[1:], rows[0]), strict=True)
        if row.output != other.output
    )


def training_keys() -> frozenset[str]:
    """Return the keys of everything that `short` and `explained` ask."""
    return frozenset(key for style in get_args(Style) for row in _training_rows(style) for key in row.keys)


def choice_keys() -> frozenset[str]:
    """Return the keys of everything that `choice` asks; none of them is a training key."""
    return frozenset(key for row in _choice_rows() for key in row.keys)
