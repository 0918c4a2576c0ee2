"""Run the smoke grid with the lowest and the newest libraries that pyproject.toml allows, and print a table.

    python -m tests.matrix [lowest] [newest]

Each end gets a fresh environment in a temporary folder, which is removed afterwards. `lowest` installs the lower bound
of every dependency, `newest` what the registry has within the ranges. PyTorch is that of constraints.txt in both, since
another release would bring gigabytes of CUDA libraries. Ends with exit code 1 where anything failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHOWN = ("ray", "transformers", "trl", "torch", "numpy")
SMOKE = ("grids/smoke.yaml",)
# One attack and its evaluation in worker groups of two, which Ray Train starts.
GROUPS = ("grids/smoke.yaml", "--only", "defense=none", "--set", "resources.workers=2", "--set", "resources.cpus=1")
# What depends on parts of Ray, transformers and TRL that a release may change, beyond what the grid runs.
TESTS = (
    "tests/benchmark/execution/test_driver.py",
    "tests/benchmark/execution/test_ray_env.py",
    "tests/sande/defenses/test_dpo.py",
    "tests/sande/models/test_tokenizers.py",
    "tests/sande/training/test_lora.py",
    "tests/sande/training/test_packing.py",
)
TESTERS = ("pytest", "hypothesis")


def dependencies(root: Path = ROOT) -> list[str]:
    """Return the requirements of the package itself, without its extras."""
    found: list[str] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return found


def lowest(requirements: Iterable[str]) -> list[str]:
    """Return the requirements with each lower bound as the only release that is allowed."""
    return [re.sub(r">=([^,]+)(,.*)?$", r"==\1", requirement) for requirement in requirements]


def newest(requirements: Iterable[str]) -> list[str]:
    """Return the requirements as they are: pip takes the newest release within a range."""
    return list(requirements)


ENDS: dict[str, Callable[[Iterable[str]], list[str]]] = {"lowest": lowest, "newest": newest}


def requirements(end: str, root: Path = ROOT) -> list[str]:
    """Return what an end of the ranges installs, PyTorch as in constraints.txt."""
    constraints = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = [line for line in constraints if line.startswith("torch==")]
    others = [each for each in dependencies(root) if not each.startswith("torch>")]
    return [*ENDS[end](others), *torch]


def passes(command: Sequence[object], folder: Path, name: str) -> bool:
    """Return whether a command passes; print its last lines where it does not."""
    begin, log = time.monotonic(), folder / f"{name}.log"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    print(f"  {name}: {'passed' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - begin:.0f} s", flush=True)
    if done.returncode:
        print(*log.read_text(encoding="utf-8", errors="replace").splitlines()[-40:], sep="\n", flush=True)
    return done.returncode == 0


def versions(python: Path) -> list[str]:
    """Return the releases of the libraries that the table shows, and of Python."""
    code = (
        "import platform, sys; from importlib.metadata import version; "
        "print(platform.python_version(), *map(version, sys.argv[1:]))"
    )
    done = subprocess.run([python, "-c", code, *SHOWN], capture_output=True, text=True, check=True)
    return done.stdout.split()


def tried(end: str) -> list[str]:
    """Install one end, run everything with it, and return its row of the table."""
    print(f"{end}:", flush=True)
    with tempfile.TemporaryDirectory(prefix="sande-matrix-") as name:
        folder = Path(name)
        python = folder / "env" / "bin" / "python"
        venv.create(folder / "env", with_pip=True)
        wanted = requirements(end)
        if not passes([python, "-m", "pip", "install", "--quiet", *wanted, *TESTERS], folder, "install"):
            return [end, *["?"] * (1 + len(SHOWN)), "not installed", "", ""]
        results = [
            passes([python, "-m", "benchmark", "run", *grid, *places(folder, column)], folder, column)
            for column, grid in (("smoke", SMOKE), ("groups", GROUPS))
        ]
        results.append(passes([python, "-m", "pytest", "-p", "no:cacheprovider", *TESTS], folder, "tests"))
        return [end, *versions(python), *("passed" if each else "FAILED" for each in results)]


def places(folder: Path, name: str) -> list[object]:
    """Return the options for a run's store and results."""
    return ["--store", folder / f"{name}-store", "--results", folder / f"{name}-results"]


def main(arguments: Sequence[str]) -> int:
    """Print the table; return the exit code."""
    if unknown := set(arguments) - set(ENDS):
        print(f"{', '.join(sorted(unknown))}: not an end of the ranges; choose from {', '.join(ENDS)}")
        return 2
    rows = [tried(end) for end in arguments or ENDS]
    heads = ["", "python", *SHOWN, "smoke grid", "two workers", "tests"]
    for row in (heads, ["---"] * len(heads), *rows):
        print("|", " | ".join(row), "|")
    return 0 if all(row[-3:] == ["passed"] * 3 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
