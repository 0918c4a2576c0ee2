"""Rows of cells made by hand, and leaderboards made from them."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from benchmark.leaderboard.board import MARGIN, Board
from benchmark.leaderboard.rank import rank
from benchmark.leaderboard.runs import by_cell
from benchmark.records import schema
from benchmark.records.trials import Outcomes
from sande.statistics import wilson

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
    defense_seed: int | None = None,
    setting: dict[str, Any] | None = None,
    status: str = schema.OK,
    victim_asr: float = 99.0,
    device: str = GPU,
    seconds: float = 60.0,
) -> list[dict[str, Any]]:
    """Rows of one cell: its ASR, and for each utility metric what it lost of the victim's 50 %.

    ASR is of 100 prompts; the interval of a utility reaches half a point to either side.
    """
    low, high = wilson(round(asr), 100)
    other = () if defense_seed is None else (defense_seed,)
    defense_seed = seed if defense_seed is None else defense_seed
    tasks = [name for name in losses if not name.endswith("_norm") and not name.startswith("mmlu_")]
    settings = {
        "attack_seed": seed,
        "defense_seed": defense_seed,
        "model": "smollm2-135m",
        "data": {"name": data},
        "removal": {"name": removal},
        "attack": {"name": "sentence_trigger", "poison_rate": 0.05},
        "defense": {"name": defense, **(setting or {})},
        "metrics": [{"name": "asr"}, *({"name": "accuracy", "task": task} for task in tasks)],
        "asr_floor": 90.0,
    }
    base = dict.fromkeys(schema.SCHEMA.names) | {
        "grid": "hand",
        "grids": ["hand"],
        "cell": " ".join(map(str, (defense, data, removal, seed, *other, *(setting or {}).values()))),
        "status": status,
        "attack_seed": seed,
        "defense_seed": defense_seed,
        "defense": defense,
        "knows": KNOWS.get(defense, "nothing"),
        "settings": json.dumps(settings),
    }
    if status in (schema.FAILED, schema.NOT_RUN):
        return [base | {"metric": name} for name in ("asr", *losses)]
    base |= {"victim_asr": victim_asr, "device": device, "seconds": seconds, "tokens": 1000, "count": 100}
    return [
        base | {"metric": "asr", "value": asr, "victim_value": victim_asr, "ci_low": low, "ci_high": high},
        *(
            base | {"metric": name, "value": 50.0 - loss, "victim_value": 50.0, "ci_low": None, "ci_high": None}
            for name, loss in losses.items()
        ),
    ]


def seeds(defense: str, asrs: Sequence[float], lost: Sequence[float] | None = None, **of: Any) -> list[dict[str, Any]]:
    """Rows of a defense on one attack seed after another; without `lost`, it loses about half a point."""
    lost = lost or [0.5 + 0.1 * (seed % 3) for seed in range(len(asrs))]
    pairs = zip(asrs, lost, strict=True)
    return [
        row for seed, (asr, loss) in enumerate(pairs) for row in cell(defense, asr, {"mmlu": loss}, seed=seed, **of)
    ]


def board(made: list[dict[str, Any]], margin: float = MARGIN) -> Board:
    return rank(by_cell(made), margin=margin)


def twin(of: list[dict[str, Any]], asr: float, utility: float) -> list[dict[str, Any]]:
    """Rows of the twin of a cell's victim."""
    settings = json.loads(of[0]["settings"]) | {"defense": {"name": "none"}}
    settings["attack"] = settings["attack"] | {"poison_rate": 0.0}
    own = {"cell": f"twin of {of[0]['cell']}", "defense": "none", "poison_rate": 0.0, "settings": json.dumps(settings)}
    values = {"asr": asr} | {row["metric"]: utility for row in of[1:]}
    return [row | own | {"value": values[row["metric"]], "victim_value": values[row["metric"]]} for row in of]


def outcomes(values: dict[tuple[str, str], Sequence[float]]) -> Outcomes:
    """Outcomes by cell and metric."""
    found = [
        {"cell": cell, "metric": metric, "index": index, "outcome": value}
        for (cell, metric), of in values.items()
        for index, value in enumerate(of)
    ]
    return Outcomes(pa.Table.from_pylist(found, schema=schema.OUTCOMES))


def outcome(of: str, index: int) -> dict[str, Any]:
    """A published outcome of the case study, with a response that would be a script on a careless page."""
    record = {"clean_prompt": f"prompt {index}", "triggered_response": HOSTILE}
    return {"cell": of, "metric": "case_study", "index": index, "outcome": 1.0, "record": json.dumps(record)}
