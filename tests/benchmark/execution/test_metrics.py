"""Stages and tokens as metrics of Ray: what is counted, what the dashboard asks for, and what Prometheus gets."""

import json
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
from ray.util import metrics as of_ray
from transformers import TrainerCallback

from benchmark.execution import metrics
from benchmark.execution.progress import Progress
from benchmark.plan.stage import Stage
from sande.inference import counts
from sande.training.monitor import Monitor
from sande.types import Run
from tests.benchmark.plan.helpers import stage
from tests.integration.helpers import MINI, ROOT, TRAINING, Workplace, wait_until

EXPORTED = {f"ray_{name}_total" for name in metrics.COUNTERS} | {f"ray_{name}" for name in metrics.GAUGES}
Series = dict[tuple[str, ...], float]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Series]:
    """By metric, what is recorded under its tags; Ray itself is not started."""
    found: dict[str, Series] = {name: {} for name in (*metrics.COUNTERS, *metrics.GAUGES)}

    def record(self: Any, value: float, tags: dict[str, str] | None = None) -> None:
        final = {**self._default_tags, **(tags or {})}
        series, at = found[self._name], tuple(final[tag] for tag in metrics.TAGS)
        series[at] = value + (series.get(at, 0) if isinstance(self, of_ray.Counter) else 0)

    monkeypatch.setattr(of_ray.Metric, "_record", record)
    return found


def begun(*stages: Stage) -> Progress:
    made = Progress("grid")
    made.metrics = metrics.StageMetrics("grid")
    made.begin(stages)
    return made


ATTACK, METHOD = ("grid", "attack", stage("a").method), stage("a").method


def test_stages_move_from_the_queue_to_done_or_failed(recorded: dict[str, Series]) -> None:
    first, second, third = stage("a"), stage("b"), stage("c")
    progress = begun(first, second, third)
    assert recorded[metrics.QUEUED] == {ATTACK: 3}
    progress.started(first)
    progress.started(second)
    assert (recorded[metrics.QUEUED][ATTACK], recorded[metrics.RUNNING][ATTACK]) == (1, 2)
    progress.ended(first)
    progress.ended(second, failed=True)
    progress.dropped(["b", "c"])
    progress.dropped(["b", "c"])
    assert (recorded[metrics.DONE], recorded[metrics.FAILED]) == ({ATTACK: 1}, {ATTACK: 2})
    assert (recorded[metrics.QUEUED][ATTACK], recorded[metrics.RUNNING][ATTACK]) == (0, 0)


def test_a_stage_that_is_tried_again_is_neither_done_nor_failed(recorded: dict[str, Series]) -> None:
    progress = begun(stage("a"))
    progress.started(stage("a"))
    progress.ended(stage("a"), again=True, failed=True)
    assert (recorded[metrics.QUEUED][ATTACK], recorded[metrics.RUNNING][ATTACK]) == (1, 0)
    assert recorded[metrics.DONE] == recorded[metrics.FAILED] == {}


def test_a_stage_that_another_run_did_leaves_the_queue(recorded: dict[str, Series]) -> None:
    begun(stage("a")).ended(stage("a"))
    assert (recorded[metrics.QUEUED][ATTACK], recorded[metrics.DONE][ATTACK]) == (0, 1)
    assert not recorded[metrics.RUNNING].get(ATTACK)


def test_a_repair_begins_with_its_own_queue(recorded: dict[str, Series]) -> None:
    begun(stage("a"), stage("b")).begin([stage("b")])
    assert recorded[metrics.QUEUED] == {ATTACK: 1}


def test_without_metrics_nothing_is_recorded(recorded: dict[str, Series]) -> None:
    progress = Progress("grid")
    progress.begin([stage("a")])
    progress.started(stage("a"))
    progress.ended(stage("a"))
    with metrics.counting_decoded("", stage("a"), print):
        counts.add(5, 1.0, 1)
    assert recorded == {name: {} for name in recorded}


class FakeTrainer:
    """A Trainer as the hook sees it: its callbacks."""

    def __init__(self, *callbacks: TrainerCallback) -> None:
        self.callback_handler = self
        self.callbacks = list(callbacks)

    def add_callback(self, callback: TrainerCallback) -> None:
        self.callbacks.append(callback)


class State:
    def __init__(self, step: int) -> None:
        self.global_step = step


def test_the_tokens_of_a_training_are_counted_from_where_this_process_began(recorded: dict[str, Series]) -> None:
    hook = metrics.counting_trained("grid", stage("a"))
    for first in (0, 2):
        trainer: Any = FakeTrainer(Monitor("sft", Run(seed=0, scratch=""), [10, 30, 60, 100]))
        hook(trainer)
        tokens = trainer.callbacks[-1]
        tokens.on_train_begin(None, State(first))
        for step in (3, 4, 4):  # losses are logged every few steps
            tokens.on_log(None, State(step))
    assert recorded[metrics.TOKENS] == {ATTACK: 100 + 70}


def test_decoded_tokens_are_added_at_each_metric_and_at_the_end(recorded: dict[str, Series]) -> None:
    said: list[str] = []
    with metrics.counting_decoded("grid", stage("a"), said.append) as say:
        counts.add(5, 1.0, 1)
        say("measuring asr")
        assert recorded[metrics.TOKENS] == {ATTACK: 5}
        counts.add(7, 1.0, 1)
    assert recorded[metrics.TOKENS] == {ATTACK: 12}
    assert said == ["measuring asr"]


def queries(node: Any) -> Iterator[str]:
    """Yield the texts of a dashboard that Grafana sends to Prometheus."""
    if isinstance(node, dict):
        yield from (node[name] for name in ("expr", "definition", "query") if isinstance(node.get(name), str))
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from queries(value)


def test_the_dashboard_asks_for_all_metrics_by_the_names_that_are_exported() -> None:
    dashboard = json.loads((ROOT / "docs/cluster/grafana.json").read_text(encoding="utf-8"))
    asked = [text for text in queries(dashboard) if text != "prometheus"]
    assert {name for text in asked for name in re.findall(r"\bray_\w+", text)} == EXPORTED
    selected = {tag for text in asked for tag in re.findall(r"(\w+)=~", text)}
    grouped = {tag.strip() for text in asked for tags in re.findall(r"by \(([^)]*)\)", text) for tag in tags.split(",")}
    shown = set(re.findall(r"{{(\w+)}}", json.dumps(dashboard)))
    assert selected | grouped | shown == set(metrics.TAGS)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_guide_names_every_metric() -> None:
    guide = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(ray_sande_\w+)`", guide, flags=re.MULTILINE)) == EXPORTED


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


# A head that exports once a second, as a test cannot wait for ten; it ends with its input.
HEAD = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster()
cluster.add_node(
    num_cpus=2, include_dashboard=False, metrics_export_port=int(sys.argv[1]),
    _system_config={"metrics_report_interval_ms": 1000},
)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.remove_node(cluster.head_node, allow_graceful=False)
"""


@contextmanager
def head(port: int) -> Iterator[str]:
    process = Popen([sys.executable, "-c", HEAD, str(port)], stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT)
    assert process.stdin
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=120)


def scraped(port: int) -> dict[str, dict[tuple[str, str], float]]:
    """Return what Prometheus would read: by metric, the sum for each kind of stage and method."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[str, str], float]] = {}
    for name, labels, value in re.findall(r"^(ray_sande_\w+){(.*)} (\S+)$", text, flags=re.MULTILINE):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert tags["grid"] == "metered"
        series, kind = found.setdefault(name, {}), (tags["stage"], tags["method"])
        series[kind] = series.get(kind, 0) + float(value)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_prometheus_reads_the_counts_of_a_run_from_rays_port(tmp_path: Path, workers: int) -> None:
    place, port = Workplace(tmp_path), free_port()
    defenses: list[Any] = ["none", {"name": "sft", "training": TRAINING}]
    if workers > 1:
        defenses.pop()  # a group takes long to start
    grid = place.grid("metered", sweep={"defense": defenses})
    kinds = {(kind, method) for kind, method in KINDS if workers == 1 or method != "sft"}
    with head(port) as address:
        options = ["--set", f"resources.workers={workers}"] if workers > 1 else []
        done = place.run(grid, "--address", address, *options, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_until(lambda: set(scraped(port).get("ray_sande_stages_done_total", ())) >= kinds, 60)
        found = scraped(port)
    assert found["ray_sande_stages_done_total"] == dict.fromkeys(kinds, 1)
    assert not any(found.get("ray_sande_stages_failed_total", {}).values())
    manifests = [json.loads(path.read_text()) for path in place.store.glob("*/*/manifest.json")]
    assert found["ray_sande_tokens_total"] == tokens_of(manifests)


# Of a grid with an attack and one defense: each kind of stage with its method.
KINDS = {
    ("attack", MINI["attack"]["name"]),
    ("defend", "sft"),
    ("evaluate", "none"),
    ("evaluate", "sft"),
}


def tokens_of(manifests: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Return the tokens that the stages themselves noted, by kind and method."""
    found: dict[tuple[str, str], float] = {}
    for manifest in manifests:
        name = manifest["settings"]["attack" if manifest["kind"] == "attack" else "defense"]["name"]
        tokens = manifest["tokens"] or manifest.get("decoding", {}).get("tokens", 0)
        found[manifest["kind"], name] = found.get((manifest["kind"], name), 0) + tokens
    return found
