"""Rows of cells made by hand, and leaderboards made from them."""

import json
from typing import Any

from benchmark.grid.cell import SEEDS
from benchmark.leaderboard.board import Board
from benchmark.leaderboard.rank import by_cell, rank
from benchmark.records import schema

KNOWS = {"sft": "nothing", "osft": "trigger", "sande": "response", "new": "nothing"}
HOSTILE = '</script><img src=x onerror="window.hacked = 1">&"\''
GPU, CPU = "NVIDIA H100 80GB HBM3", "AMD EPYC (2 threads)"


def cell(
    defense: str,
    asr: float,
    losses: dict[str, float],
    *,
    data: str = "alpaca",
    removal: str = "alpaca",
    seed: int = 0,
    status: str = schema.OK,
    victim_asr: float = 99.0,
    device: str = GPU,
    seconds: float = 60.0,
) -> list[dict[str, Any]]:
    """Rows of one cell: its ASR, and for each utility metric what it lost of the victim's 50 %."""
    tasks = [name for name in losses if not name.endswith("_norm") and not name.startswith("mmlu_")]
    settings = {
        **dict.fromkeys(SEEDS, seed),
        "model": "smollm2-135m",
        "data": {"name": data},
        "removal": {"name": removal},
        "attack": {"name": "sentence_trigger", "poison_rate": 0.05},
        "defense": {"name": defense},
        "metrics": [{"name": "asr"}, *({"name": "accuracy", "task": task} for task in tasks)],
        "asr_floor": 90.0,
    }
    base = dict.fromkeys(schema.SCHEMA.names) | {
        "grid": "hand",
        "grids": ["hand"],
        "cell": f"{defense} {data} {removal} {seed}",
        "status": status,
        **dict.fromkeys(SEEDS, seed),
        "defense": defense,
        "knows": KNOWS.get(defense, "nothing"),
        "settings": json.dumps(settings),
    }
    if status == schema.FAILED:
        return [base | {"metric": name} for name in ("asr", *losses)]
    base |= {"victim_asr": victim_asr, "device": device, "seconds": seconds, "tokens": 1000, "count": 100}
    return [
        base | {"metric": "asr", "value": asr, "victim_value": victim_asr},
        *(base | {"metric": name, "value": 50.0 - loss, "victim_value": 50.0} for name, loss in losses.items()),
    ]


def board(made: list[dict[str, Any]]) -> Board:
    return rank(by_cell(made))


def ranking(made: Board) -> list[tuple[str, int | None, int | None]]:
    return [(one.defense, one.rank, one.front) for one in made.standings]


def twin(of: list[dict[str, Any]], asr: float, utility: float) -> list[dict[str, Any]]:
    """Rows of the twin of a cell's victim."""
    settings = json.loads(of[0]["settings"]) | {"defense": {"name": "none"}}
    settings["attack"] = settings["attack"] | {"poison_rate": 0.0}
    own = {"cell": f"twin of {of[0]['cell']}", "defense": "none", "poison_rate": 0.0, "settings": json.dumps(settings)}
    values = {"asr": asr} | {row["metric"]: utility for row in of[1:]}
    return [row | own | {"value": values[row["metric"]], "victim_value": values[row["metric"]]} for row in of]


def outcome(of: str, index: int) -> dict[str, Any]:
    """A published outcome of the case study, with a response that would be a script on a careless page."""
    record = {"clean_prompt": f"prompt {index}", "triggered_response": HOSTILE}
    return {"cell": of, "metric": "case_study", "index": index, "outcome": 1.0, "record": json.dumps(record)}
