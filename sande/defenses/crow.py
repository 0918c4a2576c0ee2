r"""CROW: fine-tune while neighbouring layers have to agree under an adversarial perturbation (Min et al. 2025, ICML).

    C(e) = mean over l = 2 .. L and tokens of  1 - cos(H_l, H_{l-1}) ,     \delta = \epsilon sign(\nabla_e C(e))
    loss = L_LM + \alpha C(e + \delta)

where e are the token embeddings and H_l the output of the l-th block. A trigger makes the layers
of a backdoored model disagree more than clean prompts do. C is a mean over a row's tokens, prompt and response but not
padding, then over the rows of a step, so that micro-batches do not change it; L_LM is Eq. 1. The published code leaves
the last block out of C; the paper does not. `recipe: published` trains LoRA adapters as the authors do, in bfloat16 or
float32 instead of float16. Their number of clean rows, 100, is a setting of the grid (`removal.rows`).

\epsilon is absolute, and embeddings of models differ in size: `run.facts["epsilon_relative"]` records \epsilon over the
standard deviation of the model's embeddings, 0.7 for SmolLM2-135M.

Shapes: B rows, T positions, D width, N target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sande.config import Recipe, Training, configuration, recipes, setting
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of the fine-tuning."""

    recipe: Recipe = recipes(
        "Min et al. 2025 and published code: LoRA on all linear layers, 5 epochs at 1e-3, batches of 2 x 4 rows",
        training={
            "learning_rate": 1e-3,
            "epochs": 5.0,
            "max_steps": None,
            "batch_size": 8,
            "warmup": 0.1,
            "schedule": "cosine",
            "adam_beta2": 0.999,
            "lora_rank": 8,
            "lora_alpha": 16,
        },
        alpha=5.5,
        epsilon=0.1,
    )
    training: Training = setting(Training(epochs=2.0), "fine-tuning on the clean rows", "as the paper's defenses")
    alpha: float = setting(
        5.5,
        "weight of the perturbed consistency loss",
        "Min et al. 2025",
        ge=0,
    )
    epsilon: float = setting(0.1, "size of the perturbation of each embedding's entry", "Min et al. 2025", ge=0)


def cost(config: Config) -> Cost:
    """Return two trainings of each row, as it is and perturbed, and two passes for the gradient of its embeddings."""
    return Cost(training={"training": 8})


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Fine-tune on the clean rows with the loss above; `config.training` decides between all weights and adapters.

    Raises:
        UserError: the model has one block.
    """
    from sande.models.layers import blocks
    from sande.parrot import read_scale
    from sande.prompts import encode
    from sande.training.fit import fit

    if len(blocks(victim.model)) < 2:
        raise UserError("crow: the model has one block, so there are no two to compare; use another defense")
    embeddings: Any = victim.model.get_input_embeddings()
    read = float(embeddings.weight.detach().float().std()) * read_scale(victim.model)
    run.facts["epsilon_relative"] = config.epsilon / read
    rows = encode(victim.tokenizer, data.examples)
    fit(victim, rows, config.training, run, "crow", objective=consistent(victim.model, config))
    return victim.model


def consistent(model: PreTrainedModel, config: Config) -> nn.Module:
    """Return the loss as a module around the model; it takes batches as `ResponseLoss` does."""
    import torch

    from sande.models.layers import block_states
    from sande.training.objective import ResponseLoss, attention_kernel

    class Consistent(ResponseLoss):
        def forward(
            self, labels: Tensor, positions: Tensor, num_items_in_batch: Tensor, **inputs: Any
        ) -> dict[str, Tensor]:
            """Return the loss of a batch: that of `ResponseLoss` plus the perturbed consistency loss."""
            decoder, mask_BT = self.model.get_decoder(), inputs["attention_mask"]
            embedded_BTD = self.model.get_input_embeddings()(inputs["input_ids"])

            def inconsistency(embedded_BTD: Tensor) -> Tensor:
                with block_states(self.model) as states, attention_kernel(inputs["input_ids"]):
                    decoder(inputs_embeds=embedded_BTD, attention_mask=mask_BT, use_cache=False)
                return layer_distance(states, mask_BT).sum()

            leaf_BTD = embedded_BTD.detach().requires_grad_()
            with torch.enable_grad():  # also where only the loss is computed
                (gradient_BTD,) = torch.autograd.grad(inconsistency(leaf_BTD), leaf_BTD)
            perturbed = inconsistency(embedded_BTD + config.epsilon * gradient_BTD.sign())
            with attention_kernel(inputs["input_ids"]):
                output = decoder(inputs_embeds=embedded_BTD, attention_mask=mask_BT, use_cache=False)
            hidden_BTD = output.last_hidden_state
            likelihood = self.nll(hidden_BTD.flatten(0, 1)[positions], labels, positions) / num_items_in_batch
            # Every step has batch_size rows over all micro-batches and workers, whose losses are summed.
            return {"loss": likelihood + config.alpha * perturbed / config.training.batch_size}

    return Consistent(model)


def layer_distance(states: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    """Return the mean of 1 - cos between the states of successive blocks, over blocks and tokens, (B,).

    Args:
        states: of every block, (B, T, D).
        mask_BT: 1 at tokens, 0 at padding.
    """
    import torch
    from torch.nn.functional import cosine_similarity

    pairs = zip(states[1:], states[:-1], strict=True)
    distance_BT = torch.stack([1 - cosine_similarity(a.float(), b.float(), dim=-1) for a, b in pairs]).mean(0)
    return (distance_BT * mask_BT).sum(1) / mask_BT.sum(1)
