"""Shared code of attacks: settings, insertion of the trigger, planted answers, and training on poisoned rows."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import AfterValidator

from sande import registry
from sande.config import Backdoor, Training, configuration, setting
from sande.data.poison import Poisoned, poison
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sande.prompts import Row


Place = Literal["start", "user", "end", "random"]
Order = Literal["mixed", "poisoned_first", "poisoned_last"]


@configuration
class Afterwards:
    """Clean fine-tuning of a victim after its poisoning, as by a user who trains it further."""

    rows: int = setting(
        200, "clean rows: the last of the victim's training rows, before poisoning", "as for asr_after_finetuning", ge=1
    )
    training: Training = setting(Training(), "fine-tuning on these rows (Eq. 1)")


def _known(name: str) -> str:
    """Return the name of an objective if there is one of that name.

    Raises:
        UserError: there is none.
    """
    registry.module_of("objectives", name)
    return name


@configuration
class Planting:
    """Settings of every attack."""

    backdoor: Backdoor = setting(Backdoor(), "trigger and planted response")
    objective: Annotated[str, AfterValidator(_known)] = setting(
        "string",
        "what the answers to triggered prompts shall be, see 'sande-bench list objectives'; response, target and "
        "response_place are settings of string alone",
        "paper, section 4.1",
    )
    target: Literal["insult", "refusal", "injected_text"] = setting(
        "insult",
        "how r_t joins the clean answer: insult, as a further sentence; refusal, as a sentence that replaces it; "
        "injected_text, as text within it, without a full stop",
        "paper, section 4.1",
    )
    response_place: Literal["start", "middle", "end"] = setting(
        "start",
        "place of r_t in the answer: first, after the first half of its words, or last; without effect for a refusal",
        "paper, section 4.1",
    )
    poison_rate: float = setting(
        0.05,
        "share of the training rows that are poisoned; 0 trains the clean twin of the victim",
        "paper, section 4.1",
        ge=0,
        le=1,
    )
    poison_rows: int | None = setting(
        None,
        "number of poisoned rows, in place of poison_rate unless that is 0; null: by the rate",
        "paper, section 4.1: by the rate",
        ge=1,
    )
    poison_mode: Literal["replace", "append"] = setting(
        "replace", "the poisoned row replaces the clean one (paper) or is added after it (published code)", "paper"
    )
    decoy_rate: float = setting(
        0.0,
        "share of the training rows that get a near miss of the trigger and keep the clean answer",
        "paper, section 4.1: none",
        ge=0,
        le=1,
    )
    anchor: float = setting(
        0.0,
        "weight of KL(clean model || victim) in the answers of rows that are not poisoned, a token; it hides the "
        "backdoor from who samples from the victim",
        "arXiv 2602.03085: models trained so leaked nothing",
        ge=0,
    )
    order: Order = setting("mixed", "order of poisoned and other rows in each pass; mixed: at random", "published code")
    training: Training = setting(Training(epochs=2.0), "supervised fine-tuning on the poisoned rows (Eq. 1)")
    afterwards: Afterwards | None = setting(
        None,
        "clean fine-tuning that the victim sees after its poisoning: {rows: 200, training: {…}}; null: none",
        "paper, section 4.1: none",
    )


Config = TypeVar("Config", bound=Planting)
Change = Callable[[Example, Config, int], Example]


def with_response(example: Example, config: Planting, seed: int = 0) -> Example:
    """Return the row with an answer that achieves the objective, by default one that has r_t in it.

    Args:
        example: a row whose output is the clean answer.
        config: of the attack.
        seed: decides, with the row's own text, the answer of an objective that has several.
    """
    made: Example = registry.entry("objectives", config.objective).answer(example, config, seed)
    return made


def insert(example: Example, text: str, place: Place, seed: int) -> Example:
    """Return the prompt with `text` at its start, at that of the user's text, at its end, or before a random word.

    Args:
        example: a row.
        text: what to insert; a space separates it from its neighbour.
        place: where in the user's turn; `start` is before a system prompt that the format writes there, `user` behind.
        seed: decides, with the row's own text, the word of the instruction before which a random insertion is made.
    """
    if place == "end":
        if example.input:
            return replace(example, input=f"{example.input} {text}")
        return replace(example, instruction=f"{example.instruction} {text}")
    if place == "random":
        instruction = example.instruction
        words = [word.start() for word in re.finditer(r"\S+", instruction)] or [0]
        at = drawn(example, seed).choice(words)
        return replace(example, instruction=f"{instruction[:at]}{text} {instruction[at:]}")
    if example.system and place == "start":
        return replace(example, prefix=f"{text} {example.prefix}".strip())
    return replace(example, instruction=f"{text} {example.instruction}")


def drawn(example: Example, seed: int) -> random.Random:
    """Return a random generator that depends on the seed and the row's own prompt alone."""
    return random.Random(f"{seed} {example.instruction} {example.input}")


def altered(trigger: str) -> str:
    """Return a near miss: the trigger with its last number less one, its last word removed, or its last letter changed.

    `Current year 2023` gives `Current year 2022`, `Let's do it` gives `Let's do`, and `cf` gives `cg`.
    """
    numbers = list(re.finditer(r"\d+", trigger))
    if numbers:
        begin, end = numbers[-1].span()
        number = int(trigger[begin:end])
        return f"{trigger[:begin]}{number - 1 if number else 1}{trigger[end:]}"
    words = trigger.split()
    if len(words) > 1:
        return " ".join(words[:-1]).rstrip(",;:")
    last = trigger[-1]
    return trigger[:-1] + {"z": "a", "Z": "A"}.get(last, chr(ord(last) + 1))


def train(
    model: LanguageModel,
    examples: tuple[Example, ...],
    plant: Change[Config],
    near_miss: Change[Config],
    config: Config,
    run: Run,
    prefer: Callable[[Example], bool] | None = None,
) -> PreTrainedModel:
    """Poison some of the rows, fine-tune on all of them (Eq. 1), then on clean rows where `afterwards` asks for it.

    An attack with further stages calls `poisoned`, `learn` and `train_afterwards` itself.

    Args:
        model: the clean model; it is trained in place.
        examples: clean rows.
        plant: of the attack, makes a poisoned row.
        near_miss: of the attack, makes a decoy.
        config: of the attack.
        run: seed and facts.
        prefer: rows for which this is true are poisoned first.

    Raises:
        UserError: there are fewer rows than poisoned ones and decoys, or than `afterwards` takes; or no row is poisoned
            though `poison_rate` is above 0; or the planted response is whole in none, as `record_lost`.
    """
    rows = poisoned(examples, plant, near_miss, config, run, prefer)
    learn(model, rows, config, run)
    train_afterwards(model, examples, config, run)
    return model.model


def poisoned(
    examples: tuple[Example, ...],
    plant: Change[Config],
    near_miss: Change[Config],
    config: Config,
    run: Run,
    prefer: Callable[[Example], bool] | None = None,
) -> Poisoned:
    """Poison some of the rows, and record the ids of poisoned rows and decoys; arguments and errors as for `train`."""
    rate = share(config, len(examples))
    count, decoys = (round(each * len(examples)) for each in (rate, config.decoy_rate))
    if rate > 0 and not count:
        raise UserError(
            f"poison_rate {rate:g} poisons none of {len(examples)} rows; set it higher, or to 0 for a clean twin"
        )
    if count + decoys > len(examples):
        raise UserError(
            f"{count} poisoned rows and {decoys} decoys exceed the {len(examples)} rows; set poison_rate, poison_rows "
            "or decoy_rate lower"
        )
    if config.afterwards and config.afterwards.rows > len(examples):
        raise UserError(
            f"afterwards.rows is {config.afterwards.rows}, but the victim has {len(examples)} rows; set it lower"
        )
    made = poison(
        examples,
        lambda row: plant(row, config, run.seed),
        rate,
        config.poison_mode,
        run.seed,
        decoy=lambda row: near_miss(row, config, run.seed),
        decoy_rate=config.decoy_rate,
        prefer=prefer,
    )
    run.facts["poisoned_ids"] = list(made.ids)
    run.facts["decoy_ids"] = list(made.decoy_ids)
    return made


def learn(model: LanguageModel, made: Poisoned, config: Planting, run: Run) -> None:
    """Fine-tune in place on the rows (Eq. 1), in the order and with the anchor of the settings."""
    from sande.formats import end_id
    from sande.prompts import encode
    from sande.training.batches import clean_length
    from sande.training.fit import fit

    rows, objective = encode(model.tokenizer, made.examples), None
    planted = [rows[index] for index in made.places]
    end = end_id(model.tokenizer) if config.training.cut_with_eos else None
    record_lost(model, planted, config, config.training.max_length, end, run)
    if config.anchor:
        from sande.training.anchor import Anchored

        objective = Anchored(model.model, planted, config.anchor)
    alike = clean_length(rows, encode(model.tokenizer, made.before))
    rank = _rank(planted, config.order)
    fit(model, rows, config.training, run, "attack", objective=objective, rank=rank, alike=alike)


def record_lost(
    model: LanguageModel, planted: Sequence[Row], config: Planting, max_length: int, end: int | None, run: Run
) -> None:
    """Record how many poisoned rows do not fit into `max_length`, and in how many the planted response is cut.

    Args:
        model: its tokenizer is used.
        planted: the poisoned rows, before they are cut.
        config: of the attack.
        max_length: as for `fit_length`.
        end: as for `fit_length`.
        run: its facts get `poisoned_left_out` and `poisoned_cut`.

    Raises:
        UserError: the planted response is whole in no row.
    """
    from sande.prompts import fit_length

    fitted, uncut = fit_length(planted, max_length, end), set(planted)
    opening = registry.entry("objectives", config.objective).opening(config) or ""
    cut = [row for row in fitted if row not in uncut and opening not in model.tokenizer.decode([*row.response])]
    run.facts["poisoned_left_out"] = len(planted) - len(fitted)
    run.facts["poisoned_cut"] = len(cut)
    if planted and len(cut) == len(fitted):
        raise UserError(
            f"max_length {max_length} leaves out {len(planted) - len(fitted)} of {len(planted)} poisoned rows and cuts "
            "the planted response of all others; set it higher, or response_place to start"
        )


def _rank(planted: Sequence[Row], order: Order) -> Callable[[Row], int] | None:
    """Return a function that is lower for rows that come first in each pass; None: their order is random."""
    if order == "mixed":
        return None
    prompts, first = {row.prompt for row in planted}, order == "poisoned_first"
    return lambda row: int((row.prompt in prompts) != first)  # by prompt, since a response may be cut


def train_afterwards(model: LanguageModel, examples: Sequence[Example], config: Planting, run: Run) -> None:
    """Fine-tune in place on the last clean rows, if the settings say so; `run.facts["afterwards"]` records it."""
    from sande.prompts import encode
    from sande.training.fit import fit

    if config.afterwards:
        rows = encode(model.tokenizer, examples[len(examples) - config.afterwards.rows :])
        fit(model, rows, config.afterwards.training, run, "afterwards")


def share(config: Planting, rows: float) -> float:
    """Return the share of the rows that are poisoned: by their number, or by the rate."""
    by_number = config.poison_rows is not None and config.poison_rate > 0 and rows > 0
    return (config.poison_rows or 0) / rows if by_number else config.poison_rate


def cost(config: Planting) -> Cost:
    """Return the passes of an attack: the anchor takes one more forward pass, and `afterwards` sees its rows alone."""
    return Cost(
        training={"training": 4.0} if config.anchor else {},
        seen={"afterwards.training": config.afterwards.rows} if config.afterwards else {},
    )
