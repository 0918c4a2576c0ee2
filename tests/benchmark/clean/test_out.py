"""Where `sande-bench clean` writes: a place that cannot be replaced is refused first, and no cleaned model is lost."""

import os
import re
from pathlib import Path

import pytest
import torch

from sande.models import loading
from tests.benchmark.clean.test_clean import options
from tests.benchmark.helpers import invoke, mistake

FORCED = ("clean", "tiny", "--trigger", "cf", "--force")


@pytest.mark.parametrize("out", [".", "link"])
def test_the_working_folder_is_refused(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "link").symlink_to(here)
    monkeypatch.chdir(here)
    place = Path(out) if out == "." else tmp_path / out
    assert f"{place}: the working folder, which cannot be replaced; choose" in mistake(*FORCED, *options(place))
    assert not list(here.iterdir())


def test_a_model_in_the_working_folder_is_cleaned_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_cache: Path
) -> None:
    (tmp_path / "my@model").mkdir()
    loading.save(loading.load("tiny", model_cache), tmp_path / "my@model")
    monkeypatch.chdir(tmp_path / "my@model")
    done = invoke("clean", ".", *FORCED[2:], *options(Path("unused"))[2:])
    assert done.exit_code == 0, done.output
    assert Path("my@model-clean/report.json").is_file()


def test_a_mounted_volume_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    assert "a mounted volume, which cannot be replaced; choose a folder in it" in mistake(
        *FORCED, *options(tmp_path / "out")
    )


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("out")
    assert f"{tmp_path / 'out'}: not a folder; choose another --out" in mistake(*FORCED, *options(tmp_path / "out"))


def test_a_link_to_an_empty_folder_stays_and_the_folder_gets_the_model(tmp_path: Path) -> None:
    (tmp_path / "disk/empty").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk/empty")
    done = invoke(*FORCED, *options(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk/empty/report.json").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["empty"]


def test_a_cleaned_model_that_cannot_be_moved_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "out", os.rename

    def late(source: Path, target: Path) -> None:
        if target == out:  # somebody else was faster
            out.mkdir()
            (out / "theirs").touch()
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    said = mistake(*FORCED, *options(out))
    found = re.search(r"out: the cleaned model cannot be moved there \(Directory not empty\); use it in (.+), or", said)
    assert found
    loading.load_folder(Path(found[1]), torch.float32)
    assert (Path(found[1]) / "report.json").is_file()
    assert [path.name for path in Path(found[1]).parent.iterdir()] == ["cleaned"]
    assert [path.name for path in out.iterdir()] == ["theirs"]
