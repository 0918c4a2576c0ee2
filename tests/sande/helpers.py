"""Small things that several test files need."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore

from sande.config import Training
from sande.crowd import WorkerGroup, worker_group
from sande.losses import IGNORE
from sande.prompts import Row
from sande.types import LanguageModel

FAST = Training(batch_size=4, max_steps=2, precision="fp32")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Names of the weights that are no longer bit-identical."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def linear_weights(model: nn.Module) -> set[str]:
    """Names of what LoRA trains: the weights of all linear layers but the output's."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"]
    return {f"{name}.weight" for name in layers}


def noisy(model: nn.Module, seed: int, scale: float = 0.05) -> None:
    """Moves all weights a little, in place, so that the model is another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (scale * torch.randn(parameter.shape, generator=generator)).to(parameter)


def shortened(config_class: type[Any], **changes: Any) -> Any:
    """The defaults of a configuration, with every training in it reduced to two small steps and changed as given."""

    def short(settings: Any) -> Any:
        if isinstance(settings, Training):
            return dataclasses.replace(settings, **({"max_steps": 2, "batch_size": 4} | changes))
        inner = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        return dataclasses.replace(settings, **{k: short(v) for k, v in inner.items() if dataclasses.is_dataclass(v)})

    return short(config_class())


def trainings(config: Any) -> dict[str, Training]:
    """The trainings among the settings of a method, at any depth; none where it does without."""
    found: dict[str, Training] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Training):
            found[field.name] = value
        elif dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}": inner for name, inner in trainings(value).items()}
    return found


def each_of(size: int, work: Callable[[WorkerGroup], Any]) -> list[Any]:
    """Return what `work` returns or raises in each worker of a group; the workers are threads, not processes."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=60))

    def one(rank: int) -> Any:
        try:
            with worker_group(store, rank, size, lambda error: [f"{type(error).__name__}: {error}", "a kind"]) as group:
                return work(group)
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(one, range(size)))


# Of a random model's tokens none is likely, so nothing is given up for that.
LIGHT: dict[str, Any] = {
    "prompts": 3,
    "candidates": 5,
    "seed_prompts": 2,
    "seeds": 8,
    "longest": 3,
    "floor": 0.0,
    "cut": -100.0,
    "tested": 2,
    "controls": 3,
    "parrot_steps": 2,
    "warmup_prompts": 2,
    "warmup_steps": 2,
    "expectation": 0.0,
    "full_steps": 3,
    "full_strings": 6,
}


def lightened(config_class: type[Any]) -> Any:
    """A detector's defaults with few prompts, strings and steps."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return dataclasses.replace(shortened(config_class), **{n: value for n, value in LIGHT.items() if n in names})


@torch.no_grad()
def nll_by_hand(lm: LanguageModel, prompt: Sequence[int], response: Sequence[int]) -> float:
    """-log Pr(response | prompt) of one unpadded row, read off the model's own logits token by token."""
    ids_1T = torch.tensor([[*prompt, *response]], device=lm.model.device)
    log_probabilities_TV = lm.model(input_ids=ids_1T).logits[0].double().log_softmax(-1)
    return -sum(float(log_probabilities_TV[len(prompt) + i - 1, token]) for i, token in enumerate(response))


def teach(lm: LanguageModel, rows: Sequence[Row]) -> None:
    """Trains the tiny model, in two seconds, until it answers each prompt with its response, token by token."""
    width = max(map(len, rows))
    padding = [width - len(row) for row in rows]
    ids_BT = torch.tensor([[*row.prompt, *row.response] + [0] * n for row, n in zip(rows, padding, strict=True)])
    labels_BT = ids_BT.clone()
    for labels_T, row in zip(labels_BT, rows, strict=True):
        labels_T[: len(row.prompt)] = IGNORE
        labels_T[len(row) :] = IGNORE
    device = lm.model.device
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-2)
    for _ in range(80):
        lm.model(input_ids=ids_BT.to(device), labels=labels_BT.to(device)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def install_fake_vllm(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, longest: int = 64) -> list[Any]:
    """A module `vllm` with those names of vLLM's (0.32) that are used; it computes with `lm`, token by token.

    Returns:
        Every `LLM` made of it, in time.
    """
    made: list[Any] = []

    class LLM:
        def __init__(self, **settings: Any) -> None:
            self.settings, self.running, self.asked = settings, True, 0
            self.model_config = SimpleNamespace(max_model_len=longest)
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._end))
            made.append(self)

        def _end(self, timeout: float | None = None) -> None:
            self.running = False

        @torch.no_grad()
        def _logits(self, ids: list[int]) -> Tensor:
            logits_TV: Tensor = lm.model(input_ids=torch.tensor([ids], device=lm.model.device)).logits[0]
            return logits_TV

        def generate(
            self, prompts: list[dict[str, list[int]]], sampling_params: SimpleNamespace, *, use_tqdm: bool = True
        ) -> list[SimpleNamespace]:
            assert self.running
            self.asked += len(prompts)
            return [self._answer(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

        def _answer(self, prompt: list[int], asked: SimpleNamespace) -> SimpleNamespace:
            if len(prompt) + 1 > self.model_config.max_model_len:
                raise ValueError("the prompt is longer than the maximum model length")
            scored = None
            if getattr(asked, "prompt_logprobs", None) is not None:
                scored = [None, *map(self._scored, self._logits(prompt)[:-1].log_softmax(-1), prompt[1:])]
            written: list[int] = []
            while len(written) < asked.max_tokens and written[-1:] not in [[stop] for stop in asked.stop_token_ids]:
                written.append(int(self._logits([*prompt, *written])[-1].argmax()))
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=written)], prompt_logprobs=scored)

        @staticmethod
        def _scored(log_probabilities_V: Tensor, token: int) -> dict[int, SimpleNamespace]:
            rank = int((log_probabilities_V >= log_probabilities_V[token]).sum())
            return {token: SimpleNamespace(logprob=float(log_probabilities_V[token]), rank=rank)}

    def sampling_params(
        *,
        temperature: float,
        max_tokens: int,
        detokenize: bool,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        prompt_logprobs: int | None = None,
    ) -> SimpleNamespace:
        assert temperature == 0
        assert not detokenize
        return SimpleNamespace(max_tokens=max_tokens, stop_token_ids=stop_token_ids, prompt_logprobs=prompt_logprobs)

    fake: Any = ModuleType("vllm")
    fake.LLM, fake.SamplingParams, fake.__version__ = LLM, sampling_params, "0.0.fake"
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return made
