"""Numbers and names that the paper reports (Li et al., Backdoor Removal for Generative Large Language Models).

`results.csv` has the 360 numbers of its tables 1 to 7, with the changes that the paper prints next to them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources

METHOD_NAMES = {
    "none": "Baseline",
    "sft": "SFT",
    "dpo": "DPO",
    "nad": "NAD",
    "fine_mixing": "Fine-mixing",
    "sande_p": "SANDE-P",
    "sande": "SANDE",
    "osft": "OSFT",
}
"""The paper's name of each defense, in the order of its tables."""

TASK_NAMES = {"mmlu": "MMLU", "arc_easy": "ARC-e", "arc_challenge": "ARC-c"}
"""The paper's name of each utility metric, in the order of its tables."""

PART_OF_TABLE = {
    1: "paper_table_1_2",
    2: "paper_table_1_2",
    3: "paper_table_3_4",
    4: "paper_table_3_4",
    5: "paper_table_5_7",
    6: "paper_table_6",
    7: "paper_table_5_7",
}
"""The grid that measures each table."""

_MODEL_NAMES = {"llama2-7b": "Llama2", "qwen1.5-4b": "Qwen1.5", "smollm2-135m": "SmolLM2-135M"}
START = 2
"""The paper's position of a parrot at the start of the instruction. It counts from `Human:`, and at 2 table 6 has
exactly the numbers of tables 3 and 4."""

_KEYS = {name: key for key, name in (METHOD_NAMES | TASK_NAMES).items()}


@dataclass(frozen=True, slots=True)
class Reported:
    """One number of the paper's tables 1 to 7.

    Attributes:
        table: its number.
        setting: "in-domain" or "out-of-domain": whether the removal rows are of the victim's data set.
        method: as the paper names it, such as "Fine-mixing".
        victim_model, victim_data: our names, such as "llama2-7b" and "alpaca".
        trigger, response: of the backdoor.
        parrot_position: only in table 6; as here, `START` less than the paper's.
        metric: our name: "asr", "mmlu", "arc_easy" or "arc_challenge".
        dataset: the paper's name of the metric: "ASR", "MMLU", "ARC-e" or "ARC-c".
        value: percent.
        change: relative to the victim, as printed next to the value, percentage points; None if none is printed.
    """

    table: int
    setting: str
    method: str
    victim_model: str
    victim_data: str
    trigger: str
    response: str
    parrot_position: int | None
    metric: str
    dataset: str
    value: float
    change: float | None

    @property
    def defense(self) -> str:
        """Our name of the method."""
        return _KEYS[self.method]

    @property
    def victim(self) -> str:
        """The paper's name of the victim, such as "Llama2-Alpaca"."""
        return column_name(self.victim_model, self.victim_data)

    @property
    def part(self) -> str:
        """Stem of the grid that measures it."""
        return PART_OF_TABLE[self.table]


def column_name(model: str, data: str) -> str:
    """Return a victim's name as in the paper's tables, such as "Llama2-Alpaca" or "SmolLM2-135M-Alpaca".

    Args:
        model: a name, a Hub id with or without its commit, or a folder.
        data: name of the victim's data set.
    """
    short = model.split("@")[0].rstrip("/").split("/")[-1]
    return f"{_MODEL_NAMES.get(short, _capital(short))}-{_capital(data)}"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def reported() -> list[Reported]:
    """Return all 360 numbers of tables 1 to 7, in the order of the paper."""
    text = resources.files("benchmark.paper").joinpath("results.csv").read_text(encoding="utf-8")
    return [_parse(row) for row in csv.DictReader(text.splitlines())]


def _parse(row: dict[str, str]) -> Reported:
    model, data = row["victim"].split("/")
    return Reported(
        table=int(row["table"]),
        setting=row["setting"],
        method=row["method"],
        victim_model=model,
        victim_data=data,
        trigger=row["trigger"],
        response=row["response"],
        parrot_position=int(row["parrot_position"]) - START if row["parrot_position"] else None,
        metric=_KEYS.get(row["dataset"], "asr"),
        dataset=row["dataset"] or "ASR",
        value=float(row["value"]),
        change=float(row["change"]) if row["change"] else None,
    )


def baseline(of: Reported, numbers: list[Reported]) -> Reported:
    """Return the victim's number that a change is relative to; table 6 prints none and has that of tables 3 and 4."""
    table = of.table if of.table != 6 else 3 if of.metric == "asr" else 4
    wanted = (table, "none", of.victim, of.trigger, of.metric)
    return next(n for n in numbers if (n.table, n.defense, n.victim, n.trigger, n.metric) == wanted)
