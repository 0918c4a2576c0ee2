"""The benchmark of training on a GPU, at a tiny shape on the CPU: it runs, and sees sides that compute other things."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmark.perf import training_gpu
from sande.training import packing

TINY = ["--shape", "tiny", "--device", "cpu", "--precision", "fp32"]


@pytest.mark.slow
def test_all_sides_run_and_agree(capsys: pytest.CaptureFixture[str]) -> None:
    training_gpu.main([*TINY, "--recompute", "1"])
    lines = capsys.readouterr().out.splitlines()
    names = ["published recipe", "padded, 8 rows", "packed, 8 rows", "packed, 1,024 tokens"]
    assert [line.split(":")[0] for line in lines[1:]] == names


@pytest.mark.slow
def test_documents_that_see_each_other_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(query: Tensor, key: Tensor, value: Tensor, scaling: float, boundaries: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling).transpose(1, 2)

    monkeypatch.setattr(packing, "_by_document", leaky)
    with pytest.raises(AssertionError, match="packed, 8 rows: rows see each other"):
        training_gpu.main(TINY)


def test_another_loss_or_gradient_is_noticed() -> None:
    training_gpu.check([(4.86, 0.2086), (4.86, 0.2086)], 1e-4)
    for other in ((4.87, 0.2086), (4.86, 0.2087)):
        with pytest.raises(AssertionError, match="do not compute the same"):
            training_gpu.check([(4.86, 0.2086), other], 1e-4)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training_gpu.main([])
    assert capsys.readouterr().out == "training_gpu: needs a CUDA GPU, left out\n"


def test_rows_fill_steps_and_packs() -> None:
    rows = [{"input_ids": [1] * length, "labels": [1] * length} for length in (5, 6, 4, 9, 1, 2, 3, 3, 8)]
    steps = training_gpu.by_rows(rows, micro=2)
    assert [[len(part) for part in step] for step in steps] == [[2, 2, 2, 2]], "the ninth row fills no step"
    packs = training_gpu.by_tokens(rows, limit=15)
    assert [[len(row["input_ids"]) for row in part] for step in packs for part in step] == [
        [5, 6, 4],
        [9, 1, 2, 3],
        [3, 8],
    ]


def test_operations_by_hand() -> None:
    bench = training_gpu.Bench(training_gpu.SHAPES["tiny"], torch.device("cpu"), "fp32")
    layers = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert bench.operations(tokens=10, targets=3) == 6 * (layers * 10 + 128 * 32 * 3)
