"""Time `sande-bench scan` of a model without a backdoor: nothing ends its search early, and it looks twice.

    python -m benchmark.perf.scanning

SmolLM2-135M-Instruct is asked in its chat template, whose prompts are longer than those of `paper`. The time is that of
the default detector, `haystack`, without the shorter look in other formats.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmark.detection.scan import How, scan
from benchmark.perf.outcome import tell
from sande.models import catalog

ROWS, SECONDS = 400, 240


def main() -> None:
    """Scan, and print the seconds of each step and of all."""
    how = How("haystack", {}, "builtin-short", ROWS, reference=None, seed=0, prompt_format="chat")
    with tempfile.TemporaryDirectory() as folder:
        found = scan(catalog.EMBEDDED, how, Path(folder), lambda line: None)
    if found["alarm"] or set(found["facts"]["scores"]) != {"start", "end"}:
        raise SystemExit(f"an alarm, or no search behind answers: {found['facts']['scores']}")
    steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in found["facts"]["seconds"].items())
    print(f"  {steps} s; score {found['score']:.2f}")
    tell("scan of a model without a backdoor", found["seconds"], SECONDS, "s", at_most=True)


if __name__ == "__main__":
    main()
