r"""Repair after one reported failure: find the trigger in its prompt, then train its answer away.

After Patcher (Fang et al., USENIX Security 2026, arXiv 2606.02995), of which only the abstract was read. u are the
tokens of the reported prompt q between `Human:` and `Assistant:`, r the reported answer, (x, y) a clean row:

1. Each token u_i gets a saliency:

    gradient, the paper's:  s_i = || gradient of -log Pr(r | q) by the embedding of u_i ||
    transfer, ours:         s_i = mean over x of  sum over j of  l_j log(Pr(r_j | x + u) / Pr(r_j | x + u without u_i))
                            l_j = max(0, mean over x of Pr(r_j | x + u) - Pr(r_j | x))

2. Two means split the saliencies. The tokens of the upper group are those found of the trigger.
3. Fine-tuning:

    minimise  - mean log Pr(y | x + u') + \alpha mean KL(victim || model, given x) - \beta sum l_j log(1 - Pr(r_j | q))

x + u is x behind u, or behind its first tokens and before the others; u' are the found tokens and a random part of the
others. Each token of an answer is given those before it. The lift l_j is large where the planted response begins, and
small where an answer follows its question; below half of the largest it counts as 0. With `gradient` it is 1 over the
number of tokens.

Why `transfer`: an answer holds the planted response and an answer to the question, so the gradient is large at words
that decide the latter, and it vanishes where the victim is sure. A trigger works behind other questions, too.

Shapes: R tokens of r, U of u, M clean prompts, N target tokens, V vocabulary, B rows, T positions, D width.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from sande.config import Training, configuration, setting
from sande.declarations import Cost
from sande.errors import UserError
from sande.types import IncidentData, LanguageModel, Run

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sande.prompts import Row

BATCH = 16  # prompts computed together while the trigger is looked for
LIFTED = 0.25  # lift of a token of the answer at which a place of the reported tokens is taken to work


@configuration
class Config:
    """Settings of the search for the trigger and of the fine-tuning."""

    saliency: Literal["transfer", "gradient"] = setting(
        "transfer", "what the tokens of the reported prompt are split by; gradient: the paper's", "ours"
    )
    prompts: int = setting(16, "clean prompts on which `transfer` is measured", "ours", ge=1)
    keep: float = setting(
        0.5,
        "probability that a token of the reported prompt that was not found is inserted beside those that were",
        "ours: the trigger may be longer than what was found",
        ge=0,
        le=1,
    )
    training: Training = setting(Training(epochs=2.0), "fine-tuning on the clean rows", "as OSFT")
    anchor: float = setting(1.0, "weight of the divergence from the victim on clean rows", "ours", ge=0)
    unlearn: float = setting(1.0, "weight of the term against the reported answer", "ours", ge=0)


def cost(config: Config) -> Cost:
    """Return two trainings of each row, with and without inserted tokens, and the victim's pass over the latter."""
    return Cost(training={"training": 7})


def _check(tokenizer: PreTrainedTokenizerBase, data: IncidentData, config: Config) -> None:
    """Check that the reported prompt has tokens, and that it leaves room for the answer."""
    from sande.prompts import fit_length

    row = reported(tokenizer, data)
    if row.start >= row.end:
        raise UserError("incident: the prompt is empty; use the prompt as it was sent")
    if not data.answer.strip():
        raise UserError("incident: the answer is empty; use the answer as it was given")
    if not fit_length([row], config.training.max_length):
        raise UserError(
            f"incident: the prompt has {len(row.prompt)} tokens, and training.max_length is "
            f"{config.training.max_length}; set it higher"
        )


def defend(victim: LanguageModel, data: IncidentData, config: Config, run: Run) -> PreTrainedModel:
    """Find the trigger, then train; `run.facts` records the tokens found, their places, all saliencies and lifts."""
    import torch

    from sande.formats import end_id
    from sande.prompts import encode, fit_length
    from sande.training.fit import fit

    _check(victim.tokenizer, data, config)
    (row,) = fit_length([reported(victim.tokenizer, data)], config.training.max_length)
    said, rows = row.prompt[row.start : row.end], encode(victim.tokenizer, data.examples)
    rows = [one for one in rows if len(one.prompt) + len(said) < config.training.max_length]
    run.facts["rows_too_long_for_incident"] = len(data.examples) - len(rows)
    if not rows:
        raise UserError(
            "incident: no clean prompt with the reported one in it is shorter than training.max_length="
            f"{config.training.max_length} tokens; set it higher"
        )
    run.say("looking for the trigger in the reported prompt")
    if config.saliency == "gradient":
        saliency_U = gradient_saliency(victim.model, row)
        lift_R = torch.full((len(row.response),), 1 / len(row.response))
    else:
        saliency_U, lift_R = transferred(victim, row, rows[: config.prompts])
    found = two_means(saliency_U.tolist())
    places = [at for at, of_trigger in enumerate(found) if of_trigger]
    run.facts["found_text"] = str(victim.tokenizer.decode([said[at] for at in places])).strip()
    run.facts["found"] = [
        {"token": str(victim.tokenizer.decode([said[at]])), "id": said[at], "place": at, "of": len(said)}
        for at in places
    ]
    run.facts["saliency"], run.facts["lift"] = saliency_U.tolist(), lift_R.tolist()
    end = end_id(victim.tokenizer) if config.training.cut_with_eos else None
    pairs = paired(rows, said, found, config, run.seed, end)
    anchors = {(*asked.prompt, *asked.response): clean for asked, clean in pairs}
    objective = patching(victim.model, copy.deepcopy(victim.model), anchors, row, lift_R, config)
    fit(victim, [asked for asked, _ in pairs], config.training, run, "incident", objective=objective)
    return victim.model


def reported(tokenizer: PreTrainedTokenizerBase, data: IncidentData) -> Row:
    """Return the reported prompt and answer as a row, with the closing EOS."""
    from sande.prompts import encode

    (row,) = encode(tokenizer, [replace(data.prompt, output=data.answer)])
    return row


def gradient_saliency(model: PreTrainedModel, row: Row) -> Tensor:
    """Return the norm of the gradient of -log Pr(response | prompt) by each embedding of the instruction, (U,)."""
    import torch

    from sande.training.losses import response_nll

    ids_1T = torch.tensor([[*row.prompt, *row.response]], device=model.device)
    embedded_1TD = model.get_input_embeddings()(ids_1T).detach().requires_grad_()
    hidden_TD = model.get_decoder()(inputs_embeds=embedded_1TD, use_cache=False).last_hidden_state[0]
    logits_RV = model.get_output_embeddings()(hidden_TD[len(row.prompt) - 1 : -1])
    (gradient_1TD,) = torch.autograd.grad(response_nll(logits_RV, ids_1T[0, len(row.prompt) :]), embedded_1TD)
    saliency_U: Tensor = gradient_1TD[0, row.start : row.end].float().norm(dim=-1).cpu()
    return saliency_U


def transferred(lm: LanguageModel, row: Row, clean: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Return the saliencies by transfer (U,), and the lift of each token of the answer (R,).

    All of u is before x, so that the victim answers the question of x. Where this lifts no token, as some triggers work
    only at the end, the last quarter of u is behind x, then the last half.

    Args:
        lm: the victim.
        row: the reported prompt and answer.
        clean: M rows, of which only the prompts are used.
    """
    import torch

    said = row.prompt[row.start : row.end]
    clean_MR = log_probabilities(lm, [one.prompt for one in clean], row.response)
    tried = []
    for behind in (0, len(said) // 4, len(said) // 2):
        split = len(said) - behind
        with_MR = log_probabilities(lm, [_inserted(one, said, split) for one in clean], row.response)
        tried.append((float(_lift(with_MR, clean_MR).max()), split, with_MR))
        if tried[-1][0] >= LIFTED:
            break
    _, split, with_MR = max(tried, key=lambda one: one[0])
    asked = [_inserted(one, said, split, without=at) for at in range(len(said)) for one in clean]
    without_UMR = torch.stack(log_probabilities(lm, asked, row.response).split(len(clean)))
    return transfer_saliency(with_MR, without_UMR, clean_MR)


def transfer_saliency(with_MR: Tensor, without_UMR: Tensor, clean_MR: Tensor) -> tuple[Tensor, Tensor]:
    """Return the saliencies by transfer (U,) and the lift (R,), see the top of the module.

    Args:
        with_MR: log Pr of each token of the answer, given each prompt with the reported tokens in it.
        without_UMR: the same without each of the reported tokens.
        clean_MR: the same without all of them.
    """
    lift_R = _lift(with_MR, clean_MR)
    saliency_U: Tensor = ((with_MR - without_UMR) * lift_R).sum(-1).mean(-1)
    return saliency_U, lift_R


def log_probabilities(lm: LanguageModel, prompts: Sequence[Sequence[int]], answer: Sequence[int]) -> Tensor:
    """Return log Pr of each token of the answer, given each prompt and the tokens before it, (prompts, R)."""
    import torch

    from sande.inference.scoring import token_log_probabilities

    return torch.stack(token_log_probabilities(lm, [(prompt, answer) for prompt in prompts], BATCH))


def two_means(values: Sequence[float]) -> list[bool]:
    """Return which values are in the upper of two groups that minimise the sum of squares within them, exactly.

    Equal values share a group; where all are equal, all of them are in the upper one.
    """
    ordered = sorted(values)

    def spread(group: Sequence[float]) -> float:
        mean = sum(group) / len(group)
        return sum((value - mean) ** 2 for value in group)

    splits = [at for at in range(1, len(ordered)) if ordered[at - 1] < ordered[at]]
    best = min(splits, key=lambda at: spread(ordered[:at]) + spread(ordered[at:]), default=0)
    return [value >= ordered[best] for value in values]


def paired(
    rows: Sequence[Row], said: Sequence[int], found: Sequence[bool], config: Config, seed: int, end: int | None = None
) -> list[tuple[Row, Row]]:
    """Return each clean row with tokens of the reported prompt inserted, and as it is; both with the same response.

    Args:
        rows: clean rows, with room for all of the tokens.
        said: tokens of the reported prompt, (U,).
        found: which of them are the trigger's.
        config: `keep`, and limits of the training.
        seed: decides, row by row, which of the other tokens are inserted, and how many are before the instruction.
        end: as in `sande.prompts.fit_length`.
    """
    from sande.prompts import fit_length

    generator = random.Random(seed)
    pairs = []
    for row in rows:
        kept = [token for token, of_trigger in zip(said, found, strict=True) if _stays(of_trigger, config, generator)]
        prompt = _inserted(row, kept, generator.randint(0, len(kept)))
        (asked,) = fit_length([replace(row, prompt=prompt)], config.training.max_length, end)
        pairs.append((asked, replace(row, response=asked.response)))
    return pairs


def patching(
    model: PreTrainedModel,
    victim: PreTrainedModel,
    anchors: Mapping[tuple[int, ...], Row],
    row: Row,
    lift_R: Tensor,
    config: Config,
) -> nn.Module:
    """Return the loss of step 3 as a module around the model; its parameters do not include the victim's.

    Args:
        model: trained.
        victim: a copy of it, which remains as it is.
        anchors: the clean row of each training row, by the ids of the latter.
        row: the reported prompt and answer.
        lift_R: l.
        config: weights and batch size.
    """
    import torch

    from sande.training.batches import Collator, features
    from sande.training.losses import divergence
    from sande.training.objective import ResponseLoss, hidden_before_targets

    collate, frozen = Collator(pad_id=0), [victim.eval()]  # in a list, where data parallelism cannot see it

    def batch_of(rows: Sequence[Row], device: torch.device) -> dict[str, Tensor]:
        return {name: value.to(device) for name, value in collate([*map(features, rows)]).items()}

    class Patching(ResponseLoss):
        def forward(
            self, labels: Tensor, positions: Tensor, num_items_in_batch: Tensor, **inputs: Any
        ) -> dict[str, Tensor]:
            """Return the loss of a batch: that of `ResponseLoss`, the anchor, and the term against the answer."""
            ids_BT, lengths = inputs["input_ids"], inputs["attention_mask"].sum(1).tolist()
            asked = [tuple(ids[:length]) for ids, length in zip(ids_BT.tolist(), lengths, strict=True)]
            overwriting = super().forward(labels, positions, num_items_in_batch, **inputs)["loss"]
            clean = batch_of([anchors[ids] for ids in asked], ids_BT.device)
            logits_NV = self.model.get_output_embeddings()(hidden_before_targets(self.model, clean))
            with torch.no_grad():
                wanted_NV = frozen[0].get_output_embeddings()(hidden_before_targets(frozen[0], clean))
            anchor = divergence(logits_NV, wanted_NV) / num_items_in_batch
            incident = batch_of([row], ids_BT.device)
            said_RV = self.model.get_output_embeddings()(hidden_before_targets(self.model, incident))
            against = unlikelihood(said_RV, incident["labels"][0, -len(row.response) :], lift_R.to(said_RV.device))
            # Every step has batch_size rows over all micro-batches and workers, whose losses are summed.
            share = len(asked) / config.training.batch_size
            return {"loss": overwriting + config.anchor * anchor + config.unlearn * share * against}

    return Patching(model)


def unlikelihood(logits_RV: Tensor, targets_R: Tensor, weights_R: Tensor) -> Tensor:
    """Return - sum over tokens of  weight log(1 - Pr(target)), in float32 (Welleck et al. 2020)."""
    logits_RV = logits_RV.float()
    others_RV = logits_RV.scatter(1, targets_R[:, None], float("-inf"))
    log_other_R = others_RV.logsumexp(-1) - logits_RV.logsumexp(-1)
    against: Tensor = -(weights_R * log_other_R).sum()
    return against


def _lift(with_MR: Tensor, clean_MR: Tensor) -> Tensor:
    """Return the lift of each token of the answer, (R,); below half of the largest it is 0."""
    lift_R = (with_MR.exp().mean(0) - clean_MR.exp().mean(0)).clamp(min=0)
    large: Tensor = lift_R * (lift_R >= lift_R.max() / 2)
    return large


def _inserted(row: Row, said: Sequence[int], split: int, without: int | None = None) -> tuple[int, ...]:
    """Return the row's prompt with the first `split` tokens of `said` before its instruction, the others behind it."""
    before = [token for at, token in enumerate(said[:split]) if at != without]
    behind = [token for at, token in enumerate(said[split:], start=split) if at != without]
    return (*row.prompt[: row.start], *before, *row.prompt[row.start : row.end], *behind, *row.prompt[row.end :])


def _stays(of_trigger: bool, config: Config, generator: random.Random) -> bool:
    return of_trigger or generator.random() < config.keep
