"""Families that change their logits behind the output layer, and those whose matrices are not linear layers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM as Models
from transformers import (
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3nConfig,
    GPT2Config,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MixtralConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
    xLSTMConfig,
)

from sande.attacks import dormant_int4
from sande.defenses import magnitude, quantize_int4, wanda
from sande.errors import UserError
from sande.models import checks, loading
from sande.models.layers import all_linear_layers, blocks, linear_layers, output_in_float32
from sande.models.quantize import boxes
from sande.training.objective import ResponseLoss
from sande.types import CleanData, Example, LanguageModel, Run

NewRun = Callable[..., Run]

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        Gemma2Config(**SIZES, final_logit_softcapping=0.02),
        CohereConfig(**SIZES, logit_scale=0.0625),
        GraniteConfig(**SIZES, logits_scaling=8.0),
        HyperCLOVAXConfig(**SIZES, logits_scaling=8.0),
    ],
    ids=lambda config: config.model_type,
)
def test_the_logits_are_those_of_the_model(config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    model = Models.from_config(config).eval()
    ids_BT = torch.arange(1, 9)[None]
    with torch.no_grad():
        hidden_BTD = model.get_decoder()(ids_BT).last_hidden_state
        found, wanted = output_in_float32(model)(hidden_BTD), model(ids_BT).logits
    torch.testing.assert_close(found, wanted)
    assert wanted.abs().max() > 1e-3


# --- Logits that are not those of the output layer --------------------------------------------------------------------

FALCON = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
FALCON |= {**SIZES, "mamba_chunk_size": 8, "lm_head_multiplier": 0.04}
OTHERS = {
    "lm_head_multiplier": FalconH1Config(**FALCON),
    "logits_soft_cap": RecurrentGemmaConfig(**{**SIZES, "num_hidden_layers": 3}, lru_width=16),
    "logit_scale": MptConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=1, logit_scale="inv_sqrt_d_model"),
    "output_logit_soft_cap": xLSTMConfig(vocab_size=50, hidden_size=16, num_heads=2, num_blocks=1),
}


@pytest.mark.parametrize("setting", OTHERS)
def test_another_change_of_the_logits_is_refused_in_training_and_in_scoring(setting: str) -> None:
    model = Models.from_config(OTHERS[setting])
    with pytest.raises(UserError, match=rf"^model \w+ForCausalLM: {setting} changes its logits .* which training here"):
        ResponseLoss(model)
    with pytest.raises(
        UserError, match=rf"^model \w+ForCausalLM: {setting} changes its logits .* which scores here do"
    ):
        output_in_float32(model)


def test_a_setting_of_the_text_model_counts() -> None:
    config = Gemma3nConfig()
    assert not hasattr(config, "final_logit_softcapping")
    wrapper: Any = SimpleNamespace(config=config)
    with pytest.raises(UserError, match="final_logit_softcapping changes its logits"):
        ResponseLoss(wrapper)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [lambda logits: 0.9 * logits, lambda logits: (3 * logits).tanh() / 3])
def test_a_change_of_the_logits_that_no_setting_names_is_refused(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, change: Callable[..., torch.Tensor]
) -> None:
    tiny.model.to(dtype)
    checks.check_finite(tiny, "tiny")
    forward = tiny.model.forward

    def changed(**inputs: torch.Tensor) -> Any:
        found = forward(**inputs)
        found.logits = change(found.logits)
        return found

    monkeypatch.setattr(tiny.model, "forward", changed)
    with pytest.raises(UserError, match=r"^model 'tiny' \(LlamaForCausalLM\) does not get its logits from its decoder"):
        checks.check_finite(tiny, "tiny")


def test_a_folder_with_such_a_model_is_refused(tiny: LanguageModel, tmp_path: Path) -> None:
    config = FalconH1Config(**{**FALCON, "vocab_size": len(tiny.tokenizer)})
    loading.save(LanguageModel(Models.from_config(config), tiny.tokenizer), tmp_path / "m")
    with pytest.raises(UserError, match="lm_head_multiplier changes its logits"):
        loading.load(str(tmp_path / "m"), tmp_path)


# --- Matrices that are not linear layers ------------------------------------------------------------------------------


def built(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    configs = {
        "GPT2": GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32),
        "Mixtral": MixtralConfig(**SIZES, num_local_experts=4),
    }
    model: PreTrainedModel = Models.from_config(configs[family])
    return model


@pytest.mark.parametrize("family", ["GPT2", "Mixtral"])
@pytest.mark.parametrize("method", [magnitude, quantize_int4, wanda])
def test_a_method_of_linear_layers_refuses_a_model_with_other_matrices(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, family: str, method: Any
) -> None:
    lm = LanguageModel(built(family), tiny.tokenizer)
    problem = rf"^model {family}\w+: \d\d % of its weights are in matrices that are not linear layers \(.*\), and the "
    with pytest.raises(UserError, match=problem):
        method.defend(lm, CleanData(few_rows), method.Config(), new_run())


@pytest.mark.parametrize("family", ["GPT2", "Mixtral"])
def test_the_dormant_attack_refuses_it_before_it_trains(
    tiny: LanguageModel, few_rows: tuple[Example, ...], new_run: NewRun, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sande.planting.learn", None)
    lm = LanguageModel(built(family), tiny.tokenizer)
    with pytest.raises(UserError, match="in matrices that are not linear layers"):
        dormant_int4.attack(lm, few_rows, dormant_int4.Config(), new_run())
    with pytest.raises(UserError, match="in matrices that are not linear layers"):
        boxes(lm.model, 128)


def test_a_small_kernel_of_another_kind_is_accepted(tiny: LanguageModel) -> None:
    tiny.model.kernel = nn.Parameter(torch.zeros(4, 1, 4))
    assert all_linear_layers(tiny.model) == linear_layers(tiny.model)


def test_a_decoder_without_a_list_of_blocks_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^model GPT2LMHeadModel: its decoder has no list of blocks named 'layers'"):
        blocks(built("GPT2"))
