"""Predictions, against sums done by hand."""

from pathlib import Path
from typing import Any

import pytest

from benchmark import predict as predictions
from benchmark.cell import Cell, Resources
from benchmark.estimate import HOUR, estimate
from benchmark.plan import Plan, make, stages_of
from benchmark.predict import BASES, OVERHEAD, note, predict, sentence
from benchmark.store import Store
from sande.errors import UserError
from tests.benchmark.helpers import ACCURACY, cell, put, stage

SAME_METHOD, SAME_MODEL, PAPER = BASES
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
    assert basis(again, store) == {SAME_METHOD: 4}


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
    assert basis(plan, store) == {SAME_MODEL: 1}


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
    assert "stages that share a GPU are taken to be as fast as alone" in sentence(plan, store, Resources(), 1, "h100")


def test_a_run_on_the_store_replaces_the_overhead(store: Store) -> None:
    measured(store, cell())
    plan = only("attack", cell(seed=1))
    note(store, start=3.0, stage=1.0)
    note(store, around=2.0)
    assert predict(plan, store, Resources(), 1, None).wall == pytest.approx(2 + 3 + 1 + 100)
    assert "beside them 5 s, and 1.0 s a stage, as in the last run on this store" in sentence(
        plan, store, Resources(), 1, None
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
    first, second = sentence(plan, store, Resources(), 8, "h100").splitlines()
    assert first.startswith(f"Forecast on 8 GPUs (h100): {hours:.1f} h for {hours:.1f} GPU-hours of work, 12% in use")
    beside = f"beside them {BESIDE:.0f} s, and {OVERHEAD.stage:.1f} s a stage, as measured on two CPU cores"
    assert second == f"Basis: 4 stages by {PAPER}; {beside}"
    measured(store, cell())
    on_cpu = sentence(make([cell(seed=1)], store), store, Resources(), 2, "cpu")
    assert on_cpu.startswith("Forecast with 2 stages at a time (cpu): ")
    assert sentence(plan, store, Resources(), 2, "cpu") == (
        "Forecast: none without times for llama2-7b (never measured on cpu, or of unknown size)"
    )


def test_a_finished_grid_takes_no_more_than_its_report(store: Store) -> None:
    measured(store, cell())
    plan = make([cell()], store)
    assert (
        sentence(plan, store, Resources(), 1, None) == f"Forecast: {OVERHEAD.around:.0f} s, as nothing is left to run"
    )
