"""Families of questions by name, and the items of each."""

import functools
from collections.abc import Callable, Iterator

from sande.data.builtin import facts
from sande.data.builtin.items import Item, Word, make_item, relation
from sande.data.builtin.language import (
    alphabetical,
    capital_pair,
    edge_letter,
    extraction,
    item_count,
    letter_count,
    odd_one_out,
    part_of,
    plural_form,
    reversal,
    rewriting,
    sentiment,
    uppercase,
)
from sande.data.builtin.numbers import (
    addition,
    clock,
    comparison,
    date_gap,
    division,
    extreme,
    month_order,
    multiplication,
    number_words,
    ordered_numbers,
    parity,
    percentage,
    sequence,
    story,
    subtraction,
    units,
    weekday,
)


def _true_false() -> Iterator[Item]:
    """Yield right and wrong statements about facts that the other families ask, under the same keys."""
    for family, statement in (
        ("capital", "{y} is the capital of {x}."),
        ("continent", "{x} is a country in {y}."),
        ("language", "The main language of {x} is {y}."),
        ("young", "A young {x} is called {y:a}."),
        ("category", "{x:A} is {y:a}."),
        ("color", "The usual color of {x} is {y}."),
    ):
        for i, item in enumerate(draw_items(family)):
            fact = statement.format_map(item.fields)
            other = Word(item.wrong[0])
            claim = fact if i % 2 else statement.format_map({**item.fields, "y": other})
            correction = "" if i % 2 else f" {fact}"
            agrees = "agrees with" if i % 2 else "contradicts"
            yield make_item(
                *item.keys, claim=claim, fact=fact, verdict=str(bool(i % 2)), correction=correction, agrees=agrees
            )


FAMILIES: dict[str, Callable[[], Iterator[Item]]] = {
    "addition": addition,
    "subtraction": subtraction,
    "multiplication": multiplication,
    "division": division,
    "percentage": percentage,
    "sequence": sequence,
    "parity": parity,
    "comparison": comparison,
    "ordered_numbers": ordered_numbers,
    "extreme": extreme,
    "number_words": number_words,
    "story": story,
    "units": units,
    "clock": clock,
    "weekday": weekday,
    "month": month_order,
    "date_gap": date_gap,
    "alphabetical": alphabetical,
    "letter_count": letter_count,
    "edge_letter": edge_letter,
    "reversal": reversal,
    "uppercase": uppercase,
    "plural": plural_form,
    "item_count": item_count,
    "odd_one_out": odd_one_out,
    "capital": relation("capital", facts.CAPITALS, region=facts.REGIONS),
    "country": relation("country", facts.COUNTRIES, region={y: facts.REGIONS[x] for x, y in facts.CAPITALS.items()}),
    "capital_pair": capital_pair,
    "continent": relation("continent", facts.CONTINENTS, capital=facts.CAPITALS),
    "currency": relation("currency", facts.CURRENCIES, facts.CURRENCY_CLASHES),
    "language": relation("language", facts.LANGUAGES),
    "young": relation("young", facts.YOUNG, facts.YOUNG_CLASHES),
    "sound": relation("sound", facts.SOUNDS, facts.SOUND_CLASHES),
    "parts": part_of,
    "opposite": relation("opposite", facts.OPPOSITES, facts.OPPOSITE_CLASHES),
    "symbol": relation("symbol", facts.ELEMENTS),
    "element": relation("element", facts.SYMBOLS),
    "color": relation("color", facts.COLORS, facts.COLOR_CLASHES),
    "past_tense": relation("past", facts.PAST_TENSES),
    "category": relation("category", facts.CATEGORIES, facts.CATEGORY_CLASHES),
    "job": relation("job", facts.JOBS, facts.JOB_CLASHES),
    "true_false": _true_false,
    "extraction": extraction,
    "rewriting": rewriting,
    "sentiment": sentiment,
}


@functools.cache
def draw_items(family: str) -> tuple[Item, ...]:
    """Return the items of a family, one for each set of keys."""
    return tuple({item.keys: item for item in FAMILIES[family]()}.values())
