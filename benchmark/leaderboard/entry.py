"""Schema of a submitted entry; docs/entry.schema.json is made from the models here."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = "sande-bench-entry-2"
FORMAT_1 = "sande-bench-entry-1"  # held one seed, and values of the victim that its author stated
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Word = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    """Base class of what an author submits or a verification writes: no other fields, no other types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Named(BaseModel):
    """A method or data set with its settings, every default spelled out."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)
    name: Word


class Backdoor(BaseModel):
    """The trigger and the response, with other settings of the backdoor."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)
    trigger: str | None = None
    response: str | None = None


class Attack(Named):
    """The attack with its settings."""

    backdoor: Backdoor | None = None
    poison_rate: Share | None = None


class Template(Strict):
    """A prompt format that a template file gives."""

    name: Word
    template: Annotated[str, Field(min_length=1, max_length=100_000)]


class Settings(Strict):
    """Settings of a cell, as in the column `settings` of rows.parquet; cells with the same case are compared."""

    attack_seed: Annotated[Count, Field(description="of the poisoned rows and the victim's training")]
    defense_seed: Annotated[Count, Field(description="of all that is random in the defense")]
    model: Word
    data: Named
    removal: Named
    attack: Attack
    defense: Named
    metrics: Annotated[list[Named], Field(min_length=1)]
    asr_floor: Percent
    prompt_format: Annotated[
        Word | Template,
        Field(description="paper, alpaca, chat or a template, for the victim and all models made of it"),
    ] = "paper"


class Measurement(Strict):
    """The value of one metric in percent; with its 95 % interval if it is not a share.

    The same metric before the defense is not part of an entry: the board has measured it.
    """

    metric: Word
    value: Percent
    ci_low: Percent | None = None
    ci_high: Percent | None = None
    count: Annotated[Count, Field(ge=1, description="prompts or questions")]


class Sample(Strict):
    """One prompt or question, with the outcome and the model's answer."""

    metric: Word
    index: Count
    outcome: Share
    record: dict[str, Any]


class EntryCell(Strict):
    """One experiment with the method."""

    settings: Settings
    device: Word
    seconds: Annotated[float, Field(ge=0, description="wall-clock time of the defense")]
    tokens: Annotated[Count, Field(description="tokens that the defense trains on")]
    peak_memory_bytes: Count = 0
    code_version: str = ""
    versions: str = ""
    started_at: str = ""
    measurements: Annotated[list[Measurement], Field(min_length=1)]
    samples: list[Sample] = []


class Method(Strict):
    """The defense, with a description and a link."""

    name: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,39}$")]
    knows: Annotated[str, Field(description="what it must know about the backdoor, or about the model before it")]
    about: Annotated[str, Field(max_length=400)] = ""
    link: Annotated[str, Field(pattern=r"^(https://[^\s<>\"]+)?$", max_length=400)] = ""


class Submission(Strict):
    """A method's entry on a leaderboard."""

    format: Literal["sande-bench-entry-2"]
    method: Method
    cells: Annotated[list[EntryCell], Field(min_length=1)]


def schema() -> str:
    """Return the JSON schema of an entry, as text."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Submission.model_json_schema()}
    return json.dumps(made, indent=1) + "\n"
