"""A cluster of two nodes is looked at before the first stage; each problem names its node."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from benchmark.execution import nodes
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import SMALL, cell

pytestmark = pytest.mark.slow


def data_folder(path: Path, answer: str) -> Path:
    path.mkdir()
    rows = [{"instruction": f"Say {number}.", "input": "", "output": answer} for number in range(200)]
    (path / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes, the second of which has other data; the driver is on the first."""
    made = Cluster()
    monkeypatch.setenv("SANDE_DATA_DIR", str(data_folder(tmp_path / "one", "yes")))
    made.add_node(num_cpus=1, include_dashboard=False)
    monkeypatch.setenv("SANDE_DATA_DIR", str(data_folder(tmp_path / "two", "no")))
    made.add_node(num_cpus=1)
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path / "one"))
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_nodes_are_looked_at_and_problems_name_them(cluster: Cluster, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    assert len(ray.nodes()) == 2
    (name,) = nodes.others().values()
    nodes.check([cell()], store)
    own = cell(data=SMALL["data"] | {"name": "own"}, removal=SMALL["removal"] | {"name": "own"})
    with pytest.raises(UserError) as caught:
        nodes.check([own], store)
    said = str(caught.value)
    assert said.startswith(f"the cluster is not ready: node {name}: data set own has other files")
    assert "\n" not in said
    assert list((store.root / "unfinished").iterdir()) == []


def test_a_node_that_does_not_answer_is_a_problem(cluster: Cluster, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    made = nodes.wanted([cell()], store, store.scratch("nodes"))
    (problem,) = nodes.ask(nodes.others(), made, seconds=0.001)
    assert problem.endswith("did not answer in 0 s; check it, or remove it from the cluster")
