"""Build every optimisation run: HF Trainer over rows of prompt and response.

Shapes: B rows, T positions, N target tokens, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from transformers import (
    DynamicCache,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sande.checkpoints import KEPT
from sande.compute import ComputeType, resolve
from sande.config import Training
from sande.errors import NonFiniteError, UserError
from sande.losses import IGNORE, chunked_response_nll, target_positions
from sande.packing import ARCHITECTURES, PackedCollator, choose, packed_attention
from sande.prompts import Row, fit_length, pad_id
from sande.sharding import WHOLE, Sharding, most, recomputed, sharded
from sande.types import LanguageModel, Run, TrainingStatus

PROGRESS_SECONDS = 10.0  # between two progress lines of a training without `Run.watch`
# Steps between two checks of loss and gradient norm. On a GPU a check waits for all queued work. A number that is not
# finite keeps the mean of the steps in between from being finite, so it still stops the stage.
LOG_STEPS_CUDA = 10
GROUP_STEPS = 50  # rows are sorted by length within this number of steps; beyond it their order stays random
# Up to this row length plain attention trains faster on a CPU than the fused kernel, whose backward pass is slow.
PLAIN_ATTENTION = 128
# Models that change their logits after the output layer would get another loss from ResponseLoss than from themselves.
_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class ResponseLoss(nn.Module):
    """Mean negative log-likelihood of the responses; the output layer runs at the N target positions only.

    The module holds the whole computation, so that a data-parallel wrapper sees every parameter used.
    """

    accepts_loss_kwargs = True  # the Trainer then counts the targets of the whole step, over micro-batches and workers

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        rescaled = [name for name in _RESCALED_LOGITS if getattr(model.config, name, None) not in (None, 1.0)]
        if rescaled:
            raise UserError(f"model {type(model).__name__}: {rescaled[0]} is not supported; choose another model")
        self.model = model

    def forward(
        self, labels: Tensor, positions: Tensor, num_items_in_batch: Tensor, **inputs: Any
    ) -> dict[str, Tensor]:
        """Return the loss of a batch: the sum over its N targets, divided by the targets of the whole optimizer step.

        Args:
            labels: (B, T), the id at each target, IGNORE elsewhere.
            positions: (N,), flat indices of the positions before each target.
            num_items_in_batch: scalar.
            **inputs: arguments of the decoder: `input_ids` (B, T), and those that the collator of a layout adds.
        """
        decoder = self.model.get_decoder()
        # Recomputation keeps no cache, and workers that hold a shard each have to take equally many passes.
        recomputes = recomputed(self.model)
        one_pass = recomputes or sharded(self.model) or self.model.config.model_type not in ARCHITECTURES
        shared = 0 if one_pass else shared_tokens(inputs, positions)
        # Recomputation, in the backward pass, would be outside of it and take another kernel.
        with nullcontext() if recomputes else attention_kernel(inputs["input_ids"]):
            if shared:
                hidden_BSD = behind_prefix(decoder, shared, **inputs)
            else:
                hidden_BSD = decoder(**inputs, use_cache=False).last_hidden_state
        width = inputs["input_ids"].shape[1]
        hidden_ND = hidden_BSD[positions // width, positions % width - shared]
        return {"loss": self.nll(hidden_ND, labels, positions) / num_items_in_batch}

    def nll(self, hidden_ND: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
        """Return the summed negative log-likelihood of all targets, given the hidden states before them."""
        targets_N = labels.flatten()[positions + 1]
        longest = most(len(targets_N), hidden_ND.device) if sharded(self.model) else None
        return chunked_response_nll(hidden_ND, self.model.get_output_embeddings(), targets_N, longest=longest)


def behind_prefix(decoder: nn.Module, shared: int, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return hidden states of shape (B, T - shared, D); the shared prefix is computed once, and gradients reach it.

    Args:
        decoder: of the model.
        shared: tokens that all rows have in common at their start.
        input_ids: (B, T), padded on the right.
        attention_mask: (B, T), 1 at tokens.
    """
    cache = DynamicCache()
    decoder(input_ids=input_ids[:1, :shared], past_key_values=cache, use_cache=True)
    rows = len(input_ids)
    layers = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values, *_ in cache]
    hidden_BSD: Tensor = decoder(
        input_ids=input_ids[:, shared:],
        attention_mask=attention_mask,
        past_key_values=DynamicCache(layers),
        use_cache=True,
    ).last_hidden_state
    return hidden_BSD


def shared_tokens(inputs: Mapping[str, Tensor], positions: Tensor) -> int:
    """Return the number of leading tokens that all rows of a padded batch share, before the first target.

    They are `Human: ` at least, and a trigger or parrot behind it: a third of a short row. On a GPU the answer is 0:
    reading the values would wait for the GPU, and rows are packed there.

    Args:
        inputs: of the decoder.
        positions: (N,), flat indices of the positions before each target.
    """
    ids_BT = inputs["input_ids"]
    if ids_BT.device.type != "cpu" or len(ids_BT) == 1 or set(inputs) != {"input_ids", "attention_mask"}:
        return 0
    same_T = ((ids_BT == ids_BT[0]) & (inputs["attention_mask"] == 1)).all(0)
    first_target = int((positions % ids_BT.shape[1]).min()) if len(positions) else 0
    return min(int(same_T.long().cumprod(0).sum()), first_target)


def attention_kernel(ids_BT: Tensor) -> AbstractContextManager[None]:
    """Return a context: plain attention for short rows on a CPU; else PyTorch chooses the kernel.

    Args:
        ids_BT: input of the decoder.
    """
    if ids_BT.device.type == "cpu" and ids_BT.shape[1] <= PLAIN_ATTENTION:
        plain: AbstractContextManager[None] = sdpa_kernel([SDPBackend.MATH])
        return plain
    return nullcontext()


class Collator:
    """Pad rows on the right into a batch."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, features: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """Return a batch of `input_ids`, `attention_mask`, `labels` (B, T) and `positions` (N,)."""
        lengths = [len(feature["input_ids"]) for feature in features]
        width = max(lengths)
        labels_BT = torch.tensor([f["labels"] + [IGNORE] * (width - n) for f, n in zip(features, lengths, strict=True)])
        return {
            "input_ids": torch.tensor(
                [f["input_ids"] + [self.pad_id] * (width - n) for f, n in zip(features, lengths, strict=True)]
            ),
            # By length, not by pad id: SmolLM2 pads with its EOS, which is a real target at the end of a response.
            "attention_mask": torch.tensor([[1] * n + [0] * (width - n) for n in lengths]),
            "labels": labels_BT,
            "positions": target_positions(labels_BT),
        }


def features(row: Row) -> dict[str, list[int]]:
    """Return the row as ids and labels; the prompt carries no loss."""
    return {"input_ids": [*row.prompt, *row.response], "labels": [IGNORE] * len(row.prompt) + list(row.response)}


class OrderedRows(Dataset[dict[str, list[int]]]):
    """Dataset of rows in training order."""

    def __init__(self, rows: Sequence[Row], order: Sequence[int]) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return features(self.rows[self.order[index]])


def fit(
    lm: LanguageModel,
    rows: Sequence[Row],
    settings: Training,
    run: Run,
    stage: str,
    parameters: Sequence[nn.Parameter] | None = None,
    objective: nn.Module | None = None,
) -> None:
    """Train in place on the responses of `rows`; record steps, tokens, seconds and losses in `run.facts[stage]`.

    Args:
        lm: the model, weights in float32.
        rows: training rows in any order; rows longer than `max_length` are cut, or left out and counted.
        settings: optimizer, schedule, precision, sizes.
        run: seed, progress, and the hook that may spread the Trainer over workers.
        stage: name of this run within its method, such as "eliminate".
        parameters: trained parameters; None: all of the model. All others are frozen meanwhile.
        objective: a module around the model with the signature of `ResponseLoss`; None: `ResponseLoss`.

    Raises:
        NonFiniteError: the loss or the gradient norm is not finite; names stage and step.
        UserError: no row fits, or the batch cannot be split over the workers.
    """
    fitted = fit_length(rows, settings.max_length)
    if not fitted:
        raise UserError(f"{stage}: no row is shorter than max_length={settings.max_length} tokens; set it higher")

    lengths = [len(row) for row in fitted]
    # Another objective may read attention probabilities or the mask, which packed rows do not have.
    layout = (
        choose(settings.layout, lm.model, max(lengths), resolve(settings.precision)) if objective is None else "padded"
    )
    packed = layout == "packed"
    collate = PackedCollator(_micro_batch(settings)) if packed else Collator(pad_id(lm.tokenizer))

    def build(arguments: dict[str, Any], order: Sequence[int]) -> Trainer:
        return Trainer(
            model=ResponseLoss(lm.model) if objective is None else objective,
            args=TrainingArguments(**arguments, remove_unused_columns=False),
            train_dataset=OrderedRows(fitted, order),
            data_collator=collate,
        )

    if objective is not None and _sharding(run).recompute:
        raise UserError(
            f"resources.recompute: {stage} reads the states within blocks, which recomputation does not keep; set it "
            "to false"
        )
    with packed_attention(lm.model) if packed else nullcontext():
        probe = collate([features(fitted[0])])
        optimise(lm, lengths, settings, run, stage, build, probe=probe, parameters=parameters)
    run.facts[stage] |= {"rows": len(fitted), "rows_left_out": len(rows) - len(fitted), "layout": layout}


def optimise(
    lm: LanguageModel,
    lengths: Sequence[int],
    settings: Training,
    run: Run,
    stage: str,
    build: Callable[[dict[str, Any], Sequence[int]], Trainer],
    probe: Mapping[str, Any],
    parameters: Sequence[nn.Parameter] | None = None,
) -> None:
    """Run any Trainer with what all runs share: trained parameters, LoRA, row order, checks, checkpoints, facts.

    Args:
        lm: the model, weights in float32.
        lengths: tokens of each training row.
        settings: optimizer, schedule, precision, sizes.
        run: seed, progress, and the hook that may spread the Trainer over workers.
        stage: name of this run within its method.
        build: makes the Trainer from keyword arguments of `TrainingArguments` and the order of the rows.
        probe: a batch whose loss is computed after the last step, in the collator's format.
        parameters: trained parameters; None: all of the model, or its adapters where `settings` asks for LoRA.

    Raises:
        NonFiniteError: the loss or the gradient norm is not finite; names stage and step.
        UserError: the batch cannot be split over the workers, or LoRA is asked for where `parameters` are given.
    """
    order = row_order(lengths, settings, run.seed)
    tokens = list(itertools.accumulate(lengths[index] for index in order))
    monitor = Monitor(stage, run, tokens_after=tokens[settings.batch_size - 1 :: settings.batch_size])
    with _trainable(lm.model, settings, run.seed, parameters):
        layout = _layout(_sharding(run), resolve(settings.precision))
        progress = run.checkpoints.training(stage, layout, run.facts) if run.checkpoints else None
        if progress and progress.finished(lm.model):
            run.say(f"{stage}: done before")
            return
        arguments = _arguments(settings, run, steps=len(order) // settings.batch_size)
        if progress:
            arguments |= {"output_dir": str(progress.folder), "save_total_limit": KEPT}
        trainer = build(arguments, order)
        trainer.add_callback(monitor)
        trainer.remove_callback(PrinterCallback)  # it prints a line at every step
        found = progress.latest(lm.model) if progress else None
        if found:
            run.say(f"{stage}: resuming from {Path(found).name}")
        kept = progress.kept(trainer) if progress else nullcontext()
        with kept, _sharding(run).recomputing(lm.model), _sharding(run).spread(trainer):
            run.prepare(trainer).train(resume_from_checkpoint=found)
        _check_weights(lm, probe, monitor)
        summary = monitor.summary(trainer.state, progress.earlier if progress else 0.0)
        run.facts[stage] = summary | {"compute_type": resolve(settings.precision)}
        if progress:
            progress.finish(lm.model)


@contextmanager
def _trainable(
    model: PreTrainedModel, settings: Training, seed: int, parameters: Sequence[nn.Parameter] | None
) -> Iterator[None]:
    """Let exactly `parameters` require gradients within the block; None: all of the model, or its LoRA adapters."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        if settings.lora_rank is not None:
            if parameters is not None:
                raise UserError("lora_rank: the model does not train here; remove lora_rank")
            with _adapters(model, settings.lora_rank, settings.lora_alpha, seed):
                yield
        else:
            trained = {id(parameter) for parameter in (model.parameters() if parameters is None else parameters)}
            for parameter, _ in before:
                parameter.requires_grad_(id(parameter) in trained)
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def _adapters(model: PreTrainedModel, rank: int, alpha: int, seed: int) -> Iterator[None]:
    """Add LoRA adapters to every linear layer but the output layer (Hu et al. 2022); merge them at the end."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)  # decides the adapters' first values
        adapted: Any = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear"))
    try:
        yield
    finally:
        adapted.merge_and_unload()


def _check_weights(lm: LanguageModel, probe: Mapping[str, Any], monitor: Monitor) -> None:
    """Check the loss once more: a step checks it before its update, so the last update is unchecked."""
    device = lm.model.device
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in probe.items()}
    with torch.no_grad():
        loss = ResponseLoss(lm.model)(**batch, num_items_in_batch=torch.tensor(1.0))["loss"]
    monitor.check({"loss": float(loss)}, "after the last step")


def row_order(lengths: Sequence[int], settings: Training, seed: int) -> list[int]:
    """Return the training order: row indices for whole optimizer steps, a new permutation for each pass.

    No sampler decides it, so that it depends on the seed alone, and workers and micro-batches only split the rows of a
    step. Passes follow each other without a gap; every step has `batch_size` rows.

    Args:
        lengths: tokens of each row.
        settings: `epochs` or `max_steps`, `batch_size`, and whether rows of like length share a batch.
        seed: of the stage.
    """
    size = settings.batch_size
    steps = settings.max_steps or max(1, round(settings.epochs * len(lengths) / size))
    generator = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * size:
        one_pass = generator.sample(range(len(lengths)), len(lengths))
        order += _alike(one_pass, lengths, size, generator) if settings.length_grouped else one_pass
    return order[: steps * size]


def _alike(order: list[int], lengths: Sequence[int], size: int, generator: random.Random) -> list[int]:
    batches: list[list[int]] = []
    for begin in range(0, len(order), GROUP_STEPS * size):
        group = sorted(order[begin : begin + GROUP_STEPS * size], key=lambda index: lengths[index])
        alike = [group[i : i + size] for i in range(0, len(group), size)]
        generator.shuffle(alike)
        batches += alike
    return [index for batch in batches for index in batch]


def _workers() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _sharding(run: Run) -> Sharding:
    return run.sharding or WHOLE


def _layout(sharding: Sharding, precision: ComputeType) -> str:
    """Return the name of the worker layout and compute type; a checkpoint resumes only in the same layout."""
    return f"{_workers()}-workers{sharding.layout}-{precision}"


def _micro_batch(settings: Training) -> int:
    """Return the rows per forward pass of this worker."""
    return settings.micro_batch_size or max(1, settings.batch_size // _workers())


def _arguments(settings: Training, run: Run, steps: int) -> dict[str, Any]:
    """Return keyword arguments of `TrainingArguments` or of a class derived from it."""
    workers, micro, precision = _workers(), _micro_batch(settings), resolve(settings.precision)
    if settings.batch_size % (micro * workers):
        raise UserError(
            f"batch_size {settings.batch_size} is not a multiple of micro_batch_size {micro} x {workers} worker(s); "
            "change one of them"
        )
    return {
        "output_dir": run.scratch,
        "seed": run.seed,
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch_size // (micro * workers),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,  # below 1 it is a share of all steps
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch_fused",
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "adam_epsilon": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
        "bf16": precision == "bf16",
        "train_sampling_strategy": "sequential",  # in the order of row_order
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": min(LOG_STEPS_CUDA, steps) if torch.cuda.is_available() else 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **_sharding(run).arguments(precision),
    }


class Monitor(TrainerCallback):
    """Report the progress of a training, stop it when a number is not finite, and summarize it."""

    def __init__(self, stage: str, run: Run, tokens_after: Sequence[int]) -> None:
        """Take the tokens of all workers after each step, padding not counted, as `tokens_after`."""
        self.stage, self.run, self.tokens_after = stage, run, tokens_after
        self.first = 0  # step that this process begins with; above 0 where it resumes from a checkpoint
        self.started = self.spoke = time.perf_counter()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Start the clock after the Trainer is set up."""
        self.first = state.global_step
        self.started = self.spoke = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Check and report the steps since the last call."""
        if not logs or "loss" not in logs:
            return  # the Trainer's closing summary
        self.check(logs, f"at step {state.global_step} of {state.max_steps}")
        if not state.is_world_process_zero:
            return
        now = time.perf_counter()
        if self.run.watch:
            self.run.watch(self._status(state, logs["loss"], now - self.started))
        elif now - self.spoke >= PROGRESS_SECONDS:
            self.spoke = now
            self.run.say(str(self._status(state, logs["loss"], now - self.started)))

    def _status(self, state: TrainerState, loss: float, elapsed: float) -> TrainingStatus:
        tokens = self.tokens_after[state.global_step - 1] - (self.tokens_after[self.first - 1] if self.first else 0)
        left = elapsed / (state.global_step - self.first) * (state.max_steps - state.global_step)
        return TrainingStatus(self.stage, state.global_step, state.max_steps, loss, tokens / elapsed, left)

    def check(self, numbers: Mapping[str, float], when: str) -> None:
        """Raise if the loss or gradient norm is not finite.

        Raises:
            NonFiniteError: names stage, number and step.
        """
        for name in ("loss", "grad_norm"):
            if not math.isfinite(numbers.get(name, 0.0)):
                raise NonFiniteError(
                    f"stage {self.stage}: {name} is {numbers[name]} {when}; lower the learning rate, or start the "
                    "parrot from noise"
                )

    def summary(self, state: TrainerState, earlier: float) -> dict[str, float | int]:
        """Return steps, tokens, seconds and the mean loss of the first and the last tenth of the steps.

        Args:
            state: of the Trainer at the end; its losses are of one step each, or means of LOG_STEPS_CUDA.
            earlier: seconds of processes before this one.
        """
        losses = [logs["loss"] for logs in state.log_history if "loss" in logs]
        tenth = max(1, len(losses) // 10)
        return {
            "steps": state.global_step,
            "tokens": self.tokens_after[-1],
            "seconds": round(earlier + time.perf_counter() - self.started, 3),
            "first_loss": sum(losses[:tenth]) / tenth,
            "last_loss": sum(losses[-tenth:]) / tenth,
        }
