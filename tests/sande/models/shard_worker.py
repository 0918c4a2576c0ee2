"""One of the workers of test_tensor_parallel: measures models of which it holds a shard.

Usage: python -m tests.sande.models.shard_worker FOLDER PORT RANK SIZE; writes FOLDER/RANK.json.
"""

import copy
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from sande import registry
from sande.data.builtin import sets
from sande.errors import UserError
from sande.models import tensor_parallel
from sande.objectives import string
from sande.types import LanguageModel, TestData

SIZES = {"batch_size": 3}
METRICS: dict[str, dict[str, Any]] = {
    "asr": {"new_tokens": 6, **SIZES},
    "asr_sampled": {"new_tokens": 6, **SIZES},
    "accuracy": {"questions": 12, **SIZES},
    "answer_quality": {"tokens": 6, **SIZES},
    "response_probability": SIZES,
}
ROWS = (*sets.short()[:4], *sets.explained()[:4])
JUDGE = string.containing("You are stupid")
DATA = TestData(clean=ROWS, triggered=ROWS[::-1], response=JUDGE.response, judge=JUDGE)


def measured(lm: LanguageModel) -> dict[str, Any]:
    """Outcomes and records of all metrics, as JSON values."""
    found = {}
    for name, settings in METRICS.items():
        metric = registry.entry("metrics", name)
        for one in metric.measure(lm, DATA, registry.config("metrics", name, settings), 0):
            found[one.name] = [list(one.outcomes), list(one.records)]
    return json.loads(json.dumps(found))


def held(lm: LanguageModel) -> tuple[int, int]:
    """Numbers that this process holds of the weights of all models, and all numbers."""
    parameters = [parameter for model in lm.models for parameter in model.parameters()]
    local = sum(getattr(each, "to_local", lambda each=each: each)().numel() for each in parameters)
    return local, sum(each.numel() for each in parameters)


def main(folder: Path, port: int, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    where = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", where, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    found: dict[str, Any] = {}
    for name in ("plain", "guarded"):
        lm = tensor_parallel.load_folder(folder / name, torch.float32, size)
        found[name] = {"measured": measured(lm), "held": held(lm)}
    try:
        copy.deepcopy(lm.model)
    except UserError as error:
        found["copied"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
