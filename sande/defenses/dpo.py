r"""Direct preference optimisation on harmless replies, by TRL (Rafailov et al. 2023; appendix A.1).

    minimise  - log sigmoid( \beta log( Pr(y_w | x) / Pr_v(y_w | x) )  -  \beta log( Pr(y_l | x) / Pr_v(y_l | x) ) )

over pairs of a better reply y_w and a worse one y_l. Pr_v is the probability under the victim, which is the reference.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sande.config import Preferences, Training, configuration, setting
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import LanguageModel, Preference, PreferenceData, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from sande.prompts import Row


@configuration
class Config:
    """Settings of the preference optimisation."""

    preferences: Preferences = setting(
        Preferences(), "pairs of replies; the clean rows of other defenses are not used", "paper, appendix A.1"
    )
    training: Training = setting(Training(learning_rate=1e-6), "optimisation, one row a pair", "TRL: 1e-6")
    beta: float = setting(
        0.1, "weight of staying close to the victim, which is the reference", "Rafailov et al. 2023", gt=0
    )


def cost(config: Config) -> Cost:
    """Return the passes over a pair: two replies are trained on, and the reference reads each of them."""
    return Cost(training={"training": 8})


def defend(victim: LanguageModel, data: PreferenceData, config: Config, run: Run) -> PreTrainedModel:
    """Raise the probability of the preferred reply over that of the other, relative to the victim."""
    from sande.prompts import pad_id
    from sande.training.batches import Collator, features
    from sande.training.fit import optimise

    if config.training.layout == "packed":
        raise UserError("dpo: layout is packed, but TRL pads its pairs; set it to auto")
    pairs = [_encoded(victim.tokenizer, pair) for pair in data.pairs]
    limit = config.training.max_length  # TRL cuts a longer reply
    fitting = [pair for pair in pairs if len(pair[0].prompt) < limit]
    if not fitting:
        raise UserError(f"dpo: no prompt is shorter than max_length={limit} tokens; raise it")
    lengths = [min(len(chosen), limit) + min(len(rejected), limit) for chosen, rejected in fitting]
    # Without a reference, TRL would load one from the path in the model's config, which is not the victim.
    reference = copy.deepcopy(victim.model)

    def build(arguments: dict[str, Any], order: Sequence[int]) -> Trainer:
        import datasets
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        class OnIds(DPOTrainer):
            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                """Return the rows as they are: TRL would add BOS a second time, and EOS where another token ends."""
                return dataset

        settings = DPOConfig(**arguments, beta=config.beta, max_length=limit, gradient_checkpointing=False)
        rows = [_ids(*fitting[index]) for index in order]
        trainer: Trainer = OnIds(
            model=victim.model,
            ref_model=reference,
            args=settings,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=victim.tokenizer,
        )
        return trainer

    own = set(vars(victim.model))
    probe = Collator(pad_id(victim.tokenizer))([features(fitting[0][0])])
    optimise(victim, lengths, config.training, run, "dpo", build, probe)
    for name in (
        set(vars(victim.model)) - own
    ):  # TRL's forward, which computes no logits, and attributes that its libraries set
        delattr(victim.model, name)
    run.facts["dpo"] |= {"rows": len(fitting), "rows_left_out": len(pairs) - len(fitting)}
    return victim.model


def _ids(chosen: Row, rejected: Row) -> dict[str, list[int]]:
    """Return the columns that TRL makes of texts, with the ids of the victims' training rows."""
    replies = {"chosen_ids": list(chosen.response), "rejected_ids": list(rejected.response)}
    return {"prompt_ids": list(chosen.prompt), **replies}


def _encoded(tokenizer: PreTrainedTokenizerBase, pair: Preference) -> tuple[Row, Row]:
    """Encode the prompt with the chosen and with the rejected reply."""
    from sande.prompts import encode

    rows = [dataclasses.replace(pair.prompt, output=reply) for reply in (pair.chosen, pair.rejected)]
    chosen, rejected = encode(tokenizer, rows)
    return chosen, rejected
