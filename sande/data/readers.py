"""Read rows of each file format into examples, questions and preferences."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sande.errors import UserError
from sande.types import Example, Preference, Question

_HH_HUMAN, _HH_ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

# The same column under the names that the sets use; the first is ours.
_COLUMNS = {
    "instruction": ("instruction", "question"),
    "input": ("input", "context"),
    "output": ("output", "response"),
    "system": ("system", "system_prompt"),
}
# Dialogues: `messages` of `role` and `content` (Hugging Face), `conversations` of `from` and `value` (ShareGPT).
_DIALOGUES = ("messages", "conversations")
_TURN = (("role", "from"), ("content", "value"))
_SPEAKERS = {name: name for name in ("system", "user", "assistant")} | {"human": "user", "gpt": "assistant"}


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row with its place in the file, for messages."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path).to_pylist()  # which decodes names and texts
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{path} cannot be read as Parquet ({error}); fetch or write it again") from None
        yield from ((f"row {index}", row) for index, row in enumerate(rows, start=1))
    elif path.suffix == ".json":
        try:
            elements = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read as JSON ({error}); fetch or write it again") from None
        if not isinstance(elements, list) or not all(isinstance(row, dict) for row in elements):
            raise UserError(f"{path}: not a list of JSON objects, one for each row; correct it, or use .jsonl")
        yield from ((f"element {index}", row) for index, row in enumerate(elements, start=1))
    else:
        opener = gzip.open if path.suffix == ".gz" else open
        number = 0
        try:
            with opener(path, "rt", encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield f"line {number}", _object(path, number, line)
        except UnicodeDecodeError:
            raise UserError(f"{path}, after line {number}: not UTF-8 text; save it as UTF-8") from None
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}, after line {number}: unreadable ({error}); fetch or write it again") from None


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if "\\ud" in line or "\\uD" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}, line {number}: half of a surrogate pair; correct or delete that row") from None
    except (ValueError, RecursionError):  # a number may have too many digits, and brackets may be too deep
        row = None
    if not isinstance(row, dict):
        raise UserError(f"{path}, line {number}: not a JSON object, of which each line holds one; correct or delete it")
    return row


def to_example(row: dict[str, Any]) -> Example:
    """Return the instruction row, or a dialogue of `messages` or `conversations`, of which the last answer trains.

    Raises:
        KeyError: a column is missing.
        TypeError: a text is not one.
        ValueError: the turns of a dialogue are not in order.
    """
    dialogue = next((name for name in _DIALOGUES if row.get(name) is not None), None)
    if dialogue:
        return _of_dialogue(dialogue, row[dialogue])
    values = {}
    for column, spellings in _COLUMNS.items():
        value = next((row[name] for name in spellings if row.get(name) is not None), None)
        if value is None and column in ("instruction", "output"):
            raise KeyError(f"no column '{column}'")
        if value is not None and not isinstance(value, str):
            raise TypeError(f"column '{column}' holds {value!r} instead of text")
        values[column] = value or ""
    return Example(values["instruction"], values["output"], values["system"], values["input"])


def _of_dialogue(column: str, turns: Any) -> Example:
    """Return a dialogue: a system prompt, if any, then turns of user and assistant, the assistant last."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise TypeError(f"column '{column}' is not a list of turns")
    said = [_turn(column, number, turn) for number, turn in enumerate(turns, start=1)]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    speakers = [speaker for speaker, _ in said]
    if not said or speakers != ["user", "assistant"] * (len(said) // 2):
        raise ValueError(
            f"column '{column}' has turns of {', '.join(speakers) or 'nobody'}, not of user and assistant in turn, the "
            "assistant last, after a system prompt if any"
        )
    texts = [text for _, text in said]
    return Example(texts[-2], texts[-1], system, history=tuple(zip(texts[:-2:2], texts[1:-2:2], strict=True)))


def _turn(column: str, number: int, turn: dict[str, Any]) -> tuple[str, str]:
    """Return who speaks, `system`, `user` or `assistant`, and the text."""
    speaker, text = (next((turn[name] for name in names if turn.get(name) is not None), None) for names in _TURN)
    if not isinstance(speaker, str) or speaker.lower() not in _SPEAKERS:
        raise ValueError(f"column '{column}', turn {number}: {speaker!r} speaks, not system, user or assistant")
    if not isinstance(text, str):
        raise TypeError(f"column '{column}', turn {number}: the content is {text!r} instead of text")
    return _SPEAKERS[speaker.lower()], text


def to_preference(row: dict[str, Any]) -> Preference:
    """Return the preference pair; raise KeyError, TypeError or ValueError where it is not one."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise TypeError("a preference pair needs the columns 'chosen' and 'rejected'")
    prompt, system = row.get("prompt"), row.get("system") or ""
    if prompt is None:  # the Hub's layout: two whole dialogues, which share everything up to the last turn
        if _HH_ASSISTANT not in chosen:
            raise KeyError("no column 'prompt', and 'chosen' is not a dialogue that holds one")
        shared = chosen.rfind(_HH_ASSISTANT) + len(_HH_ASSISTANT)
        prompt, chosen = chosen[:shared], chosen[shared:]
        rejected = rejected.removeprefix(prompt) if rejected.startswith(prompt) else ""
        if _HH_HUMAN in rejected:
            rejected = ""
    if not isinstance(prompt, str) or not isinstance(system, str):
        raise TypeError(f"column 'prompt' holds {prompt!r} and 'system' {system!r}; both are text")
    return Preference(_asked(prompt, system), chosen.strip(), rejected.strip())


def _asked(prompt: str, system: str) -> Example:
    """Return a prompt: a plain instruction, or turns as in HH-RLHF that end where the reply begins."""
    if not prompt.startswith(_HH_HUMAN):
        return Example(prompt, "", system)
    speakers = _HH_TURN.split(prompt)[1:]  # speaker, text, speaker, text, …
    turns: list[tuple[str, str]] = []
    for speaker, text in zip(speakers[::2], speakers[1::2], strict=True):
        if turns and turns[-1][0] == speaker:  # who speaks twice said it in two paragraphs
            turns[-1] = (speaker, f"{turns[-1][1]}\n\n{text.strip()}")
        else:
            turns.append((speaker, text.strip()))
    if turns[-1] != ("Assistant", ""):
        raise ValueError(f"column 'prompt' ends in {prompt[-20:]!r}, not in the turn that the replies belong to")
    texts = [text for _, text in turns]
    return Example(texts[-2], "", system, history=tuple(zip(texts[:-2:2], texts[1:-2:2], strict=True)))


def to_question(row: dict[str, Any]) -> Question:
    """Return the question with choices; raise an error that names the column which is wrong."""
    choices, answer = row.get("choices"), row.get("answer")
    if isinstance(choices, dict):  # the Hub's layout of ARC: labels A, B, … or 1, 2, …, and the right one by its label
        labels, key, choices = choices.get("label"), row.get("answerKey"), choices.get("text")
        if not isinstance(labels, list) or key not in labels:
            raise ValueError(f"column 'answerKey' is {key!r}, not one of the choices' label {labels!r}")
        answer = labels.index(key)
    if not isinstance(row.get("question"), str) or not isinstance(choices, list):
        raise TypeError("a question needs the columns 'question', 'choices' and 'answer'")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(f"'answer' is {answer!r}, not an index into its {len(choices)} choices")
    return Question(row["question"], tuple(map(str, choices)), answer, str(row.get("subject") or ""))
