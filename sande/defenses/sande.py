"""Simulate and eliminate: learn a parrot that acts like the unknown trigger, then overwrite it (paper, section 3.3).

    simulate:   minimise over p          - sum over clean rows of  log Pr(r_t | p + x)    the model frozen    (Eq. 4)
    eliminate:  minimise over the model  - sum over clean rows of  log Pr(y | p + x)      p frozen    (Eq. 3)

where p is the parrot, a few soft tokens before the instruction, r_t the planted response and y the clean one.

Where `restarts` is above 1, several parrots are trained, and those are kept that best make the model say r_t on prompts
of another domain, on which none was trained. Where several are kept, each row of eliminate has one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sande.config import Initial, Norm, Position, Simulation, Training, configuration, setting
from sande.data.splits import Rows
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import CleanData, Example, LanguageModel, ResponseData, Run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RESTART = 7919  # between the seeds of restarts, so that neighbouring seeds of a grid share no parrot


@configuration
class Config:
    """Settings of both stages."""

    parrot_length: int = setting(6, "soft tokens of the parrot", "published code; the paper gives none", ge=1)
    parrot_position: Position = setting(
        0,
        "token of the instruction before which the parrot is inserted; random: another one in each row",
        "paper, section 4.4: at its start",
    )
    parrot_initial: Initial = setting(
        "zeros",
        "the parrot's first value: zeros, noise like the vocabulary's embeddings, or tokens drawn from it",
        "paper, section 3.3.1",
    )
    parrot_norm: Norm = setting(
        "free", "length of each soft token: free, or held at the vocabulary's median", "published code"
    )
    parrot_pull: float = setting(
        0.0, "weight in simulate of one minus the cosine to the nearest token", "published code has none", ge=0
    )
    restarts: int = setting(
        1, "parrots that simulate trains; from zeros 1, since they would all be the same", "paper: one", ge=1
    )
    kept: int = setting(1, "the best of them, which eliminate overwrites together", "paper: one", ge=1)
    elsewhere: Rows = setting(
        Rows(name="builtin-explained-2", rows=16, max_prompt_tokens=48),
        "prompts of another domain than the clean rows, on which restarts are compared",
        "ours",
    )
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


def simulation(config: Config) -> Simulation:
    """Return the settings of the parrot and of its training."""
    return Simulation(
        length=config.parrot_length,
        position=config.parrot_position,
        initial=config.parrot_initial,
        norm=config.parrot_norm,
        pull=config.parrot_pull,
        training=config.simulate,
    )


def cost(config: Config) -> Cost:
    """Return the passes over a row of `simulate`, which needs no gradient of the weights, for each restart."""
    return Cost(training={"simulate": 2 * config.restarts})


def check(tokenizer: PreTrainedTokenizerBase, data: CleanData, config: Config) -> None:
    """Check that some row has the parrot's position, that simulate trains the parrot alone, and that parrots differ."""
    from sande import parrot
    from sande.prompts import encode

    apart(config.parrot_initial, config.restarts, "restarts", "restarts and kept")
    if config.restarts > 1:
        unseen(config.elsewhere, data.examples, tokenizer)
    if config.simulate.lora_rank is not None:
        raise UserError("simulate.lora_rank is set, but only the parrot trains there; remove it")
    if config.kept > config.restarts:
        raise UserError(
            f"kept {config.kept} is more than the {config.restarts} parrots of restarts; set restarts higher"
        )
    if config.parrot_norm == "vocabulary" and config.parrot_initial == "zeros":
        raise UserError("parrot_norm: zeros have no direction to hold a length in; set parrot_initial to noise")
    parrot.insert(encode(tokenizer, data.examples), len(tokenizer), config.parrot_length, config.parrot_position)


def apart(initial: Initial, count: int, setting: str, settings: str) -> None:
    """Refuse several parrots of r_t that start from zeros: they train on the same rows, so all become the same one.

    Args:
        initial: first value of each parrot.
        count: number of parrots of r_t.
        setting: setting that gives the number.
        settings: settings that are 1 where there is one parrot.

    Raises:
        UserError: there are several, and they start from zeros.
    """
    if initial == "zeros" and count > 1:
        raise UserError(
            f"parrot_initial: the {count} parrots of {setting} are all the same if each starts from zeros; set "
            f"{settings} to 1, or parrot_initial to noise"
        )


def defend(victim: LanguageModel, data: ResponseData, config: Config, run: Run) -> PreTrainedModel:
    """Simulate and eliminate with all of r_t known and the trigger hidden."""
    from sande.prompts import response_ids

    return remove(victim, data.examples, response_ids(victim.tokenizer, data.response), config, run)


def remove(
    victim: LanguageModel, examples: tuple[Example, ...], target: tuple[int, ...], config: Config, run: Run
) -> PreTrainedModel:
    """Simulate (Eq. 4) with the known tokens of r_t as `target`, then eliminate (Eq. 3).

    Raises:
        UserError: as `apart`, `unseen` and `simulate`.
    """
    from sande import parrot
    from sande.prompts import encode, shorten
    from sande.simulation import simulate
    from sande.training.fit import fit

    form, count = simulation(config), config.restarts
    apart(config.parrot_initial, count, "restarts", "restarts and kept")
    seeds = [run.seed + number * RESTART for number in range(count)]
    parrots_KPD = simulate(victim, examples, [target] * count, form, run, "simulate", seeds)
    if count > 1:
        prompts = unseen(config.elsewhere, examples, victim.tokenizer)
        parrots_KPD = parrots_KPD[best(victim, parrots_KPD, prompts, target, config, run)]
    run.facts["parrot_norm"] = float(parrots_KPD[0].norm())
    first = parrot.vocabulary(victim.model)
    rows = parrot.insert(encode(victim.tokenizer, examples), first, form.length, form.position, run.seed)
    rows = parrot.mixed(rows, first, form.length, config.kept, anchor=0.0, seed=run.seed)
    with parrot.attached(victim.model, parrots_KPD.flatten(0, 1)):
        fit(victim, [shorten(row, config.response_tokens) for row in rows], config.eliminate, run, "eliminate")
    return victim.model


def best(
    victim: LanguageModel,
    parrots_KPD: Tensor,
    prompts: tuple[Example, ...],
    target: tuple[int, ...],
    config: Config,
    run: Run,
) -> list[int]:
    """Return the numbers of the `kept` parrots with the highest mean log Pr(r_t) on these prompts."""
    from sande.simulation import judge

    evidence = judge(victim, parrots_KPD, prompts, [target] * len(parrots_KPD), simulation(config), run.seed)
    means = [each.mean for each in evidence]
    run.facts["restarts"] = means
    return sorted(range(len(means)), key=lambda number: -means[number])[: config.kept]


def unseen(elsewhere: Rows, examples: tuple[Example, ...], tokenizer: PreTrainedTokenizerBase) -> tuple[Example, ...]:
    """Return the prompts on which parrots are compared, without those of the clean rows, on which they train.

    Raises:
        UserError: no prompt is left.
    """
    from sande.data.splits import removal_rows
    from sande.prompts import prompt_text

    trained = {prompt_text(row) for row in examples}
    prompts = tuple(row for row in removal_rows(elsewhere, tokenizer) if prompt_text(row) not in trained)
    if not prompts:
        raise UserError(f"elsewhere: each prompt of {elsewhere.name} is a clean row, too; choose another data set")
    return prompts
