"""Settings: defaults, overrides at any depth, refusals that say what would do."""

import dataclasses
import datetime
from typing import Any

import pytest

from sande import registry
from sande.attacks import sentence_trigger
from sande.config import (
    Backdoor,
    Preferences,
    Recipe,
    Training,
    as_dict,
    configuration,
    configure,
    describe,
    published,
    recipes,
    setting,
)
from sande.data.splits import Data, Removal
from sande.defenses import sande
from sande.errors import UserError


@configuration
class Inner:
    rate: float = setting(0.5, "a share", "a book", ge=0, le=1)
    count: int | None = setting(None, "a number", ge=1)


@configuration
class Outer:
    name: str = setting("x", "a name")
    layers: tuple[int, ...] = setting((1, 2), "some layers")
    inner: Inner = setting(Inner(rate=0.25), "a nested record")


@configuration
class Cooked:
    recipe: Recipe = recipes("a cook", inner={"count": 7}, layers=(3, 4), name="x")
    name: str = setting("x", "a name")
    layers: tuple[int, ...] = setting((1, 2), "some layers")
    inner: Inner = setting(Inner(rate=0.25, count=2), "a nested record")


CONFIGS = [registry.entry(kind, name).Config for kind in registry.KINDS for name in registry.names(kind)]
CONFIGS += [Backdoor, Preferences, Training, Data, Removal]


def label(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__name__}"


@pytest.mark.parametrize("cls", CONFIGS, ids=label)
def test_no_values_give_the_defaults(cls: type[Any]) -> None:
    assert configure(cls, {}, "here") == cls()


@pytest.mark.parametrize("cls", CONFIGS, ids=label)
def test_settings_survive_json(cls: type[Any]) -> None:
    assert configure(cls, as_dict(cls()), "here") == cls()


def test_a_nested_override_keeps_the_defaults_of_its_parent() -> None:
    attack = configure(sentence_trigger.Config, {"training": {"batch_size": 4}}, "attack")
    assert attack.training == Training(epochs=2.0, batch_size=4), "2 epochs are the attack's default, not Training's"
    defense = configure(sande.Config, {"simulate": {"batch_size": 4}}, "defense")
    assert defense.simulate == Training(epochs=2.0, learning_rate=1e-3, batch_size=4)
    assert defense.eliminate == sande.Config().eliminate


@pytest.mark.parametrize(
    ("values", "unknown", "place", "valid"),
    [
        ({"inner.rate": 0.1}, "inner.rate", "here", "inner, layers, name"),
        ({"inner": {"ratio": 0.1}}, "ratio", "here.inner", "count, rate"),
    ],
)
def test_an_unknown_key_is_answered_with_the_valid_ones(values: Any, unknown: str, place: str, valid: str) -> None:
    with pytest.raises(UserError) as caught:
        configure(Outer, values, "here")
    assert str(caught.value) == f"{place}: unknown setting '{unknown}'; valid settings: {valid}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "1e-3"),
        ("learning_rate", True),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", None),
        ("epochs", [1.0]),
        ("batch_size", True),
        ("batch_size", 2.5),
        ("batch_size", "2"),
        ("batch_size", 0),
        ("max_steps", 0),
        ("lora_rank", 0),
        ("lora_rank", 4.0),
        ("lora_alpha", 0),
        ("adam_beta2", 1.0),
        ("warmup", 1.01),
        ("schedule", "quadratic"),
        ("length_grouped", 1),
    ],
)
def test_a_wrong_value_is_refused_and_named(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^attack: 'training\.{key}' is ") as caught:
        configure(sentence_trigger.Config, {"training": {key: value}}, "attack")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("fine_mixing", "keep_ratio", 1.1),
        ("fine_mixing", "keep_ratio", -0.1),
        ("nad", "attention_weight", -1.0),
        ("nad", "attention_power", 0),
        ("dpo", "beta", 0),
        ("dpo", "preferences.pairs", 0),
    ],
)
def test_a_defenses_wrong_value_is_refused_and_named(name: str, key: str, value: Any) -> None:
    section, _, field = key.rpartition(".")
    with pytest.raises(UserError, match=rf"^defense {name}: '{key}' is {value}"):
        registry.config("defenses", name, {section: {field: value}} if section else {field: value})


def test_a_float_for_an_integer_is_refused_even_if_it_is_whole() -> None:
    with pytest.raises(UserError, match="batch_size"):
        configure(Training, {"batch_size": 2.0}, "here")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"layers": [3]}, Outer(layers=(3,))),
        ({"inner": {"rate": 1}}, Outer(inner=Inner(rate=1.0))),
        ({"inner": {"count": 3}}, Outer(inner=Inner(rate=0.25, count=3))),
    ],
    ids=["list for tuple", "int for float", "int for int or null"],
)
def test_what_yaml_writes_otherwise_is_taken(values: Any, expected: Outer) -> None:
    assert configure(Outer, values, "here") == expected


@pytest.mark.parametrize("values", [{"inner": 3}, {"inner": None}, {"inner": [1]}, "inner", None])
def test_what_is_no_mapping_is_refused_where_settings_belong(values: Any) -> None:
    with pytest.raises(UserError, match="expected settings as 'key: value'"):
        configure(Outer, values, "here")


def test_a_yaml_date_is_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^here: .*numbers, strings, lists and mappings only$"):
        configure(Outer, {"name": datetime.date(2023, 1, 1)}, "here")


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Outer().name = "y"


def test_the_constructor_checks_too() -> None:
    with pytest.raises(ValueError, match="rate"):
        Inner(rate=2.0)


def test_describe_spells_out_nested_records_with_the_defaults_of_their_parent() -> None:
    lines = {doc.path: doc for doc in describe(Outer)}
    assert list(lines) == ["name", "layers", "inner.rate", "inner.count"]
    assert lines["inner.rate"].default == 0.25
    assert lines["inner.rate"].meaning == "a share"
    assert lines["inner.rate"].source == "", "the book gives another value than the parent's"


def test_describe_of_sande_tells_the_two_trainings_apart() -> None:
    defaults = {doc.path: doc.default for doc in describe(sande.Config)}
    assert defaults["simulate.learning_rate"] == 1e-3
    assert defaults["eliminate.learning_rate"] == 2e-5
    assert "simulate" not in defaults


# --- Recipes --------------------------------------------------------------------------------------------------------

PUBLISHED = Cooked(recipe="published")


def test_the_published_recipe_fills_what_is_not_given() -> None:
    assert (PUBLISHED.layers, PUBLISHED.inner) == ((3, 4), Inner(rate=0.25, count=7))
    assert Cooked() == Cooked(recipe="equal") == configure(Cooked, {}, "here")
    assert Cooked().layers == (1, 2)
    assert configure(Cooked, {"recipe": "published"}, "here") == PUBLISHED
    assert configure(Cooked, {"recipe": "published", "inner": {"rate": 0.5}}, "here").inner == Inner(rate=0.5, count=7)


def test_spelled_out_settings_of_a_recipe_are_those_of_the_recipe() -> None:
    assert configure(Cooked, as_dict(PUBLISHED), "here") == PUBLISHED
    assert published(Cooked) == {"inner.count": 7, "layers": [3, 4], "name": "x"}
    assert published(Outer) == {}


def test_another_value_than_the_recipes_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        configure(Cooked, {"recipe": "published", "inner": {"count": None}}, "defense cooked")
    assert str(caught.value) == (
        "defense cooked: recipe is published, which sets 'inner.count' to 7; remove 'inner.count', or set recipe to "
        "equal"
    )
    assert configure(Cooked, {"recipe": "equal", "inner": {"count": None}}, "here").inner.count is None


def test_a_recipe_has_one_of_two_names() -> None:
    with pytest.raises(UserError, match=r"^here: 'recipe' is 'mine', but input should be 'equal' or 'published'$"):
        configure(Cooked, {"recipe": "mine"}, "here")
    with pytest.raises(UserError, match=r"^here: unknown setting 'recipe'"):
        configure(Outer, {"recipe": "published"}, "here")


@pytest.mark.parametrize("cls", [cls for cls in CONFIGS if published(cls)], ids=label)
def test_a_methods_recipe_is_complete_and_is_another_than_the_defaults(cls: Any) -> None:
    made, equal = cls(recipe="published"), cls()
    assert configure(cls, as_dict(made), "here") == made
    assert dataclasses.replace(made, recipe="equal") != equal
    for path in published(cls):
        section, _, name = path.rpartition(".")
        if section and name in ("epochs", "max_steps"):
            assert {f"{section}.epochs", f"{section}.max_steps"} <= set(published(cls)), "a scale must set neither"


@pytest.mark.parametrize("cls", CONFIGS, ids=label)
def test_only_a_method_has_recipes_and_not_a_record_within_it(cls: Any) -> None:
    inner = [getattr(cls(), name) for name in cls.__pydantic_fields__]
    assert not [record for record in inner if dataclasses.is_dataclass(record) and published(type(record))]
