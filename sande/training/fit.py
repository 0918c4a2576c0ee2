"""Build every optimisation run: HF Trainer over rows of prompt and response.

Shapes: B rows, T positions, N target tokens, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sande import parts
from sande.compute import ComputeType, resolve
from sande.config import Training
from sande.errors import UserError
from sande.formats import end_id
from sande.prompts import Row, fit_length, pad_id
from sande.training.batches import Collator, OrderedRows, features, row_order
from sande.training.checkpoints import KEPT
from sande.training.monitor import LOG_STEPS_CUDA, Monitor
from sande.training.objective import ResponseLoss
from sande.training.optimizers import chosen, muon
from sande.training.packing import PackedCollator, choose, packed_attention
from sande.training.sharding import WHOLE, Sharding
from sande.training.sharpness import sharpness_aware
from sande.types import LanguageModel, Run

A = TypeVar("A", bound=TrainingArguments)
ATTACK = "attack"  # the stage in which an attack trains its victim


def fit(
    lm: LanguageModel,
    rows: Sequence[Row],
    settings: Training,
    run: Run,
    stage: str,
    parameters: Sequence[nn.Parameter] | None = None,
    objective: nn.Module | None = None,
    rank: Callable[[Row], int] | None = None,
    alike: Callable[[Row], int] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
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
        rank: in every pass, rows for which this is lower come first; None: rows are mixed.
        alike: rows for which this is about the same share a batch, if `settings` groups rows; None: their lengths.
        callbacks: of the Trainer, which change the weights; shards allow none.

    Raises:
        NonFiniteError: the loss or the gradient norm is not finite; names stage and step.
        UserError: no row fits, the batch cannot be split over the workers, or the layout is packed and `objective` is
            not None.
    """
    fitted = fit_length(rows, settings.max_length, end_id(lm.tokenizer) if settings.cut_with_eos else None)
    if not fitted:
        raise UserError(f"{stage}: no row is shorter than max_length={settings.max_length} tokens; set it higher")

    lengths = [len(row) for row in fitted]
    # Another objective may read attention probabilities or the mask, which packed rows do not have.
    if objective is not None and settings.layout == "packed":
        raise UserError(f"{stage}: layout is packed, but this loss needs padded rows; set it to auto")
    layout = (
        choose(settings.layout, lm.model, max(lengths), resolve(settings.precision)) if objective is None else "padded"
    )
    packed = layout == "packed"
    collate = PackedCollator(micro_batch(settings)) if packed else Collator(pad_id(lm.tokenizer))

    def build(arguments: dict[str, Any], order: Sequence[int]) -> Trainer:
        return Trainer(
            model=ResponseLoss(lm.model) if objective is None else objective,
            args=one_device(TrainingArguments(**arguments, remove_unused_columns=False)),
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
        ranks = [rank(row) for row in fitted] if rank else None
        grouped_by = [alike(row) for row in fitted] if alike else None
        optimise(lm, lengths, settings, run, stage, build, probe, parameters, ranks, grouped_by, callbacks)
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
    ranks: Sequence[int] | None = None,
    grouped_by: Sequence[int] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
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
        ranks: of each row, as for `row_order`.
        grouped_by: of each row, in place of its length, by which rows are alike; None: their lengths.
        callbacks: of the Trainer, which change the weights.

    Raises:
        NonFiniteError: the loss or the gradient norm is not finite; names stage and step.
        UserError: the batch cannot be split over the workers, LoRA is asked for where `parameters` are given, or the
            weights are in shards and the settings need them whole.
    """
    _refuse_shards(settings, run, stage, callbacks)
    order = row_order(grouped_by or lengths, settings, run.seed, ranks)
    tokens = list(itertools.accumulate(lengths[index] for index in order))
    monitor = Monitor(stage, run, tokens_after=tokens[settings.batch_size - 1 :: settings.batch_size])
    with _trainable(lm.model, settings, adapter_seed(run.seed, stage), parameters):
        layout = _layout(_sharding(run), resolve(settings.precision))
        progress = run.checkpoints.training(stage, layout, run.facts) if run.checkpoints else None
        if progress and progress.finished(lm.model):
            run.say(f"{stage}: done before")
            return
        arguments = _arguments(settings, run, steps=len(order) // settings.batch_size)
        if progress:
            arguments |= {"output_dir": str(progress.folder), "save_total_limit": KEPT}
        trainer = build(arguments, order)
        if settings.optimizer == "muon":
            trainer.optimizer = muon(trainer)
        if settings.sharpness:
            sharpness_aware(trainer, settings.sharpness)
        for callback in (monitor, *callbacks):
            trainer.add_callback(callback)
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


def adapter_seed(seed: int, stage: str) -> int:
    """Return what decides the first values of a stage's LoRA adapters: of an attack the run's seed, else a hash.

    The first values span the inputs that an update reads, and few steps hardly change them. With the same ones a
    defense would change the weights just where the attack of the same seed did.
    """
    return seed if stage == ATTACK else parts.seed(seed, stage)


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


def _workers() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _sharding(run: Run) -> Sharding:
    return run.sharding or WHOLE


def _refuse_shards(settings: Training, run: Run, stage: str, callbacks: Sequence[TrainerCallback]) -> None:
    """Raise a `UserError` where DeepSpeed, which holds weights and gradients itself, would ignore a setting."""
    if not _sharding(run).deepspeed:
        return
    if settings.optimizer != "adamw":
        raise UserError(f"{stage}: sharding needs optimizer adamw; set resources.sharding to none, or use adamw")
    if settings.sharpness or callbacks:
        needs = "sharpness" if settings.sharpness else "this method"
        raise UserError(f"{stage}: {needs} needs whole weights; set resources.sharding to none")


def _layout(sharding: Sharding, precision: ComputeType) -> str:
    """Return the name of the worker layout and compute type; a checkpoint resumes only in the same layout."""
    return f"{_workers()}-workers{sharding.layout}-{precision}"


def one_device(arguments: A) -> A:
    """Return training arguments whose Trainer takes one device.

    With several GPUs and one process, it would split each batch over all of them (`DataParallel`), by a size that the
    batches here do not have. What uses several GPUs here are worker groups.
    """
    _ = arguments.device  # finds the devices
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def micro_batch(settings: Training) -> int:
    """Return the rows per forward pass of this worker."""
    return settings.micro_batch_size or max(1, settings.batch_size // _workers())


def _arguments(settings: Training, run: Run, steps: int) -> dict[str, Any]:
    """Return keyword arguments of `TrainingArguments` or of a class derived from it."""
    workers, micro, precision = _workers(), micro_batch(settings), resolve(settings.precision)
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
        # Below 1 it is a share of all steps, rounded up. The first has a rate of 0, so one step alone would do nothing.
        "warmup_steps": settings.warmup if steps > 1 else 0,
        "max_grad_norm": settings.max_grad_norm,
        **chosen(settings),
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "adam_epsilon": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
        "bf16": precision == "bf16",
        "train_sampling_strategy": "sequential",  # in the order of row_order
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": LOG_STEPS_CUDA if torch.cuda.is_available() else 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **_sharding(run).arguments(precision),
    }
