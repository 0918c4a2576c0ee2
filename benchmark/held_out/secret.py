"""The secret of a held-out track: its file, the commitment to it, and the random numbers that it decides."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.grid.keys import canonical_json
from sande import bounds
from sande.errors import UserError

FORMAT = "sande-bench-secret-1"
BYTES = 32  # 256 bits
SHORT = 8  # hexadecimal digits of a commitment in names and labels
_COMMITMENT = b"sande-bench held-out commitment 1\0"
_LINE = re.compile(rf"{FORMAT} ([0-9a-f]{{{2 * BYTES},}})\s*")


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A secret of at least 256 random bits; its text form is never shown."""

    value: bytes

    @property
    def commitment(self) -> str:
        """Return the SHA-256 of the secret with a domain tag, in hexadecimal.

        It shows nothing of the secret, and no other secret has it. So the published secret proves what was drawn.
        """
        return hashlib.sha256(_COMMITMENT + self.value).hexdigest()

    def authentication_code(self, *context: object) -> bytes:
        """Return the HMAC-SHA256 (RFC 2104) of JSON values under the secret: 32 bytes that look random without it."""
        return hmac.digest(self.value, canonical_json(context).encode(), "sha256")


class Draws:
    """Random draws that secret and context decide: HMAC-SHA256 in counter mode."""

    def __init__(self, secret: Secret, *context: object) -> None:
        self._secret, self._context, self._count = secret, context, 0

    def below(self, limit: int) -> int:
        """Return a number from 0 to `limit` - 1. For limits below 2**32 the bias of the remainder is under 2**-224."""
        code = self._secret.authentication_code("draw", *self._context, self._count)
        self._count += 1
        return int.from_bytes(code, "big") % limit

    def sample(self, words: Sequence[str], count: int) -> list[str]:
        """Return `count` different words, in random order.

        Raises:
            UserError: there are fewer words.
        """
        if count > len(words):
            raise UserError(f"attack: it needs {count} different triggers, and a secret draws {len(words)}; use fewer")
        left = list(words)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def make(path: Path) -> Secret:
    """Write a new secret into a new file that only its owner can read.

    Raises:
        UserError: the file exists, or cannot be written.
    """
    text = f"{FORMAT} {secrets.token_hex(BYTES)}\n"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path}: the file exists; choose a new one, since results may depend on this secret") from None
    except OSError as error:
        raise UserError(f"{path}: the file cannot be written ({error.strerror}); choose another one") from None
    return read(path)


def read(path: Path, advice: str = "make one with 'sande-bench leaderboard secret FILE'") -> Secret:
    """Return the secret of a file.

    Args:
        path: of the file.
        advice: how to mend a wrong file; it ends the error's sentence.

    Raises:
        UserError: the file cannot be read, or is not a secret.
    """
    try:
        text = bounds.read(path).decode("ascii")
    except OSError as error:
        raise UserError(f"{path}: the secret cannot be read ({error.strerror}); {advice}") from None
    except UnicodeDecodeError:
        text = ""
    found = _LINE.fullmatch(text)
    if not found or len(found[1]) % 2:
        raise UserError(f"{path}: not a secret, which holds '{FORMAT}' and {2 * BYTES} hexadecimal digits; {advice}")
    return Secret(bytes.fromhex(found[1]))


def is_shared(path: Path) -> bool:
    """Return whether other users of the machine can read the file."""
    return bool(path.stat().st_mode & 0o077)
