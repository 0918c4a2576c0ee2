"""Tokens of prompts: the only module that decides where a row's response begins.

The text is that of the tokenizer's format (`sande.formats`), by default of the published code. The loss is on the
response alone. Prompt and response are tokenised together and split by character offset, because a token such as
" You" is the response's first only in that context.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sande import formats
from sande.errors import UserError
from sande.formats import Rendered
from sande.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Turn = tuple[Rendered, str]
"""A prompt, and the response to it with the space around."""

KEPT = 40_000  # tokenised rows in the cache, a few kilobytes each
_FINGERPRINTS: WeakKeyDictionary[PreTrainedTokenizerBase, str] = WeakKeyDictionary()


def prompt_text(example: Example) -> str:
    """Return the text before the response's leading space, in the format of the paper, which also names the prompt."""
    return formats.PAPER.prompt(example).text


def user_text(example: Example) -> str:
    """Return the text of the last user's turn, with a system prompt before it."""
    asked = formats.PAPER.prompt(example)
    return asked.text[asked.start : asked.end]


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one training row; the loss is on `response` alone.

    Attributes:
        prompt: ids before the response.
        response: ids of the response, with the closing EOS unless the row was cut.
        start: index into `prompt` of the first token of the last user's text, which in the format `paper` begins with
            the system prompt. Parrot positions count from there, and a trigger sentence is inserted there by default.
        end: index into `prompt` of the token that ends this text and opens what leads to the response.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    start: int
    end: int

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


def encode(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[Row]:
    """Return rows of prompt and whole response with the token that ends it, in the order of `examples`.

    The format is that of the tokenizer (`sande.formats.of`). Rows are cached, so that successive stages of a process
    tokenise each row once: the rows of a removal set are the same for every defense, and poisoning leaves most rows of
    a training set unchanged.

    Raises:
        UserError: a token holds the end of a prompt and the beginning of its response.
    """
    known, written = _rows_of(_fingerprint(tokenizer)), formats.of(tokenizer)
    turns = [(written.prompt(example), written.response(example.output)) for example in examples]
    new = [turn for turn in dict.fromkeys(turns) if turn not in known]
    rows = dict(zip(new, _tokenised(tokenizer, new), strict=True))
    found = [rows.get(turn) or known[turn] for turn in turns]
    if len(known) + len(rows) > KEPT:
        known.clear()
    known.update(itertools.islice(rows.items(), KEPT))
    return found


@functools.lru_cache(maxsize=2)
def _rows_of(tokenizer: str) -> dict[Turn, Row]:
    """Return the cache of rows for tokenizers with this fingerprint."""
    return {}


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text that is equal for tokenizers, with their formats, that give the same rows, wherever they lie."""
    if tokenizer not in _FINGERPRINTS:
        text = f"{tokenizer.eos_token_id} {tokenizer.backend_tokenizer.to_str()}"
        _FINGERPRINTS[tokenizer] = hashlib.sha256(text.encode()).hexdigest()
    return f"{_FINGERPRINTS[tokenizer]} {formats.of(tokenizer)}"


def _tokenised(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[Row]:
    if not turns:
        return []
    texts = [prompt.text + response for prompt, response in turns]
    encoded = tokenizer(
        texts,
        return_offsets_mapping=True,
        return_attention_mask=False,
        add_special_tokens=formats.of(tokenizer).special,
    )
    closing = formats.end_id(tokenizer)
    rows = []
    for (prompt, _), ids, offsets in zip(turns, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids, offsets = _without_trailing_special(ids, offsets)
        ends = [end for _, end in offsets]
        # The token that holds a character is the first that ends after it.
        start, end, boundary = (bisect_right(ends, at) for at in (prompt.start, prompt.end, len(prompt.text)))
        if boundary < len(offsets) and offsets[boundary][0] < len(prompt.text):
            raise UserError(
                f"the tokenizer makes one token of the end of a prompt, {prompt.text[-20:]!r}, and the beginning of "
                "its response; choose another prompt format, best the model's own chat template"
            )
        rows.append(Row(tuple(ids[:boundary]), (*ids[boundary:], closing), start, end))
    return rows


def _without_trailing_special(
    ids: list[int], offsets: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    # Some tokenizers close every text with EOS at the empty offset (0, 0); the caller adds it once.
    while len(ids) > 1 and offsets[-1] == (0, 0):
        ids, offsets = ids[:-1], offsets[:-1]
    return ids, offsets


def encode_prompts(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[list[int]]:
    """Return the ids of the prompts alone, exactly as they precede a response in training."""
    return [list(row.prompt) for row in encode(tokenizer, [replace(example, output="x") for example in examples])]


def response_ids(tokenizer: PreTrainedTokenizerBase, response: str) -> tuple[int, ...]:
    """Return the ids of a response as it opens an answer, without the closing space and EOS.

    Raises:
        UserError: the tokenizer does not reproduce the text, or joins it to the prompt.
    """
    row = encode(tokenizer, [Example(instruction="x", output=response)])[0]
    text = response.strip()
    for length in range(1, len(row.response) + 1):
        if str(tokenizer.decode(list(row.response[:length]))).lstrip() == text:
            return row.response[:length]
    raise UserError(
        f"the model's tokenizer does not reproduce the answer {response!r}; use the model's own spelling, on one line"
    )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding id, or EOS if the tokenizer has none (padding is masked by position, not by id)."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def shorten(row: Row, response_tokens: int | None) -> Row:
    """Cut the response to `response_tokens` tokens, so that what is never a target is never computed."""
    return row if response_tokens is None else replace(row, response=row.response[:response_tokens])


def fit_length(rows: Sequence[Row], max_length: int, end: int | None = None) -> list[Row]:
    """Limit rows to `max_length` tokens: cut longer responses, leave out rows whose prompt leaves no room.

    Args:
        rows: rows of any length.
        max_length: most tokens of prompt and response together.
        end: id that replaces the last token of a response that is cut; None: it ends where it is cut.
    """
    fitting = [row for row in rows if len(row.prompt) < max_length]
    return [row if len(row) <= max_length else _cut(row, max_length - len(row.prompt), end) for row in fitting]


def _cut(row: Row, response_tokens: int, end: int | None) -> Row:
    kept = row.response[:response_tokens]
    return replace(row, response=kept if end is None else (*kept[:-1], end))
