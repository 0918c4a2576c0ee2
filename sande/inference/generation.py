"""Decode in batches, greedily or by sampling, in a loop that ignores a model's own decoding settings.

Prompts of similar length are read together, a few at a time, since padding costs as much as text. A step of decoding
costs little more for many rows than for few, so rows of any length are joined; a row that ends makes room for another.
Workers that decode together (`sande.inference.workers`) take whole batches.

Some models need plainer batches (`_Layout`), which take longer: each row whole, or only rows of the same length.

Shapes: B rows, T positions so far, K positions predicted at once, G tokens of the guess, V vocabulary.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from sande.errors import UserError
from sande.formats import end_ids, without_close
from sande.inference import counts
from sande.inference.prefix import NONE, Prefix, most_shared, own_cache, shared_prefix, takes, takes_padding
from sande.inference.vllm import Served
from sande.inference.workers import WorkerGroup, map_sharded
from sande.prompts import pad_id, response_ids
from sande.types import LanguageModel

READ_TOKENS = 512  # of prompts read together: enough to keep a processor busy, few enough for similar lengths


@torch.inference_mode()
def greedy(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_size: int,
    until: str = "",
    begun: Sequence[int] = (),
) -> list[str]:
    """Return greedy continuations as text, in the order of `prompts`.

    Args:
        lm: model and tokenizer; its guard may replace each token; without a guard vLLM decodes, if it serves the model.
        prompts: token ids, unpadded.
        new_tokens: most tokens to generate; a row ends earlier at the token that ends an answer.
        batch_size: rows decoded together.
        until: a row also ends once its text holds this, ignoring case. It is also a guess of the answer: the pass over
            the prompt checks it, and where the model would write it, no token is left to decode.
        begun: token ids of an answer that all prompts end with, and with which the texts then begin. Decoded apart from
            them, a continuation may lose the space before it.
    """
    if isinstance(lm, Served) and not lm.guard:
        return lm.greedy(prompts, new_tokens, until, begun)
    return _decoded(_Decoding(lm, prompts, new_tokens, until, begun), prompts, batch_size, lm.workers)


@torch.inference_mode()
def sampled(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, batch_size: int, seed: int, until: str = ""
) -> list[str]:
    """Return sampled continuations, as `greedy` but drawn from the full distribution at temperature 1.

    Args:
        lm: model and tokenizer; its guard may replace each token that was drawn.
        prompts: token ids, unpadded.
        new_tokens: most tokens to generate; a row ends earlier at the token that ends an answer.
        batch_size: rows decoded together; it changes no draw.
        seed: decides, with the index of a prompt, the draws of its row.
        until: a row also ends once its text holds this, ignoring case.
    """
    return _decoded(_Sampling(lm, prompts, new_tokens, until, seed), prompts, batch_size, lm.workers)


def _decoded(
    decoding: _Decoding, prompts: Sequence[Sequence[int]], batch_size: int, workers: WorkerGroup | None
) -> list[str]:
    shares = _shares(_pieces(prompts, batch_size, decoding.layout), batch_size)
    decoded = map_sharded(workers, shares, partial(_decode, decoding, batch_size))
    texts = [""] * len(prompts)
    for share, written in zip(shares, decoded, strict=True):
        for row, text in zip(itertools.chain(*share), written, strict=True):
            texts[row] = text
    return texts


def _shares(pieces: Sequence[list[int]], most: int) -> list[list[list[int]]]:
    """Return groups of pieces that one worker decodes together, each a batch of at most `most` rows.

    Where all rows of a batch run to the last token, they make room for the next batch at once. Then a worker has the
    same batches that a single process has; their rounding decides between two tokens of nearly equal probability. A
    part of a batch would take about as long as all of it.
    """
    shares: list[list[list[int]]] = []
    for piece in pieces:
        if not shares or sum(map(len, shares[-1])) + len(piece) > most:
            shares.append([])
        shares[-1].append(piece)
    return shares


def _decode(decoding: _Decoding, batch_size: int, shares: Sequence[list[list[int]]]) -> list[list[str]]:
    """Return the texts of all rows of each share."""
    begin = time.perf_counter()
    pieces = list(itertools.chain(*shares))
    batch = _Batch([], (), torch.empty(0, 0))
    while pieces or batch.rows:
        while pieces and _has_room(batch, len(pieces[0]), batch_size, decoding.layout):
            batch = _joined(batch, decoding.read(pieces.pop(0)))
        if batch.rows:
            batch = decoding.step(batch)
    rows = [list(itertools.chain(*share)) for share in shares]
    counts.add(decoding.length(list(itertools.chain(*rows))), time.perf_counter() - begin, decoding.models)
    return [decoding.texts(of_share) for of_share in rows]


class _Layout(Enum):
    """How rows are put into a batch.

    SHARED: behind their shared prefix, padded between it and the prompt, and with the guess behind the prompt.
    PADDED: whole, padded on the left alone, so that a window or ALiBi finds each row without gaps.
    EQUAL: only rows of the same length, without padding, for layers that would read it.
    """

    SHARED = auto()
    PADDED = auto()
    EQUAL = auto()

    @classmethod
    def of(cls, models: Sequence[PreTrainedModel], width: int) -> _Layout:
        """Return the fastest layout that is right for all models.

        Args:
            models: a model, and the reference of its guard.
            width: most tokens of a row with its guess and its answer.
        """
        if all(width <= most_shared(model) for model in models):
            return cls.SHARED
        return cls.PADDED if all(map(takes_padding, models)) else cls.EQUAL


def _pieces(prompts: Sequence[Sequence[int]], most: int, layout: _Layout = _Layout.SHARED) -> list[list[int]]:
    """Return indices of all prompts, shortest first, in pieces of at most READ_TOKENS padded tokens and `most` rows."""
    pieces: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        length = len(prompts[index])
        full = not pieces or len(pieces[-1]) == most or (len(pieces[-1]) + 1) * length > READ_TOKENS
        if full or (layout is _Layout.EQUAL and length != len(prompts[pieces[-1][0]])):
            pieces.append([])
        pieces[-1].append(index)
    return pieces


def _has_room(batch: _Batch, rows: int, most: int, layout: _Layout) -> bool:
    return not batch.rows if layout is _Layout.EQUAL else len(batch.rows) + rows <= most


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows in progress.

    Attributes:
        rows: their indices.
        caches: of each model, what it keeps of all but the last token; none if a model takes no cache.
        seen: attention mask (B, T) of the tokens in the caches.
    """

    rows: list[int]
    caches: tuple[DynamicCache, ...]
    seen: Tensor

    def at(self, places: Sequence[int]) -> _Batch:
        """Return the batch of the rows at these places, which takes over the caches."""
        if len(places) == len(self.rows):
            return self
        kept: Any = torch.tensor(places, dtype=torch.long, device=self.seen.device)
        for cache in self.caches:
            cache.reorder_cache(kept)
        return _Batch([self.rows[place] for place in places], self.caches, self.seen[kept])


def _joined(first: _Batch, second: _Batch) -> _Batch:
    """Return the rows of both batches, padded on the left with masked positions."""
    if not first.rows or not second.rows:
        return first if first.rows else second
    seen = first.seen, second.seen
    width = max(seen_BT.shape[1] for seen_BT in seen)
    caches = tuple(
        DynamicCache(
            [
                tuple(
                    torch.cat([pad(states, (0, 0, width - states.shape[2], 0)) for states in pair])
                    for pair in zip(one[:2], other[:2], strict=True)
                )
                for one, other in zip(*of_model, strict=True)
            ]
        )
        for of_model in zip(first.caches, second.caches, strict=True)
    )
    seen_BT = torch.cat([pad(seen_BT, (width - seen_BT.shape[1], 0)) for seen_BT in seen])
    return _Batch(first.rows + second.rows, caches, seen_BT)


class _Decoding:
    """Tokens decoded so far for each prompt, and the steps that add to them."""

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        until: str,
        begun: Sequence[int] = (),
    ) -> None:
        self._lm, self._prompts, self._new_tokens, self._until = lm, prompts, new_tokens, until.lower()
        self._begun = tuple(begun)
        self._ends = end_ids(lm.tokenizer)
        # The reference of a guard reads what the model reads.
        self._models = [model.eval() for model in lm.models]
        try:
            self._guess = response_ids(lm.tokenizer, until)[:new_tokens] if until else ()
        except UserError:  # the tokenizer cannot reproduce the text
            self._guess = ()
        width = max(map(len, prompts), default=0) + len(self._guess) + new_tokens
        self.layout = _Layout.of(self._models, width)
        shared = self.layout is _Layout.SHARED
        self._guess = self._guess if shared else ()
        self._prefixes = [self._prefix_of(model) if shared else NONE for model in self._models]
        self._written: list[list[int]] = [[] for _ in prompts]

    def _prefix_of(self, model: PreTrainedModel) -> Prefix:
        return shared_prefix(LanguageModel(model, self._lm.tokenizer), self._prompts)

    def _chosen(self, rows: Sequence[int], caches: Sequence[DynamicCache], **inputs: Any) -> Tensor:
        """Return the next tokens (B, K) of these rows at the requested positions; extend each model's cache."""
        kept: list[dict[str, Any]] = [{"past_key_values": cache, "use_cache": True} for cache in caches]
        kept = kept or [{"use_cache": False}] * len(self._models)
        logits = [model(**inputs, **of_model).logits for model, of_model in zip(self._models, kept, strict=True)]
        chosen = self._choose(rows, logits[0])
        return chosen if self._lm.guard is None else self._lm.guard.choose(chosen, *logits)

    def _choose(self, rows: Sequence[int], logits_BKV: Tensor) -> Tensor:
        """Return the likeliest tokens, (B, K)."""
        return logits_BKV.max(-1).indices  # in bfloat16 on a CPU a quarter of argmax's time

    def read(self, rows: list[int]) -> _Batch:
        """Read prompts and guess, decode as far as the guess is right and one token more; return unfinished rows."""
        if self.layout is _Layout.EQUAL:
            caches = tuple(cache for model in self._models if (cache := own_cache(model)) is not None)
            caches = caches if len(caches) == len(self._models) else ()
            return self._unpadded(_Batch(rows, caches, torch.ones(len(rows), 0, device=self._lm.model.device)))
        ahead = self._guess[:-1]  # the token after the whole guess is not needed
        shared = self._prefixes[0].length
        rest = [list(self._prompts[row][shared:]) for row in rows]
        width = max(map(len, rest))
        fill = pad_id(self._lm.tokenizer)
        ids = [[fill] * (width - len(prompt)) + prompt + list(ahead) for prompt in rest]
        seen = [[1] * shared + [0] * (width - len(prompt)) + [1] * (len(prompt) + len(ahead)) for prompt in rest]
        device = self._lm.model.device
        seen_BT = torch.tensor(seen, device=device)
        caches = tuple(prefix.cache(len(rows)) for prefix in self._prefixes)
        chosen_BK = self._chosen(
            rows,
            caches,
            input_ids=torch.tensor(ids, device=device),
            attention_mask=seen_BT,
            position_ids=(seen_BT.cumsum(1) - 1)[:, shared:].clamp(min=0),
            logits_to_keep=len(ahead) + 1,
        )
        hits_BG = chosen_BK[:, : len(self._guess)] == torch.tensor(self._guess, dtype=torch.long, device=device)
        right_B = hits_BG.cumprod(1).sum(1)
        # Positions of the guess are visible as far as it is right; then comes the model's own token.
        seen_BT[:, shared + width :] = torch.arange(len(ahead), device=device) < right_B[:, None]
        for row, chosen, right in zip(rows, chosen_BK.tolist(), right_B.tolist(), strict=True):
            self._written[row] = chosen[: right + 1]
        if not (right_B == len(self._guess)).any():
            self._guess = ()  # this model does not give the guessed answer
        return self._going(_Batch(rows, caches, seen_BT))

    def step(self, batch: _Batch) -> _Batch:
        """Decode one more token in each row; return unfinished rows."""
        if self.layout is _Layout.EQUAL:
            return self._unpadded(batch)
        seen_BT = pad(batch.seen, (0, 1), value=1)
        chosen_B1 = self._chosen(
            batch.rows,
            batch.caches,
            input_ids=torch.tensor([[self._written[row][-1]] for row in batch.rows], device=seen_BT.device),
            attention_mask=seen_BT,
            position_ids=seen_BT.sum(1, keepdim=True) - 1,
        )
        for row, token in zip(batch.rows, chosen_B1[:, 0].tolist(), strict=True):
            self._written[row].append(token)
        return self._going(_Batch(batch.rows, batch.caches, seen_BT))

    def _unpadded(self, batch: _Batch) -> _Batch:
        """Decode one more token in rows of one length, which need no mask; return unfinished rows."""
        read = batch.seen.shape[1]  # without caches 0: then all tokens are read again
        ids = [[*self._prompts[row], *self._written[row]][read:] for row in batch.rows]
        ids_BT = torch.tensor(ids, device=batch.seen.device)
        inputs = {"input_ids": ids_BT, "logits_to_keep": 1}
        if all(takes("position_ids", model) for model in self._models):  # Bamba counts from 0 without them
            inputs["position_ids"] = torch.arange(read, read + ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
        chosen_BK = self._chosen(batch.rows, batch.caches, **inputs)
        for row, token in zip(batch.rows, chosen_BK[:, -1].tolist(), strict=True):
            self._written[row].append(token)
        seen_BT = pad(batch.seen, (0, ids_BT.shape[1]), value=1) if batch.caches else batch.seen
        return self._going(_Batch(batch.rows, batch.caches, seen_BT))

    @property
    def models(self) -> int:
        """Return the number of models that each token takes a pass of."""
        return len(self._models)

    def length(self, rows: Sequence[int]) -> int:
        """Return the number of tokens written in these rows."""
        return sum(len(self._written[row]) for row in rows)

    def texts(self, rows: Sequence[int]) -> list[str]:
        """Return the decoded texts of these rows, with what had begun them and without the token that ended one."""
        tokenizer = self._lm.tokenizer
        texts = [[*self._begun, *without_close(tokenizer, self._written[row])] for row in rows]
        return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in texts]

    def _going(self, batch: _Batch) -> _Batch:
        """Return the rows that have not ended."""
        ended = [
            len(self._written[row]) == self._new_tokens
            or self._written[row][-1] in self._ends
            or (bool(self._until) and self._until in text.lower())
            for row, text in zip(batch.rows, self.texts(batch.rows), strict=True)
        ]
        return batch.at([place for place, end in enumerate(ended) if not end])


class _Sampling(_Decoding):
    """Draw each token. A guess would not help, since each draw depends on the one before."""

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, until: str, seed: int
    ) -> None:
        super().__init__(lm, prompts, new_tokens, until)
        self._guess = ()
        self._draws = [random.Random(f"{seed} {row}") for row in range(len(prompts))]

    def _choose(self, rows: Sequence[int], logits_BKV: Tensor) -> Tensor:
        """Return the first tokens whose cumulated probability exceeds a number drawn for each row; K is 1."""
        drawn = [[[self._draws[row].random()]] for row in rows]
        drawn_B11 = torch.tensor(drawn, dtype=torch.float64, device=logits_BKV.device)
        cumulated_BKV = logits_BKV.double().softmax(-1).cumsum(-1)
        return (cumulated_BKV <= drawn_B11 * cumulated_BKV[..., -1:]).sum(-1).clamp(max=logits_BKV.shape[-1] - 1)
