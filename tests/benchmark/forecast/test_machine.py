"""Forecasts for this machine's CPU, against sums done by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.forecast import machine
from benchmark.forecast.cost import HOUR, estimate, format_gpu_time
from benchmark.forecast.machine import Here, about, here, reasons, summary
from benchmark.forecast.measured import OWN, OWN_OTHER, SHIPPED, SHIPPED_OTHER, keep_overhead
from benchmark.forecast.timings import Overhead, Sample, Timings
from benchmark.grid.load import load_grid
from benchmark.grid.resources import Resources
from benchmark.grid.stage_resources import StageResources
from benchmark.plan.plan import Plan, make_plan
from benchmark.store.local import LocalStore
from tests.benchmark.forecast.helpers import H100, measured, only, only_piece, timed, trains
from tests.benchmark.helpers import cell, put, stage

SHIPPED_OVERHEAD = Overhead(around=1.0, start=2.0, stage=0.0)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of two cores that computes in bf16; shipped timings are of SFT and OSFT on `tiny`, in two threads."""
    monkeypatch.setenv("SANDE_COMPUTE_TYPE", "bf16")
    monkeypatch.setattr(machine, "_cores", lambda: 2)
    work = {name: only_piece(name).work for name in ("sft", "osft")}
    samples = tuple(
        Sample("defend", name, "tiny", "builtin-short", work[name], seconds, 2)
        for name, seconds in (("sft", 7.0), ("osft", 5.0))
    )
    sections = {
        "bf16": Timings(samples, SHIPPED_OVERHEAD),
        "fp32": Timings(tuple(replace(each, seconds=10 * each.seconds) for each in samples), SHIPPED_OVERHEAD),
    }
    monkeypatch.setattr(machine, "shipped", sections.__getitem__)
    return monkeypatch


def defended(name: str, store: LocalStore, seed: int = 1, **resources: Any) -> tuple[float, str]:
    """Return seconds and basis of a defense of ten steps on this machine's CPU."""
    made = here(only("defend", cell(seed=seed, defense=trains(name))), store, Resources(**resources))
    (part,) = made.parts
    assert made.seconds == pytest.approx(part.seconds + made.overhead.around + made.overhead.start)
    return part.seconds, part.basis


@pytest.mark.usefixtures("cpu")
def test_shipped_timings_stand_in_on_a_cpu(store: LocalStore) -> None:
    assert defended("sft", store) == (pytest.approx(7), SHIPPED)
    assert defended("osft", store) == (pytest.approx(5), SHIPPED)
    assert defended("fine_mixing", store)[1] == SHIPPED_OTHER


@pytest.mark.usefixtures("cpu")
def test_own_timings_of_a_method_win_and_shipped_ones_of_it_win_over_own_ones_of_others(store: LocalStore) -> None:
    timed(store, "sft", 20.0)
    assert defended("sft", store) == (pytest.approx(20), OWN)
    assert defended("osft", store) == (pytest.approx(5), SHIPPED)
    assert defended("fine_mixing", store) == (pytest.approx(20), OWN_OTHER)


@pytest.mark.usefixtures("cpu")
def test_shipped_timings_of_the_data_win_over_own_ones_of_other_data(store: LocalStore) -> None:
    elsewhere = cell(removal={"name": "builtin-explained", "rows": 40}, defense=trains("sft"))
    one = stage(elsewhere, "defend")
    manifest = {"kind": "defend", "settings": dict(one.settings), "device": "Abacus (2 threads)", "seconds": 20.0}
    put(store, "defend", one.key, manifest)
    assert defended("sft", store) == (pytest.approx(7), SHIPPED)
    assert here(only("defend", replace(elsewhere, attack_seed=5)), store, Resources()).parts[0].basis == OWN


@pytest.mark.usefixtures("cpu")
def test_timings_of_as_many_threads_win(store: LocalStore) -> None:
    timed(store, "sft", 20.0, seed=2)
    timed(store, "sft", 5.0, seed=3, device="Abacus 9000 (1 threads)")
    assert defended("sft", store) == (pytest.approx(20), OWN)
    assert defended("sft", store, cpus=1) == (pytest.approx(5), OWN)


@pytest.mark.usefixtures("cpu")
def test_attacks_that_get_a_core_each_do_not_double_the_defenses_at_a_time(store: LocalStore) -> None:
    resources = StageResources({"side_by_side": 2, "attack": {"cpus": 1}})
    plan = make_plan([cell(defense=trains("sft"))], store)
    assert here(plan, store, resources).at_once == 2


def test_only_timings_of_a_cpu_and_of_the_machines_type_count(store: LocalStore, cpu: pytest.MonkeyPatch) -> None:
    timed(store, "sft", 20.0, seed=2, device=H100)
    timed(store, "sft", 30.0, seed=3, compute_type="fp32")
    assert defended("sft", store) == (pytest.approx(7), SHIPPED)
    cpu.setenv("SANDE_COMPUTE_TYPE", "fp32")
    assert defended("sft", store) == (pytest.approx(30), OWN)
    assert defended("osft", store) == (pytest.approx(50), SHIPPED)
    cpu.setenv("SANDE_COMPUTE_TYPE", "bf16")
    timed(store, "sft", 40.0, seed=4, compute_type="bf16")
    assert defended("sft", store) == (pytest.approx(40), OWN)
    timed(store, "sft", 60.0, seed=5)  # of an earlier version, which does not say its type
    assert defended("sft", store) == (pytest.approx(50), OWN)


def test_fewer_threads_take_longer_and_more_than_two_no_shorter(store: LocalStore, cpu: pytest.MonkeyPatch) -> None:
    assert defended("sft", store, cpus=1) == (pytest.approx(14), SHIPPED)
    assert defended("sft", store, side_by_side=2) == (pytest.approx(14), SHIPPED)
    timed(store, "osft", 10.0, device="Abacus 9000 (1 threads)")
    assert defended("osft", store) == (pytest.approx(5), OWN)
    cpu.setattr(machine, "_cores", lambda: 64)
    assert defended("sft", store) == (pytest.approx(7), SHIPPED)
    assert defended("sft", store, side_by_side=2) == (pytest.approx(14), SHIPPED)
    assert defended("osft", store) == (pytest.approx(5), OWN)
    cpu.setattr(machine, "_cores", lambda: 1)
    assert defended("sft", store) == (pytest.approx(14), SHIPPED)


@pytest.mark.usefixtures("cpu")
def test_the_overhead_is_the_stores_or_the_shipped_one(store: LocalStore) -> None:
    plan = only("defend", cell(defense=trains("sft")))
    made = here(plan, store, Resources())
    assert (made.seconds, made.overhead_is_own) == (pytest.approx(1 + 2 + 7), False)
    keep_overhead(store, around=10.0, start=20.0, stage=3.0)
    made = here(plan, store, Resources())
    assert (made.seconds, made.overhead_is_own) == (pytest.approx(10 + 20 + 3 + 7), True)


@pytest.mark.usefixtures("cpu")
def test_models_never_timed_on_a_cpu_are_named_with_the_papers_times(store: LocalStore) -> None:
    known, llama = only("defend", cell(defense=trains("sft"))), make_plan([cell(model="llama2-7b")], store)
    assert summary(here(known, store, Resources())) == (
        "About 10 s on this machine (2 cores, bf16), by shipped timings"
    )
    untimed = (
        f"llama2-7b was never timed on a CPU: {format_gpu_time(estimate(llama.missing).hours * HOUR)} on H800 cards"
    )
    assert summary(here(llama, store, Resources())) == f"{untimed} by the paper's times"
    both = Plan((*known.cells, *llama.cells), known.stages | llama.stages, known.done)
    assert summary(here(both, store, Resources())) == (
        f"About 10 s on this machine (2 cores, bf16), by shipped timings; {untimed} by the paper's times"
    )
    other = make_plan([cell(model="org/other@" + "0" * 40)], store)
    assert summary(here(other, store, Resources())).endswith("was never timed on a CPU: how long it takes is not known")


@pytest.mark.usefixtures("cpu")
def test_the_sentence_says_whose_timings_they_are(store: LocalStore) -> None:
    timed(store, "sft", 20.0)
    plans = {name: only("defend", cell(seed=1, defense=trains(name))) for name in ("sft", "osft")}
    assert here(plans["sft"], store, Resources()).source == "own timings of this store"
    both = Plan((), plans["sft"].stages | plans["osft"].stages, plans["sft"].done | plans["osft"].done)
    made = here(both, store, Resources())
    assert made.source == "own and shipped timings"
    assert reasons(made)[:3] == [
        f"1 defend, 20 s one after the other: {OWN}",
        f"1 defend, 5 s one after the other: {SHIPPED}",
        "3 s for plan, Ray and report, and 0.0 s a stage, are included: shipped timings",
    ]
    assert "Shipped timings are of 2 cores." in reasons(made)[-1]


@pytest.mark.usefixtures("cpu")
def test_nothing_left_to_run_needs_no_timings(store: LocalStore) -> None:
    made = here(Plan((), {}, frozenset()), store, Resources())
    assert summary(made) == "Nothing is left to run."
    assert made.parts == ()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.2, "3 s"), (62.6, "65 s"), (100, "2 min"), (350, "6 min"), (6000, "1.7 h"), (36_000, "10 h"), (3e5, "83 h")],
)
def test_a_forecast_is_rounded(seconds: float, said: str) -> None:
    assert about(seconds) == said


@pytest.mark.parametrize("compute_type", ["bf16", "fp32"])
def test_the_quickstart_is_forecast_by_shipped_timings_of_its_own_methods(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, compute_type: str
) -> None:
    monkeypatch.setenv("SANDE_COMPUTE_TYPE", compute_type)
    for name in ("quickstart", "smoke"):
        loaded = load_grid(Path(__file__).parents[3] / "grids" / f"{name}.yaml")
        made = here(make_plan(loaded.cells, store), store, loaded.resources)
        assert isinstance(made, Here)
        assert {part.basis for part in made.parts} == {SHIPPED}
        assert made.compute_type == compute_type
        assert 10 < made.seconds < 3600


@pytest.mark.usefixtures("cpu")
def test_a_stage_whose_outcomes_are_all_there_takes_the_overhead_alone(store: LocalStore) -> None:
    measured(store, cell(metrics=["asr"]))
    one = stage(cell(metrics=["asr"]), "evaluate")
    made = here(Plan((), {one.key: one}, frozenset(one.needs)), store, Resources())
    assert summary(made) == "About 3 s on this machine (2 cores, bf16)"
