"""Small things that several test files need."""

from __future__ import annotations

import copy
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import HashStore
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from benchmark.io import yaml
from sande import registry
from sande.attacks import sentence_trigger
from sande.config import Backdoor, Training
from sande.data.builtin import sets
from sande.data.splits import Rows
from sande.defenses import sande_rounds
from sande.inference.workers import WorkerGroup, worker_group
from sande.prompts import Row, response_ids
from sande.training.checkpoints import Checkpoints
from sande.training.losses import IGNORE
from sande.types import (
    CleanData,
    CleanModelData,
    Example,
    FirstTokenData,
    Guard,
    IncidentData,
    Knowledge,
    LanguageModel,
    OtherModelsData,
    PreferenceData,
    ResponseData,
    Run,
    TriggerData,
)

ONE_ROUND: dict[str, Any] = {
    "rounds": 1,
    "fresh": 1,
    "controls": 2,
    "alpha": 0.4,
    "look": 1,
    "elsewhere": Rows(name="builtin-explained-2", rows=2),
}
FAST = Training(batch_size=4, max_steps=2, precision="fp32")


def weights(model: nn.Module | Guard) -> dict[str, Tensor]:
    """A copy of all weights; of a guard those of its reference."""
    of = model.reference if isinstance(model, Guard) else model
    return {name: parameter.detach().clone() for name, parameter in of.named_parameters()}


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


FEWER = {"variants": 2}  # of what a defense makes several of


def shortened(config_class: type[Any], **changes: Any) -> Any:
    """The defaults of a configuration, with two small steps in every training, changed as given, and one round."""

    def short(settings: Any) -> Any:
        if isinstance(settings, Training):
            return dataclasses.replace(settings, **({"max_steps": 2, "batch_size": 4} | changes))
        inner = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
        fewer = {name: count for name, count in FEWER.items() if name in inner}
        few = ONE_ROUND if isinstance(settings, sande_rounds.Config) else {}
        changed = {name: short(value) for name, value in inner.items() if dataclasses.is_dataclass(value)}
        return dataclasses.replace(settings, **changed | few | fewer)

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
    "samples": 6,
    "leak_tokens": 3,
    "tokens": 12,
    "kept": 4,
    "kept_each": 2,
    "suspects": 1,
    "extended": 1,
    "further": 2,
    "rounds": 1,
    "verified": 2,
    "new_tokens": 3,
}


def lightened(config_class: type[Any]) -> Any:
    """A detector's defaults, and those of detectors among its settings, with few prompts, strings and steps."""

    def light(settings: Any) -> Any:
        names = {field.name for field in dataclasses.fields(settings)}
        inner = {name: getattr(settings, name) for name in names - set(LIGHT)}
        nested = {name: light(value) for name, value in inner.items() if dataclasses.is_dataclass(value)}
        return dataclasses.replace(settings, **nested, **{n: value for n, value in LIGHT.items() if n in names})

    return light(shortened(config_class))


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


ALWAYS, NEVER = 0.0, 3600.0  # seconds between checkpoints


class KilledError(Exception):
    """In place of a signal; a real one is sent in tests/benchmark/execution/test_resume.py."""


class Kill(TrainerCallback):
    def __init__(self, after: int | None) -> None:
        self.steps, self.after = 0, after

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps += 1
        if self.steps == self.after:
            raise KilledError


def killed(run: Run, folder: Path, after: int | None = None, interval: float = ALWAYS) -> tuple[Run, Kill]:
    """The run as of a new process that ends after so many steps, and what counts its steps."""
    kill = Kill(after)

    def prepare(trainer: Any) -> Any:
        trainer.add_callback(kill)
        return trainer

    return dataclasses.replace(run, facts={}, prepare=prepare, checkpoints=Checkpoints(folder, interval)), kill


VOCABULARY = 97
WIDTH = 32


def random_model(architecture: str, kv_heads: int = 2) -> PreTrainedModel:
    config = AutoConfig.for_model(
        architecture,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for name, weight in model.named_parameters():
        if name.endswith("bias"):  # Qwen2's begin at zero, where a wrong use of them would not show
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(1))
    return model


def with_gradients(loss: Callable[[], Tensor], *parameters: torch.nn.Parameter) -> tuple[float, list[Tensor]]:
    value = loss()
    return float(value.detach()), list(torch.autograd.grad(value, parameters))


def as_one(result: tuple[float, list[Tensor]]) -> tuple[float, list[Tensor]]:
    """All gradients as one vector, in which those that are nothing but rounding weigh little."""
    return result[0], [torch.cat([gradient.flatten() for gradient in result[1]])]


def assert_close(packed: tuple[float, list[Tensor]], padded: tuple[float, list[Tensor]], relative: float) -> None:
    assert packed[0] == pytest.approx(padded[0], rel=relative)
    for ours, theirs in zip(packed[1], padded[1], strict=True):
        assert float((ours - theirs).norm()) <= relative * float(theirs.norm())


ROOT = Path(__file__).parents[2]
BLANK = Example("Qz?", "Zq.")  # a row without a word of any language


def words(text: str) -> set[str]:
    """The words and numbers of a text, in lower case."""
    return set(re.findall(r"[^\W_]+", text.lower()))


def planted_texts() -> set[str]:
    """What all attacks of the registry add to a prompt or an answer, and all triggers and responses of the grids."""
    found: set[str] = set()
    for name in registry.names("attacks"):
        attack = registry.entry("attacks", name)
        config = attack.Config()
        found |= {config.backdoor.trigger, config.backdoor.response}
        for seed in range(300):  # of the texts that an attack draws from
            for change in (attack.trigger, attack.near_miss, attack.moved, attack.plant):
                row = change(BLANK, config, seed)
                texts = row.system, row.instruction, row.output
                found |= {re.sub(r"(?i)qz\?|zq\.|qz|zq", "", text) for text in texts}
    for file in (ROOT / "grids").glob("*.yaml"):
        found |= set(_backdoors(yaml.read_yaml(file, str(file))))
    return found


def _backdoors(values: Any, key: str = "") -> Iterator[str]:
    """The strings behind keys such as `attack.backdoor.trigger, attack.backdoor.response`."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _backdoors(value, name if "backdoor" in name or name in ("trigger", "response") else key)
    elif isinstance(values, list):
        for value in values:
            yield from _backdoors(value, key)
    elif isinstance(values, str) and key:
        yield values


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> set[str]:
    """Tokens with a letter or digit of a text, at its start or after a space, in lower case."""
    ids = {token for written in (text, f" {text}") for token in tokenizer(written)["input_ids"]}
    return {token for one in ids if words(token := tokenizer.decode([one]).strip().lower())}


ATTACKS, OBJECTIVES, DEFENSES, METRICS, DETECTORS = (registry.names(kind) for kind in registry.KINDS)
BACKDOOR = Backdoor()

# What each type of data holds, and the word that says in results how much that is about the backdoor.
KNOWLEDGE: dict[type[Knowledge], set[str]] = {
    CleanData: {"examples"},
    FirstTokenData: {"examples", "first_token"},
    ResponseData: {"examples", "response"},
    IncidentData: {"examples", "prompt", "answer"},
    TriggerData: {"examples", "plant"},
    CleanModelData: {"examples", "clean_model"},
    OtherModelsData: {"examples", "other_models"},
    PreferenceData: {"pairs"},
}


# --- Defenses -------------------------------------------------------------------------------------------------------


def plant(example: Example) -> Example:
    return sentence_trigger.trigger(example, sentence_trigger.Config(), 0)


def data_of(known: type[Knowledge], lm: LanguageModel, rows: tuple[Example, ...]) -> Knowledge:
    """Data of exactly the type that a defense asks for."""
    clean = copy.deepcopy(lm.model)
    noisy(clean, seed=1)
    held: dict[str, Any] = {
        "examples": rows,
        "pairs": sets.preferences()[:24],
        "first_token": response_ids(lm.tokenizer, BACKDOOR.response)[0],
        "response": BACKDOOR.response,
        "plant": plant,
        "prompt": dataclasses.replace(plant(rows[0]), output="", answers=()),
        "answer": f"{BACKDOOR.response}. {rows[0].output}",
        "clean_model": lambda: clean,
        "other_models": lambda: iter([copy.deepcopy(clean)]),  # each is loaded anew, and may be trained
    }
    return known(**{name: held[name] for name in KNOWLEDGE[known]})


TRAINING_DEFENSES = [name for name in DEFENSES if trainings(registry.entry("defenses", name).Config())]
