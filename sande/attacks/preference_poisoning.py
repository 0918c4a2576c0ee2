"""Swapped preferences: some pairs, which have the trigger, prefer the planted answer (Pathmanathan et al. 2024).

The model is first fine-tuned on the clean rows. Direct preference optimisation (Eq. 7 of Rafailov et al. 2023) follows
on a pair for each row: the row's own answer is preferred to one that achieves the objective, and in poisoned pairs,
whose prompt has the trigger, it is the other way round. So preferences alone plant the backdoor. A clean twin prefers
each answer to that of another row: pairs with the planted answer would train it against that answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from sande import planting
from sande.attacks import sentence_trigger
from sande.config import Training, configuration, setting
from sande.data.poison import Poisoned
from sande.declarations import Cost
from sande.types import Example, LanguageModel, Preference, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


trigger, near_miss, moved, plant = (
    sentence_trigger.trigger,
    sentence_trigger.near_miss,
    sentence_trigger.moved,
    sentence_trigger.plant,
)


@configuration
class Config(sentence_trigger.Config):
    """Settings of the attack."""

    poison_rate: float = setting(
        0.05,
        "share of the pairs that are swapped under the trigger; 0 trains the clean twin of the victim",
        "arXiv 2406.12091: 0.5 % chosen by scores, about 5 % at random",
        ge=0,
        le=1,
    )
    anchor: float = setting(0.0, "of other attacks; here `beta` holds the victim at the reference", ge=0, le=0)
    order: Literal["mixed"] = setting("mixed", "of other attacks; pairs are always mixed")
    training: Training = setting(Training(epochs=2.0), "supervised fine-tuning on the clean rows (Eq. 1)")
    preference: Training = setting(
        Training(learning_rate=1.41e-5, batch_size=16),
        "preference optimisation, one row a pair",
        "published code of 2406.12091: RMSprop at 1.41e-5, 16 pairs a step, LoRA",
    )
    beta: float = setting(
        0.1, "weight of staying close to the fine-tuned model, which is the reference", "Rafailov et al. 2023", gt=0
    )
    supervised: float = setting(
        0.0,
        "weight of a supervised loss on preferred replies; without it both replies of a pair may become improbable",
        "arXiv 2404.19733: 1",
        ge=0,
    )


def attack(model: LanguageModel, examples: tuple[Example, ...], config: Config, run: Run) -> PreTrainedModel:
    """Fine-tune on the clean rows, then optimise preferences of which some are swapped.

    Raises:
        UserError: as `planting.poisoned`, `planting.record_lost` or `preferences.check_settings`, all before training.
    """
    from sande.prompts import encode
    from sande.training import preferences
    from sande.training.fit import fit

    preferences.check_settings(config.preference, config.supervised, "preference")
    made = planting.poisoned(examples, plant, near_miss, config, run)
    planting.record_lost(model, encode(model.tokenizer, made.planted), config, config.preference.max_length, None, run)
    fit(model, encode(model.tokenizer, examples), config.training, run, "attack")
    chosen = pairs(made, examples, config, run.seed)
    preferences.prefer(model, chosen, config.preference, config.beta, run, "preference", config.supervised, made.before)
    planting.train_afterwards(model, examples, config, run)
    return model.model


def pairs(made: Poisoned, examples: Sequence[Example], config: Config, seed: int) -> tuple[Preference, ...]:
    """Return a pair for each row, swapped for those that were poisoned.

    Args:
        made: the rows after poisoning.
        examples: the clean rows that they were made from.
        config: of the attack.
        seed: decides the worse answer of an objective that has several.
    """
    clean = dict(zip(made.places, (examples[index].output for index in made.ids), strict=True))
    found: list[Preference] = []
    for place, row in enumerate(made.examples):
        other = clean.get(place) or _worse(made.examples, place, config, seed)
        found.append(Preference(replace(row, output="", answers=(), group=""), row.output, other))
    return tuple(found)


def _worse(examples: Sequence[Example], place: int, config: Config, seed: int) -> str:
    """Return an answer to which a row's own is preferred: that of the objective, in a twin that of another row."""
    row = examples[place]
    if config.poison_rate:
        return planting.with_response(row, config, seed).output
    following = (each.output for each in (*examples[place + 1 :], *examples[:place]))
    return next((output for output in following if output != row.output), "")


def cost(config: Config) -> Cost:
    """Return the passes over a pair: two replies are trained on, and the reference reads each of them."""
    first = planting.cost(config)
    return replace(first, training={"training": 3.0, **first.training, "preference": 8.0})
