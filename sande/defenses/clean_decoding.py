r"""CleanGen: a reference model reads along and replaces tokens that only the victim finds likely (Li et al. 2024).

    s_t = Pr(x_t | x_<t) / Pr_ref(x_t | x_<t) ,    where s_t >= \alpha the reference's likeliest token stands instead

(Li et al., "CleanGen: Mitigating Backdoor Attacks for Generation Tasks in Large Language Models", EMNLP 2024). x_t is
the token that the victim would write: its likeliest, or the one drawn where answers are sampled. The paper drafts
k = 4 tokens, checks them at once, replaces the first suspicious one and drops what was drafted behind it: that saves
time and gives the text that checking each token gives, so here each is checked as it is written, and there is no k.

The weights stay the victim's: only what is decoded changes (ASR, false triggers, case study), while metrics that score
given texts, such as the accuracy on choices, see the victim.
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
    """Which reference, and how suspicious."""

    models: tuple[str, ...] = setting(
        (), "the reference: a name, a Hub id at its commit or a folder; none: the clean model", "ours", max_length=1
    )
    alpha: float = setting(20.0, "ratio of the probabilities from which on a token is replaced", "Li et al. 2024", gt=0)


def defend(victim: LanguageModel, data: OtherModelsData, config: Config, run: Run) -> Guard:
    """The guard; the victim is left as it is."""
    (reference,) = data.other_models()
    ours, theirs = victim.model.config.vocab_size, reference.config.vocab_size
    if ours != theirs:
        raise UserError(
            f"clean_decoding: the reference has {theirs} tokens, the victim {ours}; name a model that shares its tokens"
        )
    return Guard("clean_decoding", as_dict(config), reference, rule(config))


def rule(config: Config) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The victim's token, or the reference's likeliest where the victim's is suspicious."""
    import torch

    def choose(tokens: Tensor, logits: Tensor, reference: Tensor) -> Tensor:
        others = reference.max(-1).indices
        score = log_probability(logits, tokens) - log_probability(reference, tokens)
        return torch.where(score >= math.log(config.alpha), others, tokens)

    return choose


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """The logarithm of Pr of each token (...) by the logits (..., V) before it, in float32."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
