"""A cell is one experiment: a model, its attack, one defense, the metrics, one seed. Frozen, checked, hashable.

Also what a stage's result depends on: its key is a hash of exactly that, so equal work is found again, in any grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sande import models, registry
from sande.config import as_dict, configuration, configure, setting
from sande.data import sources
from sande.data.sources import Data, Removal
from sande.errors import UserError
from sande.types import PreferenceData

STAGE_VERSION = 1  # raise it when the way stages choose rows, load or save models changes
NO_DEFENSE = "none"
Kind = Literal["attack", "defend", "evaluate"]


@configuration
class Resources:
    """What one stage may use. It does not change what is computed, so it is in no key."""

    workers: int = setting(
        1, "training processes of an attack or defense; 2 or more form a Ray Train worker group", ge=1
    )
    cpus: int | None = setting(None, "CPUs of one worker; null: a node's CPUs shared out over its GPUs", ge=1)
    gpus: float | None = setting(
        None,
        "GPUs of one worker; null: one where there are any, or the share that stages like it were seen to need",
        ge=0,
    )


@dataclass(frozen=True, slots=True)
class Method:
    """A registry entry with its settings."""

    kind: str
    name: str
    config: Any

    @classmethod
    def parse(cls, kind: str, value: Any) -> Method:
        """From `name` or `{name: …, setting: …}`.

        Raises:
            UserError: no such entry, an unknown setting or a wrong value.
        """
        one = kind.removesuffix("s")
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise UserError(f"{one}: expected a name or a mapping with 'name', got {value!r}")
        name = given["name"]
        return cls(kind, name, registry.config(kind, name, {k: v for k, v in given.items() if k != "name"}))

    def settings(self) -> dict[str, Any]:
        """As it would be written in a grid, with every default spelled out."""
        return {"name": self.name, **as_dict(self.config)}

    @property
    def depends_on(self) -> dict[str, Any]:
        """Its part of a stage key: settings and code."""
        return self.settings() | {"code": registry.code_version(f"sande.{self.kind}.{self.name}")}


@dataclass(frozen=True, slots=True)
class Cell:
    """One experiment."""

    seed: int
    model: str
    data: Data
    removal: Removal
    attack: Method
    defense: Method
    metrics: tuple[Method, ...]
    asr_floor: float

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Cell:
        """From the nested settings of one cell, where whatever is left out takes its default.

        Raises:
            UserError: an unknown setting, a wrong value, or an unknown model, method or data set.
        """
        unknown = sorted(set(values) - set(DEFAULTS))
        if unknown:
            raise UserError(f"unknown setting '{unknown[0]}'; valid settings: {', '.join(sorted(DEFAULTS))}")
        full = {**DEFAULTS, **values}
        seed, floor, metrics = full["seed"], full["asr_floor"], full["metrics"]
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"seed is {seed!r}, not a whole number from 0 on")
        if not isinstance(floor, int | float) or not 0 <= floor <= 100:
            raise UserError(f"asr_floor is {floor!r}, not a percentage from 0 to 100")
        if not isinstance(metrics, list) or not metrics:
            raise UserError(f"metrics is {metrics!r}, not a list of at least one metric")
        if not isinstance(full["model"], str):
            raise UserError(f"model is {full['model']!r}, not a name, a Hub id or a folder")
        models.identify(full["model"])
        cell = cls(
            seed=seed,
            model=full["model"],
            data=configure(Data, full["data"], "data"),
            removal=configure(Removal, full["removal"], "removal"),
            attack=Method.parse("attacks", full["attack"]),
            defense=Method.parse("defenses", full["defense"]),
            metrics=tuple(Method.parse("metrics", metric) for metric in metrics),
            asr_floor=float(floor),
        )
        measured = [name for m in cell.metrics for name in registry.entry("metrics", m.name).names(m.config)]
        if "asr" not in measured:
            raise UserError("metrics holds no 'asr', without which nobody knows whether the attack worked; add it")
        if len(set(measured)) < len(measured):
            twice = next(name for name in measured if measured.count(name) > 1)
            raise UserError(f"two metrics measure '{twice}'; leave one out, or sweep over 'metrics'")
        for name in (cell.data.name, cell.removal.name):
            sources.fingerprint(name)  # an unknown data set is said now, not after an hour of training
        _ = cell._removal
        return cell

    def settings(self) -> dict[str, Any]:
        """Nested settings that `parse` turns into this cell, every default spelled out."""
        return {
            "seed": self.seed,
            "model": self.model,
            "data": as_dict(self.data),
            "removal": as_dict(self.removal),
            "attack": self.attack.settings(),
            "defense": self.defense.settings(),
            "metrics": [metric.settings() for metric in self.metrics],
            "asr_floor": self.asr_floor,
        }

    @property
    def setting(self) -> str:
        """Where the removal rows come from, seen from the victim (paper, sections 4.3.1 and 4.3.2)."""
        return "in-domain" if self.removal.name == self.data.name else "out-of-domain"

    @property
    def id(self) -> str:
        """Short name of the cell: a hash of its settings."""
        return digest(self.settings())[:12]

    @property
    def attack_key(self) -> str:
        """Key of the victim."""
        return digest(
            {
                "stage": ["attack", STAGE_VERSION],
                "seed": self.seed,
                "model": models.identify(self.model),
                "data": _training_rows(self.data),
                "attack": self.attack.depends_on,
            }
        )

    @property
    def defense_key(self) -> str:
        """Key of the model that is evaluated: the defended one, or the victim itself."""
        if self.defense.name == NO_DEFENSE:
            return self.attack_key
        return digest(
            {
                "stage": ["defend", STAGE_VERSION],
                "seed": self.seed,
                "victim": self.attack_key,
                "removal": self._removal,
                "defense": self.defense.depends_on,
            }
        )

    @property
    def _removal(self) -> list[Any]:
        """What decides the rows that the defense gets: preference optimisation has pairs of its own."""
        if registry.knowledge(self.defense.name) is PreferenceData:
            chosen = self.defense.config.preferences
            return [sources.fingerprint(chosen.name, sources.PREFERENCES), chosen.pairs, chosen.max_tokens]
        return _training_rows(self.removal)

    def evaluation_key(self, metric: Method) -> str:
        """Key of one metric's outcome on the model of `defense_key`."""
        reads = registry.entry("metrics", metric.name).reads(metric.config)
        return digest(
            {
                "stage": ["evaluate", STAGE_VERSION],
                "seed": self.seed,
                "model": self.defense_key,
                "data": [*_limits(self.data), self.data.test_rows],
                "reads": [sources.fingerprint(name, sources.QUESTIONS) for name in reads],
                "metric": metric.depends_on,
            }
        )


DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "model": "smollm2-135m",
    "data": {},
    "removal": {},
    "attack": "sentence_trigger",
    "defense": NO_DEFENSE,
    "metrics": ["asr", "false_trigger_rate"],
    "asr_floor": 90.0,
}


def _training_rows(data: Data | Removal) -> list[Any]:
    return [*_limits(data), data.rows]


def _limits(data: Data | Removal) -> list[Any]:
    return [sources.fingerprint(data.name), data.max_tokens, data.max_prompt_tokens]


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
