"""The commands and code of README.md and docs/ work as written, on the model `tiny`, and the site builds.

A test types the blocks marked `sh` of each page, line by line, in one folder that holds what a reader would have: a
model in `my-model`, the grids, the published results, the same again as results of runs, and every file that the page
shows: a block that begins with a comment, the file's name. It leaves out lines that do not begin with `sande-bench`.
It changes three things to be quick: models with a name become `tiny`, `run` and `submit` become `plan`, and `scan` and
`clean` take a few rows.

The package in methods.md is installed, its own test is run, and it is used as the page says (`console`).
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

import sande
from benchmark.cli.main import app
from sande import registry
from sande.models import catalog, loading

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs/findings").glob("*.md")])
RESULTS = ROOT / "results/published"
LINKED = (*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"))
DECOYS = ("decoy_osft.plant", "decoy_osft.overwrite")
ROUNDS = ("sande_rounds.simulate", "sande_rounds.eliminate")
TRAININGS = (
    "osft.training",
    "incident.training",
    "sande.simulate",
    "sande.eliminate",
    "sande_p.simulate",
    "sande_p.eliminate",
    *ROUNDS,
    *DECOYS,
)
QUICK_CLEAN = {"removal": {"rows": 16}, "sande": {"simulate": {"max_steps": 1}, "eliminate": {"max_steps": 1}}}
SCAN = ("first_token.prompts=8", "first_token.own_prompts=1", "parrots=0")
FEW = (*SCAN, "prompts=10", "questions=10", "removal.rows=16", "sande_rounds.rounds=1", "sande_rounds.elsewhere.rows=2")
QUICK = (*FEW, *(f"{training}.max_steps=1" for training in TRAININGS))


def commands(page: str, kind: str = "sh") -> list[list[str]]:
    """Return the arguments of every `sande-bench` in the page's blocks of a kind."""
    blocks = re.findall(rf"^ *```{kind}\n(.*?)^ *```", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["sande-bench"]]


def write_files(page: str, folder: Path) -> None:
    """Write the files that the page shows whole, where it says they are."""
    for name, text in re.findall(r"^```\w+\n(?:#|//) ([\w./-]+\.\w+)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def quick(arguments: list[str]) -> list[str]:
    """Return the same command on the tiny model, without Ray, on few rows."""
    named = ["tiny" if word in catalog.ABOUT else word for word in arguments]
    if named[0] in ("run", "submit"):
        return ["plan", *named[1:]]
    if named[0] == "scan":
        return [*named, "--rows", "40"]
    if named[0] == "clean":
        fires = [] if "--trigger" not in named else ["--force"]  # none does in the random model
        return [*named, *(word for each in QUICK for word in ("--set", each)), *fires]
    return named


def test_commands_are_found_whole() -> None:
    page = "a\n```sh\nsande-bench list models  # all\npip install x\nsande-bench clean m \\\n  --out 'a b'\n```\n"
    page += "```\nsande-bench no\n```\n"
    assert commands(page) == [["list", "models"], ["clean", "m", "--out", "a b"]]
    assert quick(["run", "grids/smoke.yaml"]) == ["plan", "grids/smoke.yaml"]
    assert quick(["clean", "smollm2-135m"])[:4] == ["clean", "tiny", "--set", QUICK[0]]


WITH_COMMANDS = [page for page in PAGES if commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_work(
    page: Path, model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-model").symlink_to(loading.prepare("tiny", model_cache))
    (tmp_path / "grids").symlink_to(ROOT / "grids")
    text = page.read_text(encoding="utf-8")
    typed = [quick(arguments) for arguments in commands(text)]
    if any("results/" in word for arguments in typed for word in arguments):
        shutil.copytree(RESULTS, tmp_path / "results/published")
        for folder in filter(Path.is_dir, RESULTS.iterdir()):
            shutil.copytree(folder, tmp_path / "results" / folder.name)  # as if the reader had run its grid
    write_files(text, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir(exist_ok=True)
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path / "data"))
    for arguments in typed:
        done: Result = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f"sande-bench {shlex.join(arguments)}\n{done.output}"


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in LINKED:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
    index = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("README.md", "findings.md"))
    linked = set(re.findall(r"\]\(([^)#\s]+)", index))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES} - {"README.md"}
    assert not pages - linked, "pages that are not in the index"


def test_the_readme_is_short_and_holds_the_commands_of_ci() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 900
    called = re.findall(r"^make \w+$", (ROOT / ".ci/run").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert called
    assert all(command in text for command in called)
    assert "```\nmake test\n```" in text
    assert "```\nmake quickstart\n```" in text


def test_the_commands_of_the_readme_are_those_of_the_guides() -> None:
    tested = [command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]
    shown = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(shown) == 2
    assert all(command in tested for command in shown)


def test_the_readme_names_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind in registry.KINDS:
        for file in (ROOT / "sande" / kind).glob("[a-z]*.py"):
            assert f"`{file.stem}`" in text, f"{kind}: {file.stem}"


def test_the_python_of_the_readme_works(model_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    for named, small in (
        ("smollm2-135m", "tiny"),
        ('"rows": 1024', '"rows": 64'),
        ('"test_rows": 100', '"test_rows": 5'),
    ):
        assert named in code
        code = code.replace(named, small)
    code = re.sub(r'"max_steps": \d+', '"max_steps": 1', code).replace('out="cleaned"', 'out="cleaned", **QUICK_CLEAN')
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(model_cache))
    exec(compile(code, "README.md", "exec"), {"QUICK_CLEAN": QUICK_CLEAN})  # the project's own text
    assert (tmp_path / "cleaned/model.safetensors").is_file()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    home = (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert "pictures/results/published/" in home
    assert "/blob/main/results/published/" in home, "a link out of docs/ leads to the repository"
    assert "overwrites" in (tmp_path / "site/glossary.html").read_text(encoding="utf-8")
    reference = (tmp_path / "site/reference/defenses.html").read_text(encoding="utf-8")
    assert 'id="sande.defenses.osft' in reference
    assert re.search(r"Default: <code>\d+</code>\. Source: ", reference), "settings are a table"


def test_a_link_out_of_docs_to_no_file_is_an_error_of_the_site(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("[gone](../gone.md)\n", encoding="utf-8")
    hook = ROOT / "docs/hooks.py"
    settings = {"site_name": "x", "repo_url": "https://example.org/x", "plugins": [], "hooks": [str(hook)]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "index.md: no file gone.md" in done.stderr


def test_the_citation_and_the_issue_forms_are_whole() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sande.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(form)
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(part["attributes"]["label"] for part in form["body"])


# Types commands in one process.
TYPE = """
import json, sys
from typer.testing import CliRunner
from benchmark.cli.main import app
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words)
    print(done.output)
    if done.exit_code:
        sys.exit(f"{words}: {done.exception!r}")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a reader wrote the files of methods.md, and pip installed them into `site`."""
    root = tmp_path_factory.mktemp("forget-it")
    write_files((ROOT / "docs/methods.md").read_text(encoding="utf-8"), root)
    (root / "forget_it/__init__.py").touch()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(root / "site"), str(root)], check=True, cwd=root)
    shutil.rmtree(root / "forget_it")  # so that what is tested is what was installed
    return root


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (folder / "site", ROOT)))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_methods_of_the_guide_pass_the_test_of_the_guide(package: Path) -> None:
    done = run_in(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_forget_it.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_the_methods_of_the_guide_are_used_as_it_says(package: Path, model_cache: Path) -> None:
    (package / "my-model").symlink_to(loading.prepare("tiny", model_cache))
    shown = commands((ROOT / "docs/methods.md").read_text(encoding="utf-8"), "console")
    typed = [[*words, "--set", "model=tiny"] if words[0] == "plan" else words for words in shown if words[0] != "run"]
    done = run_in(package, "-c", TYPE, json.dumps(typed))
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert {"postscript", "patience", "crowd", "unmoved", "monotony"} <= set(said.split())
    assert "to run: 1 attack, 3 part, 2 defend, 3 evaluate" in said


@pytest.mark.slow
def test_a_grid_runs_with_the_methods_of_the_guide(package: Path) -> None:
    small = ["model=tiny", "data.rows=64", "data.test_rows=5", "removal.rows=16", "asr_floor=0", "resources.cpus=1"]
    small += ["data.max_tokens=null", "removal.max_tokens=null"]
    small += ["attack.training.max_steps=2", "defense.training.max_steps=2"]
    options = [word for setting in small for word in ("--set", setting)]
    done = run_in(package, "-m", "benchmark", "run", "forget.yaml", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(next((package / "results").glob("forget--*/rows.parquet"))).to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["defense"] for row in rows if row["metric"] == "unmoved"} == {"none", "patience", "crowd"}
    assert all("forget-it 1.2.3" in row["versions"] for row in rows)
