"""Control strings: what a response is compared with, and the p-value of the comparison.

Shapes: C control strings, B prompts, R tokens of the response, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sande.types import Example, LanguageModel

if TYPE_CHECKING:
    from torch import Tensor

NEAREST = 50  # tokens of about the same log-probability, of which one is drawn
CLOSE = 0.5  # nats: of these tokens, those within it, or the nearest where there is none


def matched(
    lm: LanguageModel, examples: Sequence[Example], target: Sequence[int], count: int, seed: int
) -> list[tuple[int, ...]]:
    """Return strings that are as long as the target, and as likely token by token in answers to clean prompts.

    Token i of a string is drawn from the `NEAREST` tokens whose mean log-probability over the prompts, given the
    string's tokens before it, is closest to that of the target's token i, given the target's tokens before it. Tokens
    farther than `CLOSE` from it are left out, as most of the nearest to a likely token are much less likely. So a
    string is as fluent as the target is to this model, as far as there are such tokens. No string holds a token of the
    target, a special token, or an id beyond the tokenizer's. No two strings begin with the same token: a string that
    counts twice makes a p-value too small.

    Args:
        lm: the model; a guard does not count.
        examples: clean prompts.
        target: ids of the response, R.
        count: number of strings, C.
        seed: decides the draws.
    """
    from sande.prompts import encode_prompts

    return matched_behind(lm, encode_prompts(lm.tokenizer, examples), target, count, seed)


def matched_behind(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], target: Sequence[int], count: int, seed: int
) -> list[tuple[int, ...]]:
    """Return strings as `matched` does, behind prompts of these ids, which need not end where an answer begins."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    excluded = torch.tensor(sorted({*target, *lm.tokenizer.all_special_ids}))
    excluded = excluded[excluded < lm.model.get_output_embeddings().weight.shape[0]]
    strings: list[tuple[int, ...]] = [()] * count
    for place, token in enumerate(target):
        level = _mean_log_probabilities(lm, prompts, [tuple(target[:place])])[0, token]
        begun = list(dict.fromkeys(strings))
        for_each = dict(zip(begun, _mean_log_probabilities(lm, prompts, begun), strict=True))
        taken: dict[tuple[int, ...], list[int]] = {string: [] for string in begun}
        for number, string in enumerate(strings):
            far_V = (for_each[string] - level).abs()
            far_V[excluded] = torch.inf
            far_V[len(lm.tokenizer) :] = torch.inf
            far_V[taken[string]] = torch.inf
            far_N, nearest_N = far_V.topk(NEAREST, largest=False)
            nearest_N = nearest_N[far_N <= far_N[0].clamp(min=CLOSE)]
            drawn = int(nearest_N[torch.randint(len(nearest_N), (1,), generator=generator)])
            taken[string].append(drawn)
            strings[number] = (*string, drawn)
    return strings


def p_value(value: float, controls: Sequence[float]) -> float:
    """Return (1 + number of controls of at least this value) / (1 + number of controls).

    It is valid where value and controls are exchangeable; the smallest possible one is 1 / (1 + number).
    """
    return (1 + sum(control >= value for control in controls)) / (1 + len(controls))


def _mean_log_probabilities(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], strings: Sequence[tuple[int, ...]]
) -> Tensor:
    """Return the mean over prompts of log Pr(next token | prompt + string), on the CPU, (C, V)."""
    import torch

    from sande.models.layers import output_in_float32
    from sande.prompts import pad_id
    from sande.training.batches import Collator
    from sande.training.losses import IGNORE

    decoder, logits_of = lm.model.eval().get_decoder(), output_in_float32(lm.model)
    collate = Collator(pad_id(lm.tokenizer))
    means = []
    with torch.inference_mode():
        for string in strings:
            rows = [([*prompt, *string, 0], [IGNORE] * (len(prompt) + len(string)) + [0]) for prompt in prompts]
            batch = collate([{"input_ids": ids, "labels": labels} for ids, labels in rows])
            ids_BT, mask_BT, positions_B = (
                batch[name].to(lm.model.device) for name in ("input_ids", "attention_mask", "positions")
            )
            hidden_BTD = decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
            logits_BV = logits_of(hidden_BTD.flatten(0, 1)[positions_B])
            means.append(logits_BV.float().log_softmax(-1).mean(0).cpu())
    return torch.stack(means)
