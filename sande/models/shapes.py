"""Read what is known of a model before its weights are loaded: its configuration and the number of its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sande.models import catalog, loading, memory, sizes
from sande.models.checks import check_hub, checked_folder, fetch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def config_of(name: str, cache: Path) -> PreTrainedConfig | None:
    """Return the configuration of a model, or of an adapter's base; None where it cannot be read without the weights.

    Args:
        name: as for `sande.models.catalog.identify`.
        cache: folder for models that are built or converted once.

    Raises:
        UserError: as `sande.models.loading.weights_folder`, or the model is refused.
    """
    from transformers import AutoConfig

    folder = loading.weights_folder(name, cache)
    if folder is not None:
        file: Path | None = checked_folder(str(folder)) / "config.json"
    else:
        repo, revision = catalog.identify(catalog.base_of(name)).split("@")
        check_hub(repo, revision)
        file = fetch(repo, revision, "config.json")
    try:
        return AutoConfig.from_pretrained(file, trust_remote_code=False) if file else None
    except Exception:  # the load says what is wrong with an untrusted file
        return None


def parameters(name: str, cache: Path) -> int | None:
    """Return the number of a model's parameters; None where it cannot be known without the weights.

    Those of a folder are counted in the headers of its files. For a model of the Hub, whose files may not be here yet,
    the model is built without memory for weights (PyTorch's device `meta`).

    Args:
        name: as for `config_of`.
        cache: as for `config_of`.

    Raises:
        UserError: as `config_of`.
    """
    folder = loading.weights_folder(name, cache)
    if folder is not None:
        return memory.needed(checked_folder(str(folder))).parameters
    config = config_of(name, cache)
    if config is None or (getattr(config.get_text_config(), "num_hidden_layers", None) or 0) > sizes.MOST_LAYERS:
        return None
    model = sizes.built(config)
    return None if model is None else sum(parameter.numel() for parameter in model.parameters())
