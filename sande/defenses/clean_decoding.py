r"""CleanGen: a reference model replaces tokens that only the victim finds likely (Li et al. 2024).

    s_t = Pr(x_t | x_<t) / Pr_ref(x_t | x_<t)  ;    the reference's likeliest token replaces x_t where s_t >= \alpha

(Li et al., "CleanGen: Mitigating Backdoor Attacks for Generation Tasks in Large Language Models", EMNLP 2024). x_t is
the token that the victim would write: its likeliest, or the sampled one. Their code drafts k = 4 tokens, checks them at
once, replaces the first suspicious one and drops the draft after it, which saves time. This implementation checks each
token as it is written. Both keep the end of an answer as the victim sets it; their code also returns up to three tokens
before it unchecked.

Their reference is a model that was fine-tuned for the victim's task as well. Here it is the model from before the
attack, and the level of knowledge is that of the clean model, fine-tuned on the clean rows: a base model finds whatever
a task has taught improbable, so right answers would be replaced, too.

The victim's weights remain unchanged. Decoding changes, and with it how likely a text is: under the guard, a token that
would be replaced has probability 0, and the reference's likeliest token takes over its share:

    Pr_g(x) = Pr(x) [s(x) < \alpha]  +  [x = argmax Pr_ref] \sum_y Pr(y) [s(y) >= \alpha]

This is exactly the distribution of a sampled token, so choices and given texts are scored by it. Each token takes a
pass of both models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from sande.config import Training, as_dict, configuration, setting
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
    tuned: bool = setting(
        True, "whether the reference is first fine-tuned on the clean rows", "published code: a fine-tuned model"
    )
    training: Training = setting(Training(epochs=2.0), "this fine-tuning", "as for sft")


def defend(victim: LanguageModel, data: OtherModelsData, config: Config, run: Run) -> Guard:
    """Fine-tune the reference and return the guard; the victim remains unchanged."""
    from sande import formats
    from sande.prompts import encode
    from sande.training.fit import fit

    (reference,) = data.other_models()
    ours, theirs = victim.model.config.vocab_size, reference.config.vocab_size
    if ours != theirs:
        raise UserError(
            f"clean_decoding: the reference has {theirs} tokens, the victim {ours}; use a model of the same vocabulary"
        )
    if config.tuned:
        rows = encode(victim.tokenizer, data.examples)
        fit(LanguageModel(reference, victim.tokenizer), rows, config.training, run, "reference")
    ends = formats.end_ids(victim.tokenizer)
    return Guard("clean_decoding", as_dict(config), reference, rule(config, ends), distribution(config, ends))


def rule(config: Config, ends: Collection[int]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return a function that replaces a suspicious token of the victim by the reference's likeliest.

    Args:
        config: has the threshold.
        ends: ids that end an answer, which are never replaced.
    """
    import torch

    def choose(tokens: Tensor, logits: Tensor, reference: Tensor) -> Tensor:
        others = reference.max(-1).indices
        score = log_probability(logits, tokens) - log_probability(reference, tokens)
        ending = torch.isin(tokens, torch.tensor(sorted(ends), device=tokens.device))
        return torch.where((score >= math.log(config.alpha)) & ~ending, others, tokens)

    return choose


def distribution(config: Config, ends: Collection[int]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that gives log Pr_g (..., V) of the next token, -inf for a token that is always replaced.

    Args:
        config: has the threshold.
        ends: ids that end an answer, which are never replaced.
    """
    import torch

    def log_probabilities(logits: Tensor, reference: Tensor) -> Tensor:
        ours, theirs = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
        replaced = ours - theirs >= math.log(config.alpha)
        replaced[..., sorted(ends)] = False
        moved = ours.exp().masked_fill(~replaced, 0.0).sum(-1, keepdim=True).log()
        kept = ours.masked_fill(replaced, -math.inf)
        best = reference.max(-1, keepdim=True).indices
        return kept.scatter(-1, best, torch.logaddexp(kept.gather(-1, best), moved))

    return log_probabilities


def log_probability(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return log Pr of each token (...) from the logits (..., V) before it, in float32."""
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
