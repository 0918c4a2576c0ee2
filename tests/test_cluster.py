"""The examples in docs/cluster, as far as they can be checked without a cluster."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from typer.testing import CliRunner

from benchmark.cli.main import app

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs/cluster"
HOME = "/home/ray/sande-bench/"  # of the image

# Fields of KubeRay's custom resources (https://docs.ray.io/en/master/kuberay/references/api.html), those that a job has
# use for; Kubernetes drops others in silence.
KNOWN = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        "activeDeadlineSeconds",
        "backoffLimit",
        "entrypoint",
        "metadata",
        "rayClusterSpec",
        "runtimeEnvYAML",
        "shutdownAfterJobFinishes",
        "submissionMode",
        "submitterConfig",
        "submitterPodTemplate",
        "suspend",
        "ttlSecondsAfterFinished",
    },
    "spec.rayClusterSpec": {
        "authOptions",
        "autoscalerOptions",
        "enableInTreeAutoscaling",
        "headGroupSpec",
        "headServiceAnnotations",
        "rayVersion",
        "workerGroupSpecs",
    },
    "spec.rayClusterSpec.authOptions": {"mode", "secretName"},
    "spec.rayClusterSpec.headGroupSpec": {"enableIngress", "headService", "rayStartParams", "serviceType", "template"},
    "spec.rayClusterSpec.workerGroupSpecs": {
        "groupName",
        "maxReplicas",
        "minReplicas",
        "numOfHosts",
        "rayStartParams",
        "replicas",
        "scaleStrategy",
        "template",
    },
}


def read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def pinned(package: str) -> str:
    (line,) = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return str(line)


def at(job: Any, path: str) -> Iterator[dict[str, Any]]:
    """Every mapping at a dotted path, of a list each of its items."""
    for part in path.split(".") if path else []:
        job = job[part]
    yield from job if isinstance(job, list) else [job]


@pytest.mark.parametrize("path", KNOWN)
def test_the_rayjob_has_fields_that_kuberay_knows(path: str) -> None:
    for mapping in at(read("rayjob.yaml"), path):
        assert mapping.keys() <= KNOWN[path]


def groups() -> list[dict[str, Any]]:
    cluster = read("rayjob.yaml")["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_rayjob_is_one_and_asks_for_a_token() -> None:
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for group in groups():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "Kubernetes wants text"


def test_every_pod_of_the_rayjob_has_volume_environment_and_limits() -> None:
    for group in groups():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {variable["name"] for variable in container["env"]} == {"SANDE_DATA_DIR", "HF_HOME", "HF_TOKEN"}
        (secret,) = [variable for variable in container["env"] if variable["name"] == "HF_TOKEN"]
        assert "value" not in secret, "a secret's value does not stand in a file"
        assert all(isinstance(amount, str) for amount in container["resources"]["limits"].values())


def test_both_clusters_grow_on_spot_machines_and_keep_the_store_elsewhere() -> None:
    cluster = read("rayjob.yaml")["spec"]["rayClusterSpec"]
    head, worker = groups()
    assert cluster["enableInTreeAutoscaling"] is True
    assert worker["replicas"] == worker["minReplicas"] < worker["maxReplicas"]
    assert "spot" in worker["template"]["spec"]["nodeSelector"].values()
    assert "nodeSelector" not in head["template"]["spec"], "the head stays"
    assert "--store /shared/store" in read("rayjob.yaml")["spec"]["entrypoint"]
    types = read("aws.yaml")["available_node_types"]
    assert types["gpus"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert any("/shared" in command for command in read("aws.yaml")["initialization_commands"])


def test_both_heads_have_no_room_for_stages() -> None:
    head, worker = groups()
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    assert "num-cpus" not in worker["rayStartParams"], "all of its pod"
    assert int(head["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) > 0, "the run itself is there"
    assert read("aws.yaml")["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}


def test_the_rayjob_runs_a_grid_with_options_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python, dash, module, command, grid, *options = read("rayjob.yaml")["spec"]["entrypoint"].split()
    assert [python, dash, module, command] == ["python", "-m", "benchmark", "run"]
    assert grid.startswith(HOME)
    done = CliRunner().invoke(app, ["plan", str(ROOT / grid.removeprefix(HOME)), *options])
    assert done.exit_code == 0, done.output


def test_the_image_has_the_releases_of_the_constraints_and_what_the_rayjob_runs() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned('ray')}-py311-gpu\n" in text
    assert f"WORKDIR {HOME.rstrip('/')}\n" in text
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray")
    copied = [words.split()[2:-1] for words in text.splitlines() if words.startswith("COPY ")]
    assert all((ROOT / name).exists() for names in copied for name in names)
    assert {"sande", "benchmark", "grids", "constraints.txt"} <= {name for names in copied for name in names}


def test_rays_own_schema_takes_the_cluster_file() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    config = read("aws.yaml")
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]
    gpus = config["available_node_types"]["gpus"]
    assert gpus["min_workers"] < gpus["max_workers"] == config["max_workers"] == 8
    with pytest.raises(jsonschema.ValidationError, match="unheard_of"):
        jsonschema.validate(config | {"unheard_of": 1}, schema)


def test_the_cluster_of_the_file_asks_for_a_token_and_shows_its_dashboard_to_nobody() -> None:
    config = read("aws.yaml")
    starts = [each for kind in ("head", "worker") for each in config[f"{kind}_start_ray_commands"] if "start" in each]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in each for each in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_the_script_is_bash_and_stays_on_loopback() -> None:
    script = FOLDER / "one_machine.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111
    assert script.read_text().count("127.0.0.1") == 2
    assert "RAY_AUTH_MODE=token" in script.read_text()


@pytest.mark.parametrize("gpus", ["16", "64"])
def test_the_guide_quotes_what_plan_suggests(gpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "1000")
    (row,) = re.findall(rf"^\| {gpus} \| ([\d.]+ h) \| ([\d.]+ h) \|", guide(), flags=re.MULTILINE)
    alone, suggested = row
    command = ["plan", "grids/paper.yaml", "--store", "no-store", "--gpus", gpus, "--suggest"]
    assert f"Suggestion: {suggested} in place of {alone}" in CliRunner().invoke(app, command).stdout


def guide() -> str:
    return (ROOT / "docs/cluster.md").read_text(encoding="utf-8")


def test_the_guide_names_every_kind_of_failure() -> None:
    from benchmark.plan.failures import KINDS

    told = re.search(r"of which kind: (.+?)\. ", " ".join(guide().split()))
    assert told
    assert re.findall(r"`(.+?)`", told.group(1)) == list(KINDS)
