"""The output layer in float32, of families that change their logits behind it."""

import pytest
import torch
from transformers import AutoModelForCausalLM as Models
from transformers import CohereConfig, Gemma2Config, GraniteConfig, LlamaConfig, PreTrainedConfig

from sande.models.layers import output_in_float32

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
