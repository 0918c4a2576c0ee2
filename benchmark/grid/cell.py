"""Cells and keys. A cell is one experiment: a model, its attack, one defense, the metrics, two seeds.

A cell is frozen, checked and hashable. The key of a stage is a hash of exactly what its result depends on, so equal
work is found again in any grid.

A grid may have ten thousand cells of a few dozen different sections (`data`, `removal`, each method). So a `Parser`
checks each section once, cells share the parsed section, and ids and keys are composed from its JSON text.

`attack_seed` decides everything random in the attack and in the measurements: poisoned rows, places of triggers, the
victim's training, sampled answers. `defense_seed` decides everything random in the removal. So victims are shared by
defense seeds, and models that are compared are measured alike. `seed` in a grid sets both. A cell without a defense has
its attack seed as defense seed too, so that a victim is one cell.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmark.grid import keys, prompt_format, wildcards
from benchmark.grid.keys import PLAIN, canonical_json, hash_texts, library_versions, test_rows, training_rows
from benchmark.grid.prompt_format import Format
from sande import registry, threat
from sande.config import as_dict, configure
from sande.data import datasets
from sande.data.splits import Data, Removal, Rows, Source
from sande.errors import UserError
from sande.models import catalog
from sande.types import OtherModelsData, PreferenceData

T = TypeVar("T")
STAGE_VERSION = 2  # raise it when stages choose rows, load or save models in another way
NO_DEFENSE = "none"
MOST_SEED = 2**32 - 1  # largest seed that numpy takes
SEED, SEEDS = "seed", ("attack_seed", "defense_seed")  # in a grid, the first sets the others


@dataclass(frozen=True)
class Method:
    """A registry entry with its settings. Values derived from them are computed once, on first use."""

    kind: str
    name: str
    config: Any

    @classmethod
    def parse(cls, kind: str, value: Any) -> Method:
        """Return the method of `name` or `{name: …, setting: …}`.

        Raises:
            UserError: no such entry, an unknown setting or a wrong value.
        """
        one = kind.removesuffix("s")
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise UserError(f"{one}: expected a name or a mapping with 'name', got {value!r}")
        name = given["name"]
        return cls(kind, name, registry.config(kind, name, {k: v for k, v in given.items() if k != "name"}))

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """Return the settings as a grid has them, with every default spelled out."""
        return {"name": self.name, **as_dict(self.config)}

    @functools.cached_property
    def text(self) -> str:
        """Return the settings as JSON."""
        return canonical_json(self.settings)

    @functools.cached_property
    def depends_on(self) -> str:
        """Return its part of a stage key, as JSON: settings, and versions of its code and of an attack's objective."""
        sources = {"code": (self.kind, self.name)}
        if self.kind == "attacks":
            sources["objective_code"] = ("objectives", threat.objective(self.config))
        codes = {name: registry.code_version(registry.module_of(*of)) for name, of in sources.items()}
        return canonical_json({**self.settings, **codes})

    @functools.cached_property
    def reads(self) -> str:
        """Return fingerprints of the question sets and of the data sets that a metric reads, as JSON."""
        names = registry.entry(self.kind, self.name).reads(self.config)
        questions = [datasets.fingerprint(name, datasets.QUESTIONS) for name in names]
        return canonical_json([*questions, *map(datasets.fingerprint, self.reads_rows)])

    @functools.cached_property
    def reads_rows(self) -> tuple[str, ...]:
        """Return names of the data sets whose rows a metric reads besides the victim's."""
        read = getattr(registry.entry(self.kind, self.name), "reads_rows", None)
        return tuple(read(self.config)) if read else ()

    @functools.cached_property
    def pairs(self) -> str | None:
        """Return what determines the preference pairs of a defense, as JSON; None for one that takes no pairs."""
        if registry.knowledge(self.name) is not PreferenceData:
            return None
        chosen = self.config.preferences
        return canonical_json(
            [datasets.fingerprint(chosen.name, datasets.PREFERENCES), chosen.pairs, chosen.max_tokens]
        )

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """Return the names of the parts of a defense."""
        return registry.parts(self.name, self.config)

    @functools.cached_property
    def models(self) -> dict[str, str]:
        """Return identities of the models that a defense names, as a part of its stage key; empty without any."""
        if registry.knowledge(self.name) is not OtherModelsData or not self.config.models:
            return {}
        return {"models": canonical_json([catalog.identify(name) for name in self.config.models])}

    @functools.cached_property
    def prompts(self) -> dict[str, str]:
        """Return fingerprints of `own_rows`, as a part of a defense's key; empty without any."""
        names = self.own_rows
        return {"prompts": canonical_json([datasets.fingerprint(name) for name in names])} if names else {}

    @functools.cached_property
    def own_rows(self) -> tuple[str, ...]:
        """Return names of the data sets of rows that settings of the method name, sorted."""
        return tuple(sorted(set(_data_sets(self.config))))


def _data_sets(config: Any) -> Iterator[str]:
    """Yield the names of data sets in the settings of a method, at any depth."""
    for name in config.__dataclass_fields__:
        value = getattr(config, name)
        if isinstance(value, Rows | Source):
            yield value.name
        elif dataclasses.is_dataclass(value):
            yield from _data_sets(value)


@dataclass(frozen=True, slots=True)
class Content:
    """Fingerprints, at parsing, of what a cell names: model, and data sets of victim and removal."""

    model: str
    data: str
    removal: str


@dataclass(frozen=True)
class Cell:
    """One experiment. Its id and keys are computed once, on first use."""

    attack_seed: int
    defense_seed: int
    model: str
    data: Data
    removal: Removal
    attack: Method
    defense: Method
    metrics: tuple[Method, ...]
    asr_floor: float
    prompt_format: Format
    content: Content = field(compare=False, repr=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Cell:
        """Return the cell of nested settings; settings that are left out take their defaults.

        Raises:
            UserError: an unknown setting, a wrong value, or an unknown model, method or data set.
        """
        return Parser().cell(values)

    def settings(self) -> dict[str, Any]:
        """Return nested settings that `parse` turns into this cell, every default but `paper` spelled out.

        Other cells share the sections: do not change them (`rules.assign` changes a copy).
        """
        return {
            "attack_seed": self.attack_seed,
            "defense_seed": self.defense_seed,
            "model": self.model,
            "data": _settings(self.data),
            "removal": _settings(self.removal),
            "attack": self.attack.settings,
            "defense": self.defense.settings,
            "metrics": [metric.settings for metric in self.metrics],
            "asr_floor": self.asr_floor,
            **prompt_format.settings(self.prompt_format),
        }

    @property
    def setting(self) -> str:
        """Return whether the removal rows are of the victim's data set (paper, sections 4.3.1 and 4.3.2)."""
        return "in-domain" if self.removal.name == self.data.name else "out-of-domain"

    @functools.cached_property
    def id(self) -> str:
        """Return the short name of the cell: a hash of its settings."""
        return hash_texts(
            attack_seed=canonical_json(self.attack_seed),
            defense_seed=canonical_json(self.defense_seed),
            model=canonical_json(self.model),
            data=_text(self.data),
            removal=_text(self.removal),
            attack=self.attack.text,
            defense=self.defense.text,
            metrics=f"[{', '.join(metric.text for metric in self.metrics)}]",
            asr_floor=canonical_json(self.asr_floor),
            **prompt_format.id_part(self.prompt_format),
        )[:12]

    @functools.cached_property
    def attack_key(self) -> str:
        """Return the key of the victim; it has the versions of libraries, see `benchmark.grid.keys`."""
        return hash_texts(
            stage=canonical_json(["attack", STAGE_VERSION]),
            libraries=canonical_json(library_versions()),
            attack_seed=canonical_json(self.attack_seed),
            model=canonical_json(self.content.model),
            data=training_rows(self.content.data, self.data),
            attack=self.attack.depends_on,
            **prompt_format.key_part(self.prompt_format),
        )

    @functools.cached_property
    def defense_key(self) -> str:
        """Return the key of the model that is evaluated: the defended one, or the victim itself."""
        if self.defense.name == NO_DEFENSE:
            return self.attack_key
        return self._defended("defend")

    def part_key(self, name: str) -> str:
        """Return the key of a part of the defense: it depends on the same as the defended model, and on its name."""
        return self._defended("part", part=canonical_json(name))

    def _defended(self, stage: str, **more: str) -> str:
        return hash_texts(
            stage=canonical_json([stage, STAGE_VERSION]),
            defense_seed=canonical_json(self.defense_seed),
            victim=canonical_json(self.attack_key),
            removal=self.defense.pairs or training_rows(self.content.removal, self.removal),
            defense=self.defense.depends_on,
            **self.defense.models,
            **self.defense.prompts,
            **more,
        )

    def evaluation_key(self, metric: Method) -> str:
        """Return the key of one metric's outcome on the model of `defense_key`."""
        return hash_texts(
            stage=canonical_json(["evaluate", STAGE_VERSION]),
            attack_seed=canonical_json(self.attack_seed),  # models that are compared are measured alike
            model=canonical_json(self.defense_key),
            data=test_rows(self.content.data, self.data),
            reads=metric.reads,
            metric=metric.depends_on,
            **keys.further_libraries(metric.name, threat.objective(self.attack.config)),
        )

    @functools.cached_property
    def evaluation_keys(self) -> tuple[str, ...]:
        """Return the key of the outcome of each of the cell's metrics."""
        return tuple(map(self.evaluation_key, self.metrics))


DEFAULTS: dict[str, Any] = {
    "attack_seed": 0,
    "defense_seed": 0,
    "model": "smollm2-135m",
    "data": {},
    "removal": {},
    "attack": "sentence_trigger",
    "defense": NO_DEFENSE,
    "metrics": ["asr", "false_trigger_rate"],
    "asr_floor": 90.0,
    prompt_format.SETTING: prompt_format.PAPER,
}


def with_both_seeds(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return the values by path, with `attack_seed` and `defense_seed` in place of `seed`.

    Args:
        values: of a cell, or of a part of a grid.
        where: names that part in the message.

    Raises:
        UserError: `seed` is there together with one of the two.
    """
    if SEED not in values:
        return dict(values)
    both = next((name for name in SEEDS if name in values), None)
    if both:
        place = f"{where}: " if where else ""
        raise UserError(f"{place}'seed' sets {' and '.join(SEEDS)}; remove it, or remove '{both}'")
    found: dict[str, Any] = {}
    for path, value in values.items():
        found |= dict.fromkeys(SEEDS, value) if path == SEED else {path: value}
    return found


class Parser:
    """Parse cells; check sections that cells share once, and identify each model and data set once.

    Args:
        folder: of the grid, which holds its template files; None: settings name no file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._made: dict[tuple[str, str], Any] = {}
        self._identify = functools.cache(catalog.identify)
        self._fingerprint = functools.cache(datasets.fingerprint)

    def cell(self, values: Mapping[str, Any]) -> Cell:
        """Return the cell of nested settings, see `Cell.parse`."""
        valid = {*DEFAULTS, SEED}
        unknown = sorted(set(values) - valid)
        if unknown:
            raise UserError(f"unknown setting '{unknown[0]}'; valid settings: {', '.join(sorted(valid))}")
        full = {**DEFAULTS, **with_both_seeds(values)}
        floor, model = full["asr_floor"], full["model"]
        for name in SEEDS:
            seed = full[name]
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MOST_SEED:
                given = SEED if SEED in values else name
                raise UserError(f"{given} is {seed!r}, not a whole number from 0 to {MOST_SEED}")
        if not isinstance(floor, int | float) or isinstance(floor, bool) or not 0 <= floor <= 100:
            raise UserError(f"asr_floor is {floor!r}, not a percentage from 0 to 100")
        if not isinstance(full["metrics"], list) or not full["metrics"]:
            raise UserError(f"metrics is {full['metrics']!r}, not a list of at least one metric")
        if not isinstance(model, str):
            raise UserError(f"model is {model!r}, not a name, a Hub id or a folder")
        identity = self._identify(model)
        data = self._once("data", full["data"], lambda given: configure(Data, given, "data"))
        removal = self._once("removal", full["removal"], lambda given: configure(Removal, given, "removal"))
        attack = self._once("attack", full["attack"], lambda given: Method.parse("attacks", given))
        defense = self._once("defense", full["defense"], lambda given: Method.parse("defenses", given))
        metrics = self._once("metrics", full["metrics"], _metrics)
        written = self._once(
            prompt_format.SETTING, full[prompt_format.SETTING], lambda given: prompt_format.parse(given, self._folder)
        )
        for what in ("trigger", "response"):
            if not getattr(attack.config.backdoor, what).strip():
                raise UserError(f"attack {attack.name}: backdoor.{what} is blank; give it words")
        # An unknown data set is an error now, not after an hour of training.
        content = Content(identity, self._fingerprint(data.name), self._fingerprint(removal.name))
        _ = defense.pairs, defense.models, defense.prompts
        threat.check_models(model, defense.name, defense.config)
        return Cell(
            attack_seed=full["attack_seed"],
            defense_seed=full["attack_seed" if defense.name == NO_DEFENSE else "defense_seed"],
            model=model,
            data=data,
            removal=removal,
            attack=attack,
            defense=defense,
            metrics=metrics,
            asr_floor=float(floor),
            prompt_format=written,
            content=content,
        )

    def _once(self, what: str, given: Any, make: Callable[[Any], T]) -> T:
        """Return what `make` makes of settings; call it once for equal settings."""
        try:
            key = what, PLAIN.encode(given)
        except (TypeError, ValueError):  # a YAML date or set, or a mapping within itself
            return make(given)  # raises the error that describes it
        if key not in self._made:
            self._made[key] = make(given)
        made: T = self._made[key]
        return made


def _metrics(given: list[Any]) -> tuple[Method, ...]:
    metrics = tuple(Method.parse("metrics", metric) for metric in wildcards.expand("metrics", given))
    measured = [name for m in metrics for name in registry.entry("metrics", m.name).names(m.config)]
    if "asr" not in measured:
        raise UserError("metrics: 'asr' is missing, which shows whether the attack worked; add it")
    if len(set(measured)) < len(measured):
        twice = next(name for name in measured if measured.count(name) > 1)
        raise UserError(f"metrics: two metrics measure '{twice}'; remove one, or sweep over 'metrics'")
    return metrics


@functools.cache
def _settings(rows: Data | Removal) -> Mapping[str, Any]:
    return as_dict(rows)


@functools.cache
def _text(rows: Data | Removal) -> str:
    return canonical_json(_settings(rows))
