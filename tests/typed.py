"""Commands that are typed in another process: all of them in one, which imports what they need once."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TYPE = """
import json, sys
from typer.testing import CliRunner
from benchmark.cli.main import app
wanted, *commands = json.loads(sys.argv[1])
said = []
for words in commands:
    done = CliRunner().invoke(app, words)
    if done.exit_code != wanted:
        sys.exit(f"{words}: {done.exit_code}, {done.exception!r}\\n{done.output}")
    said.append(done.stdout + done.stderr)
print(json.dumps(said))
"""


def type_all(
    folder: Path, packages: Sequence[Path], *commands: Sequence[str], code: int = 0, **environment: str
) -> list[str]:
    """Return what each command prints in a folder; every one of them ends with the same exit code.

    Args:
        folder: working folder.
        packages: folders from which Python imports, before those that are installed.
        commands: words of each command, without `sande-bench`.
        code: the exit code.
        environment: changes of it.
    """
    path = os.pathsep.join(map(str, packages))
    done = subprocess.run(
        [sys.executable, "-c", TYPE, json.dumps([code, *commands])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said: list[str] = json.loads(done.stdout)
    return said
