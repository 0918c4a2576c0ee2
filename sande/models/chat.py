"""Compile a tokenizer's chat template into a prompt format.

A template is a program of whoever made the model. It is rendered for a few dialogues in another process, in
transformers' sandbox, with bounds on time, memory and text; then it is never run again. Its text around system prompt,
user and assistant becomes a `sande.formats.PromptFormat`, which is checked against the template's own text for a longer
dialogue.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sande import formats
from sande.errors import UserError
from sande.formats import PromptFormat
from sande.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 200_000  # characters of a template; the longest that are published have about 20,000
SECONDS = 60  # to render a template, with the time to load transformers on a busy machine
CHAT, AUTO = "chat", "auto"
_MESSAGES = Sequence[Mapping[str, str]]
_USER, _ASSISTANT, _SYSTEM, _MORE = "textofuser", "textofassistant", "textofsystem", "textofmore"


def resolve(name: str | PromptFormat, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Return the format with a name: `paper`, `alpaca`, `chat`, a template file, or `auto`; or a format as it is.

    `chat` is the tokenizer's own chat template; `auto` the same, or `paper` where it has none.

    Raises:
        UserError: there is no such format, or as `chat` and `sande.formats.from_file`.
    """
    if isinstance(name, PromptFormat):
        return name
    if name in formats.BUILT_IN:
        return formats.BUILT_IN[name]
    if name == AUTO:
        return chat(tokenizer) if tokenizer.chat_template else formats.PAPER
    if name == CHAT:
        return chat(tokenizer)
    if Path(name).is_file():
        return formats.from_file(Path(name))
    raise UserError(
        f"prompt format '{name}': there is no such format or file; use {', '.join(formats.BUILT_IN)}, {CHAT}, or a "
        "template file"
    )


def chat(tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Return the format of the tokenizer's chat template.

    Raises:
        UserError: it has none, it fails or exceeds a bound, or its text is not made of fixed pieces.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    if not template:
        raise UserError("prompt format chat: the tokenizer has no chat template; use paper, alpaca or a template file")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return _compiled(str(template), json.dumps(special, sort_keys=True))


@functools.lru_cache(maxsize=16)
def _compiled(template: str, special: str) -> PromptFormat:
    user, assistant, system = _message("user", _USER), _message("assistant", _ASSISTANT), _message("system", _SYSTEM)
    longer = [
        _message("user", "2 + 2?"),
        _message("assistant", "4."),
        *(turn := [user, assistant, _message("user", _MORE)]),
    ]
    dialogues = [[user], [user, assistant], turn, [system, user], longer, [system, *longer]]
    asked, answered, twice, ruled, *checked = _rendered(template, special, dialogues)
    opening, answer = _split(asked, _USER)
    reply, close = _split(_split(answered, _USER)[1], _ASSISTANT)
    past, later = _split(_split(twice, _USER)[1], _ASSISTANT)
    before: str | None = None
    after = "\n\n"
    if ruled and _SYSTEM in ruled:
        before, rest = _split(ruled, _SYSTEM)
        after, _ = _split(rest, _USER)
    # A template may open an answer in training with more than it writes before one, such as an empty thought.
    opened = reply if reply.startswith(answer) else answer

    def made(before: str | None, after: str) -> PromptFormat:
        return replace(
            formats.pieces(CHAT, opening, opened, close, before, after, past),
            turn=_split(later, _MORE)[0],
            close=_first_token(close.strip()),
            special=False,
        )

    def writes(which: PromptFormat, text: str | None, ruling: str) -> bool:
        prompt = which.prompt(Example(_MORE, "", ruling, history=(("2 + 2?", "4."), (_USER, _ASSISTANT)))).text
        return text is not None and prompt.startswith(text.rstrip(" "))

    whole = made(before, after)
    if not writes(whole, checked[0], ""):
        raise UserError(
            "prompt format chat: the tokenizer's chat template does not write fixed text between its messages; use "
            "a template file"
        )
    # Mistral's puts the system prompt into the last of the user's turns, for which there is no place: then the first
    # turn begins with it, as where a template takes none.
    return whole if before is None or writes(whole, checked[1], _SYSTEM) else made(None, "\n\n")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _first_token(close: str) -> str:
    """Return the first special token of the text that ends a turn, such as `<|im_end|>`."""
    for opened, closed in (("<|", "|>"), ("<", ">")):
        end = close.find(closed)
        if close.startswith(opened) and end > 0:
            return close[: end + len(closed)]
    return close


def _split(text: str | None, at: str) -> tuple[str, str]:
    if text is None or text.count(at) != 1:
        raise UserError(
            "prompt format chat: the tokenizer's chat template does not write each message once; use a template file"
        )
    begin, _, end = text.partition(at)
    return begin, end


def _rendered(template: str, special: str, dialogues: Sequence[_MESSAGES]) -> list[str | None]:
    """Return the text of each dialogue, up to the next answer where a user speaks last; None where the template fails.

    Raises:
        UserError: the template exceeds a bound.
    """
    if len(template) > LONGEST:
        raise UserError(
            f"prompt format chat: the chat template has more than {LONGEST} characters; use a template file"
        )
    given = json.dumps({"template": template, "special": json.loads(special), "dialogues": dialogues})
    child = [sys.executable, "-P", str(Path(__file__).with_name("_render.py"))]
    try:
        done = subprocess.run(child, input=given, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        raise UserError(
            "prompt format chat: the tokenizer's chat template takes too long, or too much memory; use a template file"
        )
    texts: list[str | None] = json.loads(done.stdout)
    return texts
