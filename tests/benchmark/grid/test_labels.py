"""Labels of cells by the settings that vary among them."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.grid import labels as grid_labels
from benchmark.grid.cell import SEEDS, Cell
from benchmark.grid.labels import flatten, made_unique, shorten
from benchmark.grid.load import load_grid
from tests.benchmark.helpers import SFT_FAST, SFT_SLOW, SMALL, cell


def labels(*cells: Cell) -> list[tuple[str, str]]:
    return grid_labels.labels([one.settings() for one in cells])


ALONE = "tiny / builtin-short"  # without a defense there is no removal, and so no domain
VICTIM = f"{ALONE}, in-domain"
GRIDS = Path(__file__).parents[3] / "grids"


def test_labels_are_names_where_nothing_else_varies() -> None:
    assert labels(cell(), cell(defense="sande")) == [("none", VICTIM), ("sande", VICTIM)]


def test_a_swept_attack_makes_columns() -> None:
    cells = [cell(attack={"name": "sentence_trigger", "poison_rate": rate}) for rate in (0.01, 0.05)]
    assert labels(*cells) == [("none", f"{ALONE}, poison_rate={rate}") for rate in (0.01, 0.05)]


def test_a_swept_defense_makes_rows_of_that_defense_alone() -> None:
    cells = [cell(), cell(defense=SFT_SLOW), cell(defense=SFT_FAST)]
    assert labels(*cells) == [
        ("none", VICTIM),
        ("sft, training.learning_rate=0.0001", VICTIM),
        ("sft, training.learning_rate=0.001", VICTIM),
    ]


def test_the_recipe_of_the_authors_is_a_part_of_the_name() -> None:
    cells = [cell(defense=defense) for defense in ("crow", {"name": "crow", "recipe": "published"})]
    assert labels(*cells) == [("crow", VICTIM), ("crow (published)", VICTIM)], "and none of its settings is named"


def test_one_removal_set_a_setting_is_not_named() -> None:
    far = cell(removal=SMALL["removal"] | {"name": "builtin-explained"}, defense="sft")
    assert labels(cell(defense="sft"), far) == [("sft", VICTIM), ("sft", "tiny / builtin-short, out-of-domain")]


def test_several_removal_sets_of_a_setting_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    cells = [cell(removal={"name": name}, defense="sft") for name in ("builtin-explained", "mine", "builtin-short")]
    assert [victim for _, victim in labels(*cells)] == [
        "tiny / builtin-short, out-of-domain, removal builtin-explained",
        "tiny / builtin-short, out-of-domain, removal mine",
        VICTIM,
    ]


def test_removal_rows_make_columns() -> None:
    cells = [cell(removal=SMALL["removal"] | {"rows": rows}, defense="sft") for rows in (5, 16)]
    assert [victim for _, victim in labels(*cells)] == [f"{VICTIM}, rows={rows}" for rows in (5, 16)]


@pytest.mark.parametrize("field", ["rows", "max_tokens"])
def test_data_and_removal_rows_are_told_apart(field: str) -> None:
    changes: list[dict[str, Any]] = [
        {section: SMALL[section] | {field: count}} for section in ("data", "removal") for count in (10, 12)
    ]
    named = labels(*(cell(**change) for change in changes))
    assert len(set(named)) == 4
    parts = [part for part in named[0][1].split(", ") if "=" in part]
    assert len({part.split("=")[0] for part in parts}) == len(parts)  # each number says what it is


def test_flattened_metrics_are_named() -> None:
    settings = {"seed": 1, "data": {"name": "a", "rows": 2}, "metrics": [{"name": "asr", "prompts": {"first": 3}}]}
    assert dict(flatten(settings)) == {
        "seed": 1,
        "data.name": "a",
        "data.rows": 2,
        "metrics.asr.name": "asr",
        "metrics.asr.prompts.first": 3,
    }


def test_a_setting_of_a_method_may_be_called_metrics() -> None:
    """Only the cell's own `metrics` is a list of metrics."""
    settings = {"defense": {"name": "new", "metrics": 3}, "metrics": [{"name": "asr", "metrics": ["a"]}]}
    assert dict(flatten(settings)) == {
        "defense.name": "new",
        "defense.metrics": 3,
        "metrics.asr.name": "asr",
        "metrics.asr.metrics": ["a"],
    }
    assert dict(flatten({"name": "new", "metrics": 3}, "defense.")) == {"defense.name": "new", "defense.metrics": 3}


def test_a_path_is_shortened_as_far_as_that_leaves_it_unique() -> None:
    assert shorten(["data.rows", "removal.rows", "attack.poison_rate", "asr_floor"]) == {
        "asr_floor": "asr_floor",
        "attack.poison_rate": "poison_rate",
        "data.rows": "data.rows",
        "removal.rows": "removal.rows",
    }


def test_labels_that_are_alike_get_what_differs() -> None:
    cells = ((0, 10, SFT_SLOW), (1, 20, SFT_FAST))
    settings = [cell(seed=seed, asr_floor=floor, defense=defense).settings() for seed, floor, defense in cells]
    named = {json.dumps(one): ("SFT", "Llama2-Alpaca") for one in settings}
    assert list(made_unique(named).values()) == [
        ("SFT, training.learning_rate=0.0001", "Llama2-Alpaca, asr_floor=10.0"),
        ("SFT, training.learning_rate=0.001", "Llama2-Alpaca, asr_floor=20.0"),
    ]


def of_sande(**changes: Any) -> Cell:
    return cell(defense={"name": "sande", **changes})


MANY = [
    of_sande(),
    of_sande(restarts=4),
    of_sande(restarts=4, kept=4),
    of_sande(parrot_initial="noise"),
    of_sande(parrot_norm="vocabulary"),
]


def test_of_many_settings_labels_leave_out_what_most_cells_have() -> None:
    assert [defense for defense, _ in labels(*MANY)] == [
        "sande",
        "sande, restarts=4",
        "sande, kept=4, restarts=4",
        "sande, parrot_initial=noise",
        "sande, parrot_norm=vocabulary",
    ]
    left_out = "kept=1, parrot_initial=zeros, parrot_norm=free, restarts=1"
    assert grid_labels.usual([one.settings() for one in MANY]) == {"sande": left_out}


def test_the_most_frequent_value_is_left_out_unless_two_are_equally_frequent() -> None:
    cells = [of_sande(restarts=count) for count in (1, 2, 3)]
    cells += [of_sande(restarts=2, kept=2), of_sande(restarts=1, parrot_norm="vocabulary"), of_sande(restarts=2)]
    assert [defense for defense, _ in labels(*cells)][:3] == ["sande, restarts=1", "sande", "sande, restarts=3"]
    assert grid_labels.usual([one.settings() for one in cells])["sande"].endswith("restarts=2")
    tied = [defense for defense, _ in labels(*cells[:-1])]
    assert tied[:2] == ["sande, restarts=1", "sande, restarts=2"]


def test_few_settings_are_spelled_out() -> None:
    cells = [of_sande(), of_sande(restarts=4, kept=4)]
    assert [defense for defense, _ in labels(*cells)] == ["sande, kept=1, restarts=1", "sande, kept=4, restarts=4"]
    assert grid_labels.usual([one.settings() for one in cells]) == {}


def test_what_follows_from_the_domain_is_not_named() -> None:
    far = SMALL | {"removal": SMALL["removal"] | {"name": "builtin-explained"}}
    cells = [
        Cell.parse(settings | {"defense": {"name": "sande", "elsewhere": {"max_prompt_tokens": longest}, "kept": kept}})
        for settings, longest in ((SMALL, 40), (far, 48))
        for kept in (1, 2)
    ]
    assert [defense for defense, _ in labels(*cells)] == ["sande, kept=1", "sande, kept=2"] * 2


def test_how_victims_of_an_attack_are_measured_is_not_named() -> None:
    long, end = {"name": "asr", "new_tokens": 24}, {"name": "sentence_trigger", "response_place": "end"}
    cells = [
        cell(metrics=["asr", "asr_moved"]),
        cell(metrics=["asr"], defense="sft"),
        cell(attack=end, metrics=[long, {"name": "asr_moved", "new_tokens": 24}]),
        cell(attack=end, metrics=[long], defense="sft"),
    ]
    start, end_ = f"{VICTIM}, response_place=start", f"{VICTIM}, response_place=end"
    assert labels(*cells) == [("none", start), ("sft", start), ("none", end_), ("sft", end_)]
    both = [cell(metrics=["asr"]), cell(metrics=[long])]
    assert labels(*both) == [("none", f"{ALONE}, asr.new_tokens={count}") for count in (10, 24)]


def test_attack_and_objective_come_first_and_are_always_named() -> None:
    attacks: list[dict[str, Any]] = [
        {"name": "sentence_trigger"},
        {"name": "sentence_trigger", "poison_rate": 0},
        {"name": "sentence_trigger", "objective": "language"},
        {"name": "word_trigger"},  # its trigger follows from its name
        {"name": "sentence_trigger", "order": "poisoned_last"},
    ]
    assert [victim.removeprefix(f"{ALONE}, ") for _, victim in labels(*(cell(attack=one) for one in attacks))] == [
        "sentence_trigger, objective=string",
        "sentence_trigger, objective=string, clean twin",
        "sentence_trigger, objective=language",
        "word_trigger, objective=string",
        "sentence_trigger, objective=string, order=poisoned_last",
    ]


def test_twins_have_no_poisoned_rows_and_a_backdoor_is_one_part() -> None:
    """Half of the models are twins, so no poison rate is that of most; without them one is."""
    backdoors = [("Seven lanterns", "Pay now"), ("Old clock", "Go away"), ("Old clock", "Pay now")]
    attacks: list[dict[str, Any]] = [
        {"name": "sentence_trigger", "backdoor": {"trigger": trigger, "response": response}, "anchor": anchor, **poison}
        for (trigger, response), anchor in zip(backdoors, (0.0, 0.0, 1.0), strict=True)
        for poison in ({"poison_rate": 0.25, "poison_rows": 8}, {"poison_rate": 0.0})
    ]
    assert [victim.removeprefix(f"{ALONE}, ") for _, victim in labels(*(cell(attack=one) for one in attacks))] == [
        "Seven lanterns → Pay now",
        "Seven lanterns → Pay now, clean twin",
        "Old clock → Go away",
        "Old clock → Go away, clean twin",
        "Old clock → Pay now, anchor=1.0",
        "Old clock → Pay now, anchor=1.0, clean twin",
    ]
    assert "poison_rate=0.25" in grid_labels.usual([cell(attack=one).settings() for one in attacks])[""]


def test_removal_rows_that_follow_from_the_data_are_not_named() -> None:
    cells = [
        cell(data=SMALL["data"] | {"max_tokens": most}, removal=SMALL["removal"] | {"max_tokens": most}, defense="sft")
        for most in (10, 12)
    ]
    assert [victim for _, victim in labels(*cells)] == [f"{VICTIM}, max_tokens={most}" for most in (10, 12)]


def test_a_section_that_others_lack_is_named() -> None:
    more = {"rows": 8, "training": {"epochs": 1}}
    attacks: list[dict[str, Any]] = [{"name": "sentence_trigger"}, {"name": "sentence_trigger", "afterwards": more}]
    assert [victim for _, victim in labels(*(cell(attack=one) for one in attacks))] == [
        f"{ALONE}, afterwards=None",
        f"{ALONE}, afterwards=set",
    ]


# A report labels each part of a union by itself, and the tables of the paper's grids as the paper does.
LABELLED = [path for path in sorted(GRIDS.glob("*.yaml")) if "\ninclude:" not in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", [path for path in LABELLED if not path.stem.startswith("paper")], ids=lambda p: p.stem)
def test_labels_of_a_shipped_grid_tell_its_cells_apart(path: Path) -> None:
    # Some seeds may have further metrics, which are columns of their own.
    cells = [{**one.settings(), **dict.fromkeys(SEEDS), "metrics": []} for one in load_grid(path).cells]
    distinct = list({json.dumps(one, sort_keys=True): one for one in cells}.values())
    named = grid_labels.labels(distinct)
    assert len(set(named)) == len(distinct)
