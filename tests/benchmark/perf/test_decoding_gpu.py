"""The benchmark of decoding on a GPU, with the tiny model on the CPU: all sides run, and one that differs is seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from benchmark.perf import decoding_gpu
from sande.data.builtin import sets
from sande.models import catalog, loading
from sande.prompts import encode_prompts
from sande.types import LanguageModel
from tests.sande.helpers import install_fake_vllm


def test_all_sides_run(
    tiny: LanguageModel, model_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_HOST_IP", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # set by `served`, and forgotten after the test
    install_fake_vllm(tiny, monkeypatch, longest=1024)
    folder = loading.prepare(catalog.TINY, model_cache)
    prompts = encode_prompts(tiny.tokenizer, sets.short()[:4])
    find = importlib.util.find_spec
    for there, names in ((object(), {"together", "by vLLM"}), (None, {"together"})):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *of, there=there: there if name == "vllm" else find(name, *of)
        )
        ratios = decoding_gpu.compare(folder, prompts)
        assert ratios.keys() == names
        assert min(ratios.values()) > 0
    assert "vLLM is not installed, left out" in capsys.readouterr().out


def test_a_side_that_writes_something_else_is_noticed() -> None:
    decoding_gpu.check(["a", "b"], ["a", "b"])
    with pytest.raises(SystemExit, match="the sides differ: 'c', 'b'"):
        decoding_gpu.check(["a", "c"], ["a", "b"])
