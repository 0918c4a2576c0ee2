"""Permissions of a shared folder: all in it gets them, and nothing around it changes."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sande.models import loading
from sande.permissions import share, share_new_folder
from sande.types import LanguageModel
from tests.users import ONE, ONLY_ROOT, TEAM, as_user, open_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@given(bits=st.integers(0, 0o777), had=st.integers(0, 0o777))
def test_all_below_a_folder_gets_its_permissions(tmp_path_factory, bits: int, had: int) -> None:
    like, inner = tmp_path_factory.mktemp("like"), tmp_path_factory.mktemp("made")
    like.chmod(bits)
    (inner / "deep").mkdir()
    for path in (inner / "weights", inner / "deep/tokens"):
        path.write_bytes(b"")
        path.chmod(had)
    (inner / "link").symlink_to(like)
    share(inner, like)
    assert mode(inner) == mode(inner / "deep") == bits | 0o700
    assert mode(inner / "weights") == mode(inner / "deep/tokens") == bits & 0o666 | 0o600
    assert mode(like) == bits, "a link is not followed"


def test_a_folder_that_hands_on_its_group_goes_on_doing_so(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    made.chmod(0o2700)
    tmp_path.chmod(0o750)
    share(made, tmp_path)
    assert mode(made) == 0o2750


def test_a_new_folder_is_shared_and_one_that_is_there_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    share_new_folder(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o775
    (tmp_path / "new").chmod(0o700)
    share_new_folder(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        share_new_folder(tmp_path / "file")


@ONLY_ROOT
def test_the_group_is_that_of_the_folder_where_the_user_is_in_it() -> None:
    with open_folder() as folder:
        os.chown(folder, 0, TEAM)
        folder.chmod(0o770)
        assert as_user(ONE, lambda: share_new_folder(folder / "new")) == "None"
        found = (folder / "new").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (ONE, TEAM, 0o770)


def test_saved_weights_have_the_permissions_of_the_other_files(tiny: LanguageModel, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        loading.save(tiny, tmp_path)
    finally:
        os.umask(old)
    assert {mode(path) for path in tmp_path.iterdir()} == {0o640}
