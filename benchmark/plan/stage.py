"""One stage of a plan: an attack, a part of a defense, a defense or an evaluation."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmark.grid.cell import Cell
from benchmark.grid.resources import Kind
from benchmark.store.protocol import Store
from sande.errors import UserError

_JSON = ("kind", "key", "settings", "needs", "metric_keys", "part")  # fields of a stage in its text


@dataclass(frozen=True)
class Stage:
    """One unit of work, which any process can do that sees the store.

    Attributes:
        kind: attack, part, defend or evaluate.
        key: of its artifact; an evaluation has one artifact a metric, under `metric_keys`.
        settings: settings of a cell that needs it.
        needs: keys of the stages whose artifacts it reads.
        metric_keys: for evaluate, the key of the outcome of each of the cell's metrics.
        part: for part, its name within the defense.
        parsed: the cell of the settings, where it is known.
    """

    kind: Kind
    key: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    metric_keys: tuple[str, ...] = ()
    part: str = ""
    parsed: Cell | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        cell: Cell,
        kind: Kind,
        key: str,
        needs: tuple[str, ...] = (),
        metric_keys: tuple[str, ...] = (),
        part: str = "",
    ) -> Stage:
        """Return a stage of a known cell, which need not be parsed again from its settings."""
        return cls(kind, key, cell.settings(), needs, metric_keys, part, cell)

    def to_json(self) -> str:
        """Return all fields as one text; Tune keeps several copies of a trial's configuration, but none of a text."""
        return json.dumps({name: getattr(self, name) for name in _JSON})

    @classmethod
    def from_json(cls, text: str) -> Stage:
        """Return the stage that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {name: tuple(fields[name]) for name in ("needs", "metric_keys")})

    @functools.cached_property
    def cell(self) -> Cell:
        """Return the cell of the settings."""
        return self.parsed or Cell.parse(self.settings)

    def check(self) -> None:
        """Refuse to compute something else than what the key stands for.

        Call it in the process that computes: it has its own code, and reads the data again.

        Raises:
            UserError: code, data or a library have changed since the stage was planned.
        """
        cell = self.cell
        if self.kind == "evaluate":
            keys = cell.evaluation_keys
        elif self.kind == "part":
            keys = (cell.part_key(self.part),)
        else:
            keys = (cell.attack_key if self.kind == "attack" else cell.defense_key,)
        if keys != self.artifacts:
            raise UserError(
                f"{self.short_label}: the code, the data or the libraries of this process are not those that the run "
                "was planned with; run again"
            )

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Return the keys of the artifacts that it makes."""
        return self.metric_keys or (self.key,)

    @property
    def method(self) -> str:
        """Return the name of the attack, or of the defense."""
        return str(self.settings["attack" if self.kind == "attack" else "defense"]["name"])

    @property
    def label(self) -> str:
        """Return a name for messages: kind, model, method, name of a part, and the start of the key."""
        return self._named(self.settings["model"].rstrip("/").split("/")[-1])

    @property
    def short_label(self) -> str:
        """Return the same without the model."""
        return self._named("")

    def _named(self, model: str) -> str:
        return " ".join(filter(None, [self.kind, model, self.method, self.part, self.key[:8]]))


def manifests_of(stage: Stage, store: Store) -> list[dict[str, Any]]:
    """Return those manifests of a stage that the store has: one, or one for each of its metrics."""
    keys = stage.metric_keys or (stage.key,)
    return [store.manifest(stage.kind, key) for key in keys if store.has(stage.kind, key)]
