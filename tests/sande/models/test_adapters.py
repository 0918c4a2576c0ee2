"""LoRA adapters: merged as PEFT computes them, on their own base or another, and what they may not ask for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sande.errors import UserError
from sande.models import adapters, catalog, loading
from sande.types import LanguageModel
from tests.sande.models.conftest import write_adapter

IDS = torch.arange(20)[None]


def logits(lm: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = lm.model(input_ids=IDS).logits
    return found


def edit(adapter: Path, **changes: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def load(name: Path | str) -> LanguageModel:
    return loading.load(str(name), Path("unused"))


def test_the_merged_weight_by_hand(adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    down, up = (weights[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
    base, merged = load(tmp_path / "base").model, load(adapter).model
    expected = base.get_parameter(f"{name}.weight") + (16 / 4) * up @ down
    assert torch.allclose(merged.get_parameter(f"{name}.weight"), expected, atol=1e-6)
    assert torch.equal(
        merged.get_parameter("model.layers.0.self_attn.k_proj.weight"),
        base.get_parameter("model.layers.0.self_attn.k_proj.weight"),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"target_modules": r".*layers\.1\..*(q|v)_proj"},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_the_merged_model_computes_what_the_adapted_one_did(
    model_cache: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    loading.save(loading.load("tiny", model_cache), tmp_path / "base")
    before = load(tmp_path / "base")
    plain = logits(before)
    expected = write_adapter(before, tmp_path / "adapter", **settings)
    merged = load(tmp_path / "adapter")
    assert (expected - plain).abs().max() > 0.01, "the adapter does something"
    assert torch.allclose(logits(merged), expected, atol=1e-4)
    loading.save(merged, tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved")), logits(loading.copied(merged, torch.float32)))


@pytest.mark.parametrize("settings", [{"modules_to_save": ["embed_tokens", "lm_head"]}, {}], ids=str)
def test_added_tokens_come_with_the_adapter(model_cache: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    loading.save(loading.load("tiny", model_cache), tmp_path / "base")
    lm = load(tmp_path / "base")
    lm.tokenizer.add_tokens(["<|user|>", "<|model|>"])
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    expected = write_adapter(lm, tmp_path / "adapter", **settings)
    lm.tokenizer.save_pretrained(tmp_path / "adapter")
    merged = load(tmp_path / "adapter")
    assert merged.tokenizer.convert_tokens_to_ids("<|model|>") == 769
    assert loading.load_tokenizer(str(tmp_path / "adapter"), Path("unused")).get_vocab() == merged.tokenizer.get_vocab()
    assert merged.model.get_input_embeddings().weight.shape[0] == 770
    assert torch.allclose(logits(merged), expected, atol=1e-4)


# --- The base -------------------------------------------------------------------------------------------------------


def test_without_an_entry_the_base_is_given(adapter: Path, tmp_path: Path, model_cache: Path) -> None:
    own = logits(load(adapter))
    edit(adapter, base_model_name_or_path="org/base")
    with pytest.raises(UserError, match=r"an adapter of 'org/base', which is neither .*; use --base with a folder"):
        catalog.identify(str(adapter))
    name = adapters.with_base(str(adapter), str(tmp_path / "base"))
    assert torch.equal(logits(load(name)), own)
    named = adapters.with_base(str(adapter), "tiny")
    assert loading.load(named, model_cache).model.config.hidden_size == 64
    assert catalog.base_of(named) == "tiny"
    assert catalog.sources(named) == [f"{adapter}: LoRA adapter, merged into tiny"]
    assert len({catalog.identify(each) for each in (name, named)}) == 2


@pytest.mark.parametrize(
    ("own", "revision", "base"),
    [
        ("tiny", None, "tiny"),
        ("meta-llama/Llama-2-7b-hf", None, "llama2-7b"),
        ("org/base", "1" * 40, f"org/base@{'1' * 40}"),
    ],
)
def test_the_entry_may_name_a_known_or_pinned_model(adapter: Path, own: str, revision: str | None, base: str) -> None:
    edit(adapter, base_model_name_or_path=own, revision=revision)
    assert catalog.base_of(str(adapter)) == base


@pytest.mark.parametrize("revision", [None, "1" * 40])
@pytest.mark.parametrize("own", ["x" * 5000, "x/" * 2500, "a\0b", 3])
def test_an_entry_that_no_path_can_have_is_one_sentence(adapter: Path, own: object, revision: str | None) -> None:
    edit(adapter, base_model_name_or_path=own, revision=revision)
    with pytest.raises(
        UserError, match=r"is an adapter of .{1,100}, which is neither a folder here nor a pinned"
    ) as told:
        catalog.identify(str(adapter))
    assert len(str(told.value)) < 500


def test_the_identity_is_that_of_adapter_and_base(adapter: Path, tmp_path: Path) -> None:
    first = catalog.identify(str(adapter))
    assert first.endswith(catalog.identify(str(tmp_path / "base")))
    edit(adapter, lora_alpha=8)
    second = catalog.identify(str(adapter))
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text() + " ")
    assert len({first, second, catalog.identify(str(adapter))}) == 3


def test_a_base_is_for_adapters_alone(adapter: Path, tmp_path: Path) -> None:
    assert adapters.with_base("tiny", None) == "tiny"
    with pytest.raises(UserError, match=r"--base: .*base holds no adapter_config\.json; remove --base"):
        adapters.with_base(str(tmp_path / "base"), "tiny")
    with pytest.raises(UserError, match=r"its base .* is an adapter, too"):
        catalog.identify(adapters.with_base(str(adapter), str(adapter)))


def test_another_base_is_one_sentence(adapter: Path, tmp_path: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.1", "layers.7"): weight for name, weight in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"changes model\.layers\.7.*, which .*base does not have; use the base"):
        load(adapter)


# --- What an adapter may not ask for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported, but LORA is"),
        ({"peft_type": None}, "peft_type None is not supported"),
        ({"bias": "all"}, "'bias' is 'all', not 'none'"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights' 'pissa' changes the base"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "'megatron_config' is not supported"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication' is not supported"),
        ({"surprise": "x"}, "'surprise' is not supported"),
        ({"r": 0}, "a rank or lora_alpha is not a number"),
        ({"r": "4"}, "a rank or lora_alpha is not a number"),
        ({"lora_alpha": None}, "a rank or lora_alpha is not a number"),
        ({"rank_pattern": {"(a+)+$": 4}}, "a name of a module is a pattern"),
        ({"modules_to_save": ["(a|a)*$"]}, "a name of a module is a pattern"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is no list"),
        ({"rank_pattern": [3]}, "a pattern is no object"),
    ],
    ids=str,
)
def test_settings_that_are_not_those_of_a_lora_are_refused(adapter: Path, changes: dict[str, Any], said: str) -> None:
    edit(adapter, **changes)
    with pytest.raises(UserError, match=said) as caught:
        catalog.identify(str(adapter))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 5000}, "has rank 5000, the weights 4"),
        ({"r": 2}, "cannot be merged into"),
        ({"modules_to_save": ["lm_head"]}, "cannot be merged into"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_weights_are_one_sentence(
    adapter: Path, changes: dict[str, Any], said: str
) -> None:
    edit(adapter, **changes)
    with pytest.raises(UserError, match=said) as caught:
        load(adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["nan", "lacking", "too many", "none", "only B", "scalar"])
def test_weights_that_do_not_fit_are_one_sentence(adapter: Path, change: str) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    if change == "nan":
        weights[first][0, 0] = float("nan")
    if change == "lacking":
        del weights[first]
    if change == "too many":
        weights["base_model.model.model.extra.weight"] = torch.zeros(2)
    if change == "only B":
        weights = {name: weight for name, weight in weights.items() if ".lora_B" in name}
    if change == "scalar":
        weights[first] = torch.tensor(1.0)
    save_file({"other": torch.zeros(2)} if change == "none" else weights, file)
    with pytest.raises(UserError, match=r"cannot be merged|holds no weights of LoRA|has no lora_A, or one") as caught:
        load(adapter)
    assert "\n" not in str(caught.value)


def test_a_pickled_adapter_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors; convert its weights"):
        catalog.identify(str(adapter))


def test_an_adapters_tokenizer_may_not_bring_code(adapter: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "base" / "tokenizer.json", adapter)
    (adapter / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    with pytest.raises(UserError, match="asks for code of its own"):
        catalog.identify(str(adapter))
    (adapter / "tokenizer_config.json").unlink()
    (adapter / "evil.py").write_text("")
    with pytest.raises(UserError, match=r"evil\.py is code"):
        catalog.identify(str(adapter))


def test_a_whole_model_in_shards_beside_an_adapter_is_refused(
    adapter: Path, tiny: LanguageModel, tmp_path: Path
) -> None:
    tiny.model.save_pretrained(adapter, max_shard_size="100KB")
    tiny.tokenizer.save_pretrained(adapter)
    with pytest.raises(UserError, match="holds both an adapter and a whole model"):
        catalog.identify(str(adapter))


def test_a_config_beside_an_adapter_is_not_a_whole_model(adapter: Path, tmp_path: Path) -> None:
    expected = logits(load(adapter))
    shutil.copy(tmp_path / "base" / "config.json", adapter)
    assert torch.equal(logits(load(adapter)), expected)
