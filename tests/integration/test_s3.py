"""A grid with store and results on S3, whose server fails and delays: its rows are those of a run on a disk."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmark.io.remote import CACHE, Remote
from tests.benchmark.io.s3 import SECRET, Server, failing_and_slow, never
from tests.integration.helpers import TRAINING, Workplace

pytestmark = pytest.mark.slow

VARY = {"grid", "seconds", "attack_seconds", "metric_seconds", "peak_memory_bytes", "started_at"}
BUCKET = "bucket-of-tests"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    Remote(f"s3://{BUCKET}")._fs.mkdir(BUCKET)
    yield server
    server.close()


def rows(path: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k not in VARY} for row in pq.read_table(path).to_pylist()]


def test_a_run_on_s3_equals_one_on_a_disk(place: Workplace, server: Server) -> None:
    grid = place.grid("both", sweep={"defense": ["none", {"name": "sft", "training": TRAINING}]})
    assert place.run(grid).returncode == 0
    local = rows(place.results / "both/rows.parquet")

    there = Remote(f"s3://{BUCKET}/run")
    options = ["--store", f"{there.uri}/store", "--results", f"{there.uri}/results"]
    server.fault = failing_and_slow()
    done = place.run(grid, *options, **{CACHE: str(place.root / "one")})
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.failed > 10
    server.fault = never
    there.fetch(["rows.parquet"], place.root / "fetched", "results/both")
    assert rows(place.root / "fetched/rows.parquet") == local
    sent = set(there.sizes("results/both"))
    assert set(place.files(grid)) <= sent
    assert not any(name.startswith(("store/leases", "store/unfinished")) for name in there.sizes())

    # Another machine finds all of it done; and what is damaged there, it makes anew.
    (attack,) = there.names("store/attack")
    (defense,) = there.names("store/defend")
    weights = bytearray(there.read(f"store/attack/{attack}/model.safetensors") or b"")
    weights[-1] ^= 1
    there.write(f"store/attack/{attack}/model.safetensors", bytes(weights))
    there.delete(f"store/defend/{defense}/model.safetensors")
    again = place.run(grid, *options, **{CACHE: str(place.root / "two")})
    assert again.returncode == 0, again.stdout + again.stderr
    assert "model.safetensors is missing" in again.stdout
    assert "model.safetensors has other content" in again.stdout
    there.fetch(["rows.parquet"], place.root / "fetched", "results/both")
    assert rows(place.root / "fetched/rows.parquet") == local
    assert len(there.names("store/damaged")) == 2

    third = place.run(grid, *options, **{CACHE: str(place.root / "three")})
    assert "0 to run" in third.stdout, third.stdout + third.stderr
    for text in (done, again, third):
        assert SECRET not in text.stdout + text.stderr
    for name in there.sizes():
        assert SECRET.encode() not in (there.read(name) or b""), name
    for folder, _, names in os.walk(place.root):
        for name in names:
            assert SECRET.encode() not in (Path(folder) / name).read_bytes(), name
