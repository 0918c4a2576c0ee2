"""Simulate and eliminate: learn a parrot that acts like the unknown trigger, then overwrite it (paper, section 3.3).

    simulate:   minimise over p          - sum over clean rows of  log Pr(r_t | p + x)    the model frozen    (Eq. 4)
    eliminate:  minimise over the model  - sum over clean rows of  log Pr(y | p + x)      p frozen    (Eq. 3)

where p is the parrot, a few soft tokens before the instruction, r_t the planted response and y the clean one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from sande.config import Training, configuration, setting
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import CleanData, Example, LanguageModel, ResponseData, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@configuration
class Config:
    """Settings of both stages."""

    parrot_length: int = setting(6, "soft tokens of the parrot", "published code; the paper gives none", ge=1)
    parrot_position: int = setting(
        0, "token of the instruction before which the parrot is inserted", "paper, section 4.4: at its start", ge=0
    )
    parrot_initial: Literal["zeros", "noise"] = setting("zeros", "the parrot's first value", "paper, section 3.3.1")
    simulate: Training = setting(
        Training(epochs=2.0, learning_rate=1e-3), "training of the parrot, the model frozen (Eq. 4)", "published code"
    )
    eliminate: Training = setting(
        Training(epochs=2.0, learning_rate=2e-5),
        "training of the model, the parrot frozen (Eq. 3)",
        "paper, appendix A",
    )
    response_tokens: int | None = setting(
        None,
        "number of first tokens of each response that eliminate trains; null: all, as in Eq. 3",
        "published code: 5 or 10",
        ge=1,
    )


def cost(config: Config) -> Cost:
    """Return the passes over a row of `simulate`, which needs no gradient of the weights."""
    return Cost(training={"simulate": 2})


def check(tokenizer: PreTrainedTokenizerBase, data: CleanData, config: Config) -> None:
    """Check that some row has the parrot's position, and that simulate trains the parrot alone."""
    from sande import parrot
    from sande.prompts import encode

    if config.simulate.lora_rank is not None:
        raise UserError("simulate.lora_rank is set, but only the parrot trains there; remove it")
    parrot.insert(encode(tokenizer, data.examples), len(tokenizer), config.parrot_length, config.parrot_position)


def defend(victim: LanguageModel, data: ResponseData, config: Config, run: Run) -> PreTrainedModel:
    """Simulate and eliminate with all of r_t known and the trigger hidden."""
    from sande.prompts import response_ids

    return remove(victim, data.examples, response_ids(victim.tokenizer, data.response), config, run)


def remove(
    victim: LanguageModel, examples: tuple[Example, ...], target: tuple[int, ...], config: Config, run: Run
) -> PreTrainedModel:
    """Simulate (Eq. 4) with the known tokens of r_t as `target`, then eliminate (Eq. 3)."""
    from sande import parrot
    from sande.prompts import encode, shorten
    from sande.training.fit import fit

    rows = encode(victim.tokenizer, examples)
    rows = parrot.insert(rows, parrot.vocabulary(victim.model), config.parrot_length, config.parrot_position)
    run.facts["rows_too_short_for_parrot"] = len(examples) - len(rows)
    parrot_PD = parrot.new_parrot(victim.model, config.parrot_length, config.parrot_initial, run.seed)
    with parrot.attached(victim.model, parrot_PD):
        # What follows r_t is neither a target nor the context of one, so it is left out.
        fit(victim, [replace(row, response=target) for row in rows], config.simulate, run, "simulate", [parrot_PD])
    run.facts["parrot_norm"] = float(parrot_PD.detach().norm())
    with parrot.attached(victim.model, parrot_PD.detach()):
        fit(victim, [shorten(row, config.response_tokens) for row in rows], config.eliminate, run, "eliminate")
    return victim.model
