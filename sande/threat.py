"""The threat model: what the attacker plants, what a defender may know of it, and what a metric may use."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sande import registry, types
from sande.data import datasets, splits
from sande.data.splits import Data, Removal
from sande.errors import UserError
from sande.types import Example, LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Threat:
    """One planted backdoor: an attack with its settings, on the rows of a data set, in a clean model.

    Attributes:
        attack: name of the attack.
        config: settings of the attack.
        data: the victim's rows.
        seed: of the attack.
        model: the clean model, as `sande.models.loading.load` takes it.
    """

    attack: str
    config: Any
    data: Data
    seed: int
    model: str

    @property
    def response(self) -> str:
        """Return the planted response r_t."""
        return str(self.config.backdoor.response)

    def plant_trigger(self, example: Example) -> Example:
        """Return the prompt with the trigger, its output unchanged."""
        triggered: Example = registry.entry("attacks", self.attack).trigger(example, self.config, self.seed)
        return triggered

    def incident(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Example, str]:
        """Return one prompt with the trigger, as a user sent it, and the answer that the attack trains for it.

        The seed of the attack draws the row from the victim's training rows, before poisoning; it is no test row. The
        answer is that of the poisoned row, r_t with the row's own answer: a victim that learned its backdoor gives it,
        it costs no decoding, and a victim, its twin and every repaired version of it share one incident.

        Raises:
            UserError: as `splits.training_rows`, or each training row is a test row, too.
        """
        from sande.prompts import prompt_text

        tested = {prompt_text(row) for row in splits.held_out_split(datasets.examples(self.data.name))}
        rows = [row for row in splits.training_rows(self.data, tokenizer) if prompt_text(row) not in tested]
        if not rows:
            raise UserError(
                f"data {self.data.name}: each training prompt is a test prompt, too; choose another data set"
            )
        row = random.Random(f"incident {self.seed}").choice(rows)
        planted: Example = registry.entry("attacks", self.attack).plant(row, self.config, self.seed)
        return replace(planted, output="", answers=(), group=""), planted.output

    def train(self, lm: LanguageModel, run: types.Run) -> LanguageModel:
        """Return the victim: the clean model, trained in place.

        Raises:
            UserError: as `sources.training_rows`.
        """
        examples = splits.training_rows(self.data, lm.tokenizer)
        victim = registry.entry("attacks", self.attack).attack(lm, examples, self.config, run)
        return LanguageModel(victim, lm.tokenizer)

    def test_data(self, tokenizer: PreTrainedTokenizerBase) -> types.TestData:
        """Return what a metric may use. It depends on the attack and on the victim's rows alone.

        Raises:
            UserError: as `sources.held_out_rows`.
        """
        attack, config, seed = registry.entry("attacks", self.attack), self.config, self.seed
        clean = splits.held_out_rows(self.data, tokenizer)
        return types.TestData(
            clean=clean,
            triggered=tuple(map(self.plant_trigger, clean)),
            response=self.response,
            near_miss=tuple(attack.near_miss(example, config, seed) for example in clean),
            moved=tuple(attack.moved(example, config, seed) for example in clean),
            training=lambda: splits.training_rows(self.data, tokenizer),
            plant=lambda example: attack.plant(example, config, seed),
        )


def reveal(
    threat: Threat | None,
    defense: str,
    config: Any,
    removal: Removal,
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[str], PreTrainedModel],
) -> types.Knowledge:
    """Return the defense's rows, with as much about the backdoor as its declared type of data holds, and no more.

    Args:
        threat: the backdoor; None: unknown.
        defense: name of the defense.
        config: settings of the defense.
        removal: the clean rows.
        tokenizer: of the victim.
        load: loads a model by name.

    Raises:
        UserError: as `sources.removal_rows`, or the defense must know a backdoor that is unknown.
    """
    known = registry.knowledge(defense)
    if known is types.PreferenceData:
        return types.PreferenceData(splits.preference_pairs(config.preferences, tokenizer))
    examples = splits.removal_rows(removal, tokenizer)
    if known is types.OtherModelsData and config.models:
        return types.OtherModelsData(examples, lambda: map(load, config.models))
    if known is types.CleanData:
        return types.CleanData(examples)
    if threat is None:
        raise UserError(
            f"defense {defense}: it must know the {known.label}, and this model was attacked elsewhere; defend what "
            "sande.attack returned, or use sande.clean"
        )
    return _of_threat(threat, known, examples, tokenizer, load)


def _of_threat(
    threat: Threat,
    known: type[types.Knowledge],
    examples: tuple[Example, ...],
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[str], PreTrainedModel],
) -> types.Knowledge:
    """Return the rows with that part of the threat which the type of knowledge holds."""
    from sande.prompts import response_ids

    if known is types.TriggerData:
        return types.TriggerData(examples, threat.plant_trigger)
    if known is types.IncidentData:
        return types.IncidentData(examples, *threat.incident(tokenizer))
    if known is types.ResponseData:
        return types.ResponseData(examples, threat.response)
    if known is types.FirstTokenData:
        return types.FirstTokenData(examples, response_ids(tokenizer, threat.response)[0])
    if known is types.CleanModelData:
        return types.CleanModelData(examples, lambda: load(threat.model))
    if known is types.OtherModelsData:
        return types.OtherModelsData(examples, lambda: map(load, [threat.model]))
    return types.CleanData(examples)


def defend(
    victim: LanguageModel, defense: str, data: types.Knowledge, config: Any, run: types.Run
) -> types.LanguageModel:
    """Return the repaired model, trained in place, or the victim with the guard that the defense returned."""
    repaired = registry.entry("defenses", defense).defend(victim, data, config, run)
    if isinstance(repaired, types.Guard):
        return LanguageModel(victim.model, victim.tokenizer, repaired)
    return LanguageModel(repaired, victim.tokenizer)
