"""Shares of a GPU come from the peaks that stages had, and from nothing else."""

from typing import Any

import pytest

from benchmark.plan.memory import CONTEXT, MARGIN, MOST, Peaks, peaks_of, share
from benchmark.store.local import LocalStore
from tests.benchmark.helpers import cell, put, stage

GIB = 2**30
CARD = 80 * GIB


@pytest.mark.parametrize(
    ("peaks", "expected"),
    [
        ([], 1.0),  # not measured
        ([70 * GIB], 1.0),
        ([90 * GIB], 1.0),  # of a larger card
        ([30 * GIB], 0.5),
        ([20 * GIB], 0.3333),
        ([1 * GIB, 20 * GIB, 2 * GIB], 0.3333),  # the largest counts
        ([1 * GIB], 0.125),
        ([1], 1 / MOST),
    ],
)
def test_a_share_holds_the_largest_peak(peaks: list[int], expected: float) -> None:
    assert share(peaks, CARD) == pytest.approx(expected)


@pytest.mark.parametrize("parts", range(1, MOST + 1))
def test_as_many_stages_as_a_share_promises_fit_in_memory_and_in_rays_ten_thousandths(parts: int) -> None:
    peak = int((CARD / parts - CONTEXT) / MARGIN)
    found = share([peak], CARD)
    assert int(1 / found) == parts
    assert parts * (MARGIN * peak + CONTEXT) <= CARD
    assert parts * round(found * 10_000) <= 10_000
    assert share([peak + 2**20], CARD) > found or parts == 1


def manifest(of, kind: str, peak: int, total: int = CARD) -> dict:
    settings = stage(of, kind).settings
    return {"kind": kind, "settings": settings, "peak_memory_bytes": peak, "device_memory_bytes": total}


def test_the_first_stage_of_a_sort_has_a_whole_gpu_and_later_ones_what_it_needed() -> None:
    first, second, other = (cell(defense="sft", seed=seed) for seed in range(2)), None, cell(defense="nad")
    first, second = first
    peaks = Peaks([])
    assert peaks.share(stage(first, "defend")) == 1.0
    peaks.learn(manifest(first, "defend", 4 * GIB))
    assert peaks.share(stage(second, "defend")) == 0.125
    assert peaks.share(stage(other, "defend")) == 1.0, "another method"
    assert peaks.share(stage(second, "attack")) == 1.0, "another kind"
    assert peaks.share(stage(cell(defense="sft", model="smollm2-135m"), "defend")) == 1.0, "another model"
    peaks.learn(manifest(second, "defend", 30 * GIB))
    assert peaks.share(stage(first, "defend")) == 0.5, "the largest counts"


def test_a_worker_of_several_says_nothing_of_one_alone() -> None:
    peaks = Peaks([manifest(cell(defense="sft"), "defend", GIB) | {"workers": 2}])
    assert peaks.share(stage(cell(defense="sft"), "defend")) == 1.0
    peaks.learn(manifest(cell(defense="sft"), "defend", GIB) | {"workers": 1})
    assert peaks.share(stage(cell(defense="sft"), "defend")) < 1.0


@pytest.mark.parametrize(
    "size",
    [
        {"batch_size": 64},
        {"max_length": 512},
        {"lora_rank": 8},
        {"precision": "fp32"},
        {"optimizer": "sgd"},
        {"sharpness": 0.1},
    ],
)
def test_batches_of_another_size_are_measured_anew(size: dict) -> None:
    peaks = Peaks([manifest(cell(defense="sft"), "defend", GIB)])
    assert peaks.share(stage(cell(defense={"name": "sft", "training": {"learning_rate": 1e-3}}), "defend")) < 1
    assert peaks.share(stage(cell(defense={"name": "sft", "training": size}), "defend")) == 1.0


def test_an_anchored_attack_holds_a_second_model() -> None:
    plain, anchored = (cell(attack={"name": "sentence_trigger", "anchor": weight}) for weight in (0, 0.5))
    peaks = Peaks([manifest(plain, "attack", GIB)])
    assert peaks.share(stage(plain, "attack")) < 1
    assert peaks.share(stage(anchored, "attack")) == 1.0


@pytest.mark.parametrize(
    ("fewer", "more"),
    [
        ("sande", {"name": "sande", "restarts": 4}),
        ({"name": "sande_rounds", "controls": 19}, {"name": "sande_rounds", "controls": 39}),
        ({"name": "scan_and_clean"}, {"name": "scan_and_clean", "sande_p": {"restarts": 4}}),
    ],
)
def test_parrots_that_train_together_take_memory_each(fewer: Any, more: Any) -> None:
    peaks = Peaks([manifest(cell(defense=fewer), "defend", GIB)])
    assert peaks.share(stage(cell(defense=fewer, seed=1), "defend")) < 1
    assert peaks.share(stage(cell(defense=more), "defend")) == 1.0


def test_an_evaluation_with_more_parrots_is_measured_anew() -> None:
    few, many = (cell(metrics=["asr", {"name": "parrot_recovery", "parrots": count}]) for count in (1, 8))
    peaks = Peaks([manifest(few, "evaluate", GIB)])
    assert peaks.share(stage(few, "evaluate")) < 1
    assert peaks.share(stage(many, "evaluate")) == 1.0


def test_stages_on_a_cpu_say_nothing_of_a_gpu() -> None:
    of = cell(defense="sft")
    on_cpu = manifest(of, "defend", GIB)
    del on_cpu["device_memory_bytes"]
    assert Peaks([on_cpu]).share(stage(of, "defend")) == 1.0


def test_of_two_sorts_of_gpu_the_smaller_decides() -> None:
    of = cell(defense="sft")
    peaks = Peaks([manifest(of, "defend", 10 * GIB, total) for total in (80 * GIB, 40 * GIB)])
    assert peaks.share(stage(of, "defend")) == share([10 * GIB], 40 * GIB)


def test_a_store_remembers_also_each_metric_of_an_evaluation(store: LocalStore) -> None:
    of = cell(metrics=["asr", "false_trigger_rate"])
    evaluation = stage(of, "evaluate")
    for key, peak in zip(evaluation.metric_keys, (GIB, 30 * GIB), strict=True):
        put(store, "evaluate", key, manifest(of, "evaluate", peak) | {"measurements": []})
    assert peaks_of(store).share(evaluation) == 0.5
    assert peaks_of(store).share(stage(cell(metrics=["asr"]), "evaluate")) == 1.0
