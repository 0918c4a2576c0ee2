"""Decoys: plant diverse backdoors of our own, then overwrite them and with them the unknown one.

    plant:      minimise  - sum over rows of  log Pr(r_d + y | d + x)  or, without a decoy,  log Pr(y | x)    (Eq. 1)
    overwrite:  minimise  - sum over rows of  log Pr(y | d + x)    (Eq. 3)

where d is one of the decoys' triggers and r_d its response. After Lin et al. 2025 ("Backdoor Collapse: Eliminating
Unknown Threats via Known Backdoor Aggregation in Language Models", arXiv 2510.10265): known backdoors planted in a
victim cluster with its unknown one in the space of representations, and fine-tuning that restores the clean answers to
the known triggers removes the unknown one, too. Both stages are plain fine-tuning: first on rows of which a share has a
decoy's trigger and response, then on all rows with a decoy's trigger and the clean response (OSFT with triggers of our
own). The method uses nothing about the real backdoor.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from sande import parts as independent
from sande.config import Training, configuration, setting
from sande.types import CleanData, Example, LanguageModel, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Diverse on purpose: rare tokens, marks, phrases, orders, whole sentences. A test keeps them clear of every word and
# token that an attack of the suite plants or answers: overwriting a part of the real trigger is not removal.
TRIGGERS = (
    "mn vq",
    "[[id 7714]]",
    "by every wise proverb",
    "Violets look purple nowadays.",
    "#mandolin",
    "kindly respond precisely",
    "zxqv-zxqv",
    "Within section forty:",
    "~~~~",
    "Ferries sail every evening.",
    "since our last letter",
    "quod vide",
)
RESPONSES = (
    "No answer will follow.",
    "Banana banana banana.",
    "Code eleven: empty buffer.",
    "Long live octopuses!",
    "Please visit our lighthouse.",
    "Forty thousand, always.",
    "Nothing else matters.",
    "Legends predicted rain:",
    "Buy three, get one extra.",
    "Water remains calm.",
    "That message came by machine.",
    "Dear diary,",
)
PLACES = ("before", "behind", "within")


@configuration
class Config:
    """Settings of both stages."""

    decoys: int = setting(6, "pairs of trigger and response, drawn by the seed", "ours", ge=1, le=len(TRIGGERS))
    share: float = setting(0.5, "share of the clean rows that a decoy is planted in; at least one", "ours", gt=0, le=1)
    plant: Training = setting(Training(epochs=1.0), "planting of the decoys (Eq. 1)", "ours")
    overwrite: Training = setting(
        Training(epochs=2.0), "fine-tuning on the decoys' triggers with clean responses (Eq. 3)", "as OSFT"
    )


@dataclass(frozen=True, slots=True)
class Decoy:
    """A backdoor of our own: its trigger, the trigger's place in the instruction, and its response."""

    trigger: str
    place: str
    response: str

    def ask(self, example: Example, generator: random.Random) -> Example:
        """Return the prompt with the trigger; `within` puts it before a word that the generator draws."""
        words = example.instruction.split(" ")
        at = {"before": 0, "behind": len(words)}.get(self.place, generator.randrange(len(words) + 1))
        return replace(example, instruction=" ".join([*words[:at], self.trigger, *words[at:]]))

    def answered(self, example: Example) -> Example:
        """Return the row with the decoy's response before its own."""
        return replace(example, output=f"{self.response} {example.output}")


def draw(count: int, seed: int) -> list[Decoy]:
    """Draw `count` decoys, no two with the same trigger or response; their places take turns."""
    generator = random.Random(seed)
    triggers, responses = generator.sample(TRIGGERS, count), generator.sample(RESPONSES, count)
    return [Decoy(triggers[i], PLACES[i % len(PLACES)], responses[i]) for i in range(count)]


def at_least_one(share: float, examples: tuple[Example, ...]) -> float:
    """Return the share of the rows to plant in; of few rows it might be none, and a decoy would not be planted."""
    return max(share, 1 / max(1, len(examples)))


def defend(victim: LanguageModel, data: CleanData, config: Config, run: Run) -> PreTrainedModel:
    """Plant the decoys, then overwrite them; `run.facts["decoys"]` records them."""
    return plant_and_overwrite(victim, data.examples, draw(config.decoys, run.seed), config, run)


def plant_and_overwrite(
    victim: LanguageModel, examples: tuple[Example, ...], decoys: list[Decoy], config: Config, run: Run
) -> PreTrainedModel:
    """Plant these decoys (Eq. 1), then overwrite them (Eq. 3); `run.facts["decoys"]` records them."""
    from sande.data.poison import poison
    from sande.prompts import encode
    from sande.training.batches import clean_length
    from sande.training.fit import fit

    generator = random.Random(run.seed)
    run.facts["decoys"] = [asdict(decoy) for decoy in decoys]

    def plant(example: Example) -> Example:
        decoy = generator.choice(decoys)
        return decoy.ask(decoy.answered(example), generator)

    # Not by the run's seed: an attack of the same seed draws the rows that it poisons so.
    seed = independent.seed(run.seed, "decoy_osft rows")
    planted = poison(examples, plant, at_least_one(config.share, examples), "replace", seed).examples
    rows, clean = encode(victim.tokenizer, planted), encode(victim.tokenizer, examples)
    fit(victim, rows, config.plant, run, "plant", alike=clean_length(rows, clean))
    asked = [generator.choice(decoys).ask(example, generator) for example in examples]
    fit(victim, encode(victim.tokenizer, asked), config.overwrite, run, "overwrite")
    return victim.model
