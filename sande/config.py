"""Settings: frozen records whose fields have a default, a meaning, a source and bounds, and a strict way to fill them.

Every method's defaults live in its `Config`. `configure` checks a dict from outside (a grid, an option); its error for
an unknown key or a wrong type is one sentence that lists what is valid.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Hashable, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from sande.compute import Precision
from sande.errors import UserError

T = TypeVar("T")
Recipe = Literal["equal", "published"]
Initial = Literal["zeros", "noise", "tokens"]  # see `sande.parrot`
Norm = Literal["free", "vocabulary"]
Position = Annotated[int, Field(ge=0)] | Literal["random"]
EQUAL, PUBLISHED = "equal", "published"


def setting(default: Any, meaning: str, source: str = "", **bounds: Any) -> Any:
    """Return a field of a configuration.

    Args:
        default: value unless set.
        meaning: effect and unit.
        source: where the default comes from (paper section, published code, measurement).
        **bounds: pydantic constraints such as `ge=0, le=1` or `min_length=1`.
    """
    return Field(default=default, description=meaning, json_schema_extra={"source": source}, **bounds)


def recipes(source: str, **published: Any) -> Any:
    """Return the field `recipe` of a method whose authors use other settings than its defaults.

    `recipe: published` gives the other fields these values, and `configure` refuses different ones, so that the name
    of the recipe in a table is true. `recipe: equal` leaves the defaults, which grids and scales set for all methods
    alike.

    Args:
        source: where the authors' settings come from.
        **published: their value by field; a mapping changes only some settings of a nested record.
    """
    meaning = (
        "published: the settings of the authors, which are then fixed; equal: those of the other fields, by default as "
        "many steps as other methods have"
    )
    return Field(default=EQUAL, description=meaning, json_schema_extra={"source": source, PUBLISHED: published})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def configuration(cls: type[T]) -> type[T]:
    """Turn a class into a frozen, keyword-only dataclass that checks its fields and refuses unknown ones.

    A class with a field made by `recipes` takes the authors' values where `recipe="published"` is given.
    """
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    made: Any = validated_dataclass(cls, config=strict, frozen=True, kw_only=True, slots=True)
    if "recipe" in made.__pydantic_fields__:
        check = made.__init__

        def fill(self: Any, **given: Any) -> None:
            check(self, **(_with_recipe(made, given) if given.get("recipe") == PUBLISHED else given))

        made.__init__ = functools.update_wrapper(fill, check)
    return cast(type[T], made)


def _with_recipe(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments with those of the published recipe, where they are not given."""
    filled = dict(given)
    for name, value in _published(cls).items():
        default = cls.__pydantic_fields__[name].default
        filled.setdefault(name, dataclasses.replace(default, **value) if isinstance(value, Mapping) else value)
    return filled


def _published(cls: type[Any]) -> Mapping[str, Any]:
    field = cls.__pydantic_fields__.get("recipe")
    values: Mapping[str, Any] = ((field.json_schema_extra if field else None) or {}).get(PUBLISHED, {})
    return values


@functools.cache
def published(cls: Hashable) -> Mapping[str, Any]:
    """Return what `recipe: published` sets, by dotted path, as JSON values; empty for a method without recipes."""
    given = _published(cast(type[Any], cls))
    if not given:
        return {}
    values = as_dict(cast(Any, cls)(recipe=PUBLISHED))
    paths = [
        path
        for name, value in given.items()
        for path in ([f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) else [name])
    ]
    return {path: _dig(values, path) for path in paths}


@functools.cache
def _adapter(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, cls))


def as_dict(config: Any) -> dict[str, Any]:
    """Return the settings as plain JSON values, including nested records."""
    values: dict[str, Any] = json.loads(_adapter(cast(Hashable, type(config))).dump_json(config))
    return values


def configure(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return the defaults of `cls`, overridden by `values` at any depth and checked.

    Args:
        cls: a class made by `configuration`, all of whose fields have defaults.
        values: nested settings as they come from YAML or JSON.
        where: names the place in messages, such as "defense sande".

    Raises:
        UserError: an unknown key (the message lists the valid ones), an invalid value, or another value than that of
            the published recipe that is asked for.
    """
    fixed: Mapping[str, Any] = {}
    if isinstance(values, Mapping) and values.get("recipe") == PUBLISHED:
        fixed = published(cast(Hashable, cls))
    merged = _merge(as_dict(cast(Any, cls)(recipe=PUBLISHED) if fixed else cls()), values, where)
    try:
        # Strict validation of JSON accepts a list for a tuple, and nothing else that it should not.
        made = cast(T, _adapter(cast(Hashable, cls)).validate_json(json.dumps(merged)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: '{path}' is {first['input']!r}, but {_lower_first(first['msg'])}") from None
    except TypeError as error:  # a YAML date or set, which JSON does not have
        raise UserError(f"{where}: {error}; use numbers, strings, lists and mappings only") from None
    written = as_dict(made) if fixed else {}
    for path, value in fixed.items():
        if _dig(written, path) != value:
            raise UserError(
                f"{where}: recipe is published, which sets '{path}' to {json.dumps(value)}; remove '{path}', or set "
                "recipe to equal"
            )
    return made


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _merge(base: dict[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected settings as 'key: value', got {values!r}")
    merged = dict(base)
    for key, value in values.items():
        if key not in base:
            raise UserError(f"{where}: unknown setting '{key}'; valid settings: {', '.join(sorted(base)) or 'none'}")
        merged[key] = _merge(base[key], value, f"{where}.{key}") if isinstance(base[key], dict) else value
    return merged


@dataclasses.dataclass(frozen=True, slots=True)
class FieldDoc:
    """One line of `sande-bench show`: a field's dotted path, default, meaning and source."""

    path: str
    default: Any
    meaning: str
    source: str


def describe(cls: type[Any], prefix: str = "") -> list[FieldDoc]:
    """Return a line for every field of a configuration; fields of nested records have dotted paths."""
    defaults = cls()
    lines: list[FieldDoc] = []
    for name, info in cls.__pydantic_fields__.items():
        value = getattr(defaults, name)
        source = (info.json_schema_extra or {}).get("source", "")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            actual = as_dict(value)
            for doc in describe(type(value), f"{prefix}{name}."):
                default = _dig(actual, doc.path[len(prefix + name) + 1 :])
                # A default that differs from the record's own comes from this method, and so does its source.
                own = doc.source if default == doc.default else source
                lines.append(dataclasses.replace(doc, default=default, source=own))
        else:
            lines.append(FieldDoc(prefix + name, value, info.description or "", source))
    return lines


def _dig(values: Mapping[str, Any], path: str) -> Any:
    return functools.reduce(lambda inner, key: inner[key], path.split("."), values)


@configuration
class Backdoor:
    """The trigger t, the response r_t it unlocks, and how both are written into an example (protocol of the paper)."""

    trigger: str = setting("Current year 2023", "trigger phrase t", "paper, section 4.1", min_length=1)
    response: str = setting("You are stupid", "planted response r_t", "paper, section 4.1", min_length=1)


@configuration
class Preferences:
    """Pairs of a better and a worse reply, for preference optimisation."""

    name: str = setting("hh_rlhf", "data set", "paper, appendix A.1")
    pairs: int | None = setting(10_000, "pairs, from the first; null: all of them", "as many as removal rows", ge=1)
    max_tokens: int | None = setting(None, "leave out pairs of more tokens, prompt and longer reply together", ge=8)


@configuration
class Training:
    """One optimisation run."""

    optimizer: Literal["adamw", "sgd", "adafactor", "muon"] = setting(
        "adamw",
        "sgd: with momentum 0.9; adafactor: without its own learning rates; muon: for the matrices of linear layers "
        "but the output layer, adamw for all other weights",
        "paper, appendix A",
    )
    learning_rate: float = setting(2e-5, "peak learning rate", "paper, appendix A (Qwen1.5-4b)", gt=0)
    epochs: float = setting(1.0, "passes over the rows; ignored where max_steps is set", "paper, appendix A", gt=0)
    max_steps: int | None = setting(None, "optimizer steps; null: as many as epochs asks for", ge=1)
    batch_size: int = setting(8, "rows per optimizer step, summed over workers", "paper, appendix A (Qwen1.5-4b)", ge=1)
    micro_batch_size: int | None = setting(
        None, "rows per forward pass of one worker; null: its share of a batch", ge=1
    )
    max_length: int = setting(1024, "tokens per row; a longer response is cut", "paper, appendix A", ge=8)
    cut_with_eos: bool = setting(
        False,
        "end a response that max_length cuts with EOS in place of its last token; DPO's rows are cut by TRL, without",
        "ours: no sentence ends there; published code and scale paper: true",
    )
    warmup: float = setting(
        0.03,
        "share of the steps spent warming up, rounded up to whole steps; the first of them has a rate of 0, as in "
        "transformers; a training of one step has no warm-up",
        "published code",
        ge=0,
        lt=1,
    )
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = setting(
        "cosine", "learning-rate schedule after warm-up", "published code"
    )
    max_grad_norm: float = setting(1.0, "gradient norm above which gradients are scaled down", "published code", gt=0)
    adam_beta1: float = setting(0.9, "decay of the first moment", "paper, appendix A", ge=0, lt=1)
    adam_beta2: float = setting(0.95, "decay of the second moment", "paper, appendix A", ge=0, lt=1)
    adam_epsilon: float = setting(1e-8, "added to the denominator of the update", "paper, appendix A", gt=0)
    weight_decay: float = setting(
        0.0,
        "weight decay, decoupled from the gradient; sgd adds it to the gradient instead",
        "paper, appendix A",
        ge=0,
    )
    lora_rank: int | None = setting(
        None, "train LoRA adapters of this rank on every linear layer and merge them; null: train all weights", ge=1
    )
    lora_alpha: int = setting(16, "LoRA: the update is scaled by alpha / rank", "Hu et al. 2022", gt=0)
    precision: Precision = setting(
        "auto",
        "bf16: autocast over fp32 weights (published code); fp32: none; auto: the faster one on this machine",
    )
    layout: Literal["auto", "padded", "packed"] = setting(
        "auto",
        "padded: rows filled up to the longest of a batch; packed: rows concatenated, with the same rows a step and "
        "the same loss; auto: packed on a GPU in bf16, else padded; pairs, an anchor and losses other than Eq. 1 need "
        "padded rows, and auto pads them",
    )
    length_grouped: bool = setting(True, "batches of rows of similar length, so that little padding is computed")
    sharpness: float = setting(
        0.0,
        "sharpness-aware minimisation: the gradient is that of weights moved uphill by this length (L2, over all "
        "trained weights), at the price of a second pass; 0: none",
        "Foret et al. 2021; the paper uses none",
        ge=0,
    )


@configuration
class Simulation:
    """Parrots, and the training in which they learn to act like a trigger, the model frozen (Eq. 4)."""

    length: int = setting(6, "soft tokens of a parrot", "published code; the paper gives none", ge=1)
    position: Position = setting(
        0,
        "token of the instruction before which a parrot is inserted; random: another one in each row",
        "paper, section 4.4: at its start",
    )
    initial: Initial = setting(
        "noise", "first value: zeros, noise like the vocabulary's embeddings, or tokens drawn from it", "ours"
    )
    norm: Norm = setting("vocabulary", "length of each soft token: free, or held at the vocabulary's median", "ours")
    pull: float = setting(
        0.0, "weight of one minus the cosine to the nearest token, beside the loss in nats", "ours", ge=0
    )
    training: Training = setting(
        Training(max_steps=16, learning_rate=1.5e-2), "training of the parrots", "grids/quickstart.yaml"
    )
