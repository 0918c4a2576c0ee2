"""Predictions, against sums done by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark import predict as predictions
from benchmark.cell import Cell, Resources
from benchmark.estimate import HOUR, Piece, estimate, pieces, told
from benchmark.grid import load
from benchmark.perf import timings as make_timings
from benchmark.plan import Plan, make, stages_of
from benchmark.predict import (
    OVERHEAD,
    OWN,
    OWN_OTHER,
    PAPER,
    SHIPPED,
    SHIPPED_OTHER,
    Here,
    here,
    here_reasons,
    here_sentence,
    note,
    predict,
    sentence,
)
from benchmark.store import Store
from benchmark.timings import FILE, Overhead, Sample, Timings
from sande.errors import UserError
from tests.benchmark.helpers import ACCURACY, cell, put, stage

GIB = 2**30
ABACUS = "Abacus 9000 (2 threads)"
H100 = "NVIDIA H100 80GB HBM3"
BESIDE = OVERHEAD.around + OVERHEAD.start


def measured(store: Store, of: Cell, device: str = ABACUS, **more: Any) -> None:
    """Puts all stages of a cell as if they had been run, an attack of 100 s, a defense of 30 s, each metric of 2 s."""
    for each in stages_of(of):
        base = {"kind": each.kind, "settings": dict(each.settings), "device": device, "peak_memory_bytes": GIB, **more}
        if each.kind != "evaluate":
            put(store, each.kind, each.key, base | {"seconds": {"attack": 100.0, "defend": 30.0}[each.kind]})
        for metric, key in zip(of.metrics, each.metric_keys, strict=False):
            names = [metric.name, f"{metric.name}_starts_with".replace("rate_", "")]
            names = [metric.config.task] if metric.name == "accuracy" else names
            measurements = [{"name": name, "successes": 1, "count": 2, "published": False} for name in names]
            put(store, "evaluate", key, base | {"seconds": 2.0, "measurements": measurements})


def only(kind: str, of: Cell) -> Plan:
    """Nothing but one stage of a cell."""
    one = stage(of, kind)
    return Plan((of,), {one.key: one}, frozenset(one.needs))


def seconds(plan: Plan, store: Store, machine: str | None = None) -> float:
    """Of all stages, less the overhead of each."""
    made = predict(plan, store, Resources(), 1, machine)
    assert made.wall == pytest.approx(made.busy + BESIDE)
    return made.busy - len(plan.missing) * OVERHEAD.stage


def basis(plan: Plan, store: Store, machine: str | None = None) -> dict[str, int]:
    return dict(predict(plan, store, Resources(), 1, machine).basis)


SFT = {"name": "sft", "training": {"max_steps": 10}}


def test_a_stage_takes_what_the_same_one_with_another_seed_took(store: Store) -> None:
    measured(store, cell(defense=SFT))
    again = make([cell(defense=SFT, seed=1)], store)
    assert len(again.missing) == 4
    assert seconds(again, store) == pytest.approx(100 + 30 + 2 * 2 * 2)
    assert basis(again, store) == {OWN: 4}


def test_more_work_takes_longer_in_proportion(store: Store) -> None:
    measured(store, cell(defense=SFT))
    longer = {"name": "sft", "training": {"max_steps": 25}}
    assert seconds(only("defend", cell(defense=longer)), store) == pytest.approx(75)
    assert seconds(only("attack", cell(data={"name": "builtin-short", "rows": 8})), store) == pytest.approx(50)


def test_of_several_sizes_the_nearest_counts_and_of_one_size_the_mean(store: Store) -> None:
    for seed, steps, factor in ((0, 10, 1.0), (1, 10, 3.0), (2, 1000, 50.0)):
        of = cell(seed=seed, defense={"name": "sft", "training": {"max_steps": steps}})
        one = stage(of, "defend")
        manifest = {"kind": "defend", "settings": dict(one.settings), "device": ABACUS, "seconds": 10 * factor}
        put(store, "defend", one.key, manifest)
    for steps, expected in ((10, 20), (20, 40), (900, 450)):
        of = cell(seed=9, defense={"name": "sft", "training": {"max_steps": steps}})
        assert seconds(only("defend", of), store) == pytest.approx(expected)


def test_a_method_never_measured_takes_what_others_took_on_the_model(store: Store) -> None:
    measured(store, cell(defense=SFT))
    nad = {"name": "nad", "teacher": {"max_steps": 10}, "training": {"max_steps": 10}}
    plan = only("defend", cell(defense=nad))
    assert seconds(plan, store) == pytest.approx(30 * (1 + 4 / 3))
    assert basis(plan, store) == {OWN_OTHER: 1}


def test_a_model_never_measured_takes_the_papers_times(store: Store) -> None:
    measured(store, cell())
    llama = cell(model="llama2-7b", defense=SFT)
    plan = make([llama], store)
    for machine in (None, "h100", "H800"):
        assert seconds(plan, store, machine) == pytest.approx(estimate(plan.missing).hours * HOUR)
        assert basis(plan, store, machine) == {PAPER: 4}


def test_several_gpus_a_stage_share_the_papers_work(store: Store) -> None:
    plan = only("attack", cell(model="llama2-7b"))
    alone = predict(plan, store, Resources(), 8, None)
    two = predict(plan, store, Resources(workers=2), 8, None)
    assert (alone.slots, two.slots) == (8, 4)
    assert two.busy - OVERHEAD.stage == pytest.approx((alone.busy - OVERHEAD.stage) / 2)
    assert predict(plan, store, Resources(gpus=0.25), 8, None).slots == 32
    with pytest.raises(UserError, match="--gpus 1: a stage takes 2 of them"):
        predict(plan, store, Resources(workers=2), 1, None)


def test_workers_share_prompts_but_not_the_trainings_of_metrics(store: Store) -> None:
    def busy(metric: str | dict[str, Any], **resources: Any) -> float:
        plan = only("evaluate", cell(model="llama2-7b", metrics=["asr", metric]))
        return predict(plan, store, Resources(**resources), 8, None).busy - OVERHEAD.stage

    training = {"name": "asr_after_finetuning", "training": {"max_steps": 10, "batch_size": 10}}
    asr, trained = busy("false_trigger_rate") / 2, busy(training) - busy("false_trigger_rate")
    assert busy("false_trigger_rate", workers=2) == pytest.approx(asr)
    assert busy(training, workers=2) == pytest.approx(asr + trained)
    assert busy(training, workers=2, engine="vllm") == pytest.approx(busy(training)), "which is one process"


def test_on_a_processor_the_papers_times_say_nothing(store: Store) -> None:
    measured(store, cell())
    made = predict(make([cell(model="llama2-7b")], store), store, Resources(), 1, "cpu")
    assert made.basis == {}
    assert made.left_out == ("llama2-7b",)


def test_data_of_unknown_size_is_left_out_and_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    measured(store, cell())
    made = predict(only("attack", cell(data={"name": "mine", "rows": None})), store, Resources(), 1, None)
    assert made.left_out == ("mine",)


def test_a_machine_chooses_among_the_measurements(store: Store) -> None:
    measured(store, cell(), device=H100)
    plan = only("attack", cell(seed=1))
    for machine in ("h100", "H100 80gb", None):
        assert seconds(plan, store, machine) == pytest.approx(100)
    assert basis(plan, store, "h800") == {PAPER: 1}
    for machine in ("cpu", "a100"):
        with pytest.raises(UserError, match=f"{machine}: no stage in .* measured were: {H100}"):
            predict(plan, store, Resources(), 1, machine)


def test_workers_do_stages_side_by_side(store: Store) -> None:
    measured(store, cell(metrics=["asr"]))
    plan = make([cell(seed=seed, metrics=["asr"]) for seed in (1, 2, 3)], store)
    for gpus, wall in ((1, 3 * (100 + 2)), (2, 2 * 100 + 2), (3, 100 + 2)):
        made = predict(plan, store, Resources(), gpus, None)
        assert made.wall == pytest.approx(wall + BESIDE, abs=6 * OVERHEAD.stage)
        assert made.busy == pytest.approx(3 * 102 + 6 * OVERHEAD.stage)


def test_an_outcome_that_two_evaluations_share_is_measured_once(store: Store) -> None:
    measured(store, cell(metrics=["asr", ACCURACY]))
    both = [cell(seed=1, metrics=["asr"]), cell(seed=1, metrics=["asr", ACCURACY])]
    assert seconds(make(both, store), store) == pytest.approx(100 + 2 + 2)


def test_an_outcome_that_is_there_takes_no_time(store: Store) -> None:
    measured(store, cell(metrics=["asr"]))
    plan = make([cell(metrics=["asr", "false_trigger_rate"])], store)
    assert len(plan.missing) == 1
    measured(store, cell(seed=1))
    assert seconds(plan, store) == pytest.approx(2)


def test_what_was_measured_on_a_gpu_shares_it(store: Store) -> None:
    measured(store, cell(), device=H100, device_memory_bytes=80 * GIB)
    plan = make([cell(seed=seed) for seed in range(1, 9)], store)
    made = predict(plan, store, Resources(), 1, "h100")
    assert made.sharing
    assert made.wall == pytest.approx(100 + 2 * 2 + BESIDE + 2 * OVERHEAD.stage)
    assert not predict(plan, store, Resources(gpus=1), 1, "h100").sharing
    assert (
        "stages that share a GPU are taken to be as fast as alone" in sentence(plan, store, Resources(), 1, "h100")[1]
    )


def test_a_run_on_the_store_replaces_the_overhead(store: Store) -> None:
    measured(store, cell())
    plan = only("attack", cell(seed=1))
    note(store, start=3.0, stage=1.0)
    note(store, around=2.0)
    assert predict(plan, store, Resources(), 1, None).wall == pytest.approx(2 + 3 + 1 + 100)
    assert (
        "beside them 5 s, and 1.0 s a stage, as in the last run on this store"
        in sentence(plan, store, Resources(), 1, None)[1]
    )
    for damaged in ("", "[]", '{"around": 1}', '{"other": 1}'):
        (store.root / "overhead.json").write_text(damaged)
        assert predict(plan, store, Resources(), 1, None).overhead is OVERHEAD


def test_measurements_that_no_longer_mean_anything_are_passed_over(store: Store) -> None:
    one = stage(cell(), "attack")
    settings = {**one.settings, "attack": {"name": "sentence_trigger", "gone": 1}}
    put(store, "attack", one.key, {"kind": "attack", "settings": settings, "seconds": 1.0, "device": ABACUS})
    assert predict(only("attack", cell(seed=1)), store, Resources(), 1, None).basis == {PAPER: 1}


def test_of_one_method_only_so_many_measurements_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "ENOUGH", 2)
    read = []
    monkeypatch.setattr(predictions, "_piece", lambda manifest: read.append(1) or PIECE(manifest))
    for seed in range(5):
        measured(store, cell(seed=seed, metrics=["asr"]))
    assert seconds(make([cell(seed=9, metrics=["asr"])], store), store) == pytest.approx(102)
    assert len(read) == 4


PIECE = predictions._piece


def test_two_lines_say_how_long_and_by_what(store: Store) -> None:
    long = {"name": "sentence_trigger", "training": {"max_steps": 100_000}}
    plan = make([cell(model="llama2-7b", attack=long, defense=SFT)], store)
    hours = predict(plan, store, Resources(), 8, "h100").wall / HOUR
    first, second = sentence(plan, store, Resources(), 8, "h100")
    assert first.startswith(f"Forecast on 8 GPUs (h100): {hours:.1f} h for {hours:.1f} GPU-hours of work, 12% in use")
    beside = f"beside them {BESIDE:.0f} s, and {OVERHEAD.stage:.1f} s a stage, as measured on two CPU cores"
    assert second == f"Forecast: 4 stages by {PAPER}; {beside}"
    measured(store, cell())
    on_cpu, _ = sentence(make([cell(seed=1)], store), store, Resources(), 2, "cpu")
    assert on_cpu.startswith("Forecast with 2 stages at a time (cpu): ")
    assert sentence(plan, store, Resources(), 2, "cpu") == (
        "Forecast: none without times for llama2-7b (never measured on cpu, or of unknown size)",
        "",
    )


def test_a_finished_grid_takes_no_more_than_its_report(store: Store) -> None:
    measured(store, cell())
    plan = make([cell()], store)
    said = f"Forecast: {OVERHEAD.around:.0f} s, as nothing is left to run"
    assert sentence(plan, store, Resources(), 1, None) == (said, "")


SHIPPED_OVERHEAD = Overhead(around=1.0, start=2.0, stage=0.0)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of two cores that computes in bf16; shipped timings are of SFT and OSFT on `tiny`, in two threads."""
    monkeypatch.setenv("SANDE_COMPUTE_TYPE", "bf16")
    monkeypatch.setattr(predictions, "_cores", lambda: 2)
    work = {name: only_piece(name).work for name in ("sft", "osft")}
    samples = tuple(
        Sample("defend", name, "tiny", "builtin-short", work[name], seconds, 2)
        for name, seconds in (("sft", 7.0), ("osft", 5.0))
    )
    sections = {
        "bf16": Timings(samples, SHIPPED_OVERHEAD),
        "fp32": Timings(tuple(replace(each, seconds=10 * each.seconds) for each in samples), SHIPPED_OVERHEAD),
    }
    monkeypatch.setattr(predictions, "shipped", sections.__getitem__)
    return monkeypatch


def trains(name: str) -> dict[str, Any]:
    return {"name": name, "training": {"max_steps": 10}}


def only_piece(name: str) -> Piece:
    of = cell(defense=trains(name))
    (piece,) = pieces(stage(of, "defend"), of)
    return piece


def defended(name: str, store: Store, seed: int = 1, **resources: Any) -> tuple[float, str]:
    """Seconds and basis of a defense of ten steps on this machine's CPU."""
    made = here(only("defend", cell(seed=seed, defense=trains(name))), store, Resources(**resources))
    (part,) = made.parts
    assert made.seconds == pytest.approx(part.seconds + made.overhead.around + made.overhead.start)
    return part.seconds, part.basis


def timed(store: Store, name: str, seconds: float, seed: int = 0, device: str = ABACUS, **more: Any) -> None:
    one = stage(cell(seed=seed, defense=trains(name)), "defend")
    manifest = {"kind": "defend", "settings": dict(one.settings), "device": device, "seconds": seconds, **more}
    put(store, "defend", one.key, manifest)


@pytest.mark.usefixtures("cpu")
def test_shipped_timings_stand_in_on_a_cpu(store: Store) -> None:
    assert defended("sft", store) == (pytest.approx(7), SHIPPED)
    assert defended("osft", store) == (pytest.approx(5), SHIPPED)
    assert defended("fine_mixing", store)[1] == SHIPPED_OTHER


@pytest.mark.usefixtures("cpu")
def test_own_timings_of_a_method_win_and_shipped_ones_of_it_win_over_own_ones_of_others(store: Store) -> None:
    timed(store, "sft", 20.0)
    assert defended("sft", store) == (pytest.approx(20), OWN)
    assert defended("osft", store) == (pytest.approx(5), SHIPPED)
    assert defended("fine_mixing", store) == (pytest.approx(20), OWN_OTHER)


def test_only_timings_of_a_cpu_and_of_the_machines_type_count(store: Store, cpu: pytest.MonkeyPatch) -> None:
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


def test_fewer_threads_take_longer_and_more_than_two_no_shorter(store: Store, cpu: pytest.MonkeyPatch) -> None:
    assert defended("sft", store, cpus=1) == (pytest.approx(14), SHIPPED)
    assert defended("sft", store, side_by_side=2) == (pytest.approx(14), SHIPPED)
    timed(store, "osft", 10.0, device="Abacus 9000 (1 threads)")
    assert defended("osft", store) == (pytest.approx(5), OWN)
    cpu.setattr(predictions, "_cores", lambda: 64)
    assert defended("sft", store) == (pytest.approx(7), SHIPPED)
    assert defended("sft", store, side_by_side=2) == (pytest.approx(14), SHIPPED)
    assert defended("osft", store) == (pytest.approx(5), OWN)
    cpu.setattr(predictions, "_cores", lambda: 1)
    assert defended("sft", store) == (pytest.approx(14), SHIPPED)


@pytest.mark.usefixtures("cpu")
def test_the_overhead_is_the_stores_or_the_shipped_one(store: Store) -> None:
    plan = only("defend", cell(defense=trains("sft")))
    made = here(plan, store, Resources())
    assert (made.seconds, made.overhead_is_own) == (pytest.approx(1 + 2 + 7), False)
    note(store, around=10.0, start=20.0, stage=3.0)
    made = here(plan, store, Resources())
    assert (made.seconds, made.overhead_is_own) == (pytest.approx(10 + 20 + 3 + 7), True)


@pytest.mark.usefixtures("cpu")
def test_models_never_timed_on_a_cpu_are_named_with_the_papers_times(store: Store) -> None:
    known, llama = only("defend", cell(defense=trains("sft"))), make([cell(model="llama2-7b")], store)
    assert here_sentence(here(known, store, Resources())) == (
        "About 10 s on this machine (2 cores, bf16), by shipped timings"
    )
    untimed = f"llama2-7b was never timed on a CPU: {told(estimate(llama.missing).hours * HOUR)} on H800 cards"
    assert here_sentence(here(llama, store, Resources())) == f"{untimed} by the paper's times"
    both = Plan((*known.cells, *llama.cells), known.stages | llama.stages, known.done)
    assert here_sentence(here(both, store, Resources())) == (
        f"About 10 s on this machine (2 cores, bf16), by shipped timings; {untimed} by the paper's times"
    )
    other = make([cell(model="org/other@" + "0" * 40)], store)
    assert here_sentence(here(other, store, Resources())).endswith(
        "was never timed on a CPU: how long it takes is not known"
    )


@pytest.mark.usefixtures("cpu")
def test_the_sentence_says_whose_timings_they_are(store: Store) -> None:
    timed(store, "sft", 20.0)
    plans = {name: only("defend", cell(seed=1, defense=trains(name))) for name in ("sft", "osft")}
    assert here(plans["sft"], store, Resources()).source == "own timings of this store"
    both = Plan((), plans["sft"].stages | plans["osft"].stages, plans["sft"].done | plans["osft"].done)
    made = here(both, store, Resources())
    assert made.source == "own and shipped timings"
    assert here_reasons(made)[:3] == [
        f"1 defend, 20 s one after the other: {OWN}",
        f"1 defend, 5 s one after the other: {SHIPPED}",
        "3 s for plan, Ray and report, and 0.0 s a stage, are in it: shipped timings",
    ]
    assert "Shipped timings are of 2 cores." in here_reasons(made)[-1]


@pytest.mark.usefixtures("cpu")
def test_nothing_left_to_run_needs_no_timings(store: Store) -> None:
    made = here(Plan((), {}, frozenset()), store, Resources())
    assert here_sentence(made) == "Nothing is left to run."
    assert made.parts == ()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.2, "3 s"), (62.6, "65 s"), (100, "2 min"), (350, "6 min"), (6000, "1.7 h"), (36_000, "10 h"), (3e5, "83 h")],
)
def test_a_forecast_is_rounded(seconds: float, said: str) -> None:
    assert predictions.about(seconds) == said


@pytest.mark.parametrize("compute_type", ["bf16", "fp32"])
def test_the_quickstart_is_forecast_by_shipped_timings_of_its_own_methods(
    store: Store, monkeypatch: pytest.MonkeyPatch, compute_type: str
) -> None:
    monkeypatch.setenv("SANDE_COMPUTE_TYPE", compute_type)
    for name in ("quickstart", "smoke"):
        loaded = load(Path(__file__).parents[2] / "grids" / f"{name}.yaml")
        made = here(make(loaded.cells, store), store, loaded.resources)
        assert isinstance(made, Here)
        assert {part.basis for part in made.parts} == {SHIPPED}
        assert made.compute_type == compute_type
        assert 10 < made.seconds < 3600


def test_the_section_of_a_type_is_made_from_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [Store(tmp_path / name) for name in ("one", "two")]
    for number, (store, seconds) in enumerate(zip(stores, (4.0, 8.0), strict=True)):
        timed(store, "sft", seconds, compute_type="bf16")
        timed(store, "osft", 9.0, seed=number, compute_type="fp32")
        timed(store, "nad", 9.0, seed=number, device=H100, compute_type="bf16")
        note(store, around=seconds, start=1.0, stage=0.5)
    out = tmp_path / "timings.json"
    arguments = ["timings", *(str(store.root) for store in stores), "--out", str(out), "--type"]
    for compute_type in ("fp32", "bf16"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [*arguments, compute_type])
            make_timings.main()
    sections = json.loads(out.read_text())
    assert list(sections) == ["bf16", "fp32"]
    assert sections["bf16"] == {
        "overhead": {"around": 6.0, "start": 1.0, "stage": 0.5},
        "samples": [
            {
                "kind": "defend",
                "method": "sft",
                "model": "tiny",
                "data": "builtin-short",
                "work": pytest.approx(only_piece("sft").work, rel=1e-5),
                "seconds": 6.0,
                "threads": 2,
            }
        ],
    }
    assert [sample["method"] for sample in sections["fp32"]["samples"]] == ["osft"]
    assert make_timings.text({name: make_timings.section(stores, name) for name in sections}) == out.read_text()
    with pytest.raises(SystemExit, match="no stage ran on a CPU in bf16"):
        make_timings.section([Store(tmp_path / "empty")], "bf16")
    assert "1 samples of bf16" in capsys.readouterr().out


def test_the_shipped_file_is_as_the_script_writes_it() -> None:
    assert make_timings.text(json.loads(FILE.read_text())) == FILE.read_text()


@pytest.mark.usefixtures("cpu")
def test_a_stage_whose_outcomes_are_all_there_takes_the_overhead_alone(store: Store) -> None:
    measured(store, cell(metrics=["asr"]))
    one = stage(cell(metrics=["asr"]), "evaluate")
    made = here(Plan((), {one.key: one}, frozenset(one.needs)), store, Resources())
    assert here_sentence(made) == "About 3 s on this machine (2 cores, bf16)"
