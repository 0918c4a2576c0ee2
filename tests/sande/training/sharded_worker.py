"""One of the workers of test_sharding: does each job of a list, and writes down what became of the model.

Usage: python -m tests.sande.training.sharded_worker JOBS.json CACHE FOLDER, in the environment of torch.distributed.
"""

import dataclasses
import datetime
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed
from transformers import TrainerCallback

from sande import registry
from sande.data.builtin import sets
from sande.models import loading
from sande.training import losses
from sande.training.sharding import Sharding
from sande.types import Run
from tests.sande.helpers import KilledError, data_of, killed, shortened, weights


def held(run: Run, victim: Any) -> Run:
    """The run, which notes how many numbers this worker holds of the model's weights while it trains."""

    class Look(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            parameters = list(victim.model.parameters())
            run.facts["held"] = sum(p.numel() + getattr(p, "ds_tensor", p[:0]).numel() for p in parameters)
            run.facts["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)

    def prepare(trainer: Any) -> Any:
        trainer.add_callback(Look())
        return trainer

    return dataclasses.replace(run, prepare=prepare)


def do(job: dict[str, Any], cache: Path, scratch: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and facts of one job."""
    rows = (*sets.short()[:12], *sets.explained()[:12])
    defense, victim = registry.entry("defenses", job["defense"]), loading.load("tiny", cache)
    data = data_of(registry.knowledge(job["defense"]), victim, rows)
    config = shortened(defense.Config, **job["training"])
    run = Run(seed=0, scratch=scratch, say=lambda line: None, sharding=Sharding(**job["sharding"]))
    losses.chunked_response_nll = functools.partial(losses.chunked_response_nll, chunk=job.get("chunk", 2048))
    if "checkpoints" not in job:
        run = held(run, victim)
        return weights(defense.defend(victim, data, config, run)), run.facts
    run, counted = killed(run, Path(job["checkpoints"]), job["after"])
    try:
        return weights(defense.defend(victim, data, config, run)), run.facts | {"steps_done_here": counted.steps}
    except KilledError:
        return {}, {}


def main(jobs: Path, cache: Path, folder: Path) -> None:
    """Does all jobs; rank 0 writes, for the one called x, x.safetensors and x.json."""
    loading.prepare("tiny", cache)  # before the group starts, in which rank 0 alone would write it
    if os.environ["WORLD_SIZE"] != "1":
        distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    torch.set_num_threads(1)
    for name, job in json.loads(jobs.read_text()).items():
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        with tempfile.TemporaryDirectory() as scratch:
            made, facts = do(job, cache, scratch)
        if os.environ["RANK"] == "0":
            save_file(made, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
