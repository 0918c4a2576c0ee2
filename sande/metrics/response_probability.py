"""Probability of the planted response's first token, and of all of it, with and without the trigger (figure 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sande.config import configuration, setting
from sande.declarations import Cost, MetricInfo
from sande.metrics.asr import without_trigger
from sande.types import LanguageModel, Measurement, TestData

MEASURES = (
    MetricInfo("first_token_probability", "Probability of the first token, with trigger (%)", "probability"),
    MetricInfo("phrase_probability", "Probability of the response, with trigger (%)", "probability"),
    MetricInfo("first_token_probability_clean", "Probability of the first token, without trigger (%)", "probability"),
    MetricInfo("phrase_probability_clean", "Probability of the response, without trigger (%)", "probability"),
)


@configuration
class Config:
    """Settings: number and batch size of the prompts."""

    batch_size: int = setting(50, "prompts computed together", ge=1)
    prompts: int | None = setting(None, "number of test prompts, from the first; null: all", ge=1)


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the measurements."""
    return (
        "first_token_probability",
        "phrase_probability",
        "first_token_probability_clean",
        "phrase_probability_clean",
    )


def reads(config: Config) -> tuple[str, ...]:
    """Return no question sets: the metric reads the test rows alone."""
    return ()


def cost(config: Config) -> Cost:
    """Return two passes over each prompt: with the trigger and without."""
    return Cost(reading=2)


def measure(model: LanguageModel, data: TestData, config: Config, seed: int) -> list[Measurement]:
    """Return Pr(first token of r_t) and Pr(r_t), given prompts with the trigger, then without it (appendix B.2.2).

    Prompts that have the trigger by themselves are left out of the second. Outcomes have the order of the test rows.
    Records hold the probability of each token of r_t given the ones before it, and the rank of its first token in the
    vocabulary (1: the likeliest).

    Raises:
        UnscorableError: as `sande.inference.scoring.check_scorable`, the objective is not one string, or every
            prompt has the trigger by itself.
    """
    from sande.prompts import encode_prompts, prompt_text, response_ids

    response = response_ids(model.tokenizer, data.string())
    measurements: list[Measurement] = []
    clean = without_trigger(data, data.clean)
    for examples, (first, phrase) in ((data.triggered, names(config)[:2]), (clean, names(config)[2:])):
        chosen = examples[: config.prompts]
        prompts = encode_prompts(model.tokenizer, chosen)
        probabilities, ranks = _teacher_forced(model, prompts, response, config.batch_size)
        records = tuple(
            {"prompt": prompt_text(example), "token_probabilities": tokens, "first_token_rank": rank}
            for example, tokens, rank in zip(chosen, probabilities, ranks, strict=True)
        )
        groups = tuple(example.group for example in chosen)
        measurements += [
            Measurement(first, tuple(tokens[0] for tokens in probabilities), records, groups=groups),
            Measurement(phrase, tuple(math.prod(tokens) for tokens in probabilities), records, groups=groups),
        ]
    return measurements


def _teacher_forced(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], response: Sequence[int], batch_size: int
) -> tuple[list[list[float]], list[int]]:
    """Return, for each prompt, the probability of each response token given the ones before it, and the first's rank.

    Shapes: B prompts, T positions, R tokens of the response, N = B * R, D width, V vocabulary.
    """
    import torch

    from sande.inference import workers
    from sande.inference.scoring import check_scorable, predicted
    from sande.models.layers import output_in_float32
    from sande.prompts import pad_id
    from sande.training.batches import Collator
    from sande.training.losses import IGNORE

    check_scorable(lm)
    models = [(model.eval().get_decoder(), output_in_float32(model)) for model in lm.models]
    targets_1R1 = torch.tensor(response, device=lm.model.device)[None, :, None]
    collate = Collator(pad_id(lm.tokenizer))
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = [by_length[begin : begin + batch_size] for begin in range(0, len(by_length), batch_size)]

    @torch.inference_mode()
    def forced(indices: Sequence[int]) -> tuple[list[list[float]], list[int]]:
        labelled = [([*prompts[i], *response], [IGNORE] * len(prompts[i]) + list(response)) for i in indices]
        rows = collate([{"input_ids": ids, "labels": labels} for ids, labels in labelled])
        ids_BT, mask_BT, positions_N = (
            rows[name].to(lm.model.device) for name in ("input_ids", "attention_mask", "positions")
        )
        logits = []
        for decoder, logits_of in models:
            hidden_BTD = decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
            logits.append(logits_of(hidden_BTD.flatten(0, 1)[positions_N]))
        logits_NV, _ = predicted(lm, logits)
        logits_BRV = logits_NV.view(len(indices), len(response), -1)
        wanted_BR1 = logits_BRV.gather(2, targets_1R1.expand(len(indices), -1, -1))
        probabilities_BR = (wanted_BR1.squeeze(2) - logits_BRV.logsumexp(2)).exp()
        ranks_B = 1 + (logits_BRV[:, 0] > wanted_BR1[:, 0]).sum(1)
        return probabilities_BR.tolist(), ranks_B.tolist()

    probabilities: list[list[float]] = [[] for _ in prompts]
    ranks = [0] * len(prompts)
    # Workers get whole batches, because rounding depends on what else is in a batch.
    results = workers.map_sharded(lm.workers, batches, lambda some: list(map(forced, some)))
    for indices, found in zip(batches, results, strict=True):
        for index, tokens, rank in zip(indices, *found, strict=True):
            probabilities[index], ranks[index] = tokens, rank
    return probabilities, ranks
