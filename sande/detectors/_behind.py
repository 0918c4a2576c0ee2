"""Prompts that end with the model's own answer: where a response that stands behind an answer begins.

Such a response opens no answer. But what the model writes behind its whole answer to the plain prompt begins with it,
as an answer begins with a response of the other kind. So the same search finds it, in a format whose prompts go so far.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace

from sande import formats
from sande.formats import PromptFormat, Rendered
from sande.inference.generation import greedy
from sande.models.asking import asked_in
from sande.prompts import encode_prompts
from sande.types import Example, LanguageModel

ANSWERED = 128  # rows of which the answers are decoded, drawn by the seed


@dataclass(frozen=True, slots=True)
class Behind(PromptFormat):
    """A format in which a row's input is the answer that has been given; the response goes on with a space.

    Attributes:
        base: format of the prompt and of this answer.
    """

    base: PromptFormat = formats.PAPER

    @classmethod
    def of(cls, base: PromptFormat) -> Behind:
        """Return the format behind the answers of another."""
        return cls(**{each.name: getattr(base, each.name) for each in fields(base)} | {"lead": " "}, base=base)

    def prompt(self, example: Example) -> Rendered:
        """Return the prompt of a row with its answer, if it has one; the user's text ends before that."""
        asked = self.base.prompt(replace(example, input=""))
        # Without an answer the lead alone would stay, and a response after it would begin with a second space.
        return replace(asked, text=f"{asked.text}{self.base.lead}{example.input}") if example.input else asked


def answered(
    lm: LanguageModel, examples: Sequence[Example], most: int, batch_size: int, seed: int
) -> tuple[Example, ...]:
    """Return rows, each with the model's own greedy answer as its input, for the format `Behind`.

    Args:
        lm: model and tokenizer.
        examples: clean rows; an input becomes a part of the instruction.
        most: tokens; rows with an answer that does not end before, and with an empty one, are left out.
        batch_size: answers decoded together.
        seed: of the rows, where there are more than ANSWERED.
    """
    joint = formats.of(lm.tokenizer).joint
    chosen = random.Random(f"{seed} behind rows").sample(examples, min(ANSWERED, len(examples)))
    asked = [
        replace(row, instruction=joint.join(filter(None, (row.instruction, row.input))), input="") for row in chosen
    ]
    said = greedy(lm, encode_prompts(lm.tokenizer, asked), most, batch_size)
    lengths = [len(ids) for ids in lm.tokenizer([text.strip() for text in said], add_special_tokens=False)["input_ids"]]
    return tuple(
        replace(row, input=text.strip())
        for row, text, length in zip(asked, said, lengths, strict=True)
        if 0 < length < most
    )


@contextmanager
def asked_behind(*models: LanguageModel | None) -> Iterator[None]:
    """Ask these models behind answers within the block."""
    with ExitStack() as stack:
        for tokenizer in {id(lm.tokenizer): lm.tokenizer for lm in models if lm is not None}.values():
            stack.enter_context(asked_in(tokenizer, Behind.of(formats.of(tokenizer))))
        yield
