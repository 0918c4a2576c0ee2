"""A remote folder and the local one that receives its files: each is named for its own faults."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmark.io import remote as io_remote
from benchmark.io.files import FullError
from benchmark.io.remote import Remote
from benchmark.store.remote import open_store
from sande.errors import UserError

Failing = Callable[[OSError], list[str]]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Remote:
    monkeypatch.setattr(io_remote, "FIRST_PAUSE", 0.001)
    return Remote("memory://shared/folder")


@pytest.fixture
def failing(place: Remote, monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Makes each copy of a file fail; returns the files that were asked for."""

    def fail(error: OSError) -> list[str]:
        asked: list[str] = []

        def get_file(name: str, to: str) -> None:
            asked.append(name)
            raise error

        monkeypatch.setattr(place._fs, "get_file", get_file)
        return asked

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_here_is_not_a_fault_there(place: Remote, failing: Failing, number: int, tmp_path: Path) -> None:
    asked = failing(OSError(number, os.strerror(number)))
    with pytest.raises(FullError, match=rf"^{tmp_path}: no space is left; free some .* and run again$"):
        place.fetch(["model"], tmp_path)
    assert len(asked) == 1, "a full disk stays full"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EISDIR])
def test_a_folder_here_that_refuses_is_named(place: Remote, failing: Failing, number: int, tmp_path: Path) -> None:
    asked = failing(OSError(number, os.strerror(number), str(tmp_path / "model")))
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be written \({tmp_path}/model: .*SANDE_CACHE"):
        place.fetch(["model"], tmp_path)
    assert len(asked) == 1


def test_a_file_in_the_place_of_a_folder_here_is_named(place: Remote, tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("a file")
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be written \({tmp_path}/tables"):
        place.fetch(["tables/a.md"], tmp_path)


@pytest.mark.parametrize("filename", [None, "/elsewhere/model"])
def test_a_refusal_there_names_the_remote_folder(
    place: Remote, failing: Failing, filename: str | None, tmp_path: Path
) -> None:
    failing(PermissionError(errno.EACCES, "Access Denied", filename))
    with pytest.raises(UserError, match=r"^memory://shared/folder: access is refused .*check this machine's cred"):
        place.fetch(["model"], tmp_path)


def test_the_scheme_of_a_uri_may_be_in_capitals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(io_remote.CACHE, str(tmp_path))
    one, two = open_store("MEMORY://Shared/Capitals"), open_store("memory://Shared/Capitals")
    assert one.location == two.location == "memory://Shared/Capitals"
    assert one.root == two.root
