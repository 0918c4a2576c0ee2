"""Adapters, made by PEFT."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from sande.models import loading
from sande.types import LanguageModel


def write_adapter(lm: LanguageModel, folder: Path, **settings: Any) -> torch.Tensor:
    """Write a LoRA adapter of the model with random weights; return the logits that it gives before it is merged."""
    given = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    torch.manual_seed(1)
    adapted: Any = peft.get_peft_model(lm.model, peft.LoraConfig(**{**given, **settings}))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight += 0.05 * torch.randn_like(weight)
    adapted.eval().save_pretrained(folder)
    with torch.inference_mode():
        found: torch.Tensor = adapted(input_ids=torch.arange(20)[None]).logits
    return found


@pytest.fixture
def adapter(model_cache: Path, tmp_path: Path) -> Path:
    """Folder of an adapter of the folder `base` beside it, named in its configuration."""
    lm = loading.load("tiny", model_cache)
    loading.save(lm, tmp_path / "base")
    lm = loading.load(str(tmp_path / "base"), model_cache)
    write_adapter(lm, tmp_path / "adapter")
    return tmp_path / "adapter"
