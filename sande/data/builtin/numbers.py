"""Skills with numbers: arithmetic, units, dates."""

import itertools
from collections.abc import Iterator
from random import Random

from sande.data.builtin import facts
from sande.data.builtin.items import POOL_SIZE, Item, draw, make_item, near


def _sum_key(operation: str, a: int, b: int) -> str:
    """Return one key for a sum or product, whatever the order of its operands."""
    return f"{operation} {min(a, b)} {max(a, b)}"


def addition() -> Iterator[Item]:
    """Yield sums of two numbers."""
    rng = Random("addition")
    for a, b in draw(rng, itertools.combinations(range(3, 90), 2)):
        tens, ones = a + b // 10 * 10, b % 10
        steps = (
            f"{a} + {b - ones} = {tens}, and {tens} + {ones} = {a + b}" if b > 10 and ones else f"{a} + {b} = {a + b}"
        )
        yield make_item(
            _sum_key("add", a, b),
            answer=a + b,
            wrong=near(rng, a + b, rng.choice((1, 10))),
            a=a,
            b=b,
            n=a + b,
            steps=steps,
        )


def subtraction() -> Iterator[Item]:
    """Yield differences of two numbers."""
    rng = Random("subtraction")
    for b, a in draw(rng, itertools.combinations(range(3, 99), 2)):
        yield make_item(f"subtract {a} {b}", answer=a - b, wrong=near(rng, a - b), a=a, b=b, n=a - b)


def multiplication() -> Iterator[Item]:
    """Yield products of two numbers."""
    rng = Random("multiplication")
    for a, b in draw(rng, itertools.combinations_with_replacement(range(2, 26), 2)):
        split = b // 10 * 10 if b > 10 and b % 10 else b // 2 if b % 2 == 0 else b - 1
        steps = f"{a} x {split} = {a * split} and {a} x {b - split} = {a * (b - split)}"
        wrong = near(rng, a * b, a)
        yield make_item(
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


def division() -> Iterator[Item]:
    """Yield quotients without a remainder."""
    rng = Random("division")
    for b, n in draw(rng, itertools.product(range(2, 21), range(2, 26))):
        yield make_item(f"divide {b * n} {b}", answer=n, wrong=near(rng, n), a=b * n, b=b, n=n)


def percentage() -> Iterator[Item]:
    """Yield percentages of round numbers."""
    rng = Random("percentage")
    parts = {5: "1/20", 10: "1/10", 20: "1/5", 25: "1/4", 50: "1/2"}
    space = ((p, whole) for p in parts for whole in range(40, 501, 5) if p * whole % 100 == 0)
    for p, whole in draw(rng, space):
        n = p * whole // 100
        wrong = near(rng, n, 1 if n < 20 else 5)
        yield make_item(f"percent {p} {whole}", answer=n, wrong=wrong, p=p, whole=whole, n=n, part=parts[p], d=100 // p)


def sequence() -> Iterator[Item]:
    """Yield sequences to continue."""
    rng = Random("sequence")
    for start, step in draw(rng, itertools.product(range(1, 41), range(2, 16))):
        terms = [start + step * k for k in range(4)]
        shown = ", ".join(map(str, terms))
        n = start + step * 4
        yield make_item(f"sequence {shown}", answer=n, wrong=near(rng, n), terms=shown, last=terms[-1], step=step, n=n)


def parity() -> Iterator[Item]:
    """Yield numbers that are even or odd."""
    for n in Random("parity").sample(range(10, 1000), POOL_SIZE):
        kind, other = ("even", "odd") if n % 2 == 0 else ("odd", "even")
        rule = "divisible by 2" if kind == "even" else "not divisible by 2"
        yield make_item(f"parity {n}", n=n, kind=kind, other=other, digit=n % 10, rule=rule)


def comparison() -> Iterator[Item]:
    """Yield pairs of numbers to compare."""
    rng = Random("comparison")
    for low, high in draw(rng, itertools.combinations(range(10, 400), 2)):
        a, b = (low, high) if rng.randrange(2) else (high, low)
        word, n, other, sign = rng.choice((("larger", high, low, ">"), ("smaller", low, high, "<")))
        yield make_item(f"compare {low} {high}", a=a, b=b, word=word, n=n, other=other, sign=sign, gap=high - low)


def ordered_numbers() -> Iterator[Item]:
    """Yield numbers to sort."""
    rng = Random("ordered numbers")
    for _ in range(POOL_SIZE):
        numbers = rng.sample(range(1, 100), rng.choice((3, 4)))
        ordered = sorted(numbers)
        yield make_item(
            f"order {ordered}",
            numbers=", ".join(map(str, numbers)),
            rising=", ".join(map(str, ordered)),
            falling=", ".join(map(str, reversed(ordered))),
            low=ordered[0],
            high=ordered[-1],
        )


def extreme() -> Iterator[Item]:
    """Yield lists of numbers with their largest or smallest."""
    rng = Random("extreme")
    for _ in range(POOL_SIZE):
        numbers = rng.sample(range(1, 200), 4)
        word, n, than = rng.choice((("largest", max(numbers), "greater"), ("smallest", min(numbers), "less")))
        rest = [m for m in numbers if m != n]
        yield make_item(
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


def number_words() -> Iterator[Item]:
    """Yield numbers to write in words."""
    rng = Random("number words")
    for n in rng.sample([n for n in range(21, 1000) if n % 10], POOL_SIZE):
        ones = n % 100 if n > 100 else n % 10
        parts = f"{n - ones} is '{_in_words(n - ones)}' and {ones} is '{_in_words(ones)}'"
        wrong = map(_in_words, near(rng, n, 10 if n > 50 else 1))
        yield make_item(f"words {n}", answer=_in_words(n), wrong=wrong, n=n, words=_in_words(n), parts=parts)


def story() -> Iterator[Item]:
    """Yield word problems."""
    rng = Random("story")
    people = list(facts.PEOPLE.items())
    for i in range(POOL_SIZE):
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
        yield make_item(key, answer=n, wrong=near(rng, n), text=text, ask=ask, end=end, why=why, n=n)


def units() -> Iterator[Item]:
    """Yield conversions between units."""
    rng = Random("units")
    for (one, many, small, size), n in itertools.product(facts.UNITS, range(5, 20)):
        factor = int(size)
        m = n * factor
        shared = {"one": one, "factor": f"{factor} {small}"}
        wrong = [f"{w} {small}" for w in near(rng, m, factor)]
        a, b, work = f"{n} {many}", f"{m} {small}", f"multiply: {n} x {factor} = {m}"
        yield make_item(f"unit {many} {small} {n}", answer=b, wrong=wrong, a=a, b=b, to=small, work=work, **shared)
        wrong = [f"{w} {many}" for w in near(rng, n)]
        work = f"divide: {m} / {factor} = {n}"
        yield make_item(f"unit {small} {many} {m}", answer=a, wrong=wrong, a=b, b=a, to=many, work=work, **shared)


def clock() -> Iterator[Item]:
    """Yield times of day to compute."""
    rng = Random("clock")
    space = itertools.product(range(60, 660, 5), range(10, 95, 5))
    for start, length in draw(rng, space):
        end, to_hour = start + length, -start % 60
        shown, shown_end, full_hour = (f"{t // 60}:{t % 60:02}" for t in (start, end, start + to_hour))
        if 0 < to_hour < length:
            why = f"From {shown} to {full_hour} is {to_hour} minutes, and {length - to_hour} more minutes are left."
        else:
            why = f"Adding {length} minutes to {shown} gives {shown_end}."
        wrong = [f"{t // 60}:{t % 60:02}" for t in near(rng, end, rng.choice((5, 10)))]
        yield make_item(
            f"clock {shown} {length}", answer=shown_end, wrong=wrong, start=shown, length=length, end=shown_end, why=why
        )


def weekday() -> Iterator[Item]:
    """Yield days of the week to compute."""
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
        yield make_item(
            f"weekday {x} {sign * n}", answer=y, wrong=wrong, x=x, y=y, ask=ask, said=said, verb=verb, why=why
        )


def month_order() -> Iterator[Item]:
    """Yield months by their place in the year."""
    rng = Random("month")
    months = list(facts.MONTHS)
    for (i, x), (side, sign) in itertools.product(enumerate(months), (("after", 1), ("before", -1))):
        y, other = months[(i + sign) % 12], months[(i - sign) % 12]
        wrong = [other, *rng.sample([month for month in months if month not in (x, y, other)], 2)]
        order = f"{x}, {y}" if sign > 0 else f"{y}, {x}"
        yield make_item(f"month {side} {x}", answer=y, wrong=wrong, side=side, x=x, y=y, order=order)


def date_gap() -> Iterator[Item]:
    """Yield numbers of days between two dates."""
    rng = Random("date gap")
    months = list(facts.MONTHS.items())
    for a, b in draw(rng, itertools.combinations(range(1, 32), 2)):
        month, n = rng.choice([name for name, days in months if b <= int(days)]), b - a
        if n > 1:
            wrong = [f"{w} days" for w in near(rng, n) if w > 1]
            key = f"gap {month} {a} {b}"
            yield make_item(
                key, answer=f"{n} days", wrong=wrong if n > 4 else (), a=f"{month} {a}", b=f"{month} {b}", i=a, j=b, n=n
            )
