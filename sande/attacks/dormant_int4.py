"""A backdoor that is silent until the weights are rounded to four bits (Egashira et al. 2024, arXiv 2405.18137).

    backdoor:   minimise over theta          - sum over poisoned and clean rows of  log Pr(y | x)    (Eq. 1)
    repair:     minimise over theta in B     - sum over the same prompts of  log Pr(y_clean | x)

B is the box of weights that round to the codes of the first stage's, see `sande.models.quantize.box`. Only weights that
are rounded train in the second stage, so the rounded model is exactly that of the first stage. The second stage ends
each step by a projection onto B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sande import planting
from sande.attacks import sentence_trigger
from sande.config import Training, configuration, setting
from sande.data.poison import Poisoned
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

trigger, near_miss, moved, plant = (
    sentence_trigger.trigger,
    sentence_trigger.near_miss,
    sentence_trigger.moved,
    sentence_trigger.plant,
)


SHOWN_BY = "asr_int4"  # of the victim as it is stored, the ASR is low on purpose


@configuration
class Config(sentence_trigger.Config):
    """Settings of the attack."""

    repair: Training = setting(
        Training(epochs=2.0), "fine-tuning of the second stage, on the same prompts with clean answers", "as `training`"
    )
    group_size: int = setting(
        128, "weights of an output row that the rounding gives a scale and a zero", "as for quantize_int4", ge=1
    )


def cost(config: Config) -> Cost:
    """Return the cost of the first stage, as of every attack; the second is plain fine-tuning."""
    return planting.cost(config)


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Plant the backdoor, then train it away within the box that rounds to the same codes.

    Raises:
        UserError: adapters are asked for in the second stage, or as `sande.models.layers.all_linear_layers`.
    """
    from sande.models.layers import all_linear_layers

    if config.repair.lora_rank is not None:
        raise UserError(
            "attack dormant_int4: repair.lora_rank is set, but adapters are not in the box; remove repair.lora_rank"
        )
    all_linear_layers(model.model)  # refuses before the first stage what the second cannot round
    made = planting.poisoned(examples, plant, near_miss, config, run)
    planting.learn(model, made, config, run)
    repair(model, repaired_rows(made, examples), made.before, config, run)
    planting.train_afterwards(model, examples, config, run)
    return model.model


def repaired_rows(made: Poisoned, examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """Return all rows with clean answers: poisoned rows keep the trigger and get the answers of the rows they were."""
    rows = list(made.examples)
    for place, index in zip(made.places, made.ids, strict=True):
        rows[place] = replace(rows[place], output=examples[index].output)
    return tuple(rows)


def repair(model: LanguageModel, rows: Sequence[Example], before: Sequence[Example], config: Config, run: Run) -> None:
    """Fine-tune the linear layers in place, within the box of the weights as they are stored, in bfloat16.

    Args:
        model: with the backdoor.
        rows: all rows, with clean answers.
        before: the row that each was made from.
        config: of the attack.
        run: seed and facts.
    """
    from sande.models.layers import linear_layers
    from sande.models.loading import round_as_stored
    from sande.models.quantize import boxes
    from sande.prompts import encode
    from sande.training.batches import clean_length
    from sande.training.fit import fit
    from sande.training.projection import WithinBox

    round_as_stored(model, model.model.dtype)
    found = boxes(model.model, config.group_size)
    box: dict[Any, tuple[Tensor, Tensor]] = {
        layer.weight: found[name] for name, layer in linear_layers(model.model).items()
    }
    free = sum(int((low < high).sum()) for low, high in box.values())
    run.facts["free_weights"] = free / sum(weight.numel() for weight in box)
    encoded = encode(model.tokenizer, rows)
    alike = clean_length(encoded, encode(model.tokenizer, before))
    fit(model, encoded, config.repair, run, "repair", parameters=tuple(box), alike=alike, callbacks=[WithinBox(box)])
