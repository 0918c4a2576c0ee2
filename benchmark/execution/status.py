"""Status of a running stage: its worker writes it into a small file, the driver's progress view reads it.

FOLDER/<stage key>.json, in a folder of the run that every node of a shared store sees; the run removes it at its end.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sande.types import TrainingStatus

EVERY = 1.0  # seconds between two writes


@dataclass(frozen=True, slots=True)
class Status:
    """Activity of a stage.

    Attributes:
        text: a few words; of a training, its name.
        training: progress of a training; None outside one.
    """

    text: str
    training: TrainingStatus | None = None

    def __str__(self) -> str:
        return str(self.training) if self.training else self.text


class Writer:
    """Write the status of one stage, at most once a second; ignore a disk that takes no file."""

    def __init__(self, folder: str, key: str) -> None:
        self._path = Path(folder, f"{key}.json")
        self._written = 0.0

    def say(self, text: str) -> None:
        """Write that something begins."""
        self._write(Status(text))

    def watch(self, training: TrainingStatus) -> None:
        """Write the progress of a training."""
        if time.monotonic() - self._written >= EVERY or training.step == training.steps:
            self._write(Status(training.stage, training))

    def _write(self, status: Status) -> None:
        self._written = time.monotonic()
        part = self._path.with_suffix(f".{os.getpid()}.part")
        with suppress(OSError):
            part.write_text(json.dumps(asdict(status)), encoding="utf-8")
            part.replace(self._path)


def read_status(folder: Path, key: str) -> Status | None:
    """Return a stage's last status; None where there is no readable one."""
    try:
        values = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        training = TrainingStatus(**values["training"]) if values["training"] else None
        return Status(values["text"], training)
    except (OSError, ValueError, KeyError, TypeError):
        return None
