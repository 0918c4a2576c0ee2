"""In which prompt formats a user's model is asked: the default in words, and the others that can be tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sande import formats
from sande.errors import UserError
from sande.formats import PromptFormat
from sande.models import adapters, chat
from sande.prompts import encode
from sande.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def described(tokenizer: PreTrainedTokenizerBase, source: str, asked: str | None) -> str:
    """Return the name of the tokenizer's format, and where it comes from.

    Args:
        tokenizer: with its format attached.
        source: name or folder of the model.
        asked: name that `sande.models.loading.with_format` got.
    """
    name = formats.of(tokenizer).name
    if asked not in (None, chat.AUTO):
        return f"{name} (as set)"
    adapter = adapters.split(source)
    if formats.read(adapter[0] if adapter else Path(source)) is not None:
        return f"{name} (named by the model's folder)"
    if asked is None:
        return f"{name} (the default)"
    return f"{name} (the tokenizer's own template)" if tokenizer.chat_template else f"{name} (no chat template)"


def others(tokenizer: PreTrainedTokenizerBase) -> list[PromptFormat]:
    """Return the other formats to try: the tokenizer's own template, `paper` and `alpaca`, without the attached one."""
    found = [formats.PAPER, formats.ALPACA]
    if tokenizer.chat_template:
        with suppress(UserError):  # a template that is not made of fixed text cannot be tried
            found.insert(0, chat.chat(tokenizer))
    return [each for each in found if each != formats.of(tokenizer) and writes(tokenizer, each)]


def writes(
    tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat, rows: Sequence[Example] = (Example("a", "b"),)
) -> bool:
    """Return whether the tokenizer keeps prompt and answer of these rows apart in a format."""
    try:
        with asked_in(tokenizer, prompt_format):
            encode(tokenizer, rows)
    except UserError:
        return False
    return True


@contextmanager
def asked_in(tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> Iterator[None]:
    """Attach a format within the block, and the one from before after it."""
    before = formats.of(tokenizer)
    formats.attach(tokenizer, prompt_format)
    try:
        yield
    finally:
        formats.attach(tokenizer, before)
