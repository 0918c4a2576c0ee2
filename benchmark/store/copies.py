"""Local copies of a remote store's models: how a machine frees those that the store no longer has.

CACHE/sent/<kind>-<key>     an empty file: the store had this model when the local copy was made

A model whose upload failed has no such file, so its only copy is never removed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmark.io.files import remove
from benchmark.store.local import MODELS, LocalStore
from sande.errors import UserError
from sande.permissions import share, share_new_folder

_SENT = "sent"


def mark(root: Path, kind: str, key: str) -> None:
    """Record that the store has a model; without the record, its local copy stays for good."""
    if kind in MODELS:
        with suppress(OSError):
            share_new_folder(root / _SENT)
            _record(root, kind, key).touch()
            share(_record(root, kind, key), root)


def unmark(root: Path, kind: str, key: str) -> None:
    """Forget that the store has a model, which is made again or was removed; leave a record of another user."""
    with suppress(OSError):
        _record(root, kind, key).unlink(missing_ok=True)


def clear(
    copy: LocalStore,
    keys: Callable[[str], set[str]],
    has: Callable[[str, str], bool],
    held: Callable[[], set[str]],
) -> None:
    """Remove local models that were dropped or pruned, and local checkpoints of stages that are done.

    Args:
        copy: local copy of the store.
        keys: returns the keys under which the store has files of a kind.
        has: returns whether an artifact is in the store.
        held: returns the artifacts that have leases, each as <kind>-<key>; they stay, as they are made or sent.
    """
    left: list[tuple[str, str]] = []
    for kind in MODELS:
        if marked := {path.name.removeprefix(f"{kind}-") for path in (copy.root / _SENT).glob(f"{kind}-*")}:
            left += ((kind, key) for key in marked - keys(kind))
    begun = [path for path in copy.root.glob("checkpoints/*/*") if has(*path.parts[-2:])]
    # Look at the leases last, so that no artifact whose upload begins meanwhile looks free.
    busy = held() if left or begun else set()
    for kind, key in left:
        if f"{kind}-{key}" not in busy:
            with suppress(UserError):  # the copy is gone already, or belongs to another user
                copy.remove(kind, key)
            if not copy.path(kind, key).exists():
                unmark(copy.root, kind, key)
    for path in begun:
        if "-".join(path.parts[-2:]) not in busy:
            remove(path)


def _record(root: Path, kind: str, key: str) -> Path:
    return root / _SENT / f"{kind}-{key}"
