"""Packed rows: the loss and the gradients of padded ones, and no document knows of another."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import PreTrainedModel

from sande import parrot
from sande.errors import UserError
from sande.prompts import encode
from sande.training import packing
from sande.training.batches import features
from sande.training.losses import IGNORE, chunked_response_nll, response_nll, target_positions
from sande.training.packing import ATTENTION, PackedCollator, choose, packed_attention
from sande.types import Example, LanguageModel
from tests.sande.helpers import VOCABULARY, as_one, assert_close, random_model, with_gradients

# Prompt and response lengths: unequal, a target at the very end, and one document of two tokens.
LENGTHS = ((5, 3), (1, 1), (9, 12), (4, 1))

Feature = dict[str, list[int]]


def rows(ids: int = VOCABULARY, seed: int = 0) -> list[Feature]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for prompt, response in LENGTHS:
        tokens = torch.randint(0, ids, (prompt + response,), generator=generator).tolist()
        made.append({"input_ids": tokens, "labels": [IGNORE] * prompt + [t % VOCABULARY for t in tokens[prompt:]]})
    return made


def padded_loss(model: PreTrainedModel, batch: list[Feature]) -> Tensor:
    width = max(len(feature["input_ids"]) for feature in batch)

    def filled(name: str, value: int) -> Tensor:
        return torch.tensor([f[name] + [value] * (width - len(f[name])) for f in batch])

    mask_BT = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in batch])
    labels_BT = filled("labels", IGNORE)
    device = model.device
    hidden_BTD = model.get_decoder()(
        input_ids=filled("input_ids", 0).to(device), attention_mask=mask_BT.to(device), use_cache=False
    ).last_hidden_state
    positions = target_positions(labels_BT).to(device)
    logits_NV = model.get_output_embeddings()(hidden_BTD.flatten(0, 1)[positions])
    return response_nll(logits_NV, labels_BT.to(device).flatten()[positions + 1])


def packed_hidden(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "positions")}
    hidden_1TD: Tensor = model.get_decoder()(**inputs, use_cache=False).last_hidden_state
    return hidden_1TD


def collated(batch: list[Feature], model: PreTrainedModel, documents: int = len(LENGTHS)) -> dict[str, Any]:
    packed = PackedCollator(documents)(batch)
    return {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in packed.items()}


def packed_loss(model: PreTrainedModel, batch: list[Feature], documents: int = len(LENGTHS)) -> Tensor:
    packed = collated(batch, model, documents)
    hidden_ND = packed_hidden(model, packed).flatten(0, 1)[packed["positions"]]
    targets_N = packed["labels"].flatten()[packed["positions"] + 1]
    return chunked_response_nll(hidden_ND, model.get_output_embeddings(), targets_N)


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["as many heads of keys", "fewer heads of keys"])
@pytest.mark.parametrize("architecture", packing.ARCHITECTURES)
def test_packed_rows_have_the_loss_and_gradients_of_padded_ones(architecture: str, kv_heads: int) -> None:
    # In float64, so that what is left of gradients that nearly cancel, as of key biases, is not rounding: the two sides
    # sum in different orders, on each kind of processor in its own. The loss itself is float32 on both.
    model = random_model(architecture, kv_heads).double()
    padded = with_gradients(lambda: padded_loss(model, rows()), *model.parameters())
    with packed_attention(model):
        packed = with_gradients(lambda: packed_loss(model, rows()), *model.parameters())
    assert padded[0] > 1.0
    assert all(gradient.any() for gradient in padded[1])
    assert_close(packed, padded, 8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_with_a_parrot_too_and_its_gradient(architecture: str) -> None:
    model = random_model(architecture)
    parrot_PD = parrot.new_parrot(model, 3, "noise", seed=0)
    batch = rows()
    for feature, at in zip(batch, (1, 1, 4, 2), strict=True):
        feature["input_ids"][at:at] = [VOCABULARY, VOCABULARY + 1, VOCABULARY + 2]
        feature["labels"][at:at] = [IGNORE] * 3
    trained = [parrot_PD, *model.parameters()]
    with parrot.attached(model, parrot_PD):
        padded = with_gradients(lambda: padded_loss(model, batch), *trained)
        with packed_attention(model):
            packed = with_gradients(lambda: packed_loss(model, batch), *trained)
    assert padded[1][0].any()
    assert_close(packed, padded, 1e-5)


def test_rows_as_they_are_trained_on(tiny: LanguageModel, few_rows: tuple[Example, ...]) -> None:
    encoded = encode(tiny.tokenizer, few_rows[6:18])
    batch = [features(row) for row in parrot.insert(encoded, parrot.vocabulary(tiny.model), length=3, position=0)]
    parrot_PD = parrot.new_parrot(tiny.model, 3, "noise", seed=0)
    trained = [parrot_PD, *tiny.model.parameters()]
    with parrot.attached(tiny.model, parrot_PD):
        padded = with_gradients(lambda: padded_loss(tiny.model, batch), *trained)
        with packed_attention(tiny.model):
            packed = with_gradients(lambda: packed_loss(tiny.model, batch, documents=16), *trained)
    assert_close(packed, padded, 1e-5)


def test_under_autocast_packed_and_padded_differ_by_rounding_only() -> None:
    model = random_model("qwen2")
    with torch.autocast("cpu", torch.bfloat16):
        padded = with_gradients(lambda: padded_loss(model, rows()), *model.parameters())
        with packed_attention(model):
            packed = with_gradients(lambda: packed_loss(model, rows()), *model.parameters())
    assert_close(as_one(packed), as_one(padded), 2e-2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", packing.ARCHITECTURES)
@torch.no_grad()
def test_a_document_does_not_see_the_others(architecture: str, device: str) -> None:
    model, one, other = random_model(architecture), rows(), rows()
    torch.nn.Module.to(model, device)
    other[1]["input_ids"] = [(token + 1) % VOCABULARY for token in one[1]["input_ids"]]
    with packed_attention(model), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        before, after = (packed_hidden(model, collated(batch, model))[0] for batch in (one, other))
    begin = sum(LENGTHS[0])
    end = begin + sum(LENGTHS[1])
    assert not torch.equal(before[begin:end], after[begin:end])
    assert torch.equal(before[:begin], after[:begin])
    assert torch.equal(before[end:], after[end:])


@torch.no_grad()
def test_room_for_more_documents_changes_nothing() -> None:
    model = random_model("llama")
    exact, roomy = (PackedCollator(documents)(rows()) for documents in (4, 9))
    assert exact["cu_seq_lens_q"].tolist() == [0, 8, 10, 31, 36]
    assert roomy["cu_seq_lens_q"].tolist() == [0, 8, 10, 31, 36, 36, 36, 36, 36, 36]
    with packed_attention(model):
        assert torch.equal(packed_hidden(model, exact), packed_hidden(model, roomy))


def test_a_batch_in_full() -> None:
    first = {"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7]}
    second = {"input_ids": [8, 9], "labels": [IGNORE, 9]}
    batch = PackedCollator(documents=2)([first, second])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7, IGNORE, 9]]
    assert batch["positions"].tolist() == [0, 1, 3]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert batch["cu_seq_lens_q"].dtype == torch.int32, "what the kernel takes"
    assert batch["max_length_q"] == 3


def test_a_first_token_is_not_predicted_from_the_document_before() -> None:
    whole = {"input_ids": [5, 6], "labels": [5, 6]}
    assert PackedCollator(documents=2)([whole, whole])["positions"].tolist() == [0, 2]


def test_more_rows_than_announced_are_an_error() -> None:
    with pytest.raises(ValueError, match="4 rows where 3"):
        PackedCollator(documents=3)(rows())


def test_the_model_attends_as_before_afterwards_and_after_an_error() -> None:
    model = random_model("llama")
    with packed_attention(model):
        assert model.config._attn_implementation == ATTENTION
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), packed_attention(model):
        _ = 1 / 0
    assert model.config._attn_implementation == "sdpa"


def test_a_padded_batch_does_not_pass_for_a_packed_one() -> None:
    model = random_model("llama")
    with packed_attention(model), pytest.raises(TypeError, match="cu_seq_lens_q"):
        padded_loss(model, rows())


# --- What the kernel is called with; the kernel itself runs on a GPU only -------------------------------------------


def kernel_stand_in(takes_groups: bool, seen: list[dict[str, Any]]) -> Callable[..., Tensor]:
    """`varlen_attn` as PyTorch documents it, by dense attention under a mask."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        **options: bool,
    ) -> Tensor:
        seen.append({"max": (max_q, max_k), "window": window_size, "heads": key.shape[1], **options})
        assert options == ({"enable_gqa": True} if takes_groups else {})
        documents = torch.searchsorted(cu_seq_q[1:], torch.arange(len(query)), right=True)
        assert torch.equal(cu_seq_q, cu_seq_k)
        mask = (documents[:, None] == documents[None, :]).tril()
        heads_first = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        attended = torch.nn.functional.scaled_dot_product_attention(*heads_first, mask, scale=scale, **options)
        return attended[0].transpose(0, 1)

    return attend


@pytest.mark.parametrize("takes_groups", [True, False], ids=["PyTorch 2.12", "PyTorch 2.11"])
def test_the_kernel_gets_what_gives_the_padded_loss(takes_groups: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    model = random_model("qwen2", kv_heads=2)
    padded = with_gradients(lambda: padded_loss(model, rows()), *model.parameters())
    monkeypatch.setattr(packing, "varlen_attn", kernel_stand_in(takes_groups, seen))
    monkeypatch.setattr(packing, "_takes_grouped_heads", lambda: takes_groups)

    def by_kernel(query: Tensor, key: Tensor, value: Tensor, scaling: float, boundaries: Tensor) -> Tensor:
        return packing._by_kernel(query, key, value, scaling, boundaries, longest=21)

    monkeypatch.setattr(packing, "_by_document", by_kernel)
    with packed_attention(model):
        packed = with_gradients(lambda: packed_loss(model, rows(), documents=7), *model.parameters())
    assert_close(packed, padded, 1e-5)
    heads = 2 if takes_groups else 4
    options = {"enable_gqa": True} if takes_groups else {}
    assert seen == [{"max": (21, 21), "window": (-1, 0), "heads": heads, **options}] * 2


def test_the_installed_kernel_has_the_arguments_used() -> None:
    assert {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["as many heads of keys", "fewer heads of keys"])
@pytest.mark.parametrize("architecture", packing.ARCHITECTURES)
def test_on_a_gpu_the_kernel_differs_from_padded_float32_by_rounding_only(architecture: str, kv_heads: int) -> None:
    model = random_model(architecture, kv_heads)
    torch.nn.Module.to(model, "cuda")
    assert packing.has_kernel(model.device)
    padded = with_gradients(lambda: padded_loss(model, rows()), *model.parameters())
    with torch.autocast("cuda", torch.bfloat16), packed_attention(model):
        packed = with_gradients(lambda: packed_loss(model, rows(), documents=7), *model.parameters())
    assert_close(as_one(packed), as_one(padded), 2e-2)


# --- Which layout ---------------------------------------------------------------------------------------------------


def test_a_cpu_pads_by_itself() -> None:
    assert choose("auto", random_model("llama"), 1024, "bf16") == "padded"


def test_a_gpu_packs_by_itself_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "has_kernel", lambda device: True)
    model = random_model("llama")
    assert choose("auto", model, 1024, "bf16") == "packed"
    assert choose("auto", model, 1024, "fp32") == "padded"
    assert choose("padded", model, 1024, "bf16") == "padded"


def test_packing_can_be_asked_for_anywhere() -> None:
    assert choose("packed", random_model("llama"), 1024, "fp32") == "packed"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gpt2"}, "gpt2 models"),
        ({"attention_dropout": 0.1}, "attention dropout"),
        ({"sliding_window": 16}, "reaches back 16 tokens and rows have up to 17"),
    ],
)
def test_models_that_would_get_another_loss_are_padded_or_refused(
    changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "has_kernel", lambda device: True)
    model = random_model("mistral")
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert choose("auto", model, 17, "bf16") == "padded"
    with pytest.raises(UserError, match=f"layout is packed, but .*{reason}"):
        choose("packed", model, 17, "bf16")


def test_a_window_as_long_as_the_longest_row_does_not_matter() -> None:
    model = random_model("mistral")
    model.config.sliding_window = max(prompt + response for prompt, response in LENGTHS)
    assert choose("packed", model, 21, "bf16") == "packed"
    with torch.no_grad():
        padded = float(padded_loss(model, rows()))
        with packed_attention(model):
            assert float(packed_loss(model, rows())) == pytest.approx(padded, rel=1e-5)
