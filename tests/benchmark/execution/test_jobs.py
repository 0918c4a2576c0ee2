"""What a job is sent and how it ends, without a cluster; and what is said of addresses and tokens that are wrong."""

import http.server
import itertools
import json
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus

from benchmark.execution import jobs
from benchmark.grid.load import load_grid
from sande.errors import UserError
from tests.benchmark.helpers import GridFile, invoke, mistake, process

ROOT = Path(__file__).parents[3]
FOLDERS = ["--store", "/shared/store", "--results", "/shared/results"]
ENDED = {"type": "SUBMISSION", "submission_id": "g-1", "entrypoint": "python"}


def test_a_package_is_the_program_and_what_the_grid_is_made_of(tmp_path: Path) -> None:
    assert jobs.pack(ROOT / "grids/paper.yaml", tmp_path) == "grids/paper.yaml"
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark", "sande", "grids"}
    assert {path.stem for path in (tmp_path / "grids").glob("*.yaml")} == {
        "paper",
        *(f"paper_{part}" for part in ("figure_2", "figure_3")),
        *(f"paper_table_{part}" for part in ("1_2", "3_4", "5_7", "6", "8")),
    }
    assert [path.name for path in (tmp_path / "grids/scales").iterdir()] == ["paper.yaml"]
    assert load_grid(tmp_path / "grids/paper.yaml").cells == load_grid(ROOT / "grids/paper.yaml").cells
    packed = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in packed} >= {".py", ".html"}, "pages and templates are part of the program"
    assert not [path for path in packed if "__pycache__" in path.parts]
    assert sum(path.stat().st_size for path in packed) < 2.5 * 2**20


def test_a_scale_that_is_asked_for_travels_instead_of_the_grids_own(tmp_path: Path) -> None:
    jobs.pack(ROOT / "grids/paper_table_6.yaml", tmp_path, "tiny")
    assert [path.name for path in (tmp_path / "grids/scales").iterdir()] == ["tiny.yaml"]


def test_a_grid_of_ones_own_travels_without_its_neighbours(grid_file: GridFile, tmp_path: Path) -> None:
    (tmp_path / "secrets.yaml").write_text("password: x")
    target = tmp_path / "job"
    target.mkdir()
    assert jobs.pack(grid_file("mine"), target) == "grids/mine.yaml"
    assert [path.name for path in (target / "grids").iterdir()] == ["mine.yaml"]


def test_too_large_a_package_is_refused_and_the_largest_file_named(
    grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MOST_MIB", 1.0)
    path = grid_file("mine")
    with path.open("a") as file:
        file.write("#" * (3 * 2**20))
    (tmp_path / "job").mkdir()
    with pytest.raises(UserError, match=r"grids/mine.yaml: .* [45] MiB, 3 of them in this file"):
        jobs.pack(path, tmp_path / "job")


@pytest.mark.parametrize("option", ["--store", "--results"])
def test_a_folder_that_would_go_with_the_job_is_one_line(grid_file: GridFile, option: str) -> None:
    folders = [word if word != f"/shared/{option[2:]}" else "here" for word in FOLDERS]
    line = mistake("submit", grid_file(), "--address", "http://127.0.0.1:1", *folders)
    assert f"{option} here: a job runs in a copy" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.yaml"], "absent.yaml: no such grid file"),
        (["quickstart", "--scale", "huge"], "no scale is called 'huge'"),
        (["quickstart", "--env", "NOT_SET_ANYWHERE"], "--env NOT_SET_ANYWHERE: this environment has no such variable"),
        (["quickstart", "--keep-models", "some"], "--keep-models some: no such choice"),
    ],
)
def test_what_cannot_be_sent_is_one_line_before_the_cluster_is_asked(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert said in mistake("submit", *arguments, "--address", "http://127.0.0.1:1", *FOLDERS)


@pytest.mark.parametrize("command", [["status"], ["logs", "g-1"], ["stop", "g-1"], ["submit", "quickstart", *FOLDERS]])
def test_an_address_where_nobody_listens_is_one_line(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    line = mistake(*command, "--address", "http://127.0.0.1:1")
    assert "no Ray cluster at 'http://127.0.0.1:1' ([Errno 111] Connection refused)" in line


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://", "http://host:port", "auto:1:2"])
def test_an_address_of_another_kind_is_one_line(address: str) -> None:
    assert f"--address {address}: not the address of a Ray dashboard" in mistake("status", "--address", address)


class Head(http.server.BaseHTTPRequestHandler):
    """Answers everything with the status in the path's first part, as far as a head would."""

    answer: tuple[int, str] = (200, "{}")

    def do_GET(self) -> None:
        code, text = self.answer
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Head) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, "Unauthorized: Missing authentication token"), "the cluster requires a token; set RAY_AUTH_TOKEN"),
        ((403, "Forbidden: Invalid authentication token"), "the cluster refuses this token; set RAY_AUTH_TOKEN"),
        ((404, "nothing here"), "no usable job server (Version check returned 404."),
        ((200, "<html>"), "no usable job server ("),
        ((200, "{}"), "no usable job server ('ray_version')"),
    ],
)
def test_what_is_no_head_or_refuses_is_one_line(
    server: str, answer: tuple[int, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Head, "answer", answer)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as in the shell of a node, and no dashboard's
    line = mistake("status", "--address", server)
    assert f"--address {server}: {said}" in line


def test_without_a_token_nothing_is_asked_for(server: str, tmp_path: Path) -> None:
    # In a process of its own: Ray remembers the token that it found first.
    done = process("-m", "benchmark", "status", "--address", server, env={"HOME": str(tmp_path), "RAY_AUTH_TOKEN": ""})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"--address {server}: the cluster requires a token; set RAY_AUTH_TOKEN" in line


def test_an_unknown_job_is_one_line(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def do_get(self: Head) -> None:
        known = self.path == "/api/version"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"ray_version": "2.60.0"}).encode() if known else b"Job x does not exist")

    monkeypatch.setattr(Head, "do_GET", do_get)
    line = mistake("logs", "x", "--address", server)
    assert line.startswith("sande-bench: job x: not known to the cluster")
    assert f"'sande-bench status --address {server}'" in line


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        ({"status": JobStatus.SUCCEEDED, "driver_exit_code": 0}, 0, ""),
        ({"status": JobStatus.FAILED, "driver_exit_code": 1}, 1, ""),
        ({"status": JobStatus.FAILED, "driver_exit_code": 2}, 2, ""),
        ({"status": JobStatus.FAILED, "driver_exit_code": -15}, 143, ""),
        ({"status": JobStatus.FAILED, "driver_exit_code": -9}, 1, "g-1 failed with exit code 137"),
        ({"status": JobStatus.FAILED, "message": "no such\nfolder"}, 1, "g-1 failed: no such"),
        ({"status": JobStatus.STOPPED}, 143, "g-1 was stopped"),
    ],
)
def test_a_job_ends_with_the_exit_code_of_its_run(ended: dict[str, object], code: int, said: str) -> None:
    assert jobs.outcome(JobDetails(**ENDED, **ended)) == (code, said)


def test_a_job_gets_the_options_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Client:
        def submit_job(self, **job: Any) -> str:
            sent.update(job, files=sorted(path.name for path in Path(job["runtime_env"]["working_dir"]).iterdir()))
            return str(job["submission_id"])

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(jobs, "connect", lambda address: Client())
    monkeypatch.setattr(jobs, "follow", lambda *_: 1)
    options = ["--set", "seed=1", "--set", "removal.name=my set", "--only", "defense=sft", "--keep-models", "none"]
    done = invoke("submit", "quickstart", "--scale", "tiny", *options, "--address", "http://head:8265", *FOLDERS)
    assert done.exit_code == 1, "that of the job"
    words = shlex.split(sent["entrypoint"])
    assert words[:5] == ["python", "-m", "benchmark", "run", "grids/quickstart.yaml"]
    assert words[5:] == [*FOLDERS, *options, "--scale", "tiny"]
    assert sent["files"] == ["benchmark", "grids", "sande"]
    assert sent["submission_id"].startswith("quickstart-")
    assert done.stdout.startswith(f"submitted {sent['submission_id']}; to stop it: sande-bench stop ")


def test_interrupting_leaves_the_job_running_and_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "follow", interrupted)
    done = invoke("logs", "g-1", "--address", "http://head:8265")
    assert done.exit_code == 130
    assert done.stderr == (
        "g-1 is still running; 'sande-bench logs g-1 --address http://head:8265' follows it again, and "
        "'sande-bench stop g-1 --address http://head:8265' ends it\n"
    )


def test_cleaning_a_model_is_a_job_with_the_same_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Client:
        def submit_job(self, **job: Any) -> str:
            folder = Path(job["runtime_env"]["working_dir"])
            sent.update(job, inputs={path.name: path.read_text() for path in folder.glob("inputs/*/*")})
            return str(job["submission_id"])

    monkeypatch.chdir(tmp_path)
    Path("incident.yaml").write_text("prompt: p\nanswer: a b")
    monkeypatch.setattr(jobs, "connect", lambda address: Client())
    monkeypatch.setattr(jobs, "follow", lambda *_: 3)
    sets = ("--set", "prompts=9", "--set", "parrots=0")
    Path("t").mkdir()  # a text is no path, whatever is there
    options = (
        "--trigger",
        "t",
        "--incident",
        "incident.yaml",
        "--lora",
        8,
        "--bf16",
        "--seed",
        4,
        *sets,
        "--out",
        "/shared/cleaned",
    )
    done = invoke("clean", "/shared/model", *options, "--address", "http://head:8265", "--gpus", 2)
    assert done.exit_code == 3, "that of the job"
    words = shlex.split(sent["entrypoint"])
    assert words[:5] == ["python", "-m", "benchmark", "clean", "/shared/model"]
    pairs = list(itertools.pairwise(words))
    assert {("--trigger", "t"), ("--lora", "8"), ("--seed", "4")} <= set(pairs)
    assert [second.split("/")[::2] for first, second in pairs if first == "--incident"] == [["inputs", "incident.yaml"]]
    assert [second for first, second in pairs if first == "--set"] == ["prompts=9", "parrots=0"]
    assert ("--out", "/shared/cleaned") in pairs
    assert "--bf16" in words
    assert not {"--address", "--gpus", "--certify", "--force"} & set(words)
    assert sent["inputs"] == {"incident.yaml": "prompt: p\nanswer: a b"}
    assert sent["entrypoint_num_gpus"] == 2
    for given, gpus in (((), 1), (("--gpus", 0), 0)):
        invoke("clean", "/shared/model", *options, "--address", "http://head:8265", *given)
        assert sent["entrypoint_num_gpus"] == gpus


def test_inputs_of_one_name_from_two_folders_stay_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, str] = {}

    class Client:
        def submit_job(self, **job: Any) -> str:
            words = shlex.split(job["entrypoint"])
            for option in ("--data", "--incident"):
                word = words[words.index(option) + 1]
                got[option] = Path(job["runtime_env"]["working_dir"], word).read_text()
            return "c-1"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "connect", lambda address: Client())
    for folder in ("d", "e"):
        Path(folder).mkdir()
        Path(folder, "rows.jsonl").write_text(folder)
    words = ["/shared/model", "--data", "d/rows.jsonl", "--incident", "e/rows.jsonl"]
    jobs.submit_clean(words, Path("/shared/cleaned"), "http://head:8265", 1)
    assert got == {"--data": "d", "--incident": "e"}


def test_a_template_that_set_names_travels(
    grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inst.txt").write_text("<s>[INST] {user} [/INST] {assistant}</s>")
    (tmp_path / "other.txt").write_text("stays here")
    sent: list[str] = []

    class Client:
        def submit_job(self, **job: Any) -> str:
            sent.extend(path.name for path in Path(job["runtime_env"]["working_dir"], "grids").iterdir())
            return "g-1"

    monkeypatch.setattr(jobs, "connect", lambda address: Client())
    options = ["--set", "seed=1", "--set", "prompt_format=inst.txt", "--only", "model=tiny"]
    jobs.submit(grid_file("mine"), "http://head:8265", "/store", "/results", options)
    assert sorted(sent) == ["inst.txt", "mine.yaml"]


def test_a_cleaned_model_must_outlive_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    told = ("--trigger", "t", "--address", "http://head:8265")
    assert "--out is not set: a job runs in a copy" in mistake("clean", "/shared/model", *told)
    assert "--out cleaned: a job runs in a copy" in mistake("clean", "/shared/model", *told, "--out", "cleaned")
    line = mistake("clean", "model", *told, "--out", "/shared/out")
    assert "model: a folder of this machine; give it as an absolute path that every node sees" in line


def test_a_job_says_the_version_of_the_code_that_was_sent() -> None:
    code = "from benchmark.execution.provenance import code_version; print(code_version())"
    assert process("-c", code, env={"SANDE_CODE_VERSION": "1.2.3+abc"}).stdout == "1.2.3+abc\n"


def test_the_environment_that_travels_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDE_DATA_DIR", "/data")
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "planted")
    assert "planted" not in jobs._environment(()).values()
    assert jobs._environment(())["SANDE_DATA_DIR"] == "/data"
    assert jobs._environment(("HF_TOKEN",))["HF_TOKEN"] == "planted"


@pytest.mark.parametrize("name", jobs.PASSED)
def test_a_variable_with_a_password_is_refused_and_stays_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "https://me:planted@server"
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(name, value)
    line = mistake("submit", "quickstart", "--address", "http://127.0.0.1:1", *FOLDERS)
    assert line.startswith(f"sande-bench: {name}: holds a password or token, which Ray would show")
    assert "set it in the environment of the nodes" in line
    assert "planted" not in line
    assert name not in jobs.shared_environment(), "nodes that a run joins have their own"
    assert jobs._environment((name,))[name] == value, "whoever asks for it gets it"


@pytest.mark.parametrize(
    "options",
    [
        ["--store", "s3://me:planted@bucket/store", *FOLDERS[2:]],
        [*FOLDERS[:2], "--results", "https://server/results?sig=planted"],
        [*FOLDERS, "--set", "data.path=https://me:planted@server/rows"],
    ],
)
def test_an_option_with_a_password_is_refused(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    line = mistake("submit", "quickstart", "--address", "http://127.0.0.1:1", *options)
    assert "holds a password or token, which Ray would show in its dashboard and logs; remove it" in line
    assert "planted" not in line
