"""What libraries may say while a grid runs: errors."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Leave the log to our own lines, one at an interval and one a stage: no progress bars, no warnings."""
    import datasets
    import transformers

    for name in ("ray", "ray.tune", "ray.train", "lm_eval", "DeepSpeed", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_is_error)  # which sets its level anew when it is imported
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore")


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
