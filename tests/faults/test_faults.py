"""Everything that can go wrong, with real processes: one more run ends with the rows of a run where nothing did.

Of each fault the moment is certain, as the process that it hits waits for it there; nothing depends on how fast this
machine is. `make faults` runs all of it and prints the table.
"""

import os
import shutil
import signal
from pathlib import Path

import pytest

from benchmark.io.remote import CACHE, Remote
from tests.benchmark.io.s3 import Server, failing_and_slow, never
from tests.faults.conftest import NewCase
from tests.faults.harness import DECODE, PUT, TRAIN, WRITE, Case, Faults, Line, Machines

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.parametrize(
    ("what", "point", "stage", "call"),
    [
        ("a training worker, in the attack", TRAIN, "attack", 3),
        ("a training worker, in the second part of a defense", TRAIN, "defend sande_p", 6),
        ("an evaluating worker", DECODE, "evaluate sft", 1),
    ],
)
def test_a_worker_is_killed(case: NewCase, undisturbed: Case, machines: Machines, what, point, stage, call) -> None:
    with case(f"SIGKILL of {what}", *machines.options) as here:
        here.kill(here.reach(here.faults.arm(point, stage=stage, call=call)))
        here.ended()
        here.recover(undisturbed)


def test_a_worker_is_killed_twice(case: NewCase, undisturbed: Case, machines: Machines) -> None:
    options = "--set", "resources.checkpoint_minutes=0"
    with case("SIGKILL of a training worker, twice in one cell, with checkpoints", *machines.options, *options) as here:
        for call in (3, 2):  # the second time counted from the checkpoint
            here.kill(here.reach(here.faults.arm(TRAIN, stage="defend sande_p", call=call)))
        here.ended()
        here.recover(undisturbed)


def test_a_worker_of_a_group_is_killed(case: NewCase, faults: Faults, machines: Machines, tmp_path: Path) -> None:
    changes = {"resources": {"cpus": 1, "workers": 2}, "sweep": {"defense": ["none"]}}
    whole = Case(tmp_path / "whole", faults, Line("none"), machines.options, changes)
    assert whole.ended(whole.start()) == 0, whole.said
    with case("SIGKILL of one of two workers that train together", *machines.options, **changes) as here:
        here.kill(here.reach(here.faults.arm(TRAIN, stage="attack", call=3)))
        here.ended()
        here.recover(whole)


def test_a_node_is_killed(case: NewCase, undisturbed: Case, machines: Machines) -> None:
    with case("SIGKILL of a node, all of its processes at once", *machines.options) as here:
        fault = here.faults.arm(TRAIN, stage="defend sande_p", call=2)
        machines.kill(machines.node_of(here.reach(fault)))
        machines.add()
        here.ended()
        here.recover(undisturbed)


def test_the_head_is_killed(case: NewCase, undisturbed: Case, faults: Faults) -> None:
    machines = Machines(faults, nodes=1)
    try:
        with case("SIGKILL of the head node, whose object store owns the driver's objects", *machines.options) as here:
            here.reach(here.faults.arm(TRAIN, stage="defend sande_p", call=2))
            machines.kill(machines.head)
            here.ended()
            here.options = ()
            here.recover(undisturbed)
    finally:
        machines.close()


@pytest.mark.parametrize(
    ("when", "point", "action", "path"),
    [
        ("during a training", TRAIN, "hold", ""),
        ("while a manifest is written", WRITE, "half", "manifest.json"),
        ("just after an artifact was put", PUT, "after", ""),
    ],
)
def test_the_driver_is_killed(case: NewCase, undisturbed: Case, when, point, action, path) -> None:
    with case(f"SIGKILL of the driver, {when}", "--set", "resources.checkpoint_minutes=0") as here:
        here.reach(here.faults.arm(point, action, stage="defend sft", path=path))
        here.kill(here.drivers[-1].pid)
        here.recover(undisturbed)


def test_the_driver_is_killed_twice(case: NewCase, undisturbed: Case, machines: Machines) -> None:
    with case("SIGKILL of the driver on a cluster, twice in one cell", *machines.options) as here:
        for call in (2, 3):
            here.reach(here.faults.arm(TRAIN, stage="defend sande_p", call=call))
            here.kill(here.drivers[-1].pid)
            here.vanish()
        here.recover(undisturbed)


@pytest.mark.parametrize(
    ("what", "path"),
    [
        ("the rows", "rows.parquet"),
        ("the outcomes", "outcomes.parquet"),
        ("a table", "asr.md"),
        ("the page", "README.md"),
    ],
)
def test_the_driver_is_killed_while_it_writes(case: NewCase, undisturbed: Case, what, path) -> None:
    with case(f"SIGKILL of the driver, while it writes {what}") as here:
        here.begin_with(undisturbed)
        assert here.reach(here.faults.arm(WRITE, "half", path=path)) == here.drivers[-1].pid
        here.kill(here.drivers[-1].pid)
        here.recover(undisturbed)


def test_two_drivers_start_together(case: NewCase, undisturbed: Case, machines: Machines) -> None:
    with case("two drivers started together", *machines.options) as here:
        both = here.start(), here.start()
        here.line.injected = 1
        assert [here.ended(driver) for driver in both] == [0, 0], here.said
        here.recover(undisturbed)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def make_unreadable(path: Path) -> None:
    # For root too, who may read a file whatever its permissions say.
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("how", "damage"),
    [
        ("truncated", truncate),
        ("with a flipped bit", flip_a_bit),
        ("deleted", Path.unlink),
        ("unreadable", make_unreadable),
    ],
)
def test_artifacts_are_damaged(case: NewCase, undisturbed: Case, machines: Machines, how, damage) -> None:
    with case(f"files {how}: two models, a manifest, outcomes", *machines.options) as here:
        here.begin_with(undisturbed)
        for kind, defense, file in (
            ("evaluate", "sande_p", "outcomes.parquet"),  # to make it anew takes its model,
            ("defend", "sande_p", "model.safetensors"),  # to make that anew takes the victim
            ("attack", "none", "model.safetensors"),
            ("defend", "sft", "manifest.json"),
        ):
            damage(here.artifact(kind, defense) / file)
            here.line.injected += 1
        here.recover(undisturbed)


def test_a_loss_is_not_finite(case: NewCase, undisturbed: Case, machines: Machines) -> None:
    with case("a loss that is NaN", *machines.options) as here:
        here.reach(here.faults.arm(TRAIN, "nan", stage="defend sft", call=2))
        assert here.ended() == 1, here.said
        here.recover(undisturbed)


def test_a_stage_never_ends(case: NewCase, undisturbed: Case, machines: Machines) -> None:
    with case("a stage that never ends", *machines.options, "--set", "resources.timeout=40") as here:
        here.reach(here.faults.arm(DECODE, stage="evaluate sft"))
        assert here.ended() == 1, here.said
        assert "FAILED: it took longer than resources.timeout" in here.said
        here.recover(undisturbed)


def test_a_run_is_told_to_stop(case: NewCase, undisturbed: Case, machines: Machines) -> None:
    with case("SIGTERM to the driver", *machines.options) as here:
        here.reach(here.faults.arm(TRAIN, stage="defend sft", call=2))
        here.drivers[-1].terminate()
        assert here.ended() == 128 + signal.SIGTERM, here.said
        here.recover(undisturbed)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="mounts a small disk, which needs a user namespace")
def test_a_disk_is_full(case: NewCase, undisturbed: Case) -> None:
    with case("a disk that is full") as here, here.small_disk("700k"):
        assert here.ended(here.start()) == 1, here.said
        assert "no space is left" in here.said
        here.line.injected = 1
        here.resize("100m")
        here.recover(undisturbed, fetch=here.copy_disk)


def test_the_store_is_removed(case: NewCase, undisturbed: Case) -> None:
    with case("the store is removed during a training") as here:
        fault = here.faults.arm(TRAIN, stage="defend sft", call=2)
        here.reach(fault)
        shutil.rmtree(here.store)
        here.faults.release()
        assert here.ended() == 2, here.said
        assert f"store {here.store} was removed while it was used; restore it, or run again" in here.said
        here.recover(undisturbed)


def test_s3_fails_and_delays(case: NewCase, undisturbed: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    try:
        with case("a store on S3 that fails and delays") as here:
            for name, value in (server.environment | {CACHE: str(here.root / "cache")}).items():
                monkeypatch.setenv(name, value)
            there = Remote("s3://bucket-of-faults/run")
            there._fs.mkdir("bucket-of-faults")
            here.location = f"{there.uri}/store"
            here.options = "--store", here.location, "--results", f"{there.uri}/results"
            server.fault = failing_and_slow()
            here.start()
            assert here.ended() == 0, here.said
            here.line.injected = server.failed
            server.fault = never
            here.recover(undisturbed, fetch=lambda: there.fetch(there.sizes(), here.root))
    finally:
        server.close()
