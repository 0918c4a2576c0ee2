"""Silence the libraries while a grid runs: of their messages only errors reach the log."""

from __future__ import annotations

import logging
import warnings

LOGGERS = ("ray", "ray.tune", "ray.train", "lm_eval", "DeepSpeed", "torch.distributed")
# Packages whose warnings are silenced. Those of other code, such as a plug-in, are shown.
PACKAGES = (
    *("accelerate", "datasets", "deepspeed", "huggingface_hub", "lm_eval", "peft", "ray", "tokenizers", "torch"),
    *("transformers", "trl", "vllm"),
)


def quiet() -> None:
    """Leave the log to our own lines, one at an interval and one a stage: no library's progress bars and warnings."""
    import datasets
    import transformers

    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_is_error)  # its level is set again when it is imported
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=rf"({'|'.join(PACKAGES)})(\.|$)")


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
