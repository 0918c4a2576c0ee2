"""Where `sande-bench clean` writes: a place that cannot be replaced is refused first, and no cleaned model is lost."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from benchmark.clean.clean import FEW, _few
from sande import cleaning
from sande.cleaning import Config
from sande.data.builtin import sets
from sande.models import loading
from sande.types import LanguageModel
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


def test_a_full_disk_ends_in_a_sentence_that_proposes_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = loading.save

    def full(lm: LanguageModel, folder: Path) -> None:
        if folder.name == "cleaned":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(lm, folder)

    monkeypatch.setattr(loading, "save", full)
    monkeypatch.setattr(cleaning, "clean", lambda *_: None)
    out = tmp_path / "out"
    said = mistake(*FORCED, *options(out))
    assert said == (f"sande-bench: {out}: no space is left for the cleaned model; free some, or choose another --out")
    assert not list(tmp_path.iterdir())


def test_rows_named_by_a_setting_are_identified_and_few_prompts_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaning, "clean", lambda *_: None)
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = [{"instruction": row.instruction, "output": row.output} for row in sets.short()[:30]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = invoke(*FORCED, *options(out), "--set", f"removal.name={file}")
    assert done.exit_code == 0, done.output
    note = f"only 3 prompts of {file} to measure on, so the verdict may be by chance; add rows"
    result = json.loads((out / "report.json").read_text())
    assert result["notes"] == [note]
    assert result["rows_fingerprint"] == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert note in done.stdout
    assert all("only 3 prompts of" in (out / name).read_text() for name in ("report.md", "report.html"))


def test_prompts_are_few_below_a_number_and_the_fix_fits() -> None:
    assert _few(FEW, Config()) == ""
    assert _few(1, Config()).startswith("only 1 prompt of builtin-short to measure on, so")
    assert _few(FEW - 1, Config()).endswith("; add rows")
    assert _few(5, Config(prompts=5)).endswith("; set prompts to 20 or more")


def test_a_missing_file_of_rows_in_a_setting_is_said(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    said = mistake(*FORCED, *options(tmp_path / "out"), "--set", f"removal.name={file}")
    assert f"data '{file}': there is no such file; correct the path" in said
