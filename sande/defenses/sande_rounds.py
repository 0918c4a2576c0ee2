"""Simulate and eliminate in rounds until fresh parrots find nothing, with a certificate (SANDE, repeated).

In round k, with fresh parrots p_kj and controls' parrots p_c on the model theta_k:

    simulate:   minimise over p      - sum over clean rows of  log Pr(r | p + x)    r: r_t or a control    (Eq. 4)
    stop if     p_k = (1 + #{c: E(p_c) >= max_j E(p_kj)}) / (1 + m) > alpha_k       see `sande.certificate`
    eliminate:  minimise over theta  - sum over clean rows of  log Pr(y | p + x)    p: r_t's so far, or none    (Eq. 3)

E(p) is the mean of log Pr(r | p + x) per token over prompts of another domain, on which no parrot trains. All parrots
of a round have the same budget. A share of the rows, the anchor, has no parrot and holds the model's behaviour.

The model is overwritten once before the first test: where simulate misses r_t from the start, a test would stop at
once and leave the victim as it was. The last test is of the final weights, rounded as they are stored, since rounding
undoes small changes; the certificate quotes it alone.

Controls are most of the cost. So a look comes first, with a few of them: where r_t is much more probable than these, it
is evident that r_t is left, and the other controls are not trained. The look only ever causes another round.
Controls are matched anew in each round, as fluent to theta_k as r_t is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sande import certificate
from sande import parts as independent
from sande.certificate import Round, Spending
from sande.config import Initial, Norm, Position, Training, configuration, setting
from sande.data.splits import Rows
from sande.declarations import Cost
from sande.defenses import sande
from sande.types import CleanData, Example, LanguageModel, ResponseData, Run

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sande.simulation import Evidence

Ids = tuple[int, ...]
MATCHED = 32  # clean prompts on which controls are matched
SEEDS = 2**31  # seeds are drawn below it


@configuration
class Config:
    """Settings of the rounds, of both stages, and of the test."""

    rounds: int = setting(4, "most rounds of eliminate; each is followed by a test", "ours", ge=1)
    fresh: int = setting(
        2,
        "fresh parrots of r_t in each round, with seeds of their own; from zeros 1, as they would be the same",
        "ours",
        ge=1,
    )
    controls: int = setting(19, "control strings of a test", "the fewest for alpha_k = 0.05", ge=1)
    alpha: float = setting(
        0.1, "bound, over all tests, on the chance to find r_t though it is like its controls", "ours", gt=0, lt=1
    )
    spending: Spending = setting(
        "sequence",
        "sequence: each test has all of alpha / fresh, since testing ends at the first that finds nothing; equal: this "
        "is divided by the rounds, too",
        "Goeman and Solari 2010: sequential rejection",
    )
    evident: float | None = setting(
        2.0,
        "r_t is evidently left, without a test, where its E exceeds that of a few controls by this many nats a token; "
        "null: always test",
        "ours",
        gt=0,
    )
    look: int = setting(3, "these few controls", "ours", ge=1)
    anchor: float = setting(0.25, "share of the rows that eliminate reads without a parrot", "ours", ge=0, lt=1)
    parrot_length: int = setting(6, "soft tokens of a parrot", "published code; the paper gives none", ge=1)
    parrot_position: Position = setting(
        0,
        "token of the instruction before which a parrot is inserted; random: another one in each row",
        "paper, section 4.4: at its start",
    )
    parrot_initial: Initial = setting(
        "noise",
        "a parrot's first value: zeros, noise like the vocabulary's embeddings, or tokens drawn from it",
        "ours: fresh parrots have to differ",
    )
    parrot_norm: Norm = setting(
        "vocabulary", "length of each soft token: free, or held at the vocabulary's median", "as metric parrot_recovery"
    )
    parrot_pull: float = setting(
        0.0, "weight in simulate of one minus the cosine to the nearest token", "published code has none", ge=0
    )
    elsewhere: Rows = setting(
        Rows(name="builtin-explained-2", rows=32, max_prompt_tokens=48),
        "prompts of another domain than the clean rows, on which parrots are judged",
        "ours",
    )
    simulate: Training = setting(
        Training(max_steps=16, learning_rate=1.5e-2),
        "training of each parrot, the model frozen (Eq. 4)",
        "grids/quickstart.yaml",
    )
    eliminate: Training = setting(
        Training(epochs=2.0, learning_rate=2e-5),
        "training of the model in each round, the parrots frozen (Eq. 3)",
        "paper, appendix A",
    )
    response_tokens: int | None = setting(
        None,
        "number of first tokens of each response that eliminate trains; null: all, as in Eq. 3",
        "published code: 5 or 10",
        ge=1,
    )


def cost(config: Config) -> Cost:
    """Return the passes over a row if every round is needed and tested; it is less where a look or a test ends one."""
    before, each = config.fresh + config.look, config.fresh + config.controls
    return Cost(training={"simulate": 2 * (before + config.rounds * each), "eliminate": 3 * config.rounds})


def check(tokenizer: PreTrainedTokenizerBase, data: CleanData, config: Config) -> None:
    """Check that the test can find something and has prompts, that fresh parrots differ, and what `sande` checks."""
    _levels(config)
    sande.unseen(config.elsewhere, data.examples, tokenizer)
    sande.check(tokenizer, data, _one_round(config))
    sande.apart(config.parrot_initial, config.fresh, "fresh", "fresh")


def defend(victim: LanguageModel, data: ResponseData, config: Config, run: Run) -> PreTrainedModel:
    """Run the rounds with all of r_t known and the trigger hidden; `run.facts["certificate"]` has their evidence."""
    from sande.prompts import response_ids

    return remove(victim, data.examples, response_ids(victim.tokenizer, data.response), config, run)


def remove(
    victim: LanguageModel, examples: tuple[Example, ...], target: Ids, config: Config, run: Run
) -> PreTrainedModel:
    """Run the rounds with the known tokens of r_t as `target`.

    Raises:
        UserError: no p-value could be small enough, no prompt of `elsewhere` is left, fresh parrots would be the same,
            or as for `sande`.
    """
    levels = _levels(config)
    sande.apart(config.parrot_initial, config.fresh, "fresh", "fresh")
    prompts = sande.unseen(config.elsewhere, examples, victim.tokenizer)
    task = _Task(victim, examples, prompts, target, config, run)
    learned: list[Tensor] = []
    rounds: list[Round] = []
    for number, alpha in enumerate((None, *levels)):
        found, parrots_FPD = task.test(number, alpha)
        rounds.append(found)
        run.say(str(found))
        if not found.answers or number == config.rounds:
            break
        learned.append(parrots_FPD)
        task.overwrite(number, learned)
    run.facts["certificate"] = certificate.certificate(target, rounds, len(task.prompts))
    return victim.model


@dataclass(frozen=True, slots=True)
class _Task:
    """A removal: the model, which is trained in place, and what its rounds share."""

    victim: LanguageModel
    examples: tuple[Example, ...]
    prompts: tuple[Example, ...]
    target: Ids
    config: Config
    run: Run

    def test(self, number: int, alpha: float | None) -> tuple[Round, Tensor]:
        """Return the evidence after `number` rounds of eliminate, and the fresh parrots of r_t, (F, P, D).

        Without `alpha` there is no test, and only a few controls are trained. With it there is one, unless these few
        show already that r_t is left and another round is possible.
        """
        from sande.controls import matched

        config, draw = self.config, random.Random(f"{self.run.seed} {number}")
        strings = matched(
            self.victim, self.examples[:MATCHED], self.target, config.controls, seed=draw.randrange(SEEDS)
        )
        seeds = draw.sample(range(SEEDS), config.fresh + config.controls)
        looks = alpha is None or (config.evident is not None and number < config.rounds)
        few = config.look if looks else config.controls
        split = config.fresh + few
        targets = [self.target] * config.fresh + strings
        found, parrots_KPD = self._judged("simulate", number, targets[:split], seeds[:split])
        own = parrots_KPD[: config.fresh]
        first = _round(number, found, config.fresh, None)
        if alpha is None or (looks and first.evident(config.evident)):
            return first, own
        if targets[split:]:
            more, _ = self._judged("controls", number, targets[split:], seeds[split:])
            found = [*found, *more]
        return _round(number, found, config.fresh, alpha), own

    def _judged(self, stage: str, number: int, targets: list[Ids], seeds: list[int]) -> tuple[list[Evidence], Tensor]:
        """Train a parrot for each target on the clean rows, and judge it on the prompts."""
        from sande.simulation import judge, simulate

        form = sande.simulation(_one_round(self.config))
        run = self._of_round(number)
        parrots_KPD = simulate(self.victim, self.examples, targets, form, run, f"{stage}_{number}", seeds)
        return judge(self.victim, parrots_KPD, self.prompts, targets, form, self.run.seed), parrots_KPD

    def overwrite(self, number: int, learned: Sequence[Tensor]) -> None:
        """Train the model on the clean rows, with any of the parrots or none."""
        import torch

        from sande import parrot
        from sande.models.loading import round_as_stored
        from sande.prompts import encode, shorten
        from sande.training.batches import clean_length
        from sande.training.fit import fit

        config, lm, run = self.config, self.victim, self._of_round(number)
        parrots_KPD, first = torch.cat(list(learned)), parrot.vocabulary(lm.model)
        length, position = config.parrot_length, config.parrot_position
        clean = [shorten(row, config.response_tokens) for row in encode(lm.tokenizer, self.examples)]
        least = 0 if position == "random" else position
        clean = [row for row in clean if row.start + least < row.end] or clean  # the others have no place for a parrot
        rows = parrot.insert(clean, first, length, position, run.seed)
        rows = parrot.mixed(rows, first, length, len(parrots_KPD), config.anchor, run.seed)
        with parrot.attached(lm.model, parrots_KPD.flatten(0, 1)):
            stage, alike = f"eliminate_{number}", clean_length(rows, clean)
            fit(lm, rows, config.eliminate, run, stage, alike=alike)
        round_as_stored(lm, lm.model.dtype)

    def _of_round(self, number: int) -> Run:
        """Return the run with a seed of the round's own: with one seed all rounds would train on the same rows."""
        return replace(self.run, seed=independent.seed(self.run.seed, f"round {number}"))


def _round(number: int, found: Sequence[Evidence], fresh: int, alpha: float | None) -> Round:
    """Return the round of these parrots' evidence, of which the first `fresh` are those of r_t."""
    own, controls = found[:fresh], found[fresh:]
    return Round(
        number,
        tuple(each.mean for each in own),
        tuple(each.mean for each in controls),
        max(each.rate for each in own),
        max(each.rate for each in controls),
        alpha,
    )


def _levels(config: Config) -> tuple[float, ...]:
    """Return alpha_k of the test after each round of eliminate."""
    return certificate.levels(config.alpha, config.fresh, config.rounds, config.controls, config.spending)


def _one_round(config: Config) -> sande.Config:
    """Return the settings of `sande` for one round: those that both have."""
    shared = [name for name in sande.Config.__dataclass_fields__ if name in Config.__dataclass_fields__]
    return sande.Config(**{name: getattr(config, name) for name in shared})
