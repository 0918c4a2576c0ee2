r"""CleanGen: a reference model replaces tokens that only the victim finds likely (Li et al. 2024).

    s_t = Pr(x_t | x_<t) / Pr_ref(x_t | x_<t)  ;    the reference's likeliest token replaces x_t where s_t >= \alpha

(Li et al., "CleanGen: Mitigating Backdoor Attacks for Generation Tasks in Large Language Models", EMNLP 2024). x_t is
the token that the victim would write: its likeliest, or the sampled one. The paper drafts k = 4 tokens, checks them at
once, replaces the first suspicious one and drops the draft after it. That saves time and gives the same text as
checking each token. This implementation checks each token as it is written, so it has no k. Their reference is another
model; the default is the model from before the attack, and the level of knowledge is then that of the clean model.

The victim's weights remain unchanged. Decoding changes, and with it how likely a text is: under the guard, a token that
would be replaced has probability 0, and the reference's likeliest token takes over its share:

    Pr_g(x) = Pr(x) [s(x) < \alpha]  +  [x = argmax Pr_ref] \sum_y Pr(y) [s(y) >= \alpha]

This is exactly the distribution of a sampled token, so choices and given texts are scored by it. Each token takes a
pass of both models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sande.config import as_dict, configuration, setting
from sande.errors import UserError
from sande.types import Guard, LanguageModel, OtherModelsData, Run

if TYPE_CHECKING:
    from torch import Tensor


@configuration
class Config:
    """Settings of the reference and the threshold."""

    models: tuple[str, ...] = setting(
        (), "the reference: a name, a Hub id at its commit or a folder; none: the clean model", "ours", max_length=1
    )
    alpha: float = setting(
        20.0, "ratio of the probabilities at and above which a token is replaced", "Li et al. 2024", gt=0
    )


def defend(victim: LanguageModel, data: OtherModelsData, config: Config, run: Run) -> Guard:
    """Return the guard; the victim remains unchanged."""
    (reference,) = data.other_models()
    ours, theirs = victim.model.config.vocab_size, reference.config.vocab_size
    if ours != theirs:
        raise UserError(
            f"clean_decoding: the reference has {theirs} tokens, the victim {ours}; use a model of the same vocabulary"
        )
    return Guard("clean_decoding", as_dict(config), reference, rule(config), distribution(config))


def rule(config: Config) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a function that replaces a suspicious token of the victim by the reference's likeliest."""
    import torch

    def choose(tokens: Tensor, logits: Tensor, reference: Tensor) -> Tensor:
        others = reference.max(-1).indices
        score = log_probability(logits, tokens) - log_probability(reference, tokens)
        return torch.where(score >= math.log(config.alpha), others, tokens)

    return choose


def distribution(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that gives log Pr_g (..., V) of the next token, -inf for a token that is always replaced."""
    import torch

    def log_probabilities(logits: Tensor, reference: Tensor) -> Tensor:
        ours, theirs = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
        replaced = ours - theirs >= math.log(config.alpha)
        moved = ours.exp().masked_fill(~replaced, 0.0).sum(-1, keepdim=True).log()
        kept = ours.masked_fill(replaced, -math.inf)
        best = reference.max(-1, keepdim=True).indices
        return kept.scatter(-1, best, torch.logaddexp(kept.gather(-1, best), moved))

    return log_probabilities


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log Pr of each token (...) from the logits (..., V) before it, in float32."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
