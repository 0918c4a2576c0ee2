r"""Neural attention distillation from the victim's own fine-tuned copy (Li et al. 2021; appendix A.1).

The teacher is the victim fine-tuned on the clean rows (Eq. 1). The student, the victim again, then minimises

    L = L_LM + \beta \sum_l \beta_l d( F(A_l) / ||F(A_l)||_2 ,  F(A_l^T) / ||F(A_l^T)||_2 ) ,      F(A) = \sum_h |A_h|^p

where A_l holds the attention probabilities of layer l and A_l^T those of the teacher, and d is the l2 norm of the
difference (the paper's equation) or the mean of its squares over a map's entries (the published code). Li et al. sum
over the channels of an activation; a causal language model has heads h instead, and F(A) is one T x T map a row.
Positions of padding are set to zero before the norms, and are no entries of the mean. L_LM is the mean over the target
tokens of a step, the distance the mean over its rows.

`recipe: published` takes the code's distance and weights, at the ends of the three thirds of the blocks in place of the
three residual groups. Its SGD at a learning rate of 0.1 suits an image classifier, not a language model.

Shapes: B rows, H heads, T positions, N target tokens.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from sande.config import Recipe, Training, configuration, recipes, setting
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@configuration
class Config:
    """Settings of teacher and student."""

    recipe: Recipe = recipes(
        "Li et al. 2021, published code: beta 500, 1000, 1000 on three groups of layers",
        layer_weights=(500.0, 1000.0, 1000.0),
        distance="mse",
        attention_weight=1.0,
        attention_power=2.0,
    )
    teacher: Training = setting(Training(epochs=2.0), "fine-tuning of the teacher on the clean rows", "paper")
    training: Training = setting(Training(epochs=2.0), "distillation into the victim on the same rows", "paper")
    attention_weight: float = setting(
        1.0, "beta, weight of the distance of the attention maps", "ours; the paper gives none", ge=0
    )
    layer_weights: tuple[float, ...] = setting(
        (), "beta_l of the last blocks of as many equal groups of blocks; none: 1 for every block", "ours"
    )
    distance: Literal["l2", "mse"] = setting(
        "l2", "d: norm of the difference, or mean of its squares over the entries of a map", "Li et al. 2021, Eq. 2"
    )
    attention_power: float = setting(2.0, "p, power of the attention probabilities", "Li et al. 2021", gt=0)


def check(tokenizer: PreTrainedTokenizerBase, data: CleanData, config: Config) -> None:
    """Check the weights of the layers."""
    if config.layer_weights and min(config.layer_weights) < 0:
        raise UserError(f"nad: layer_weights is {list(config.layer_weights)}; set numbers from 0 on")


def cost(config: Config) -> Cost:
    """Return the passes over a row of the distillation: the teacher adds a forward pass."""
    return Cost(training={"training": 4})


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Train the teacher, then distil its attention into the victim."""
    from sande.prompts import encode
    from sande.training.fit import fit
    from sande.training.packing import attention

    rows = encode(victim.tokenizer, data.examples)
    teacher = LanguageModel(copy.deepcopy(victim.model), victim.tokenizer)
    fit(teacher, rows, config.teacher, run, "teacher")
    # The objective reads attention probabilities, which fused kernels do not keep.
    with attention(victim.model, "eager"), attention(teacher.model, "eager"):
        objective = distillation(victim.model, teacher.model, config)
        fit(victim, rows, config.training, run, "distil", objective=objective)
    return victim.model


def distillation(student: PreTrainedModel, teacher: PreTrainedModel, config: Config) -> nn.Module:
    """Return the objective L as a module around the student; its parameters do not include the teacher."""
    import torch

    from sande.training.losses import response_nll
    from sande.training.objective import ResponseLoss

    chosen = weighted_layers(student.config.num_hidden_layers, config.layer_weights)
    decode_teacher = teacher.eval().get_decoder()  # a local, which data parallelism and the optimizer cannot see

    class Distillation(ResponseLoss):
        def forward(
            self, labels: Tensor, positions: Tensor, num_items_in_batch: Tensor, **inputs: Any
        ) -> dict[str, Tensor]:
            """Return the loss of a batch: that of `ResponseLoss` plus the distance of the attention maps."""
            output = self.model.get_decoder()(**inputs, use_cache=False, output_attentions=True)
            with torch.no_grad():
                wanted = decode_teacher(**inputs, use_cache=False, output_attentions=True).attentions
            logits_NV = self.model.get_output_embeddings()(output.last_hidden_state.flatten(0, 1)[positions])
            likelihood = response_nll(logits_NV, labels.flatten()[positions + 1]) / num_items_in_batch
            distance_B = torch.stack(
                [
                    weight
                    * attention_distance(
                        output.attentions[layer],
                        wanted[layer],
                        inputs["attention_mask"],
                        config.attention_power,
                        config.distance,
                    )
                    for layer, weight in chosen.items()
                ]
            ).sum(0)
            # Every step has batch_size rows over all micro-batches and workers, whose losses are summed.
            distance = distance_B.sum() / config.training.batch_size
            return {"loss": likelihood + config.attention_weight * distance}

    return Distillation(student)


def weighted_layers(blocks: int, weights: tuple[float, ...]) -> dict[int, float]:
    """Return the weight of each block that counts, by its index.

    Args:
        blocks: number of them.
        weights: of the last blocks of as many equal groups; those of groups that share their last block add up. None:
            every block has the weight 1.
    """
    if not weights:
        return dict.fromkeys(range(blocks), 1.0)
    found: dict[int, float] = {}
    for number, weight in enumerate(weights, start=1):
        last = max(1, round(blocks * number / len(weights))) - 1
        found[last] = found.get(last, 0.0) + weight
    return found


def attention_distance(
    student_BHTT: Tensor, teacher_BHTT: Tensor, mask_BT: Tensor, power: float, distance: Literal["l2", "mse"] = "l2"
) -> Tensor:
    """Return the distance of the normalised attention maps of one layer, (B,).

    Args:
        student_BHTT: attention probabilities.
        teacher_BHTT: the same of the teacher.
        mask_BT: 1 at tokens, 0 at padding.
        power: p.
        distance: d.
    """
    import torch

    valid_BTT = mask_BT[:, :, None] * mask_BT[:, None, :]

    def normalised(attention_BHTT: Tensor) -> Tensor:
        map_BS = (attention_BHTT.float().abs().pow(power).sum(1) * valid_BTT).flatten(1)
        return torch.nn.functional.normalize(map_BS, dim=1)

    difference_BS = normalised(student_BHTT) - normalised(teacher_BHTT)
    entries_B = valid_BTT.flatten(1).sum(1)
    apart_B: Tensor = difference_BS.norm(dim=1) if distance == "l2" else difference_BS.square().sum(1) / entries_B
    return apart_B
