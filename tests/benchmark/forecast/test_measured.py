"""Seconds of work by what was timed, against sums done by hand; the script that ships timings."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmark.forecast import measured as forecast_measured
from benchmark.forecast import timings
from benchmark.forecast.cost import HOUR, estimate
from benchmark.forecast.measured import OVERHEAD, OWN, OWN_OTHER, PAPER, _piece, keep_overhead
from benchmark.forecast.timings import FILE, Sample
from benchmark.forecast.wall_time import predict, summary
from benchmark.grid.resources import Resources
from benchmark.perf import timings as make_timings
from benchmark.plan.plan import make_plan
from benchmark.records.files import write_rows
from benchmark.records.schema import STAGES
from benchmark.store.local import LocalStore
from sande import registry
from sande.compute import ComputeType
from tests.benchmark.forecast.helpers import ABACUS, H100, SFT, basis, measured, only, only_piece, seconds, timed
from tests.benchmark.helpers import ACCURACY, cell, finish, put, rows_of, stage


def test_a_stage_takes_what_the_same_one_with_another_seed_took(store: LocalStore) -> None:
    measured(store, cell(defense=SFT))
    again = make_plan([cell(defense=SFT, seed=1)], store)
    assert len(again.missing) == 4
    assert seconds(again, store) == pytest.approx(100 + 30 + 2 * 2 * 2)
    assert basis(again, store) == {OWN: 4}


def test_more_work_takes_longer_in_proportion(store: LocalStore) -> None:
    measured(store, cell(defense=SFT))
    longer = {"name": "sft", "training": {"max_steps": 25}}
    assert seconds(only("defend", cell(defense=longer)), store) == pytest.approx(75)
    assert seconds(only("attack", cell(data={"name": "builtin-short", "rows": 8})), store) == pytest.approx(50)


def test_of_several_sizes_the_nearest_counts_and_of_one_size_the_mean(store: LocalStore) -> None:
    for seed, steps, factor in ((0, 10, 1.0), (1, 10, 3.0), (2, 1000, 50.0)):
        of = cell(seed=seed, defense={"name": "sft", "training": {"max_steps": steps}})
        one = stage(of, "defend")
        manifest = {"kind": "defend", "settings": dict(one.settings), "device": ABACUS, "seconds": 10 * factor}
        put(store, "defend", one.key, manifest)
    for steps, expected in ((10, 20), (20, 40), (900, 450)):
        of = cell(seed=9, defense={"name": "sft", "training": {"max_steps": steps}})
        assert seconds(only("defend", of), store) == pytest.approx(expected)


def test_a_method_never_measured_takes_what_others_took_on_the_model(store: LocalStore) -> None:
    measured(store, cell(defense=SFT))
    nad = {"name": "nad", "teacher": {"max_steps": 10}, "training": {"max_steps": 10}}
    plan = only("defend", cell(defense=nad))
    assert seconds(plan, store) == pytest.approx(30 * (1 + 4 / 3))
    assert basis(plan, store) == {OWN_OTHER: 1}


def test_a_model_never_measured_takes_the_papers_times(store: LocalStore) -> None:
    measured(store, cell())
    llama = cell(model="llama2-7b", defense=SFT)
    plan = make_plan([llama], store)
    for machine in (None, "h100", "H800"):
        assert seconds(plan, store, machine) == pytest.approx(estimate(plan.missing).hours * HOUR)
        assert basis(plan, store, machine) == {PAPER: 4}


def test_an_outcome_that_two_evaluations_share_is_measured_once(store: LocalStore) -> None:
    measured(store, cell(metrics=["asr", ACCURACY]))
    both = [cell(seed=1, metrics=["asr"]), cell(seed=1, metrics=["asr", ACCURACY])]
    assert seconds(make_plan(both, store), store) == pytest.approx(100 + 2 + 2)


def test_an_outcome_that_is_there_takes_no_time(store: LocalStore) -> None:
    measured(store, cell(metrics=["asr"]))
    plan = make_plan([cell(metrics=["asr", "false_trigger_rate"])], store)
    assert len(plan.missing) == 1
    measured(store, cell(seed=1))
    assert seconds(plan, store) == pytest.approx(2)


def test_a_run_on_the_store_replaces_the_overhead(store: LocalStore) -> None:
    measured(store, cell())
    plan = only("attack", cell(seed=1))
    keep_overhead(store, start=3.0, stage=1.0)
    keep_overhead(store, around=2.0)
    assert predict(plan, store, Resources(), 1, None).wall == pytest.approx(2 + 3 + 1 + 100)
    assert (
        "plus 5 s, and 1.0 s a stage, as in the last run on this store" in summary(plan, store, Resources(), 1, None)[1]
    )
    for damaged in ("", "[]", '{"around": 1}', '{"other": 1}'):
        (store.root / "overhead.json").write_text(damaged)
        assert predict(plan, store, Resources(), 1, None).overhead is OVERHEAD


def test_measurements_that_no_longer_mean_anything_are_passed_over(store: LocalStore) -> None:
    one = stage(cell(), "attack")
    settings = {**one.settings, "attack": {"name": "sentence_trigger", "gone": 1}}
    put(store, "attack", one.key, {"kind": "attack", "settings": settings, "seconds": 1.0, "device": ABACUS})
    assert predict(only("attack", cell(seed=1)), store, Resources(), 1, None).basis == {PAPER: 1}


def test_of_one_method_only_so_many_measurements_are_read(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast_measured, "ENOUGH", 2)
    read = []
    monkeypatch.setattr(forecast_measured, "_piece", lambda manifest: read.append(1) or PIECE(manifest))
    for seed in range(5):
        measured(store, cell(seed=seed, metrics=["asr"]))
    assert seconds(make_plan([cell(seed=9, metrics=["asr"])], store), store) == pytest.approx(102)
    assert len(read) == 4


PIECE = _piece


def test_the_section_of_a_type_is_made_from_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [LocalStore(tmp_path / name) for name in ("one", "two")]
    for number, (store, took) in enumerate(zip(stores, (4.0, 8.0), strict=True)):
        timed(store, "sft", took, compute_type="bf16")
        timed(store, "osft", 9.0, seed=number, compute_type="fp32")
        timed(store, "nad", 9.0, seed=number, device=H100, compute_type="bf16")
        keep_overhead(store, around=took, start=1.0, stage=0.5)
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
    folders = [store.root for store in stores]
    assert make_timings.text({name: make_timings.section(folders, name, {}) for name in sections}) == out.read_text()
    empty = LocalStore(tmp_path / "empty").root
    with pytest.raises(SystemExit, match="no stage ran on a CPU in bf16"):
        make_timings.section([empty], "bf16", sections["bf16"])
    assert "1 samples of bf16" in capsys.readouterr().out


def test_the_section_of_a_type_is_made_from_rows_and_keeps_what_they_lack(store: LocalStore, tmp_path: Path) -> None:
    """A defense's seconds are of its parts, too; cells that share an attack count it once."""
    manifests = {"device": ABACUS, "compute_type": "bf16", "workers": 1}
    of = [cell(defense=name, metrics=["asr"]) for name in ("bd_vax", "sft")]
    recorded = {f"{stage}{name}": value for stage in STAGES for name, value in manifests.items()}
    found = rows_of(store, *(finish(store, each, {"asr": 50}, {"asr": 0}) for each in of))
    rows = [row | recorded for row in found]
    write_rows(rows, [], tmp_path)
    known = {
        "overhead": {"around": 1.0, "start": 1.0, "stage": 1.0},
        "samples": [asdict(Sample("defend", name, "tiny", "builtin-short", 1.0, 9.0, 1)) for name in ("sft", "osft")],
    }
    made = make_timings.section([tmp_path], "bf16", known)
    assert made["overhead"] == known["overhead"]
    by_method = {(each["kind"], each["method"]): each for each in made["samples"]}
    assert len(by_method) == len(made["samples"])
    assert by_method["attack", "sentence_trigger"]["seconds"] == 100
    assert by_method["evaluate", "asr asr_starts_with"]["threads"] == 2
    assert by_method["defend", "osft"]["seconds"] == 9, "no row has it"
    assert by_method["defend", "sft"]["seconds"] == pytest.approx(58.4)
    part, rest = by_method["part", "bd_vax"], by_method["defend", "bd_vax"]
    parts = len(registry.parts("bd_vax", of[0].defense.config))
    assert parts * part["seconds"] + rest["seconds"] == pytest.approx(58.4, abs=0.01)
    assert part["seconds"] / part["work"] == pytest.approx(rest["seconds"] / rest["work"], rel=1e-3)
    with pytest.raises(SystemExit, match="no overhead"):
        make_timings.section([tmp_path], "bf16", {})


def test_the_shipped_file_is_as_the_script_writes_it() -> None:
    assert make_timings.text(json.loads(FILE.read_text())) == FILE.read_text()


def test_work_that_was_timed_in_the_other_type_alone_is_scaled_by_what_was_timed_in_both() -> None:
    def sample(data: str, seconds: float) -> Sample:
        return Sample("attack", "sentence_trigger", "tiny", data, 2.0, seconds, 1)

    own, other = [sample("alpaca", 30.0)], [sample("alpaca", 10.0), sample("orca", 50.0)]
    assert list(timings._scaled(other, own)) == [sample("orca", 150.0)]
    assert list(timings._scaled(other, [sample("dolly", 1.0)])) == [], "nothing in common says nothing"


@pytest.mark.parametrize("compute_type", ["bf16", "fp32"])
def test_either_type_has_timings_of_the_same_work(compute_type: ComputeType) -> None:
    found = {timings.work_of(sample) for sample in timings.shipped(compute_type).samples}
    assert ("attack", "sentence_trigger", "smollm2-135m", "alpaca") in found
    assert ("defend", "sande", "smollm2-135m", "builtin-short") in found
