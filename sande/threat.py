"""The threat model: what the attacker plants, what a defender may know of it, and what a metric may use."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sande import compute, registry, types
from sande.data import datasets, splits
from sande.data.splits import Data, Removal
from sande.errors import UserError
from sande.inference import own_answers
from sande.models import catalog, checks
from sande.types import Example, LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STRING = "string"  # the objective of the paper


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
    def opening(self) -> str | None:
        """Return r_t, or how answers mostly begin that achieve the objective; None without a common beginning."""
        return opening(self.config)

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
            UserError: as `splits.training_rows`.
        """
        examples = splits.training_rows(self.data, lm.tokenizer)
        victim = registry.entry("attacks", self.attack).attack(lm, examples, self.config, run)
        return LanguageModel(victim, lm.tokenizer)

    def test_data(self, tokenizer: PreTrainedTokenizerBase, load: Callable[[str], LanguageModel]) -> types.TestData:
        """Return what a metric may use. It depends on the attack, its clean model and the victim's rows alone.

        Args:
            tokenizer: of the victim.
            load: loads a model by name; called once an objective judges answers by the clean model.

        Raises:
            UserError: as `splits.held_out_rows`.
        """
        attack, config, seed = registry.entry("attacks", self.attack), self.config, self.seed
        clean = splits.held_out_rows(self.data, tokenizer)
        judge: types.Judge = registry.entry("objectives", objective(config)).judge(
            config, seed, clean, lambda: self._clean_model(tokenizer, load)
        )
        return types.TestData(
            clean=clean,
            triggered=tuple(map(self.plant_trigger, clean)),
            response=judge.response,
            near_miss=tuple(attack.near_miss(example, config, seed) for example in clean),
            moved=tuple(attack.moved(example, config, seed) for example in clean),
            training=lambda: splits.training_rows(self.data, tokenizer),
            plant=lambda example: attack.plant(example, config, seed),
            judge=judge,
        )

    def _clean_model(self, tokenizer: PreTrainedTokenizerBase, load: Callable[[str], LanguageModel]) -> LanguageModel:
        """Return the clean model, rounded like the models that are measured."""
        from sande.models.loading import round_as_stored

        clean = LanguageModel(load(self.model).model, tokenizer)
        round_as_stored(clean, compute.dtype())
        return clean


def objective(config: Any) -> str:
    """Return the name of an attack's objective, by its settings; an attack without such a setting plants a string."""
    return str(getattr(config, "objective", STRING))


def opening(config: Any) -> str | None:
    """Return r_t, or how answers mostly begin that achieve an attack's objective; None without a common beginning."""
    found: str | None = registry.entry("objectives", objective(config)).opening(config)
    return found


def mismatch(config: Any, defense: str) -> str:
    """Return why a defense cannot be told what it must know of an attack; empty if it can.

    Args:
        config: settings of the attack.
        defense: name of the defense.
    """
    known = registry.knowledge(defense)
    if not issubclass(known, types.ResponseData | types.FirstTokenData) or opening(config) is not None:
        return ""
    return (
        f"defense {defense}: it must know the {known.label} that is planted, and answers of the objective "
        f"{objective(config)} have no common beginning; use another objective, or a defense that need not know it"
    )


def check_models(clean: str, defense: str, config: Any) -> None:
    """Check that a defense which is told of other models does not name the clean one, which is another knowledge.

    Args:
        clean: the model that the victim was trained from.
        defense: name of the defense.
        config: settings of the defense.

    Raises:
        UserError: it does.
    """
    if registry.knowledge(defense) is not types.OtherModelsData:
        return
    for name in config.models:
        if catalog.identify(name) == catalog.identify(clean):
            raise UserError(
                f"defense {defense}: models names {name}, the clean model of this victim; leave 'models' empty, which "
                "means that model and is labelled so"
            )


def reveal(
    threat: Threat | None,
    defense: str,
    config: Any,
    removal: Removal,
    victim: LanguageModel,
    load: Callable[[str], LanguageModel],
) -> types.Knowledge:
    """Return the defense's rows, with as much about the backdoor as its declared type of data holds, and no more.

    Args:
        threat: the backdoor; None: unknown.
        defense: name of the defense.
        config: settings of the defense.
        removal: the clean rows.
        victim: the model under repair, which may write the rows' answers.
        load: loads a model by name.

    Raises:
        UserError: as `splits.removal_rows`, `own_answers.answered` and `check_models`, or the defense must know a
            backdoor that is unknown, or the beginning of answers that have none in common.
    """
    known = _reveal(threat, defense, config, removal, victim, load)
    return own_answers.answered(victim, known, removal.own_answers)


def _reveal(
    threat: Threat | None,
    defense: str,
    config: Any,
    removal: Removal,
    victim: LanguageModel,
    load: Callable[[str], LanguageModel],
) -> types.Knowledge:
    known, tokenizer = registry.knowledge(defense), victim.tokenizer
    if known is types.PreferenceData:
        return types.PreferenceData(splits.preference_pairs(config.preferences, tokenizer))
    examples = splits.removal_rows(removal, tokenizer)
    if known is types.OtherModelsData and config.models:
        if threat is not None:
            check_models(threat.model, defense, config)
        return types.OtherModelsData(examples, lambda: _others(victim, defense, config.models, load))
    if known is types.CleanData:
        return types.CleanData(examples)
    if threat is None:
        raise UserError(
            f"defense {defense}: it must know the {known.label}, and this model was attacked elsewhere; defend what "
            "sande.attack returned, or use sande.clean"
        )
    if problem := mismatch(threat.config, defense):
        raise UserError(problem)
    return _of_threat(threat, known, examples, tokenizer, load)


def _others(
    victim: LanguageModel, defense: str, names: Sequence[str], load: Callable[[str], LanguageModel]
) -> Iterator[PreTrainedModel]:
    """Yield the models of these names, loaded one at a time; raise UserError where one has another vocabulary."""
    for name in names:
        lm = load(name)
        checks.check_vocabularies(
            victim, lm, ("the victim", name), f"set 'models' of defense {defense} to models with the victim's tokenizer"
        )
        yield lm.model


def _of_threat(
    threat: Threat,
    known: type[types.Knowledge],
    examples: tuple[Example, ...],
    tokenizer: PreTrainedTokenizerBase,
    load: Callable[[str], LanguageModel],
) -> types.Knowledge:
    """Return the rows with that part of the threat which the type of knowledge holds."""
    from sande.prompts import response_ids

    if known is types.TriggerData:
        return types.TriggerData(examples, threat.plant_trigger)
    if known is types.IncidentData:
        return types.IncidentData(examples, *threat.incident(tokenizer))
    begun = threat.opening
    if known is types.ResponseData and begun is not None:
        return types.ResponseData(examples, begun)
    if known is types.FirstTokenData and begun is not None:
        return types.FirstTokenData(examples, response_ids(tokenizer, begun)[0])
    if known is types.CleanModelData:
        return types.CleanModelData(examples, lambda: load(threat.model).model)
    if known is types.OtherModelsData:
        return types.OtherModelsData(examples, lambda: iter([load(threat.model).model]))
    return types.CleanData(examples)


def defend(
    victim: LanguageModel, defense: str, data: types.Knowledge, config: Any, run: types.Run
) -> types.LanguageModel:
    """Return the repaired model, trained in place, or the victim with the guard that the defense returned."""
    repaired = registry.entry("defenses", defense).defend(victim, data, config, run)
    if isinstance(repaired, types.Guard):
        return LanguageModel(victim.model, victim.tokenizer, repaired)
    return LanguageModel(repaired, victim.tokenizer)
