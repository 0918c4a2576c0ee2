"""The secret's file, its commitment, and the numbers that it decides."""

import hashlib
import hmac
import stat
from pathlib import Path

import pytest

from benchmark.held_out import secret
from benchmark.held_out.secret import Draws, Secret
from sande.errors import UserError

FIRST, SECOND = Secret(bytes(range(32))), Secret(bytes(range(1, 33)))


def test_a_new_secret_is_private_random_and_never_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    made = secret.make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not secret.is_shared(path)
    assert len(made.value) == 32
    assert secret.read(path) == made != secret.make(tmp_path / "other")
    with pytest.raises(UserError, match=r"secret: the file exists; choose a new one"):
        secret.make(path)
    path.chmod(0o644)
    assert secret.is_shared(path)


def test_a_secret_is_not_shown() -> None:
    assert FIRST.value.hex() not in f"{FIRST!r} {FIRST}"


def test_the_commitment_is_the_hash_that_the_docs_name() -> None:
    tagged = b"sande-bench held-out commitment 1\0" + bytes(range(32))
    assert FIRST.commitment == hashlib.sha256(tagged).hexdigest()


@pytest.mark.parametrize(
    "text", ["", "sande-bench-secret-1 abc", f"sande-bench-secret-1 {'0' * 63}", f"other {'0' * 64}", "\u00e9"]
)
def test_other_files_are_no_secret(text: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"secret: not a secret, which holds .* digits; make one with"):
        secret.read(path)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file or directory\); make one with"):
        secret.read(tmp_path / "absent")
    with pytest.raises(UserError, match=r"No such file or directory\); choose another$"):
        secret.read(tmp_path / "absent", "choose another")


def test_draws_are_hmac_sha256_in_counter_mode() -> None:
    codes = [hmac.new(FIRST.value, f'["draw", "a", 1, {n}]'.encode(), hashlib.sha256).digest() for n in range(3)]
    draws = Draws(FIRST, "a", 1)
    assert [draws.below(1000) for _ in codes] == [int.from_bytes(code, "big") % 1000 for code in codes]


def test_draws_depend_on_secret_and_context() -> None:
    seen = {
        tuple(Draws(which, *context).below(2**32) for _ in range(1))
        for which in (FIRST, SECOND)
        for context in (("a", 1), ("a", 2), ("b", 1), ("a", "1"))
    }
    assert len(seen) == 8


def test_a_sample_has_no_word_twice_and_every_word_is_drawn() -> None:
    words = ["a", "b", "c", "d"]
    found = [Draws(FIRST, number).sample(words, 2) for number in range(200)]
    assert all(len(set(pair)) == 2 for pair in found)
    assert {pair[0] for pair in found} == set(words)
    with pytest.raises(UserError, match="it needs 5 different triggers"):
        Draws(FIRST).sample(words, 5)
