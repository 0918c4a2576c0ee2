r"""Fine-mixing: reset a share of the weights to those of the clean model, then fine-tune (appendix A.1).

    w_i = w_i of the victim for a share `keep_ratio` of each tensor, else w_i of the clean model;    then Eq. 1
    E-PUR:  before that, the embedding of a token becomes the clean model's where  ||\delta_i||_2 / log(max(f_i, 20))
            is among the `purified_tokens` largest

where \delta_i is the change of the embedding from the clean model to the victim, and f_i the number of times that token
i occurs. (Zhang et al., "Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models", Findings of EMNLP 2022.)

Which weights the victim keeps is `choice`: those closest to the clean model's, as in the published code of the SANDE
paper (Zhang et al. call this variant "Sel"), or a random share, as Zhang et al. do by default. `recipe: published` is
theirs, with E-PUR. They count tokens in a large corpus; here f_i is counted in the clean rows. They choose the share
for each task by its accuracy; here it is the setting `keep_ratio`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sande.config import Recipe, Training, configuration, recipes, setting
from sande.types import CleanModelData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel


RAREST = 20  # a token counts as if it occurred at least so often (Zhang et al. 2022)


@configuration
class Config:
    """Settings of mixing and fine-tuning."""

    recipe: Recipe = recipes(
        "Zhang et al. 2022: a random share, and E-PUR of 200 words", choice="random", purified_tokens=200
    )
    choice: Literal["closest", "random"] = setting(
        "closest",
        "weights that the victim keeps: those closest to the clean model's, or random ones",
        "SANDE, published code",
    )
    keep_ratio: float = setting(
        0.8, "share of each tensor's weights that the victim keeps", "SANDE, published code", ge=0, le=1
    )
    purified_tokens: int = setting(
        0, "E-PUR: tokens whose embedding is reset, by its change and their frequency", "SANDE: without", ge=0
    )
    training: Training = setting(Training(epochs=2.0), "fine-tuning of the mixed model on the clean rows", "paper")


def defend(victim: LanguageModel, data: CleanModelData, config: Config, run: Run) -> PreTrainedModel:
    """Purify the embeddings, mix each tensor with that of the clean model, then fine-tune on the clean rows (Eq. 1)."""
    import torch

    from sande.prompts import encode
    from sande.training.fit import fit

    clean = data.clean_model().state_dict()
    rows = encode(victim.tokenizer, data.examples)
    names = {weight: name for name, weight in victim.model.named_parameters()}
    generator = torch.Generator().manual_seed(run.seed) if config.choice == "random" else None
    with torch.no_grad():
        if config.purified_tokens:
            layer: Any = victim.model.get_input_embeddings()
            embeddings_VD = layer.weight
            tokens = torch.tensor([token for row in rows for token in (*row.prompt, *row.response)], dtype=torch.long)
            counts_V = torch.bincount(tokens, minlength=len(embeddings_VD)).to(embeddings_VD.device)
            theirs_VD = clean[names[embeddings_VD]].to(embeddings_VD)
            changed = suspicious(embeddings_VD, theirs_VD, counts_V, config.purified_tokens)
            embeddings_VD[changed] = theirs_VD[changed]
            run.facts["purified_tokens"] = changed.tolist()
        for name, weight in victim.model.named_parameters():
            weight.copy_(mix(weight, clean[name].to(weight), config.keep_ratio, generator))
    fit(victim, rows, config.training, run, "fine_mixing")
    return victim.model


def suspicious(victim_VD: Tensor, clean_VD: Tensor, counts_V: Tensor, count: int) -> Tensor:
    """Return the ids of the tokens whose embedding changed most for their frequency, the most suspicious first (E-PUR).

    Args:
        victim_VD: embeddings of the victim.
        clean_VD: of the clean model.
        counts_V: how often each token occurs.
        count: ids to return; all tokens if there are fewer.
    """
    change_V = (victim_VD - clean_VD).float().norm(dim=1)
    score_V = change_V / counts_V.clamp(min=RAREST).log()
    ids: Tensor = score_V.topk(min(count, len(score_V))).indices
    return ids


def mix(victim: Tensor, clean: Tensor, keep_ratio: float, generator: Generator | None = None) -> Tensor:
    """Replace a share of the victim's weights with the clean ones: those that differ most, by absolute difference.

    Args:
        victim: weights of any shape.
        clean: of the same shape.
        keep_ratio: share of the weights that the victim keeps; their number is rounded to the nearest.
        generator: draws the weights that are replaced; None: those that differ most.
    """
    import torch

    reset = victim.numel() - round(keep_ratio * victim.numel())
    if generator is None:
        chosen = (victim - clean).abs().flatten().topk(reset).indices
    else:
        chosen = torch.randperm(victim.numel(), generator=generator)[:reset].to(victim.device)
    mixed = victim.flatten().clone()
    mixed[chosen] = clean.flatten()[chosen]
    return torch.reshape(mixed, victim.shape)
