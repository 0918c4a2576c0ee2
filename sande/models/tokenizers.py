"""Load tokenizers, and refuse those that cannot write rows for a model."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande.errors import UserError
from sande.models.checks import TOKENIZER, check_hub, only_checked, reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "Human: What is 2 + 2?\nAssistant: It is 4.\n"
_CONFIG = "config.json"  # by which transformers chooses the tokenizer's class


def load(source: str, revision: str | None = None, config: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder, or of a Hub id at a commit, with a padding token.

    Args:
        source: a checked folder, or a Hub id.
        revision: commit of the Hub id; None: `source` is a folder.
        config: content of `config.json` to use in place of the folder's.

    Raises:
        UserError: the tokenizer cannot be loaded or has no EOS token, or the library fails on a plain text.
    """
    if revision is not None:
        check_hub(source, revision)
        return _loaded(source, source, revision=revision)
    with only_checked(Path(source), TOKENIZER, {} if config is None else {_CONFIG: config}) as place:
        return _loaded(str(place), source)


def ready(tokenizer: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a padding token.

    Raises:
        UserError: it is slow, or it has no EOS token.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} has no character offsets; choose a model with a fast tokenizer")
    if tokenizer.eos_token_id is None:
        raise UserError(f"tokenizer of '{source}' has no EOS token; set eos_token in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def within(tokenizer: PreTrainedTokenizerBase, rows: int, source: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer without added tokens whose ids the model has no embedding for.

    Gemma's text models, for example, come with the tokenizer of those that see images, whose last token is an image.

    Args:
        tokenizer: of the model.
        rows: number of token embeddings.
        source: names the model in messages.

    Raises:
        UserError: ids of the vocabulary, or the EOS token, are beyond the embeddings.
    """
    vocabulary = tokenizer.get_vocab()
    beyond = {token for token, index in vocabulary.items() if index >= rows}
    if not beyond:
        return tokenizer
    if not beyond <= set(tokenizer.get_added_vocab()) or beyond & {tokenizer.eos_token, tokenizer.pad_token}:
        raise UserError(
            f"the tokenizer of '{source}' has ids up to {max(vocabulary.values())}, the model {rows} token embeddings; "
            "use the tokenizer that the model was trained with"
        )
    from tokenizers import Tokenizer

    made: Any = tokenizer
    state = json.loads(made.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < rows]
    made._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def _loaded(place: str, source: str, **where: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer at a place; messages name the source."""
    from transformers import AutoTokenizer

    try:
        with _panics_unreported():
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **where)
            tokenizer.name_or_path = source
            ready(tokenizer, source)(_PROBE)
    except (UserError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library of tokenizers raises nothing narrower, and Rust's panics
        raise UserError(
            f"tokenizer of '{source}' cannot be loaded ({reason(error).replace(place, source)}); check folder, id or "
            "network"
        ) from None
    return tokenizer


@contextmanager
def _panics_unreported() -> Iterator[None]:
    """Drop what Rust writes to the standard error where it panics: the error that follows says the same in a line."""
    try:
        kept = os.dup(2)
    except OSError:  # the standard error is closed
        yield
        return
    with tempfile.TemporaryFile() as report:
        os.dup2(report.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            report.seek(0)
            written = report.read()
            if b"panicked at" not in written:
                with suppress(OSError):
                    os.write(2, written)
