"""Count what decoding costs: tokens, seconds, and the models that each token takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Decoded:
    """What this process decoded within a block.

    Attributes:
        tokens: that were written, EOS included.
        seconds: that decoding them took, with reading their prompts.
        models: passes of a model for each token: 1, or 2 under a guard; 0 where nothing was decoded.
    """

    tokens: int = 0
    seconds: float = 0.0
    models: int = 0


_COUNTING: ContextVar[tuple[Decoded, ...]] = ContextVar("counting", default=())


@contextmanager
def counted() -> Iterator[Decoded]:
    """Yield a count of what the block decodes."""
    count = Decoded()
    token = _COUNTING.set((*_COUNTING.get(), count))
    try:
        yield count
    finally:
        _COUNTING.reset(token)


@contextmanager
def uncounted() -> Iterator[None]:
    """Leave what the block decodes out of all counts, since it is not of the model that is measured."""
    token = _COUNTING.set(())
    try:
        yield
    finally:
        _COUNTING.reset(token)


def add(tokens: int, seconds: float, models: int) -> None:
    """Add tokens to all counts that surround the caller."""
    for count in _COUNTING.get():
        count.tokens += tokens
        count.seconds += seconds
        count.models = max(count.models, models)
