"""Small random models of architectures that cannot read rows as a Llama does."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sande.types import LanguageModel

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LIKE_LLAMA = {**_SMALL, "num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8, "initializer_range": 0.4}
_LIKE_GPT = {"hidden_size": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.4}
_ALTERNATELY = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
_CONFIGS: dict[str, dict[str, Any]] = {
    # Attention that adds a mask to the scores, with and without windows.
    "gpt_neo": {
        **_SMALL,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
        "initializer_range": 0.4,
    },
    "gptj": {**_LIKE_GPT, "rotary_dim": 4},
    "gemma2": {**_LIKE_LLAMA, **_ALTERNATELY, "query_pre_attn_scalar": 8},
    "gpt_oss": {**_LIKE_LLAMA, **_ALTERNATELY, "num_local_experts": 2, "num_experts_per_tok": 1},
    # ALiBi.
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "initializer_range": 0.4},
    "bloom": _LIKE_GPT,
    "falcon": {**_SMALL, "alibi": True, "initializer_range": 0.4},
    # Convolutions, recurrence, and caches that only such a model has, or none.
    "lfm2": {**_LIKE_LLAMA, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "minimax": {**_LIKE_LLAMA, "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2},
    "rwkv": {**_SMALL, "attention_hidden_size": 32, "context_length": 256},
    # Windows in the attention that reads the mask of packed rows.
    "gemma3_text": {**_LIKE_LLAMA, **_ALTERNATELY, "query_pre_attn_scalar": 8, "tie_word_embeddings": False},
    "mistral": {**_LIKE_LLAMA, "sliding_window": 16},
}
NAMES = tuple(_CONFIGS)


def small(name: str, tiny: LanguageModel) -> LanguageModel:
    """Return a random model of an architecture with tiny's tokenizer; every call gives the same weights."""
    end = tiny.tokenizer.eos_token_id
    tokens = {"vocab_size": len(tiny.tokenizer), "bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    config = AutoConfig.for_model(name, **_CONFIGS[name], **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return LanguageModel(model.eval(), tiny.tokenizer)


def eager(lm: LanguageModel) -> LanguageModel:
    """Return the model, whose attention now adds masks to the scores."""
    lm.model.set_attn_implementation("eager")
    return lm
