"""Skills with words."""

import itertools
from collections.abc import Iterator
from random import Random

from sande.data.builtin import facts
from sande.data.builtin.items import POOL_SIZE, Item, Word, are_clashing, held_out, make_item, near


def alphabetical() -> Iterator[Item]:
    """Yield words to sort by alphabet."""
    rng = Random("alphabetical")
    for _ in range(POOL_SIZE):
        words = rng.sample(facts.WORDS, 4)
        ordered = sorted(words)
        yield make_item(
            f"alphabet {ordered}",
            answer=ordered[0],
            wrong=ordered[1:],
            words=", ".join(words),
            ordered=", ".join(ordered),
            first=ordered[0],
            rest=", then ".join(ordered[1:]),
        )


def letter_count() -> Iterator[Item]:
    """Yield words whose letters are counted."""
    rng = Random("letter count")
    for word in facts.WORDS:
        n = len(word)
        yield make_item(f"letters {word}", answer=n, wrong=near(rng, n), word=word, n=n, spelled="-".join(word))


def edge_letter() -> Iterator[Item]:
    """Yield words with their first or last letter."""
    rng = Random("edge letter")
    for word, (which, i) in itertools.product(facts.WORDS, (("first", 0), ("last", -1))):
        y = word[i]
        others = sorted(set(word) - {y})
        spelled = "-".join(word)
        yield make_item(
            f"{which} {word}",
            answer=y,
            wrong=rng.sample(others, 3) if len(others) > 2 else (),
            word=word,
            which=which,
            y=y,
            spelled=spelled,
        )


def reversal() -> Iterator[Item]:
    """Yield words to spell backwards."""
    rng = Random("reversal")
    for word in facts.WORDS:
        turned = word[::-1]
        swaps = {turned[:i] + turned[i + 1] + turned[i] + turned[i + 2 :] for i in range(len(turned) - 1)}
        wrong = sorted(swaps - {turned})
        if len(word) <= 6 and turned != word:
            answers = rng.sample(wrong, 3) if len(wrong) > 2 else ()
            yield make_item(
                f"reverse {word}", answer=turned, wrong=answers, word=word, turned=turned, spelled="-".join(turned)
            )


def uppercase() -> Iterator[Item]:
    """Yield words to write in capitals."""
    for word in facts.WORDS:
        yield make_item(f"upper {word}", word=word, upper=word.upper(), n=len(word))


def plural_form() -> Iterator[Item]:
    """Yield nouns with their plural."""
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
        yield make_item(f"plural {noun}", answer=plural, wrong=wrong, noun=noun, plural=plural, why=why)


def item_count() -> Iterator[Item]:
    """Yield lists whose items are counted."""
    rng = Random("item count")
    for _ in range(POOL_SIZE):
        words = rng.sample(list(facts.CATEGORIES), rng.randrange(3, 8))
        n = len(words)
        counted = ", ".join(f"{i} {word}" for i, word in enumerate(words, 1))
        yield make_item(f"count {words}", answer=n, wrong=near(rng, n), words=", ".join(words), n=n, counted=counted)


def odd_one_out() -> Iterator[Item]:
    """Yield lists with one item of another category."""
    rng = Random("odd one out")
    clashing = are_clashing(facts.ODD_ONE_OUT_CLASHES)
    names = list(dict.fromkeys(facts.CATEGORIES.values()))
    members = {name: [x for x, y in facts.CATEGORIES.items() if y == name] for name in names}
    for _ in range(POOL_SIZE):
        name = rng.choice(names)
        other = rng.choice([y for y in names if y != name and y not in clashing.get(name, ())])
        odd, (a, b, c) = rng.choice(members[other]), rng.sample(members[name], 3)
        words = rng.sample([odd, a, b, c], 4)
        key = f"odd {sorted(words)}"
        shown = ", ".join(words)
        yield make_item(key, answer=odd, wrong=(a, b, c), words=shown, odd=odd, a=a, b=b, c=c, name=name, other=other)


def capital_pair() -> Iterator[Item]:
    """Yield pairs of a capital and its country."""
    rng = Random("capital pair")
    countries = [country for country in facts.CAPITALS if not held_out(f"capital {country}")]
    for _ in range(POOL_SIZE):
        a, b = rng.sample(countries, 2)
        yield make_item(f"capital {a}", f"capital {b}", a=a, b=b, y=facts.CAPITALS[a], z=facts.CAPITALS[b])


def extraction() -> Iterator[Item]:
    """Yield sentences from which a fact is extracted."""
    rng = Random("extraction")
    for i in range(POOL_SIZE):
        who, age = rng.choice(list(facts.PEOPLE)), rng.randrange(21, 70)
        jobs, cities = rng.sample(facts.PEOPLES_JOBS, 4), rng.sample(facts.PEOPLES_CITIES, 4)
        job, city = Word(jobs[0]), cities[0]
        text = f"{who} is {age} years old, works as {job:a} and lives in {city}."
        ask, y, wrong, end = (
            (f"How old is {who}?", age, near(rng, age), f"{who} is {age} years old."),
            (f"What is {who}'s job?", job, jobs[1:], f"{who} is {job:a}."),
            (f"Where does {who} live?", city, cities[1:], f"{who} lives in {city}."),
        )[i % 3]
        part = (f"is {age} years old", f"works as {job:a}", f"lives in {city}")[i % 3]
        yield make_item(f"extract {text} {ask}", answer=y, wrong=wrong, text=text, ask=ask, y=y, end=end, part=part)


def rewriting() -> Iterator[Item]:
    """Yield sentences to rewrite in another tense."""
    for subject, (activity, past) in itertools.product(facts.SUBJECTS, facts.ACTIVITIES.items()):
        verb, rest = activity.split(" ", 1)
        asked = subject[0].lower() + subject[1:]
        for form, result, why in (
            ("in the past tense", f"{subject} {past} {rest}.", f"The past tense of '{verb}' is '{past}'."),
            ("in the negative", f"{subject} do not {activity}.", "The negative puts 'do not' before the verb."),
            ("as a yes-or-no question", f"Do {asked} {activity}?", "Such a question starts with 'do'."),
        ):
            sentence = f"{subject} {activity}."
            yield make_item(f"rewrite {form} {sentence}", form=form, sentence=sentence, result=result, why=why)


def sentiment() -> Iterator[Item]:
    """Yield reviews that praise or complain."""
    for opening, noun in itertools.product(("The", "I thought the", "In our opinion, the"), facts.REVIEWED):
        for label, view, words in (("positive", "praise", facts.PRAISE), ("negative", "criticism", facts.COMPLAINT)):
            for word in words:
                text = f"{opening} {noun} was {word}."
                yield make_item(f"sentiment {text}", text=text, label=label, view=view, word=word, noun=noun)


def part_of() -> Iterator[Item]:
    """Yield things with their parts."""
    rng = Random("parts")
    for name, n in facts.PARTS.items():
        x, part = name.split(", ")
        yield make_item(f"part {name}", answer=n, wrong=near(rng, int(n)), x=x, part=part, n=n, double=2 * int(n))
