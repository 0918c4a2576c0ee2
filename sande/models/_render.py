"""Render a chat template in a process of its own, with bounds; `sande.models.chat` runs this file."""

import json
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

render: Any = render_jinja_template  # its annotations are those of another result
CPU_SECONDS = 20
MEMORY = 1 << 30  # bytes beyond those of the libraries
LONGEST = 100_000  # characters of a dialogue's text
# A template may write the day, which would give a model other prompts on another day.
FIXED_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"


def text(template: str, special: dict[str, str], dialogue: list[dict[str, str]]) -> str | None:
    """Return the text of a dialogue, or None where the template refuses it."""
    asks = dialogue[-1]["role"] == "user"
    try:
        (rendered,), _ = render(
            [dialogue],
            chat_template=FIXED_DAY + template,
            add_generation_prompt=asks,
            date_string="26 Jul 2024",
            **special,
        )
    except MemoryError:
        raise
    except Exception:  # a template may raise any error, such as "System role not supported"
        return None
    return rendered if len(rendered) <= LONGEST else None


def main() -> None:
    """Read a template with dialogues from standard input; write their texts as JSON."""
    with suppress(OSError, ValueError):  # other systems than Linux have no such file, or not this bound
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS, spent + CPU_SECONDS))
    given = json.load(sys.stdin)
    texts = [text(given["template"], given["special"], dialogue) for dialogue in given["dialogues"]]
    json.dump(texts, sys.stdout)


if __name__ == "__main__":
    main()
