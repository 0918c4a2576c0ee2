"""Compare fine-tuning on a CPU: `sande.training.fit.fit` against TRL's SFTTrainer.

    python -m benchmark.perf.training_cpu

Both sides train SmolLM2-135M alike: random tokens in rows of Alpaca-like lengths, eight a step, float32 weights,
autocast to bfloat16 where `sande.compute` chooses it, fused AdamW, no activation checkpointing, the loss on responses
alone. All tokens count except padding. Before the timing both losses are compared on one batch. The first step of each
side, in which libraries make their kernels, is not counted.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from benchmark.perf import training_gpu
from benchmark.perf.outcome import tell
from sande.compute import compute_type
from sande.config import Training
from sande.models import catalog, loading
from sande.prompts import Row
from sande.training.batches import Collator, features
from sande.training.fit import fit
from sande.training.objective import ResponseLoss
from sande.types import LanguageModel, Run

BATCH, STEPS = 8, 6  # the first step is not counted
TOLERANCE = 0.01


class Stopwatch(TrainerCallback):
    """Measure the seconds from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record the time."""
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Return the seconds of all steps but the first."""
        return self.ends[-1] - self.ends[0]


def trl(lm: LanguageModel, rows: list[Row], scratch: str) -> SFTTrainer:
    """Return TRL's trainer on the same token ids."""
    columns = {
        "input_ids": [[*row.prompt, *row.response] for row in rows],
        "completion_mask": [[0] * len(row.prompt) + [1] * len(row.response) for row in rows],
    }
    settings = SFTConfig(
        output_dir=scratch,
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-6,
        bf16=compute_type() == "bf16",
        gradient_checkpointing=False,
        optim="adamw_torch_fused",
        max_length=None,
        packing=False,
        completion_only_loss=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    return SFTTrainer(
        model=copy.deepcopy(lm.model),
        args=settings,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=lm.tokenizer,
    )


def per_second(train: Callable[[TrainerCallback], list[int]]) -> float:
    """Return the tokens a second of all steps but the first; `train` returns the tokens of each step."""
    watch = Stopwatch()
    tokens = train(watch)
    return sum(tokens[1:]) / watch.seconds


def main() -> None:
    """Run both trainers, one after the other, and print a line."""
    drawn = training_gpu.rows(BATCH * STEPS, vocabulary=40_000)
    rows = []
    for feature in drawn:
        prompt = sum(label < 0 for label in feature["labels"])
        rows.append(Row(tuple(feature["input_ids"][:prompt]), tuple(feature["input_ids"][prompt:]), 0, prompt))
    with tempfile.TemporaryDirectory() as cache:
        lm = loading.load(catalog.EMBEDDED, Path(cache))
        theirs = trl(lm, rows, f"{cache}/trl")
        _same_loss(lm, rows[:BATCH], theirs)
        tokens_seen: list[int] = []
        collate = theirs.data_collator
        theirs.data_collator = lambda batch: _counted(tokens_seen, collate(batch))

        def train_theirs(watch: TrainerCallback) -> list[int]:
            theirs.add_callback(watch)
            theirs.train()
            return tokens_seen[:STEPS]

        def train_ours(watch: TrainerCallback) -> list[int]:
            seen: list[int] = []

            def prepare(trainer: Any) -> Any:
                trainer.add_callback(watch)
                own = trainer.data_collator
                trainer.data_collator = lambda batch: _counted(seen, own(batch))
                return trainer

            run = Run(seed=0, scratch=f"{cache}/ours", prepare=prepare, say=lambda line: None)
            settings = Training(batch_size=BATCH, max_steps=STEPS, learning_rate=1e-6)
            fit(LanguageModel(copy.deepcopy(lm.model), lm.tokenizer), rows, settings, run, "perf")
            return seen[:STEPS]

        reference, own = per_second(train_theirs), per_second(train_ours)
    print(f"  {compute_type()}: TRL {reference:.0f} tokens/s, ours {own:.0f} tokens/s")
    tell("fine-tuning on a CPU against TRL's SFTTrainer", own / reference, 3.5)


def _counted(seen: list[int], batch: dict[str, Any]) -> dict[str, Any]:
    seen.append(int(batch["attention_mask"].sum()))
    return batch


def _same_loss(lm: LanguageModel, rows: list[Row], theirs: Any) -> None:
    prepared: Any = theirs.train_dataset
    batch = theirs.data_collator([prepared[index] for index in range(len(rows))])
    own = Collator(lm.tokenizer.pad_token_id)([features(row) for row in rows])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, compute_type() == "bf16"):
        expected = float(theirs.compute_loss(theirs.model, batch))
        count = torch.tensor(float(len(own["positions"])))
        found = float(ResponseLoss(lm.model)(**own, num_items_in_batch=count)["loss"])
    if abs(expected - found) > TOLERANCE * expected:
        raise SystemExit(f"losses differ: TRL {expected}, ours {found}")
    print(f"  the same batch: TRL's loss {expected:.4f}, ours {found:.4f}")


if __name__ == "__main__":
    main()
