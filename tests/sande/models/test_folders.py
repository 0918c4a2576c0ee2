"""Folders as people hold them: of the Trainer, in shards, in several types; and that a load opens no other files."""

import json
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sande.errors import UserError
from sande.inference.generation import greedy
from sande.inference.probing import confidence, continued, ordinary_tokens
from sande.models import catalog, checks, loading
from sande.parrot import vocabulary
from sande.prompts import encode_prompts
from sande.types import Example, LanguageModel

PICKLE = b"\x80\x04cbuiltins\nprint\n(S'read'\ntR."
TRAINERS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def folder(tiny: LanguageModel, tmp_path: Path) -> Path:
    loading.save(tiny, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def shards(tiny: LanguageModel, tmp_path: Path) -> Path:
    tiny.model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    tiny.tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 2
    return tmp_path / "shards"


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder: Path) -> LanguageModel:
    return loading.load(str(folder), Path("unused"))


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = lm.model(input_ids=torch.arange(20)[None]).logits
    return found


# --- Of the Trainer -------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_trainer_is_loaded_without_its_own_files(tiny: LanguageModel, tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 2
    settings = TrainingArguments(str(tmp_path / "run"), max_steps=1, save_steps=1, report_to=[], use_cpu=True)
    Trainer(tiny.model, settings, train_dataset=rows, processing_class=tiny.tokenizer).train()
    folder = tmp_path / "run" / "checkpoint-1"
    assert {path.name for path in folder.iterdir()} >= set(TRAINERS), "the Trainer writes what this test is about"
    assert torch.equal(logits(load(folder)), logits(tiny))
    (note,) = catalog.sources(str(folder))
    assert note == f"{folder}: not read, since only the Trainer needs them: {', '.join(sorted(TRAINERS))}"


def test_what_the_trainer_adds_is_not_part_of_the_identity(folder: Path) -> None:
    before = catalog.identify(str(folder))
    for name in TRAINERS:
        (folder / name).write_bytes(PICKLE)
    assert catalog.identify(str(folder)) == before


def test_pickled_weights_beside_safetensors_are_named_and_not_part_of_the_model(folder: Path) -> None:
    before = catalog.identify(str(folder))
    assert catalog.sources(str(folder)) == []
    (folder / "pytorch_model.bin").write_bytes(PICKLE)
    assert catalog.sources(str(folder)) == [
        f"{folder}: not read, and not checked, since they are pickles: pytorch_model.bin"
    ]
    assert catalog.identify(str(folder)) == before


class Watch:
    """An audit hook, which stays until the process ends, and what it saw while it was asked to look."""

    def __init__(self) -> None:
        self.looking = False
        self.opened: set[str] = set()
        self.unpickled: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.looking and event == "open":
            self.opened.add(os.path.realpath(str(args[0])))
        if self.looking and event == "pickle.find_class":
            self.unpickled.append(str(args))

    @contextmanager
    def within(self, folder: Path) -> Iterator[set[Path]]:
        """Yield a set that, after the block, has the files in the folder that the block opened."""
        self.opened.clear(), self.unpickled.clear()
        found: set[Path] = set()
        self.looking = True
        try:
            yield found
        finally:
            self.looking = False
        found |= {Path(path) for path in self.opened if path.startswith(f"{folder.resolve()}/")}


@pytest.fixture(scope="session")
def watch() -> Watch:
    return Watch()


def test_the_watch_sees_a_pickle(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(PICKLE)
    with watch.within(tmp_path) as opened, (tmp_path / "a.bin").open("rb") as file:
        pickle.load(file)
    assert opened == {tmp_path / "a.bin"}
    assert watch.unpickled == ["('builtins', 'print')"]


def test_a_load_opens_the_checked_files_of_a_folder_and_no_others(
    folder: Path, shards: Path, adapter: Path, watch: Watch, tmp_path: Path
) -> None:
    folders = (folder, shards, adapter, tmp_path / "base")
    for each in folders:
        for name in (*TRAINERS, "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "adapter_model.bin"):
            (each / name).write_bytes(PICKLE)
        (each / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}')
    with watch.within(tmp_path) as opened:
        for each in folders:
            load(each)
    allowed = {path for each in folders for path in checks.files(each)}
    assert opened <= allowed, sorted(opened - allowed)
    assert {folder / "config.json", folder / "tokenizer.json", adapter / "adapter_config.json"} <= opened
    assert watch.unpickled == []


# --- Keys that would load other files -------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["other.safetensors", "../elsewhere/adapter_model.bin", "adapter_model.bin"])
def test_weights_of_another_name_are_refused(folder: Path, file: str) -> None:
    edit(folder / "config.json", transformers_weights=file)
    with pytest.raises(UserError, match=r"config.json names a file of weights \('transformers_weights'\); remove it"):
        catalog.identify(str(folder))
    edit(folder / "config.json", transformers_weights=None, text_config={"transformers_weights": file})
    with pytest.raises(UserError, match="transformers_weights"):
        catalog.identify(str(folder))


@pytest.mark.parametrize("key", ["vocab_file", "tokenizer_file"])
def test_a_tokenizer_elsewhere_is_refused(folder: Path, tmp_path: Path, key: str) -> None:
    edit(folder / "tokenizer_config.json", **{key: str(tmp_path / "other.json")})
    with pytest.raises(UserError, match=f"names a file elsewhere \\('{key}'\\)"):
        catalog.identify(str(folder))


@pytest.mark.parametrize("file", ["merges.txt", "vocab.txt", "vocab.json", "additional_chat_templates/tool.jinja"])
def test_each_file_of_a_tokenizer_is_part_of_the_identity(folder: Path, file: str) -> None:
    before = catalog.identify(str(folder))
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("{}")
    assert catalog.identify(str(folder)) != before


def test_a_folder_with_an_adapter_and_a_whole_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="holds both an adapter and a whole model; move one of them"):
        catalog.identify(str(folder))


# --- Shards ---------------------------------------------------------------------------------------------------------


def test_several_shards_are_one_model(tiny: LanguageModel, shards: Path) -> None:
    assert torch.equal(logits(load(shards)), logits(tiny))


def test_a_missing_shard_is_one_sentence(shards: Path) -> None:
    shard = sorted(shards.glob("model-*"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"shards lacks {shard.name}, which model.safetensors.index.json names; fetch"):
        load(shards)


def test_weights_under_another_name_are_one_sentence(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor model\.safetensors\.index\.json"):
        load(folder)


# --- Types, vocabularies, ties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_type_on_disk_is_loaded_in_float32(tiny: LanguageModel, tmp_path: Path, dtype: torch.dtype) -> None:
    expected = {name: weight.to(dtype).float() for name, weight in tiny.model.state_dict().items()}
    torch.nn.Module.to(tiny.model, dtype)
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [0, 32])
def test_padded_and_tied_vocabularies_survive_load_and_save(
    tiny: LanguageModel, tmp_path: Path, tied: bool, padding: int
) -> None:
    assert tiny.tokenizer.chat_template is None, "a base model"
    lm = model_of(tiny, padding, tied)
    loading.round_as_stored(lm, torch.float32)
    expected = logits(lm)
    loading.save(lm, tmp_path / "first")
    first = load(tmp_path / "first")
    assert torch.equal(logits(first), expected)
    loading.save(first, tmp_path / "second")
    second = load(tmp_path / "second")
    assert torch.equal(logits(second), expected)
    assert (second.model.get_output_embeddings().weight is second.model.get_input_embeddings().weight) == tied
    assert vocabulary(second.model) == len(tiny.tokenizer) + padding
    assert max(ordinary_tokens(second)) < len(tiny.tokenizer)


def model_of(tiny: LanguageModel, padding: int, tied: bool) -> LanguageModel:
    config = LlamaConfig(**{**tiny.model.config.to_dict(), "tie_word_embeddings": tied})
    config.vocab_size += padding
    torch.manual_seed(0)
    return LanguageModel(LlamaForCausalLM(config).eval(), tiny.tokenizer)


def test_nothing_that_is_found_lies_beyond_the_tokenizer(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    lm, known = model_of(tiny, 32, tied=False), len(tiny.tokenizer)
    prompts, tokens = encode_prompts(lm.tokenizer, few_rows[:2]), ordinary_tokens(lm)[:50]
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[known:] = 0
        text = confidence(lm, prompts, tokens, 0.0, 16)
        with_states = lm.model(input_ids=torch.tensor(prompts[:1]), output_hidden_states=True).hidden_states[-1][0, -1]
        lm.model.get_output_embeddings().weight[known] = 50 * with_states / with_states.norm()
    assert (confidence(lm, prompts, tokens, 0.0, 16) < text + 1e-6).all(), "the id without text leaves less for text"
    found = continued(lm, prompts, tokens, 4, 16)
    assert all(token < known for each in found for token in each.ids)
    assert any(each.ended for each in found), "it ends a string"
    assert all(isinstance(answer, str) for answer in greedy(lm, prompts, 4, 2))


# --- Weights that are not numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_one_sentence(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 4] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"has weights that are infinite or NaN \\({name}\\); use a model without"):
        load(folder)


def test_large_weights_are_finite(tiny: LanguageModel) -> None:
    with torch.no_grad():
        tiny.model.model.norm.weight.fill_(1e37)  # their sum is not a number of float32
    checks.check_finite(tiny, "tiny")
