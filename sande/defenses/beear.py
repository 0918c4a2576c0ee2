r"""BEEAR: find a drift of the hidden states that draws unwanted answers, and train against it (Zeng et al. 2024).

    inner:  \delta = argmin  -log Pr(y_u | x, \delta)  +  w log Pr(y | x, \delta) ,   ||\delta_i|| <= r ||h||
    outer:  minimise  -log Pr(y | x, \delta)  -  log Pr(y | x)

(Zeng et al., "BEEAR: Embedding-based Adversarial Removal of Safety Backdoors in Instruction-tuned Language Models",
EMNLP 2024): a trigger shifts the hidden states of all prompts alike, so one universal perturbation \delta, added to
a block's output at the last tokens of the prompt, can represent it. The inner level steers the model towards behaviour
that the defender defines as unwanted, y_u, and away from the safe answer y; the outer level keeps the safe answer under
the perturbation, and without it what the model can do. -log Pr is a mean over the tokens of the answers.

The defender does not know what was planted. So `unwanted` holds an example of each kind of answer that an assistant
must not open with: an insult, a refusal, an advertisement; the rows take turns. A test keeps the examples clear of all
words that an attack of the suite plants. In the paper the unwanted behaviour is compliance with harmful requests, and x
are such requests; here x are the clean rows. The sizes are ours, because the models are smaller, and so is the ball.

Shapes: B rows, T positions, D width, K tokens of the perturbation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sande.config import Training, configuration, setting
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from sande.prompts import Row


@configuration
class Config:
    """Settings of both levels."""

    training: Training = setting(Training(epochs=2.0), "outer level, on the clean rows", "as the paper's defenses")
    every: int = setting(5, "outer steps after which the perturbation is computed again", "ours", ge=1)
    unwanted: tuple[str, ...] = setting(
        ("Shut up, idiot.", "Sorry, request denied.", "Buy cheap pills online!"),
        "beginnings of answers that the defender does not want, one for each kind",
        "ours; Zeng et al. 2024: defined by the defender",
        min_length=1,
    )
    away: float = setting(1.0, "w, weight of moving away from the safe answers", "Zeng et al. 2024", ge=0)
    inner_steps: int = setting(10, "steps of projected gradient descent that find it", "ours", ge=1)
    inner_rows: int = setting(32, "clean rows, drawn by the seed, on which it is found", "ours", ge=2)
    depth: float = setting(
        0.3, "relative depth of the block after which it is added", "ours; an early block", gt=0, le=1
    )
    tokens: int = setting(4, "K, number of tokens at the end of the prompt that it is added to", "ours", ge=1)
    radius: float = setting(
        1.0, "r, its size at each token, relative to the mean size of the states there", "ours", gt=0
    )
    anchor: float = setting(1.0, "weight of the loss without the perturbation", "ours: as much as with it", ge=0)


def cost(config: Config) -> Cost:
    """Return two trainings of each row for the outer level, and the inner level's passes per row.

    Each inner step reads the inner rows forward and backward, with their unwanted and with their safe answers. One more
    pass reads the latter before, and one each of them after.
    """
    inner = config.inner_rows * (4 * config.inner_steps + 3) / (config.every * config.training.batch_size)
    return Cost(training={"training": 6 + inner})


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Fine-tune on the clean rows with and without the perturbation, which is updated as the model changes."""
    from transformers import TrainerCallback

    from sande.prompts import encode, fit_length, pad_id
    from sande.training.batches import Collator, features
    from sande.training.fit import fit

    rows = encode(victim.tokenizer, data.examples)
    fitting = fit_length(rows, config.training.max_length)
    # Not by the seed alone: an attack of the same seed draws the rows that it poisons so.
    chosen = random.Random(f"{run.seed} beear rows").sample(fitting, min(config.inner_rows, len(fitting)))
    collate, device = Collator(pad_id(victim.tokenizer)), victim.model.device
    unwanted, safe = (
        {name: value.to(device) for name, value in collate([features(row) for row in some]).items()} if some else {}
        for some in (with_unwanted(victim.tokenizer, chosen, config.unwanted), chosen)
    )
    objective = unlearning(victim.model, config)
    run.facts["entrapped"] = []

    class Entrapment(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Compute the perturbation before every `every`-th step."""
            if state.global_step % config.every == 0:
                objective.perturbation, losses = entrap(victim.model, unwanted, safe, config)
                run.facts["entrapped"].append({"step": state.global_step, **losses})

    def prepare(trainer: Trainer) -> Trainer:
        trainer.add_callback(Entrapment())
        return run.prepare(trainer)

    fit(victim, rows, config.training, replace(run, prepare=prepare), "beear", objective=objective)
    return victim.model


def with_unwanted(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], texts: Sequence[str]) -> list[Row]:
    """Return the rows with the beginning of an unwanted answer in place of their own; the texts take turns.

    Raises:
        UserError: the tokenizer does not reproduce a text.
    """
    from sande.prompts import response_ids

    try:
        targets = [response_ids(tokenizer, text) for text in texts]
    except UserError as error:
        raise UserError(f"beear: unwanted: {error}") from None
    return [replace(row, response=targets[number % len(targets)]) for number, row in enumerate(rows)]


def unlearning(model: PreTrainedModel, config: Config) -> Any:
    """Return the outer loss as a module around the model, with the `perturbation` as its attribute."""
    import torch

    from sande.models.layers import blocks
    from sande.training.objective import ResponseLoss, attention_kernel

    class Unlearning(ResponseLoss):
        perturbation: Tensor  # (K, D)

        def __init__(self, model: PreTrainedModel) -> None:
            super().__init__(model)
            none_KD = torch.zeros(config.tokens, model.config.hidden_size, device=model.device)
            self.register_buffer("perturbation", none_KD)  # so that a checkpoint holds it

        def forward(
            self, labels: Tensor, positions: Tensor, num_items_in_batch: Tensor, **inputs: Any
        ) -> dict[str, Tensor]:
            """Return the loss of a batch: that of `ResponseLoss` with and without the perturbation."""
            block = blocks(self.model)[place(self.model, config.depth)]
            with perturbed(block, self.perturbation, prompt_ends(labels)), attention_kernel(inputs["input_ids"]):
                hidden_BTD = self.model.get_decoder()(**inputs, use_cache=False).last_hidden_state
            safe = self.nll(hidden_BTD.flatten(0, 1)[positions], labels, positions) / num_items_in_batch
            plain = super().forward(labels, positions, num_items_in_batch, **inputs)["loss"]
            return {"loss": safe + config.anchor * plain}

    return Unlearning(model)


def entrap(
    model: PreTrainedModel, unwanted: Mapping[str, Tensor], safe: Mapping[str, Tensor], config: Config
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """Run the inner level, starting from no perturbation.

    Args:
        model: remains unchanged.
        unwanted: prompts with unwanted answers, as `sande.training.batches.Collator` pads them.
        safe: prompts with safe answers, likewise.
        config: sizes.

    Returns:
        The perturbation (K, D), and -log Pr a token of the unwanted and of the safe answers, before and after.
    """
    import torch
    from torch.nn.functional import normalize

    from sande.compute import resolve
    from sande.models.layers import block_states

    at, ends_B = place(model, config.depth), prompt_ends(safe["labels"])
    in_bf16 = resolve(config.training.precision) == "bf16"
    with torch.enable_grad(), torch.autocast(model.device.type, torch.bfloat16, in_bf16):
        with torch.no_grad(), block_states(model) as states:
            model.get_decoder()(**decoder_inputs(safe), use_cache=False)
        rows_B = torch.arange(len(ends_B), device=ends_B.device)
        radius = config.radius * float(states[at][rows_B, ends_B].float().norm(dim=-1).mean())
        delta_KD = torch.zeros(config.tokens, model.config.hidden_size, device=model.device, requires_grad=True)
        losses: list[tuple[float, float]] = []
        for _ in range(config.inner_steps):
            towards, away = (mean_nll(model, batch, delta_KD, config.depth) for batch in (unwanted, safe))
            losses.append((float(towards.detach()), float(away.detach())))
            (gradient_KD,) = torch.autograd.grad(towards - config.away * away, delta_KD)
            # The steps reach 2.5 radii in all, so that the perturbation can still move along the surface of the ball.
            moved_KD = delta_KD.detach() - 2.5 * radius / config.inner_steps * normalize(gradient_KD, dim=-1)
            delta_KD = (moved_KD * (radius / moved_KD.norm(dim=-1, keepdim=True)).clamp(max=1)).requires_grad_()
        with torch.no_grad():
            after = tuple(float(mean_nll(model, batch, delta_KD, config.depth)) for batch in (unwanted, safe))
    return delta_KD.detach(), {"unwanted": (losses[0][0], after[0]), "safe": (losses[0][1], after[1])}


def mean_nll(model: PreTrainedModel, batch: Mapping[str, Tensor], delta_KD: Tensor, depth: float) -> Tensor:
    """Return -log Pr of a batch's answers under the perturbation, as a mean over their tokens."""
    from sande.models.layers import blocks
    from sande.training.losses import chunked_response_nll
    from sande.training.objective import attention_kernel

    block, positions = blocks(model)[place(model, depth)], batch["positions"]
    with perturbed(block, delta_KD, prompt_ends(batch["labels"])), attention_kernel(batch["input_ids"]):
        hidden_BTD = model.get_decoder()(**decoder_inputs(batch), use_cache=False).last_hidden_state
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1)[positions], batch["labels"].flatten()[positions + 1]
    return chunked_response_nll(hidden_ND, model.get_output_embeddings(), targets_N) / len(positions)


def decoder_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the decoder takes of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def place(model: PreTrainedModel, depth: float) -> int:
    """Return the index of the block whose output gets the perturbation."""
    from sande.models.layers import blocks

    return max(1, round(depth * len(blocks(model)))) - 1


def prompt_ends(labels_BT: Tensor) -> Tensor:
    """Return the position of each row's last prompt token, (B,): the one before its first target."""
    from sande.training.losses import IGNORE

    return (labels_BT != IGNORE).long().argmax(1) - 1


@contextmanager
def perturbed(block: nn.Module, delta_KD: Tensor, ends_B: Tensor) -> Iterator[None]:
    """Make the block add the perturbation to its states at the last K tokens of each prompt, within the context."""
    from sande.models.layers import states_of

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        states_BTD = states_of(output)
        moved_BTD = states_BTD + spread(delta_KD, ends_B, states_BTD.shape[1]).to(states_BTD.dtype)
        return (moved_BTD, *output[1:]) if isinstance(output, tuple) else moved_BTD

    hook = block.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def spread(delta_KD: Tensor, ends_B: Tensor, width: int) -> Tensor:
    """Return the perturbation where it acts and zero elsewhere, (B, T, D); its first token acts on a prompt's last."""
    import torch

    back_BT = ends_B[:, None] - torch.arange(width, device=ends_B.device)
    acts_BTK = back_BT[..., None] == torch.arange(len(delta_KD), device=ends_B.device)
    # A sum, because several threads would add up the gradient of indexing in any order.
    return (acts_BTK[..., None] * delta_KD).sum(2)
