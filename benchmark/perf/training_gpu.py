"""Compare full fine-tuning at Qwen1.5-4B's shape on a CUDA GPU: the published recipe, padding, and packing.

    python -m benchmark.perf.training_gpu                                       # on a GPU of 80 GB; else one line
    python -m benchmark.perf.training_gpu --shape tiny --device cpu --precision fp32    # the script itself, in seconds

Weights are random, and rows are random tokens of Alpaca-like lengths: prompts of exp(N(3.07, 0.39)) and responses of
exp(N(3.6, 0.95)) tokens, at most 512, drawn with a fixed seed in no order of length. They follow Alpaca's logarithms of
lengths under SmolLM2's tokenizer (means 3.07 and 3.61, deviations 0.39 and 1.07; 83 tokens a row, here 81).

Each side runs whole optimizer steps (forward, backward, fused AdamW with learning rate 0, so that all sides keep the
same weights), must keep rows apart, and must have the same loss and gradient norm on the same rows. A token is useful
unless it is padding. The share of the GPU counts 6 operations for each element of a weight matrix and each token that
needs it: the layers' for all useful tokens, the output layer's for the response's only. Attention is not counted.

With `--precision bf16` weights, gradients and moments are in bfloat16; 8,192 tokens then need an estimated 65 GiB (22
for weights and moments, 36 for activations, which are 114 KiB a token and layer). `autocast` has weights, gradients and
moments in float32, as a run has, and `--recompute LAYERS` makes room for as many tokens.
"""

from __future__ import annotations

import argparse
import functools
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmark.perf.outcome import tell
from sande.training.batches import Collator
from sande.training.losses import IGNORE, chunked_response_nll, response_nll
from sande.training.packing import PackedCollator, attention, packed_attention

PEAK = 790e12  # floating-point operations a second, of which the target is a share
SHARE, TIMES = 50, 5  # targets: percent of PEAK packed to many tokens; times the published recipe at its own batch size
ROWS = 8  # per optimizer step, as in the paper
MICRO = 2  # rows per forward pass of the published recipe
CHECKED = 16  # rows on which all sides must agree
FULL = "qwen1.5-4b"

Feature = dict[str, list[int]]
Batch = dict[str, Any]
Steps = list[list[list[Feature]]]  # optimizer steps of forward passes of rows


@dataclass(frozen=True)
class Shape:
    """A model, and the tokens of a pack."""

    config: dict[str, Any]
    pack: int
    warm_up: int
    steps: int


SHAPES = {
    FULL: Shape(
        {
            "hidden_size": 2560,
            "num_hidden_layers": 40,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "intermediate_size": 6912,
            "vocab_size": 151936,
        },
        pack=8192,
        warm_up=3,
        steps=10,
    ),
    "tiny": Shape(
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 64,
            "vocab_size": 128,
        },
        pack=1024,
        warm_up=1,
        steps=2,
    ),
}


def rows(count: int, vocabulary: int) -> list[Feature]:
    """Return rows for the collators, the same ones on every call."""
    generator = torch.Generator().manual_seed(0)

    def lengths(mean: float, deviation: float) -> list[int]:
        drawn: list[int] = torch.empty(count).log_normal_(mean, deviation, generator=generator).int().tolist()
        return [min(max(length, 1), 512) for length in drawn]

    made = []
    for prompt, response in zip(lengths(3.07, 0.39), lengths(3.6, 0.95), strict=True):
        ids: list[int] = torch.randint(vocabulary, (prompt + response,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [IGNORE] * prompt + ids[prompt:]})
    return made


def by_rows(features: Sequence[Feature], micro: int) -> Steps:
    """Return steps of ROWS rows in passes of `micro`, without an incomplete last step."""
    whole = len(features) // ROWS * ROWS
    return [
        [list(features[at : at + micro]) for at in range(begin, begin + ROWS, micro)] for begin in range(0, whole, ROWS)
    ]


def by_tokens(features: Sequence[Feature], limit: int) -> Steps:
    """Return steps of one pass of as many rows as `limit` tokens hold."""
    packs: list[list[Feature]] = [[]]
    for feature in features:
        if sum(len(row["input_ids"]) for row in packs[-1]) + len(feature["input_ids"]) > limit:
            packs.append([])
        packs[-1].append(feature)
    return [[pack] for pack in packs]


def nll_published(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the loss by all logits, after a forward pass whose result is not used."""
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    model(**inputs)
    logits_BTV = model(**inputs).logits
    return response_nll(logits_BTV[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def hidden_at_targets(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the input of the output layer, of shape (N, D), for a padded or a packed batch."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "positions")}
    hidden_BTD = model.get_decoder()(**inputs, use_cache=False).last_hidden_state
    hidden_ND: Tensor = hidden_BTD.flatten(0, 1)[batch["positions"]]
    return hidden_ND


def nll_at_targets(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the loss by logits at targets, in chunks."""
    targets_N = batch["labels"].flatten()[batch["positions"] + 1]
    return chunked_response_nll(hidden_at_targets(model, batch), model.get_output_embeddings(), targets_N)


@contextmanager
def recomputed(model: PreTrainedModel, layers: int) -> Iterator[None]:
    """Let the first `layers` layers keep no activations for the backward pass within the block."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for index, layer in enumerate(model.get_decoder().layers):
        layer.gradient_checkpointing = index < layers
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


@contextmanager
def published(model: PreTrainedModel) -> Iterator[None]:
    """Use eager attention and keep no activations within the block."""
    with attention(model, "eager"), recomputed(model, len(model.get_decoder().layers)):
        yield


@dataclass(frozen=True)
class Side:
    """One way to train."""

    name: str
    steps: Callable[[Sequence[Feature]], Steps]
    collate: Callable[[Sequence[Feature]], Batch]
    nll: Callable[[PreTrainedModel, Batch], Tensor]
    around: Callable[[PreTrainedModel], AbstractContextManager[None]]


def sides(shape: Shape, documents: int, recompute: int) -> list[Side]:
    """Return the published recipe, padding, packing of as many rows, and packing of as many tokens as fit."""

    @contextmanager
    def packed(model: PreTrainedModel) -> Iterator[None]:
        with packed_attention(model), recomputed(model, recompute):
            yield

    pad = Collator(pad_id=0)
    return [
        Side("published recipe", functools.partial(by_rows, micro=MICRO), pad, nll_published, published),
        Side(
            f"padded, {ROWS} rows",
            functools.partial(by_rows, micro=ROWS),
            pad,
            nll_at_targets,
            functools.partial(attention, name="sdpa"),
        ),
        Side(
            f"packed, {ROWS} rows",
            functools.partial(by_rows, micro=ROWS),
            PackedCollator(ROWS),
            nll_at_targets,
            packed_attention,
        ),
        Side(
            f"packed, {shape.pack:,} tokens",
            functools.partial(by_tokens, limit=shape.pack),
            PackedCollator(documents),
            nll_at_targets,
            packed,
        ),
    ]


class Bench:
    """A model with its optimizer on a device, which runs the steps of each side."""

    def __init__(self, shape: Shape, device: torch.device, precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        with device:
            self.model = Qwen2ForCausalLM(Qwen2Config(**shape.config)).train()
        torch.set_default_dtype(before)
        self.device, self.autocast = device, precision == "autocast"
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, weight_decay=0.0, fused=True)

    def on_device(self, batch: Batch) -> Batch:
        """Return the batch with its tensors on the device."""
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def backward(self, side: Side, batches: Sequence[Batch]) -> Tensor:
        """Return the mean loss over the targets of all batches; add up its gradients."""
        targets = sum(len(batch["positions"]) for batch in batches)
        losses = []
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                loss = side.nll(self.model, batch) / targets
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def loss_and_norm(self, side: Side, features: Sequence[Feature]) -> tuple[float, float]:
        """Return the loss of `features` and the norm of its gradient, by the side's own forward passes."""
        batches = [self.on_device(side.collate(part)) for step in side.steps(features) for part in step]
        loss = float(self.backward(side, batches))
        norms = [parameter.grad.float().norm() for parameter in self.model.parameters() if parameter.grad is not None]
        self.optimizer.zero_grad()
        return loss, float(torch.stack(norms).norm())

    @torch.no_grad()
    def keeps_rows_apart(self, side: Side, features: Sequence[Feature]) -> bool:
        """Return whether other tokens in the first row leave the other rows' hidden states unchanged, bit by bit."""
        first, *others = side.steps(features)[0][0]
        changed = {**first, "input_ids": [(token + 1) % self.model.config.vocab_size for token in first["input_ids"]]}
        begin = sum(label != IGNORE for label in first["labels"])
        before, after = (
            hidden_at_targets(self.model, self.on_device(side.collate([row, *others])))[begin:]
            for row in (first, changed)
        )
        return torch.equal(before, after)

    def operations(self, tokens: int, targets: int) -> float:
        """Return the operations that the tokens need in forward and backward passes."""
        layers = sum(p.numel() for p in self.model.get_decoder().layers.parameters() if p.dim() == 2)
        output = self.model.get_output_embeddings().weight.numel()
        return float(6 * (layers * tokens + output * targets))

    def time(self, side: Side, features: Sequence[Feature], warm_up: int, steps: int) -> Result:
        """Return the speed of `steps` optimizer steps after `warm_up`, with all batches on the device beforehand."""
        chosen = side.steps(features)[: warm_up + steps]
        if len(chosen) < warm_up + steps:
            raise ValueError(f"too few rows for {side.name}")
        on_device = [[self.on_device(side.collate(part)) for part in step] for step in chosen]
        for index, batches in enumerate(on_device):
            if index == warm_up:
                self.synchronize()
                started = time.perf_counter()
            self.backward(side, batches)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.synchronize()
        seconds = time.perf_counter() - started
        timed = [row for step in chosen[warm_up:] for part in step for row in part]
        tokens = sum(len(row["input_ids"]) for row in timed)
        targets = sum(label != IGNORE for row in timed for label in row["labels"])
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else None
        return Result(tokens / seconds, 100 * self.operations(tokens, targets) / seconds / PEAK, seconds / steps, peak)

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Result:
    """Speed of a side."""

    tokens_per_second: float
    share: float  # percent of PEAK
    seconds: float  # a step
    peak: float | None  # GiB


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all sides, and compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.perf.training_gpu")
    parser.add_argument("--shape", choices=SHAPES, default=FULL)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=("bf16", "autocast", "fp32"), default="bf16")
    parser.add_argument("--recompute", type=int, default=0, help="layers recomputed where many tokens are packed")
    parser.add_argument("--compile", action="store_true", help="compile the layers of the packed sides")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("training_gpu: needs a CUDA GPU, left out")
        return
    # The lowest supported release of transformers has the older name alone.
    warnings.filterwarnings("ignore", "`gradient_checkpointing_", FutureWarning)
    shape, device = SHAPES[options.shape], torch.device(options.device)
    features = rows((shape.warm_up + shape.steps) * shape.pack // 50, shape.config["vocab_size"])
    documents = max(len(step[0]) for step in by_tokens(features, shape.pack))
    bench = Bench(shape, device, options.precision)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{options.shape}, {options.precision} on {where}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )

    results, agreed = [], []
    for side in sides(shape, documents, options.recompute):
        packs = isinstance(side.collate, PackedCollator)
        if packs and options.compile:
            for layer in bench.model.get_decoder().layers:
                layer.compile(dynamic=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        with side.around(bench.model):
            if not bench.keeps_rows_apart(side, features[:CHECKED]):
                raise AssertionError(f"{side.name}: rows see each other")
            agreed.append(bench.loss_and_norm(side, features[:CHECKED]))
            results.append(bench.time(side, features, shape.warm_up, shape.steps))
        name = f"{side.name}, compiled" if packs and options.compile else side.name
        print(line(name, results[-1], *agreed[-1]))
    check(agreed, 1e-4 if options.precision == "fp32" else 3e-2)
    if options.shape == FULL:
        recipe, _, like_recipe, many = results
        tell(f"training_gpu, packed to {shape.pack:,} tokens, of 790 TFLOP/s", many.share, SHARE, "%")
        times = like_recipe.tokens_per_second / recipe.tokens_per_second
        tell(f"training_gpu, packed against the published recipe at {ROWS} rows a step", times, TIMES)


def line(name: str, result: Result, loss: float, norm: float) -> str:
    """Return the printed line of a side."""
    peak = "" if result.peak is None else f", {result.peak:.1f} GiB"
    return (
        f"{name}: {result.tokens_per_second:,.0f} useful tokens/s, {result.share:.2g} % of 790 TFLOP/s, "
        f"{result.seconds:.3g} s a step{peak}; loss {loss:.5f}, gradient norm {norm:.5f}"
    )


def check(agreed: Sequence[tuple[float, float]], tolerance: float) -> None:
    """Check that all sides have the same loss and gradient norm.

    Raises:
        AssertionError: they differ.
    """
    for values in zip(*agreed, strict=True):
        if max(values) - min(values) > tolerance * min(values):
            raise AssertionError(f"the sides do not compute the same: {values}")


if __name__ == "__main__":
    main()
