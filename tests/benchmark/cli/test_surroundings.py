"""The program in odd surroundings: it works, or ends with one line on the standard error."""

import errno
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer

from benchmark.cli import app, surroundings
from sande.errors import UserError
from tests.benchmark.helpers import ROOT, invoke, mistake

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LONG, HALF = "n" * 300, "\udc80\udcff"


def ended(
    folder: Path, *arguments: str, stdout: str = "", env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit code, standard output and error of the program in a folder."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmark.cli.main import main; main()"
    with open(stdout or os.devnull, "w", encoding="utf-8") as out:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=folder,
            env=os.environ | (env or {}),
            stdout=out if stdout else subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


def test_an_ascii_terminal_gets_escapes(tmp_path: Path) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids/own.yaml").write_text("about: Grüße – 你好\n", encoding="utf-8")
    code, out, error = ended(tmp_path, "show", "grid", "own", env=ASCII)
    assert (code, error) == (0, "")
    assert out.startswith("own: Gr")
    code, out, error = ended(tmp_path, "--help", env=ASCII)
    assert (code, error) == (0, "")


def test_a_full_standard_output_is_one_line(tmp_path: Path) -> None:
    code, _, error = ended(tmp_path, "list", "models", stdout="/dev/full")
    assert code == app.USERS_MISTAKE
    assert error == "sande-bench: standard output: it cannot be written (No space left on device); use another one\n"


def test_a_removed_working_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: os.stat(tmp_path / "gone"))
    with pytest.raises(UserError, match="the working folder was removed"):
        surroundings.prepare()
    assert mistake("list", "models") == (
        "sande-bench: the working folder was removed; use 'cd' to a folder that exists"
    )


def test_an_unknown_backend_of_matplotlib_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    assert invoke("list", "models").exit_code == 0
    assert "MPLBACKEND" not in os.environ


@pytest.mark.parametrize("odd", [LONG, HALF], ids=["long", "not UTF-8"])
@pytest.mark.parametrize(
    "typed",
    [
        "run {}",
        "plan {}.yaml",
        "plan quickstart --scale {}",
        "plan quickstart --set data.name={}",
        "plan quickstart --set model={}",
        "plan quickstart --only model={}",
        "plan quickstart --store {}",
        "report {}",
        "compare {}",
        "publish {}",
        "leaderboard {}",
        "leaderboard check {}.json",
        "leaderboard entry {} sft",
        "leaderboard reveal {} {}",
        "leaderboard secret {}",
        "scan {}",
        "scan tiny --data {}",
        "scan tiny --out {}",
        "scan {}.yaml",
        "clean {} --trigger x",
        "clean tiny --incident {}",
        "detection {}.yaml",
        "detection {}.json",
        "export {} out",
        "show defense {}",
        "list {}",
        "init {}",
        "store list --store {}",
    ],
)
def test_any_name_in_any_argument_is_one_line(
    typed: str, odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if odd == HALF and typed in ("leaderboard secret {}", "plan quickstart --store {}", "scan tiny --out {}"):
        pytest.skip("a file may have any name")
    line = mistake(*(word.replace("{}", odd) for word in typed.split()))
    assert "; " in line or "there are" in line


def test_an_error_of_the_system_is_a_sentence() -> None:
    @app.one_sentence
    def command(error: Exception) -> None:
        raise error

    for error in (
        OSError(errno.EACCES, "Permission denied", "a file"),
        UnicodeEncodeError("utf-8", "\udc80", 0, 1, ""),
    ):
        with pytest.raises(typer.Exit):
            command(error)
    with pytest.raises(OSError, match="no network"):
        command(OSError("no network"))
