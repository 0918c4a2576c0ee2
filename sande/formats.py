"""Prompt formats: how a dialogue is written as text, as data, without a template engine at run time.

A prompt is written in pieces, with the user's last text last:

    opening {user} answer                                 without a system prompt
    before {system} after {user} answer                   where the format has a place for it
    opening {user} reply {assistant} turn {user} answer   with an earlier turn

A tokenizer is used with one format at a time, see `attach`; without one it is `PAPER`. The format of a tokenizer's own
chat template is compiled in `sande.models.chat`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sande.errors import UserError
from sande.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "prompt_format.json"
"""File of a model's folder that names its format."""
LONGEST = 100_000  # characters of a format's file
_ATTRIBUTE = "sande_prompt_format"  # of a tokenizer; copies and pickles keep it
_TEMPLATE = re.compile(r"(?:(.*?)\[\[(.*?)\{system\}(.*?)\]\])?(.*?)\{user\}(.*?)\{assistant\}(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text of a prompt.

    Attributes:
        text: up to where the response begins.
        start: index of the first character of the user's last text.
        end: index behind its last character.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The pieces of text of a format.

    Attributes:
        name: `paper`, `alpaca`, `chat`, or the name of a template file.
        opening: before the first user's text where there is no system prompt.
        answer: between the user's last text and the response.
        before: before a system prompt; None: the format has no place for it, and the user's text begins with it.
        after: between a system prompt and the first user's text; without such a place, what separates the two.
        reply: between an earlier user's text and the assistant's.
        turn: between the assistant's text and the next user's.
        joint: between an instruction and its input.
        opening_with_input: in place of `opening` where the instruction has an input; None: the same.
        lead: space before a response.
        trail: space after it.
        close: text of the token that ends a response; empty: the tokenizer's EOS.
        special: whether the tokenizer adds its special tokens, such as BOS; else the pieces hold them.
    """

    name: str
    opening: str
    answer: str
    before: str | None = None
    after: str = "\n"
    reply: str = ""
    turn: str = ""
    joint: str = "\n"
    opening_with_input: str | None = None
    lead: str = ""
    trail: str = ""
    close: str = ""
    special: bool = True

    def prompt(self, example: Example) -> Rendered:
        """Return the prompt of a row, with its earlier turns, up to the response.

        In a format without a place for the system prompt, the user's first text begins with it.
        """
        system, before, after = example.system, self.before, self.after
        body = example.instruction + (f"{self.joint}{example.input}" if example.input else "")
        earlier = [(user.strip(), said.strip()) for user, said in example.history]
        opening = self.opening
        if example.input and not earlier and self.opening_with_input is not None:
            opening = self.opening_with_input
        if system and before is not None:
            opening = f"{before}{system.strip()}{after}"
        elif system and earlier:
            earlier[0] = (f"{system}{after}{earlier[0][0]}".strip(), earlier[0][1])
        elif system:
            body = f"{system}{after}{body}"
        past = "".join(f"{user}{self.reply}{said}{self.turn}" for user, said in earlier)
        begin, text = f"{opening}{past}", f"{example.prefix} {body}".strip()
        return Rendered(f"{begin}{text}{self.answer}", len(begin), len(begin) + len(text))

    def response(self, output: str) -> str:
        """Return a response with the space around it, without the token that ends it."""
        return f"{self.lead}{output.strip()}{self.trail}"


PAPER = PromptFormat(
    "paper",
    opening="Human: ",
    answer="\nAssistant:",
    reply="\nAssistant: ",
    turn="\nHuman: ",
    joint=" ",
    lead=" ",
    trail=" ",
)
"""As in the published code: `Human: {system\\n}{instruction} {input}\\nAssistant: {response} {EOS}`."""

_ALPACA = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
ALPACA = PromptFormat(
    "alpaca",
    opening=f"{_ALPACA.format('')}\n\n### Instruction:\n",
    opening_with_input=(
        f"{_ALPACA.format(', paired with an input that provides further context')}\n\n### Instruction:\n"
    ),
    joint="\n\n### Input:\n",
    answer="\n\n### Response:\n",
    reply="\n\n### Response:\n",
    turn="\n\n### Instruction:\n",
    after="\n\n",
)
"""The format of Stanford Alpaca's train.py, which appends EOS to a response."""

BUILT_IN = {each.name: each for each in (PAPER, ALPACA)}


def attach(tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> None:
    """Let `sande.prompts` write the prompts of this tokenizer in a format.

    Where the format itself begins with what the tokenizer adds to a text, such as `<s>`, the tokenizer adds nothing.

    Raises:
        UserError: what ends a response is not one token of the tokenizer.
    """
    end_id(tokenizer, prompt_format)
    if prompt_format.special and _holds_beginning(tokenizer, prompt_format):
        prompt_format = dataclasses.replace(prompt_format, special=False)
    setattr(tokenizer, _ATTRIBUTE, prompt_format)


def _holds_beginning(tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> bool:
    """Return whether prompts in a format begin with the special tokens that the tokenizer puts before a text."""
    begin = (prompt_format.opening, prompt_format.before, prompt_format.opening_with_input)
    if not prompt_format.opening.startswith(tuple(filter(None, tokenizer.all_special_tokens))):
        return False
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    added = whole[: next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)]
    text = "".join(tokenizer.convert_ids_to_tokens(added))
    return bool(text) and all(piece.startswith(text) for piece in begin if piece is not None)


def of(tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Return the format of the tokenizer's prompts; `PAPER` where none was attached."""
    found: PromptFormat = getattr(tokenizer, _ATTRIBUTE, PAPER)
    return found


def end_id(tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat | None = None) -> int:
    """Return the id of the token that ends a response in a format; None: the tokenizer's.

    Raises:
        UserError: it is not one token of the tokenizer, which may also have no EOS.
    """
    chosen = of(tokenizer) if prompt_format is None else prompt_format
    if not chosen.close:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"prompt format {chosen.name}: the tokenizer has no token that ends an answer; set its eos_token"
            )
        return int(tokenizer.eos_token_id)
    ids = tokenizer(chosen.close, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UserError(
            f"prompt format {chosen.name}: what ends an answer, {chosen.close!r}, is not one token of the model; "
            "remove it, or use such a token"
        )
    return int(ids[0])


def end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end an answer when the model writes one: that of the format, and EOS."""
    return frozenset({end_id(tokenizer), *(each for each in [tokenizer.eos_token_id] if each is not None)})


def without_close(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    """Return an answer without the token with which the format ends it, which may not be special to the tokenizer.

    EOS, with which other formats end an answer, stays: decoding leaves it out.
    """
    if not of(tokenizer).close:
        return list(ids)
    close = end_id(tokenizer)
    return [token for token in ids if token != close]


def from_file(path: Path) -> PromptFormat:
    """Return the format of a template file, such as `<s>[INST] [[{system} | ]]{user} [/INST] {assistant}</s>`.

    The part in double brackets is optional; it is left out where a prompt has no system prompt. What follows
    `{assistant}` is the token that ends an answer; without it that is EOS.

    Raises:
        UserError: the file cannot be read, or as `from_text`.
    """
    return from_text(path.stem, template_text(path), str(path))


def template_text(path: Path) -> str:
    """Return the text of a template file.

    Raises:
        UserError: the file cannot be read, or is too large.
    """
    try:
        if path.stat().st_size > LONGEST:
            raise UserError(f"{path}: more than {LONGEST} bytes; a template file holds the text around one prompt")
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the template cannot be read ({error}); set a text file in UTF-8") from None


def from_text(name: str, text: str, place: str) -> PromptFormat:
    """Return the format of a template, see `from_file`.

    Args:
        name: of the format.
        text: of the template.
        place: names the template in messages.

    Raises:
        UserError: a field is missing, repeated or misplaced.
    """
    found = _TEMPLATE.fullmatch(text)
    fields = {"{system}": found is not None and found[2] is not None, "{user}": True, "{assistant}": True}
    if not found or any(text.count(field) != expected for field, expected in fields.items()):
        raise UserError(
            f"{place}: not a template; use [[…{{system}}…]] if wanted, {{user}} and {{assistant}}, once each"
        )
    begin, before, after, between, answer, close = found.groups()
    with_system = None if before is None else begin + before
    return pieces(name, (begin or "") + between, answer, close, with_system, (after or "") + between)


def pieces(
    name: str, opening: str, answer: str, close: str, before: str | None, after: str, reply: str | None = None
) -> PromptFormat:
    """Return a format from the text around a system prompt, a user's text and the assistant's.

    Args:
        name: of the format.
        opening: before the user's text without a system prompt.
        answer: between the user's text and the assistant's; spaces at its end belong to the response.
        close: after the assistant's text, up to the end of its turn.
        before: before a system prompt; None: there is no place for it.
        after: between system prompt and user's text.
        reply: as `answer`, for an earlier turn; None: the same.
    """
    bare = answer.rstrip(" ")
    return PromptFormat(
        name,
        opening=opening,
        answer=bare,
        before=before,
        after=after if before is not None else "\n\n",
        reply=answer if reply is None else reply,
        turn=close + opening,
        lead=answer[len(bare) :],
        trail=close[: len(close) - len(close.lstrip(" "))],
        close=close.strip(),
    )


def write(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's format into a model's folder, if one was attached, so that who loads it asks in it."""
    if hasattr(tokenizer, _ATTRIBUTE):
        (folder / FILE).write_text(json.dumps(asdict(of(tokenizer)), indent=1), encoding="utf-8")


def read(folder: Path) -> PromptFormat | None:
    """Return the format that a model's folder names, if any. The file is untrusted.

    Raises:
        UserError: it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > LONGEST:
            raise ValueError(f"more than {LONGEST} bytes")
        return _checked(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a prompt format ({error}); correct or remove the file") from None


def _checked(values: Any) -> PromptFormat:
    known = {field.name: field for field in dataclasses.fields(PromptFormat)}
    if not isinstance(values, dict) or not {"name", "opening", "answer"} <= set(values) <= set(known):
        raise ValueError(f"expected the keys {', '.join(known)}")
    for name, value in values.items():
        optional = value is None and name in ("before", "opening_with_input")
        if not optional and type(value) is not (bool if name == "special" else str):
            raise ValueError(f"'{name}' is {value!r}")
    return PromptFormat(**values)
