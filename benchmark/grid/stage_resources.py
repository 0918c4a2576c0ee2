"""Resources of each stage: those of the grid, of the stage's kind, and of the rules that match its cell.

resources:
  workers: 2                                    # every stage
  attack: {workers: 8}                          # attacks
  defend: {workers: 4}                          # defenses and their parts, unless `part` differs
rules:
  - where: {model: llama2-7b}
    set: {resources.attack.workers: 4}          # attacks on this model
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from benchmark.grid import prompt_format
from benchmark.grid.cell import Cell
from benchmark.grid.resources import (
    EVALUATION_SHARDINGS,
    TENSOR,
    TRAINING_SHARDINGS,
    Kind,
    Resources,
    ResourcesByStage,
    StageLike,
)
from benchmark.grid.rules import RESOURCES, Rule, assign, parse
from sande import registry
from sande.config import configure
from sande.errors import UserError

KINDS: tuple[Kind, ...] = get_args(Kind)
_SETTINGS = tuple(Resources.__dataclass_fields__)

# The kinds whose sections hold for a kind; a later one wins. A part comes behind its defense, so that a mistake in the
# section of a defense is named there.
_SECTIONS: dict[Kind, tuple[Kind, ...]] = {
    "attack": ("attack",),
    "defend": ("defend",),
    "part": ("defend", "part"),
    "evaluate": ("evaluate",),
}
# Settings of a cell that decide a stage. Cells that differ in others share it, so these cannot choose its resources.
_VICTIM = {"model", "data", "attack", "attack_seed", "prompt_format"}
_DEFENDED = _VICTIM | {"removal", "defense", "defense_seed", "seed"}
_DECIDE: dict[Kind, set[str]] = {
    "attack": _VICTIM,
    "part": _DEFENDED,
    "defend": _DEFENDED,
    "evaluate": _DEFENDED | {"metrics"},
}

Sections = dict[str, dict[str, Any]]  # values by kind; "" for all kinds


@dataclass(frozen=True, slots=True)
class _Layer:
    """Values of one place.

    Attributes:
        rule: what a cell must be; None: every cell matches.
        sections: values by kind.
    """

    rule: Rule | None
    sections: Sections

    def matches(self, kind: Kind, settings: Mapping[str, Any]) -> bool:
        return self.rule is None or (_decides(self.rule, kind) and self.rule.matches(settings))


@dataclass(frozen=True, slots=True)
class _Stage:
    kind: Kind
    settings: Mapping[str, Any]


class StageResources:
    """Resources of each stage of a grid.

    Attributes:
        default: resources of a stage that neither its kind nor a rule changes.
    """

    def __init__(
        self, grid: Mapping[str, Any], rules: Iterable[Rule] = (), overrides: Mapping[str, Any] | None = None
    ) -> None:
        """Check and keep the values of all places; a later place replaces those of an earlier one.

        Args:
            grid: the grid's `resources`.
            rules: rules of the grid and its scale; those that set no resources are ignored.
            overrides: `resources` as `--set` gives them.

        Raises:
            UserError: an unknown setting, an invalid value, or a rule that cannot choose what it sets.
        """
        self._layers = [_Layer(None, _sections(grid))]
        for rule in rules:
            if rule.resources:
                self._layers.append(_Layer(_with_stems(rule), _of_rule(rule)))
        self._layers.append(_Layer(None, _sections(overrides or {})))
        self._made: dict[tuple[Kind | None, tuple[bool, ...]], Resources] = {}
        self.default = self._merged(None, tuple(layer.rule is None for layer in self._layers))
        for kind in _SECTIONS:
            self._merged(kind, tuple(layer.rule is None for layer in self._layers))
        self._check_least()

    def of(self, stage: StageLike) -> Resources:
        """Return the resources of a stage.

        Raises:
            UserError: values of several places, each valid alone, do not go together.
        """
        settings = prompt_format.named(stage.settings) if len(self._layers) > 2 else stage.settings
        return self._merged(stage.kind, tuple(layer.matches(stage.kind, settings) for layer in self._layers))

    def _check_least(self) -> None:
        """Raise UserError where `min_workers` is larger than all numbers of workers that some place sets."""
        sections = [(kind, values) for layer in self._layers for kind, values in layer.sections.items()]
        most = max((values.get("workers", 1) for _, values in sections), default=1)
        for kind, values in sections:
            least = values.get("min_workers")
            if least is not None and least > most:
                place = f"{RESOURCES}.{kind}" if kind else RESOURCES
                raise UserError(
                    f"{place}.min_workers is {least}, and the most workers that a stage has are {most}; set it to at "
                    f"most {most}, or raise {place}.workers"
                )

    def check(self, cells: Iterable[Cell]) -> None:
        """Refuse values that do not go together for a stage of a cell.

        Raises:
            UserError: as `of`, or a metric needs the whole model where evaluations are sharded.
        """
        sharded = any(layer.sections.get("evaluate", {}).get("sharding") == TENSOR for layer in self._layers)
        for cell in cells if sharded or any(layer.rule for layer in self._layers) else ():
            settings = cell.settings()
            for kind in _SECTIONS:
                found = self.of(_Stage(kind, settings))
                if kind == "evaluate" and found.sharding == TENSOR:
                    _check_metrics(cell)

    def _merged(self, kind: Kind | None, matched: tuple[bool, ...]) -> Resources:
        if (kind, matched) not in self._made:
            layers = [layer.sections for layer, holds in zip(self._layers, matched, strict=True) if holds]
            values: dict[str, Any] = {}
            for section in ("", *(_SECTIONS[kind] if kind else ())):  # a kind's own values win over general ones
                for sections in layers:
                    values |= sections.get(section, {})
            made = _checked(values, f"{RESOURCES}.{kind}" if kind else RESOURCES, kind)
            self._made[kind, matched] = made.of_kind(kind) if kind else made
        return self._made[kind, matched]


def rules_of(values: Mapping[str, Any]) -> list[Rule]:
    """Return the rules of a grid or scale file.

    Raises:
        UserError: one is wrong, or one of a grid with `include` sets something else than resources.
    """
    given = values.get("rules")
    rules = parse([] if given is None else given)
    for rule in rules:
        _of_rule(rule)
        if values.get("include") and (other := sorted([*rule.set, *rule.default])):
            raise UserError(
                f"{rule.place}: a rule of a grid with 'include' sets {RESOURCES} only; set '{other[0]}' in the "
                "included grids"
            )
    return rules


def distinct(stages: Iterable[StageLike], resources: ResourcesByStage) -> dict[Resources, list[StageLike]]:
    """Return the stages by their resources, in the order in which these are first needed."""
    found: dict[Resources, list[StageLike]] = {}
    for stage in stages:
        found.setdefault(resources.of(stage), []).append(stage)
    return found


def _sections(values: Any) -> Sections:
    """Return the values of a section `resources` by kind.

    Raises:
        UserError: an unknown setting; the message lists the valid ones, and the kinds.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{RESOURCES}: expected settings as 'key: value', got {values!r}")
    sections: Sections = {"": {}}
    for key, value in values.items():
        if key in KINDS:
            if not isinstance(value, Mapping):
                raise UserError(f"{RESOURCES}.{key}: expected settings as 'key: value', got {value!r}")
            configure(Resources, value, f"{RESOURCES}.{key}")
            sections[key] = dict(value)
        else:
            sections[""][str(key)] = value
    unknown = sorted(set(sections[""]) - set(_SETTINGS))
    if unknown:
        raise UserError(
            f"{RESOURCES}: unknown setting '{unknown[0]}'; valid settings: {', '.join(sorted(_SETTINGS))}, and for one "
            f"kind of stages {', '.join(KINDS)}"
        )
    for kind, chosen in sections.items():
        _check_sharding(f"{RESOURCES}.{kind}" if kind else RESOURCES, kind, chosen.get("sharding"))
    return sections


def _check_sharding(place: str, kind: str, chosen: Any) -> None:
    """Raise UserError where a sharding is one of other kinds of stages; the message lists the valid ones."""
    valid: tuple[str, ...] = EVALUATION_SHARDINGS if kind == "evaluate" else TRAINING_SHARDINGS
    if chosen in {*TRAINING_SHARDINGS, *EVALUATION_SHARDINGS}.difference(valid):
        only, fix = ("trainings", "") if chosen != TENSOR else ("evaluations", f", or {RESOURCES}.evaluate.sharding")
        raise UserError(f"{place}.sharding: '{chosen}' is for {only}; set it to one of {', '.join(valid)}{fix}")


def _check_metrics(cell: Cell) -> None:
    """Raise UserError where a metric of a cell cannot measure a model in shards."""
    for metric in cell.metrics:
        if registry.needs_whole_model(metric.name):
            raise UserError(
                f"{RESOURCES}.evaluate.sharding is {TENSOR}, and metric {metric.name} trains or rounds a copy of the "
                f"whole model; remove the metric, or set {RESOURCES}.evaluate.sharding to none"
            )


def _of_rule(rule: Rule) -> Sections:
    """Return the values of a rule by kind.

    Raises:
        UserError: they are wrong, or `where` has settings that do not decide a stage of that kind.
    """
    nested: dict[str, Any] = {}
    try:
        for path, value in rule.resources.items():
            if not path:
                raise UserError(f"'{RESOURCES}' needs the path of one setting; use {RESOURCES}.workers or another")
            assign(nested, path, value)
        sections = _sections(nested)
        configure(Resources, sections[""], RESOURCES)
    except UserError as error:
        raise UserError(f"{rule.place}, set: {error}") from None
    for kind in KINDS:
        anywhere = sections[""] and kind == "evaluate"  # which all decides that decides any
        if (kind in sections or anywhere) and not _decides(rule, kind):
            other = next(path for path in rule.where if path.split(".")[0] not in _DECIDE[kind])
            raise UserError(
                f"{rule.place}: cells that differ in '{other}' share one {kind} stage, so it cannot choose "
                f"{RESOURCES}.{kind}; remove it from 'where', or set the resources of another kind"
            )
    return sections


def _with_stems(rule: Rule) -> Rule:
    """Return a rule that finds a template file by its stem, as a cell has it."""
    names = rule.where.get(prompt_format.SETTING, ())
    stems = tuple(Path(name).stem if isinstance(name, str) else name for name in names)
    return replace(rule, where={**rule.where, prompt_format.SETTING: stems}) if names else rule


def _decides(rule: Rule, kind: Kind) -> bool:
    return all(path.split(".")[0] in _DECIDE[kind] for path in rule.where)


def _checked(values: Mapping[str, Any], place: str, kind: Kind | None) -> Resources:
    made = configure(Resources, values, place)
    if kind == "evaluate":
        if made.sharding == TENSOR:
            _check_shards(made, place)
        return made
    if made.offload and made.sharding == "none":
        raise UserError(f"{place}.offload is true without a sharding; set {place}.sharding to zero2 or zero3")
    return made


def _check_shards(made: Resources, place: str) -> None:
    """Raise UserError where workers with these resources cannot hold a shard of a model each."""
    chosen = f"{place}.sharding is {TENSOR}"
    if made.workers == 1:
        raise UserError(f"{chosen}, and one worker has no shards; set {place}.workers to 2 or more")
    if made.engine == "vllm":
        raise UserError(f"{chosen}, which vLLM does not take; remove it, or {place}.engine")
    if made.gpus is not None and 0 < made.gpus < 1:
        raise UserError(f"{chosen}, and two workers cannot share a GPU for it; set {place}.gpus to 1, or remove it")


def workers_in_words(stages: Iterable[StageLike], resources: ResourcesByStage) -> list[str]:
    """Return a line on the workers of each kind of stages, by model where it matters; none where each has one."""
    by_kind: dict[Kind, dict[str, set[int]]] = {kind: {} for kind in KINDS}
    for stage in stages:
        by_kind[stage.kind].setdefault(stage.settings["model"], set()).add(resources.of(stage).workers)
    words: list[str] = []
    for kind, models in by_kind.items():
        numbers = set().union(*models.values())
        if len(numbers) == 1:
            words.append(f"{kind} {min(numbers)}")
        else:
            words += [f"{kind} {model} {' or '.join(map(str, sorted(each)))}" for model, each in models.items()]
    alone = all(each == {1} for models in by_kind.values() for each in models.values())
    return [] if alone else [f"Workers of a stage: {', '.join(words)}"]
