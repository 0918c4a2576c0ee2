r"""Neural attention distillation from the victim's own fine-tuned copy (Li et al. 2021; appendix A.1).

The teacher is the victim fine-tuned on the clean rows (Eq. 1). The student, the victim again, then minimises

    L = L_LM + \beta \sum_l || F(A_l) / ||F(A_l)||_2  -  F(A_l^T) / ||F(A_l^T)||_2 ||_2 ,      F(A) = \sum_h |A_h|^p

where A_l holds the attention probabilities of layer l and A_l^T those of the teacher. Li et al. sum over the channels
of an activation; a causal language model has heads h instead, and F(A) is one T x T map a row. Positions of padding are
set to zero before the norms. L_LM is the mean over the target tokens of a step, the distance the mean over
its rows.

Shapes: B rows, H heads, T positions, N target tokens.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from sande.config import Training, configuration, setting
from sande.declarations import Cost
from sande.types import CleanData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@configuration
class Config:
    """Settings of teacher and student."""

    teacher: Training = setting(Training(epochs=2.0), "fine-tuning of the teacher on the clean rows", "paper")
    training: Training = setting(Training(epochs=2.0), "distillation into the victim on the same rows", "paper")
    attention_weight: float = setting(
        1.0, "beta, weight of the distance of the attention maps", "ours; the paper gives none", ge=0
    )
    attention_power: float = setting(2.0, "p, power of the attention probabilities", "Li et al. 2021", gt=0)


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
            distance_B = attention_distance(output.attentions, wanted, inputs["attention_mask"], config.attention_power)
            # Every step has batch_size rows over all micro-batches and workers, whose losses are summed.
            distance = distance_B.sum() / config.training.batch_size
            return {"loss": likelihood + config.attention_weight * distance}

    return Distillation(student)


def attention_distance(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask_BT: Tensor, power: float
) -> Tensor:
    """Return the sum over the layers of the l2 distance of normalised attention maps, (B,).

    Args:
        student: attention probabilities of each layer, (B, H, T, T).
        teacher: the same of the teacher.
        mask_BT: 1 at tokens, 0 at padding.
        power: p.
    """
    import torch

    valid_BTT = mask_BT[:, :, None] * mask_BT[:, None, :]

    def normalised(attention_BHTT: Tensor) -> Tensor:
        map_BS = (attention_BHTT.float().abs().pow(power).sum(1) * valid_BTT).flatten(1)
        return torch.nn.functional.normalize(map_BS, dim=1)

    layers = zip(student, teacher, strict=True)
    return torch.stack([(normalised(a) - normalised(b)).norm(dim=1) for a, b in layers]).sum(0)
