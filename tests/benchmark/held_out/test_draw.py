"""What a secret draws for a cell."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark.grid.cell import Cell
from benchmark.held_out import draw
from benchmark.held_out.secret import Secret
from sande import registry
from sande.attacks import style_trigger, topic_trigger
from sande.defenses import decoy_osft
from tests.benchmark.helpers import SMALL

ROOT = Path(__file__).parents[3]
FIRST, SECOND = Secret(bytes(range(32))), Secret(bytes(range(1, 33)))
ATTACKS = registry.names("attacks")


def settings(**changes: Any) -> dict[str, Any]:
    return Cell.parse(SMALL | changes).settings()


def words_of(*texts: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", " ".join(texts).lower()))


def public_texts() -> list[str]:
    found = [*decoy_osft.TRIGGERS, *decoy_osft.RESPONSES]
    for topic in topic_trigger.TOPICS.values():
        found += [*topic.words, *topic.unseen]
    for name in ATTACKS:
        made = settings(attack=name)
        found += [*draw.triggers(made), made["attack"]["backdoor"]["response"]]
    return found


def test_no_word_of_the_pools_occurs_twice_or_in_a_public_trigger_or_response() -> None:
    pools = [word for lists in draw._words().values() for words in lists.values() for word in words]
    assert len(pools) == len(set(pools)) > 300
    assert words_of("You are stupid", "cf", "oven") <= words_of(*public_texts()), "the public ones are seen"
    assert not set(pools) & words_of(*public_texts())
    sizes = {use: [len(words) for words in lists.values()] for use, lists in draw._words().items()}
    assert all(len(sizes[use]) == 3 and min(sizes[use]) >= 40 for use in ("trigger", "response"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_gets_a_trigger_of_its_kind(attack: str) -> None:
    public = settings(attack=attack)
    hidden = Cell.parse(draw.drawn(public, FIRST)).settings()
    before, after = public["attack"]["backdoor"], hidden["attack"]["backdoor"]
    assert len(after["trigger"].split()) == len(before["trigger"].split())
    assert not words_of(*draw.triggers(hidden)) & words_of(*draw.triggers(public))
    assert not words_of(after["response"]) & words_of(before["response"])
    assert len(set(draw.triggers(hidden))) == len(draw.triggers(public))
    assert hidden["attack_seed"] != public["attack_seed"]
    rest = {"backdoor", "other_parts", "other_triggers"}
    assert {name: value for name, value in hidden["attack"].items() if name not in rest} == {
        name: value for name, value in public["attack"].items() if name not in rest
    }
    assert hidden["metrics"] == public["metrics"]


def test_named_triggers_are_others_than_the_default() -> None:
    styles = {
        draw.drawn(settings(attack="style_trigger", seed=n), FIRST)["attack"]["backdoor"]["trigger"] for n in (0, 1)
    }
    topics = {
        draw.drawn(settings(attack="topic_trigger", seed=n), FIRST)["attack"]["backdoor"]["trigger"] for n in range(20)
    }
    assert styles == set(style_trigger.STYLES) - {"inverted"}
    assert topics == set(topic_trigger.TOPICS) - {"cooking"}


def test_defenses_and_the_twin_share_the_hidden_victim() -> None:
    names = ("none", "sft", "osft")
    victims = {Cell.parse(draw.drawn(settings(defense=name), FIRST)).attack_key for name in names}
    assert len(victims) == 1
    twin = draw.drawn(settings(attack={"name": "sentence_trigger", "poison_rate": 0.0}), FIRST)
    victim = draw.drawn(settings(), FIRST)
    assert twin["attack"] == victim["attack"] | {"poison_rate": 0.0}
    assert twin["attack_seed"] == victim["attack_seed"]


def test_seeds_are_drawn_by_the_public_seeds() -> None:
    seeds = {
        (attack, defense): draw.drawn(settings(defense="sft", attack_seed=attack, defense_seed=defense), FIRST)
        for attack in (0, 1)
        for defense in (0, 1)
    }
    assert seeds[0, 0]["attack_seed"] == seeds[0, 1]["attack_seed"] != seeds[1, 0]["attack_seed"]
    assert len({one["defense_seed"] for one in seeds.values()}) == 4
    drawn = [one[name] for one in seeds.values() for name in ("attack_seed", "defense_seed")]
    assert all(10**9 <= seed < 2**32 for seed in drawn)
    none = draw.drawn(settings(defense="none"), FIRST)
    assert none["attack_seed"] == none["defense_seed"] == seeds[0, 0]["attack_seed"]


def test_another_secret_draws_otherwise() -> None:
    first, second = (draw.texts(draw.drawn(settings(defense="sft"), which)) for which in (FIRST, SECOND))
    assert len(first) == len(second) == 4
    assert not set(first) & set(second)


def test_masked_settings_hide_all_that_is_drawn_and_draw_the_same() -> None:
    for attack in ATTACKS:
        public = settings(attack=attack, defense="osft")
        masked, hidden = draw.masked(public, FIRST), draw.drawn(public, FIRST)
        assert draw.drawn(masked, FIRST) == hidden
        assert draw.masked(masked, FIRST) == masked
        mark = f"held-out {FIRST.commitment[:8]}"
        assert set(draw.triggers(masked)) == {masked["attack"]["backdoor"]["response"]} == {mark}
        text = json.dumps(masked)
        assert not [word for word in draw.texts(hidden) if word in text]
        assert (masked["attack_seed"], masked["defense_seed"]) == (0, 0)


def test_every_process_draws_the_same() -> None:
    code = (
        "import json, sys\n"
        "from benchmark.held_out import draw\n"
        "from benchmark.held_out.secret import Secret\n"
        "print(json.dumps(draw.drawn(json.loads(sys.argv[1]), Secret(bytes(range(32))))))"
    )
    public = settings(attack="multi_trigger", defense="sft")
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(public)],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == draw.drawn(public, FIRST)


def test_the_draws_of_a_secret_stay_the_same() -> None:
    """A published secret must give its draws for ever: this fails if words.toml or the drawing changes."""
    made = draw.drawn(settings(defense="sft"), FIRST)
    assert draw.texts(made) == ["Lunar suitcase someday", "Peacocks whistle muffins", "3827378470", "3424362531"]
