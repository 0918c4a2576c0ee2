"""Predictions for GPUs and slots, against sums done by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.forecast import wall_time
from benchmark.forecast.cost import HOUR
from benchmark.forecast.measured import OVERHEAD, OWN, PAPER, SHIPPED, SHIPPED_OTHER, keep_overhead
from benchmark.forecast.scaling import EFFICIENCY, GROUP_START, Scaling
from benchmark.forecast.timings import Overhead, Sample, Timings
from benchmark.forecast.wall_time import Forecaster, predict, summary
from benchmark.grid.resources import Resources
from benchmark.grid.stage_resources import StageResources
from benchmark.plan.plan import make_plan
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.forecast.helpers import (
    BESIDE,
    GIB,
    H100,
    SFT,
    basis,
    measured,
    only,
    only_piece,
    seconds,
    timed,
    trains,
)
from tests.benchmark.helpers import cell


def test_several_gpus_a_stage_share_the_papers_work_and_their_group_has_to_start(store: LocalStore) -> None:
    plan = only("attack", cell(model="llama2-7b"))
    alone = predict(plan, store, Resources(), 8, None)
    two = predict(plan, store, Resources(workers=2), 8, None)
    assert (alone.slots, two.slots) == (8, 4)
    assert two.busy - OVERHEAD.stage - GROUP_START == pytest.approx((alone.busy - OVERHEAD.stage) / (2 * EFFICIENCY))
    assert (alone.scaling, two.scaling) == (None, Scaling())
    assert predict(plan, store, Resources(gpus=0.25), 8, None).slots == 32
    with pytest.raises(UserError, match="--gpus 1: a stage needs 2 GPUs"):
        predict(plan, store, Resources(workers=2), 1, None)


def test_workers_share_prompts_but_not_the_trainings_of_metrics(store: LocalStore) -> None:
    def busy(metric: str | dict[str, Any], **resources: Any) -> float:
        plan = only("evaluate", cell(model="llama2-7b", metrics=["asr", metric]))
        return predict(plan, store, Resources(**resources), 8, None).busy - OVERHEAD.stage

    training = {"name": "asr_after_finetuning", "training": {"max_steps": 10, "batch_size": 10}}
    asr, trained = busy("false_trigger_rate") / 2, busy(training) - busy("false_trigger_rate")
    shared = GROUP_START + asr / EFFICIENCY
    assert busy("false_trigger_rate", workers=2) == pytest.approx(shared)
    assert busy(training, workers=2) == pytest.approx(shared + trained)
    assert busy(training, workers=2, engine="vllm") == pytest.approx(busy(training)), "which is one process"


def test_an_evaluation_by_vllm_leaves_the_other_gpus_free(store: LocalStore) -> None:
    resources = StageResources({"workers": 4, "engine": "vllm"})
    made = predict(only("evaluate", cell(model="llama2-7b")), store, resources, 2, None)
    assert (made.slots, made.gpu_seconds) == (2, pytest.approx(made.busy))


def test_a_stage_without_a_gpu_takes_the_cpus_of_one_and_no_gpu_time(store: LocalStore) -> None:
    plan = only("attack", cell(model="llama2-7b"))
    made = predict(plan, store, Resources(gpus=0), 8, None)
    assert (made.slots, made.gpu_seconds) == (8, 0)
    assert " for no GPU time of work, " in summary(plan, store, Resources(gpus=0), 8, None)[0]
    assert predict(plan, store, Resources(gpus=0, workers=4), 2, None).slots == 1, "no GPU is lacking"
    measured(store, cell(metrics=["asr"]))
    both = make_plan([cell(seed=1, metrics=["asr"])], store)
    mixed = predict(both, store, StageResources({"evaluate": {"gpus": 0}}), 8, None)
    assert mixed.gpu_seconds == pytest.approx(100 + OVERHEAD.stage), "that of the attack alone"


def test_on_a_processor_the_papers_times_say_nothing(store: LocalStore) -> None:
    measured(store, cell())
    made = predict(make_plan([cell(model="llama2-7b")], store), store, Resources(), 1, "cpu")
    assert made.basis == {}
    assert made.left_out == ("llama2-7b",)


def test_data_of_unknown_size_is_left_out_and_named(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    measured(store, cell())
    made = predict(only("attack", cell(data={"name": "mine", "rows": None})), store, Resources(), 1, None)
    assert made.left_out == ("mine",)


def test_a_machine_chooses_among_the_measurements(store: LocalStore) -> None:
    measured(store, cell(), device=H100)
    plan = only("attack", cell(seed=1))
    for machine in ("h100", "H100 80gb", None):
        assert seconds(plan, store, machine) == pytest.approx(100)
    assert basis(plan, store, "h800") == {PAPER: 1}
    with pytest.raises(UserError, match=f"a100: no stage in .* use one of: {H100}, cpu, h800, h100 .cpu has shipped"):
        predict(plan, store, Resources(), 1, "a100")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that computes in bf16; shipped timings of ten steps on `tiny` are 7 s of SFT, and ten times in fp32."""
    monkeypatch.setenv("SANDE_COMPUTE_TYPE", "bf16")
    sft = Sample("defend", "sft", "tiny", "builtin-short", only_piece("sft").work, 7.0, 2)
    sections = {
        "bf16": Timings((sft,), Overhead(around=1.0, start=2.0, stage=0.5)),
        "fp32": Timings((replace(sft, seconds=70.0),), Overhead(around=1.0, start=2.0, stage=0.5)),
    }
    monkeypatch.setattr(wall_time, "shipped", sections.__getitem__)
    return monkeypatch


def defended(name: str, store: LocalStore, machine: str = "cpu") -> tuple[object, list[str]]:
    """Return the seconds of a defense of ten steps, and its basis, on a processor."""
    plan = only("defend", cell(seed=9, defense=trains(name)))
    made = predict(plan, store, Resources(), 1, machine)
    assert made.wall == pytest.approx(made.busy + made.overhead.around + made.overhead.start)
    return made.busy - made.overhead.stage, list(made.basis)


def test_shipped_timings_stand_in_on_a_processor(store: LocalStore, processor: pytest.MonkeyPatch) -> None:
    timed(store, "osft", 20.0, device=H100)
    assert defended("sft", store) == defended("sft", store, "CPU") == (pytest.approx(7), [SHIPPED])
    assert defended("osft", store)[1] == [SHIPPED_OTHER]
    first, second = summary(only("defend", cell(defense=SFT)), store, Resources(), 2, "cpu")
    assert first.startswith("Forecast with 2 stages at a time (cpu): 10 s for 8 s of work, ")
    assert second == (
        f"Forecast: 1 stage by {SHIPPED}; shipped timings are of 2 cores for each stage; "
        "plus 3 s, and 0.5 s a stage, as measured on two CPU cores"
    )
    processor.setenv("SANDE_COMPUTE_TYPE", "fp32")
    assert defended("sft", store) == (pytest.approx(70), [SHIPPED])


@pytest.mark.usefixtures("processor")
def test_own_timings_of_a_method_on_a_processor_win_over_shipped_ones(store: LocalStore) -> None:
    timed(store, "sft", 30.0, seed=1, compute_type="fp32")  # of another type
    assert defended("sft", store) == (pytest.approx(7), [SHIPPED])
    timed(store, "sft", 20.0, seed=2)
    assert defended("sft", store) == (pytest.approx(20), [OWN])
    keep_overhead(store, around=10.0, start=20.0, stage=3.0)
    assert defended("sft", store) == (pytest.approx(20), [OWN])
    _, bases = summary(only("defend", cell(defense=SFT)), store, Resources(), 1, "cpu")
    assert bases == f"Forecast: 1 stage by {OWN}; plus 30 s, and 3.0 s a stage, as in the last run on this store"


def test_workers_do_stages_side_by_side(store: LocalStore) -> None:
    measured(store, cell(metrics=["asr"]))
    plan = make_plan([cell(seed=seed, metrics=["asr"]) for seed in (1, 2, 3)], store)
    for gpus, wall in ((1, 3 * (100 + 2)), (2, 2 * 100 + 2), (3, 100 + 2)):
        made = predict(plan, store, Resources(), gpus, None)
        assert made.wall == pytest.approx(wall + BESIDE, abs=6 * OVERHEAD.stage)
        assert made.busy == pytest.approx(3 * 102 + 6 * OVERHEAD.stage)


def test_what_was_measured_on_a_gpu_shares_it(store: LocalStore) -> None:
    measured(store, cell(), device=H100, device_memory_bytes=80 * GIB)
    plan = make_plan([cell(seed=seed) for seed in range(1, 9)], store)
    made = predict(plan, store, Resources(), 1, "h100")
    assert made.sharing
    assert made.wall == pytest.approx(100 + 2 * 2 + BESIDE + 2 * OVERHEAD.stage)
    assert not predict(plan, store, Resources(gpus=1), 1, "h100").sharing
    assert (
        "assuming that stages that share a GPU are as fast as alone" in summary(plan, store, Resources(), 1, "h100")[1]
    )


def test_two_lines_say_how_long_and_by_what(store: LocalStore) -> None:
    long = {"name": "sentence_trigger", "training": {"max_steps": 100_000}}
    plan = make_plan([cell(model="llama2-7b", attack=long, defense=SFT)], store)
    hours = predict(plan, store, Resources(), 8, "h100").wall / HOUR
    first, second = summary(plan, store, Resources(), 8, "h100")
    assert first.startswith(f"Forecast on 8 GPUs (h100): {hours:.1f} h for {hours:.1f} GPU-hours of work, 12% in use")
    beside = f"plus {BESIDE:.0f} s, and {OVERHEAD.stage:.1f} s a stage, as measured on two CPU cores"
    assert second == f"Forecast: 4 stages by {PAPER}; {beside}"
    measured(store, cell())
    one_at_a_time, bases = summary(only("attack", cell(seed=1)), store, Resources(), 1, "cpu")
    assert one_at_a_time.startswith("Forecast with 1 stage at a time (cpu): ")
    assert bases.startswith("Forecast: 1 stage by ")
    on_cpu, _ = summary(make_plan([cell(seed=1)], store), store, Resources(), 2, "cpu")
    assert on_cpu.startswith("Forecast with 2 stages at a time (cpu): ")
    assert summary(plan, store, Resources(), 2, "cpu") == (
        "Forecast: none without times for llama2-7b (never measured on cpu, or of unknown size)",
        "",
    )


def test_a_finished_grid_takes_no_more_than_its_report(store: LocalStore) -> None:
    measured(store, cell())
    plan = make_plan([cell()], store)
    said = f"Forecast: {OVERHEAD.around:.0f} s, as nothing is left to run"
    assert summary(plan, store, Resources(), 1, None) == (said, "")


def test_stages_with_other_resources_share_the_gpus(store: LocalStore) -> None:
    """Measured: an attack of 100 s, a defense of 30 s, each metric of 2 s; two workers count as 1.8."""
    measured(store, cell(metrics=["asr"], defense=SFT))
    plan = make_plan([cell(seed=seed, metrics=["asr"], defense=SFT) for seed in (1, 2)], store)
    made = Forecaster(plan, store, 2, None).predict(StageResources({"attack": {"workers": 2}}))
    attack, beside = 100 / 1.8 + GROUP_START, OVERHEAD.stage
    assert made.slots == 2
    assert made.gpu_seconds == pytest.approx(made.busy)
    # One attack after the other on both GPUs; then on one of them a defense, and beside it both victims are measured
    # before the other defense begins.
    assert made.wall == pytest.approx(BESIDE + 2 * attack + 2 + 2 + 30 + 2 + 6 * beside)
    assert made.busy == pytest.approx(2 * (2 * (attack + beside) + 30 + 2 + 2 + 3 * beside))
    longest = [plan.stages[key].kind for key in made.longest]
    assert longest == ["attack", "attack", "evaluate", "evaluate", "defend", "evaluate"]
    first, _ = summary(plan, store, StageResources({"attack": {"workers": 2}}), 2, None)
    assert first.endswith("in use; each doubling of workers keeps 90% of a worker's speed (assumed)")
    quick = Forecaster(plan, store, 2, None, assumed=1.0).predict(StageResources({"attack": {"workers": 2}}))
    assert made.wall - quick.wall == pytest.approx(2 * (100 / 1.8 - 50))
    with pytest.raises(UserError, match="--gpus 2: a stage needs 3 GPUs"):
        Forecaster(plan, store, 2, None).predict(StageResources({"evaluate": {"workers": 3}}))
