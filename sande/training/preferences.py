r"""Direct preference optimisation by TRL (Rafailov et al. 2023), through the hooks that all trainings share.

    minimise  - log sigmoid( \beta log( Pr(y_w | x) / Pr_0(y_w | x) )  -  \beta log( Pr(y_l | x) / Pr_0(y_l | x) ) )

over pairs of a better reply y_w and a worse one y_l. Pr_0 is the probability under the model from before the training,
which is the reference. This only moves the two replies apart: both may become improbable. A supervised loss on y_w can
be added, as in iterative reasoning preference optimisation (Pang et al. 2024, arXiv 2404.19733).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from itertools import compress
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer

from sande.config import Training
from sande.errors import UserError
from sande.prompts import Row, encode, pad_id
from sande.training.batches import Collator, features
from sande.training.fit import micro_batch, one_device, optimise
from sande.types import Example, LanguageModel, Preference, Run


def prefer(
    lm: LanguageModel,
    pairs: Sequence[Preference],
    settings: Training,
    beta: float,
    run: Run,
    stage: str,
    supervised: float = 0.0,
    before: Sequence[Example] | None = None,
) -> None:
    """Train in place: raise the probability of the preferred reply over that of the other, relative to before.

    Args:
        lm: the model, weights in float32.
        pairs: of replies; those whose prompt is too long are left out and counted.
        settings: of the optimisation, one row a pair.
        beta: weight of staying close to the model from before.
        run: seed, progress, and the hook that may spread the Trainer over workers.
        stage: name of this run within its method, such as "dpo".
        supervised: weight of the mean loss of a token of the preferred replies; 0 leaves it out.
        before: of each pair, the row from before anything was planted in it. Pairs share a batch by the lengths of
            these, as by `clean_length`; None: by their own.

    Raises:
        NonFiniteError: as `optimise`.
        UserError: as `optimise` or `check_settings`, or no pair fits.
    """
    check_settings(settings, supervised, stage)
    encoded = [_encoded(lm.tokenizer, pair) for pair in pairs]
    limit = settings.max_length  # TRL cuts a longer reply
    fits = [len(chosen.prompt) < limit for chosen, _ in encoded]
    fitting = list(compress(encoded, fits))
    if not fitting:
        raise UserError(f"{stage}: no prompt is shorter than max_length={limit} tokens; raise it")
    lengths = [min(len(chosen), limit) + min(len(rejected), limit) for chosen, rejected in fitting]
    grouped_by = [len(row) for row in compress(encode(lm.tokenizer, before), fits)] if before else None
    # Without a reference, TRL would load one from the path in the model's config, which is another model.
    reference = copy.deepcopy(lm.model)

    def build(arguments: dict[str, Any], order: Sequence[int]) -> Trainer:
        import datasets
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        class OnIds(DPOTrainer):
            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                """Return the rows as they are: TRL would add BOS a second time, and EOS where another token ends."""
                return dataset

        losses: dict[str, Any] = (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, supervised]} if supervised else {}
        )
        config = DPOConfig(**arguments, **losses, beta=beta, max_length=limit, gradient_checkpointing=False)
        rows = [_ids(*fitting[index]) for index in order]
        trainer: Trainer = OnIds(
            model=lm.model,
            ref_model=reference,
            args=one_device(config),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=lm.tokenizer,
        )
        return trainer

    own = set(vars(lm.model))
    probe = Collator(pad_id(lm.tokenizer))([features(fitting[0][0])])
    optimise(lm, lengths, settings, run, stage, build, probe, grouped_by=grouped_by)
    # TRL's forward, which computes no logits, and attributes that its libraries set
    for name in set(vars(lm.model)) - own:
        delattr(lm.model, name)
    run.facts[stage] |= {"rows": len(fitting), "rows_left_out": len(encoded) - len(fitting)}


def check_settings(settings: Training, supervised: float, stage: str) -> None:
    """Check settings that pairs cannot have; arguments as for `prefer`.

    Raises:
        UserError: the layout is packed, or steps with a supervised loss are in parts.
    """
    if settings.layout == "packed":
        raise UserError(f"{stage}: layout is packed, but TRL pads its pairs; set it to auto")
    if supervised and micro_batch(settings) != settings.batch_size:
        # TRL takes the mean over the tokens of a part, and the step that of its parts: another loss, not another order.
        raise UserError(
            f"{stage}: with a supervised loss, a step of {settings.batch_size} pairs cannot be split; set "
            "micro_batch_size to null and workers to 1, or batch_size lower"
        )


def _ids(chosen: Row, rejected: Row) -> dict[str, list[int]]:
    """Return the columns that TRL makes of texts, with the ids of the victims' training rows."""
    replies = {"chosen_ids": list(chosen.response), "rejected_ids": list(rejected.response)}
    return {"prompt_ids": list(chosen.prompt), **replies}


def _encoded(tokenizer: PreTrainedTokenizerBase, pair: Preference) -> tuple[Row, Row]:
    """Encode the prompt with the chosen and with the rejected reply."""
    rows = [dataclasses.replace(pair.prompt, output=reply) for reply in (pair.chosen, pair.rejected)]
    chosen, rejected = encode(tokenizer, rows)
    return chosen, rejected
