"""Where `sande-bench` and `python -m benchmark` start: Ctrl-C ends them without a traceback, even during imports."""

import sys

INTERRUPTED = 130  # as a shell has it


def main() -> None:
    """Import and run the command line."""
    try:
        from benchmark.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
