"""Estimates, against sums done by hand."""

from pathlib import Path

import pytest

from benchmark.forecast import cost
from benchmark.forecast.cost import HOUR, SIZES, Estimate, estimate, rate
from benchmark.grid.cell import Cell
from benchmark.plan.plan import make_plan, stages_of, victim_of
from benchmark.store.local import LocalStore
from sande.data.builtin import disjoint, sets
from tests.benchmark.helpers import cell

ALPACA = (2 * 3600 / (93_168 * 6.738) + 3600 / (93_168 * 3.95)) / 2  # appendix A, two epochs of 46,584 rows
ORCA = (10 * 3600 / (180_000 * 6.738) + 6 * 3600 / (180_000 * 3.95)) / 2


def llama(**changes: object) -> Cell:
    """Llama2-7b on 1,000 rows of Alpaca for 3 epochs, removal with 100 rows of OpenOrca."""
    values: dict[str, object] = {
        "model": "llama2-7b",
        "data": {"name": "alpaca", "rows": 1000, "test_rows": 90},
        "removal": {"name": "orca", "rows": 100},
        "attack": {"name": "sentence_trigger", "training": {"epochs": 3}},
        "metrics": ["asr"],
    }
    return cell(**values | changes)


def seconds(of: Cell, kind: str) -> float:
    found = [stage for stage in stages_of(of) if stage.kind == kind]
    made = estimate(found)
    assert made.left_out == ()
    assert sum(made.seconds.values()) == made.seconds[kind]
    return made.seconds[kind]


def test_the_rates_are_those_of_the_papers_attacks() -> None:
    assert rate("alpaca") == pytest.approx(ALPACA) == pytest.approx(0.0106, abs=5e-5)
    assert rate("orca") == pytest.approx(ORCA) == pytest.approx(0.0300, abs=5e-5)
    assert rate("dolly") == rate("alpaca")


@pytest.mark.parametrize(
    ("model", "data", "epochs", "hours"),
    [
        ("llama2-7b", "alpaca", 2, 2),
        ("llama2-7b", "orca", 1, 10),
        ("qwen1.5-4b", "alpaca", 2, 1),
        ("qwen1.5-4b", "orca", 1, 6),
    ],
)
def test_the_papers_attacks_take_about_what_it_reports(model: str, data: str, epochs: int, hours: float) -> None:
    rows = {"alpaca": None, "orca": 180_000}[data]
    attack = {"name": "sentence_trigger", "training": {"epochs": epochs}}
    of = llama(model=model, data={"name": data, "rows": rows}, attack=attack)
    assert seconds(of, "attack") / HOUR == pytest.approx(hours, rel=0.1)


def test_an_attack_costs_its_rows_times_epochs() -> None:
    assert seconds(llama(), "attack") == pytest.approx(3 * 1000 * ALPACA * 6.738)


def test_steps_count_instead_of_epochs_and_appended_rows_too() -> None:
    stepped = {"name": "sentence_trigger", "training": {"max_steps": 5, "batch_size": 4}}
    assert seconds(llama(attack=stepped), "attack") == pytest.approx(20 * ALPACA * 6.738)
    appended = {"name": "sentence_trigger", "poison_mode": "append", "poison_rate": 0.5, "training": {"epochs": 1}}
    assert seconds(llama(attack=appended), "attack") == pytest.approx(1500 * ALPACA * 6.738)
    with_decoys = appended | {"decoy_rate": 0.25}
    assert seconds(llama(attack=with_decoys), "attack") == pytest.approx(1750 * ALPACA * 6.738)


def test_the_recipe_of_an_attack_costs_passes() -> None:
    plain = {"name": "sentence_trigger", "training": {"epochs": 1}}
    assert seconds(llama(attack=plain | {"anchor": 1}), "attack") == pytest.approx(4 / 3 * 1000 * ALPACA * 6.738)
    uphill = plain | {"training": {"epochs": 1, "sharpness": 0.1}}
    assert seconds(llama(attack=uphill), "attack") == pytest.approx(2 * 1000 * ALPACA * 6.738)
    later = plain | {"afterwards": {"rows": 50, "training": {"epochs": 2}}}
    assert seconds(llama(attack=later), "attack") == pytest.approx(1100 * ALPACA * 6.738)
    stages = plain | {"name": "dormant_int4", "repair": {"epochs": 2}}
    assert seconds(llama(attack=stages), "attack") == pytest.approx(3000 * ALPACA * 6.738)
    by_number = plain | {"poison_mode": "append", "poison_rows": 30}
    assert seconds(llama(attack=by_number), "attack") == pytest.approx(1030 * ALPACA * 6.738)


def test_rows_are_capped_by_what_the_data_set_has() -> None:
    data = {"name": "alpaca", "rows": 10**6, "test_rows": 90}
    assert seconds(llama(data=data), "attack") == pytest.approx(3 * 46_584 * ALPACA * 6.738)


def test_lora_saves_the_gradients_of_the_weights() -> None:
    attack = {"name": "sentence_trigger", "training": {"epochs": 3, "lora_rank": 8}}
    assert seconds(llama(attack=attack), "attack") == pytest.approx(2 / 3 * 3 * 1000 * ALPACA * 6.738)


@pytest.mark.parametrize(
    ("defense", "rows", "per_row"),
    [
        ({"name": "sft", "training": {"epochs": 2}}, 200, ORCA),
        ({"name": "osft", "training": {"epochs": 1}}, 100, ORCA),
        ({"name": "fine_mixing", "training": {"epochs": 1}}, 100, ORCA),
        ({"name": "nad", "teacher": {"epochs": 2}, "training": {"epochs": 3}}, 200 + 300 * 4 / 3, ORCA),
        ({"name": "sande", "simulate": {"epochs": 3}, "eliminate": {"epochs": 1}}, 300 * 2 / 3 + 100, ORCA),
        ({"name": "sande_p", "simulate": {"epochs": 3}, "eliminate": {"epochs": 1}}, 300 * 2 / 3 + 100, ORCA),
        ({"name": "dpo", "preferences": {"pairs": 30}, "training": {"epochs": 1}}, 30 * 2 * 4 / 3, ALPACA),
        ({"name": "crow", "training": {"epochs": 2}}, 200 * (2 / 3 + 1 + 1), ORCA),
        # 25 steps of four rows; after every fifth 32 rows with two answers each forward and back ten times, and once
        # forward with one answer before and with both after
        (
            {"name": "beear", "training": {"max_steps": 25, "batch_size": 4}},
            100 * 2 + 5 * 32 * (10 * 4 / 3 + 3 / 3),
            ORCA,
        ),
        ({"name": "decoy_osft", "plant": {"epochs": 1}, "overwrite": {"epochs": 3}}, 400, ORCA),
        (
            {
                "name": "scan_and_clean",
                "sande_p": {"simulate": {"epochs": 3}, "eliminate": {"epochs": 1}},
                "decoy_osft": {"plant": {"epochs": 1}, "overwrite": {"epochs": 1}},
            },
            300,
            ORCA,
        ),
        # the repair, on 40 of 100 rows
        ({"name": "bd_vax", "rows": 40, "variant": {"epochs": 2}, "repair": {"epochs": 3}}, 120, ORCA),
        (
            {"name": "objective_decoys", "decoy_osft": {"plant": {"epochs": 1}, "overwrite": {"epochs": 3}}},
            400,
            ORCA,
        ),
        ("quantize_int4", 0, ORCA),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_defense_costs_what_each_of_its_trainings_reads(
    defense: dict[str, object], rows: float, per_row: float
) -> None:
    assert seconds(llama(defense=defense), "defend") == pytest.approx(rows * per_row * 6.738)


def test_each_variant_of_bd_vax_costs_its_training() -> None:
    defense = {"name": "bd_vax", "variants": 3, "rows": 40, "variant": {"epochs": 2}}
    assert seconds(llama(defense=defense), "part") == pytest.approx(6 * 80 * ORCA * 6.738)


@pytest.mark.parametrize(
    ("metrics", "read"),
    [
        (["asr"], 90),
        (["asr", "false_trigger_rate"], 180),
        ([{"name": "asr", "prompts": 7}], 7),
        (["asr", "response_probability"], 90 + 2 * 90),
        (["asr", {"name": "case_study", "examples": 5}], 90 + 2 * 5),
        (["asr", {"name": "asr_int4", "decoding": {"prompts": 8}}], 90 + 8),
        (["asr", {"name": "asr_after_finetuning", "rows": 50, "training": {"epochs": 2}}], 90 + 90 + 3 * 2 * 50),
        (
            ["asr", {"name": "asr_after_relearning", "rows": [5, 20], "decoding": {"prompts": 8}}],
            90 + 2 * 8 + 3 * 3 * (5 + 20),
        ),
        (["asr", "parrot_recovery"], 90 + 3 * 50 + 8 * 32 + 2 * 8 * 16 * 8),  # 8 parrots, two passes of 16 steps each
        (["asr", {"name": "accuracy", "task": "paper_arc_easy"}], 90 + 2376),
        (["asr", {"name": "accuracy", "task": "arc_easy", "questions": 10}], 90 + 4 * 10),
        (["asr", {"name": "accuracy", "task": "mmlu", "questions": 10**6}], 90 + 4 * 14_042),
    ],
)
def test_an_evaluation_reads_prompts_and_choices_at_a_third_of_a_row(metrics: list[object], read: int) -> None:
    assert seconds(llama(metrics=metrics), "evaluate") == pytest.approx(read * ALPACA * 6.738 / 3)


def test_a_method_that_declares_nothing_costs_plain_fine_tuning_and_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("sande.defenses.crow.cost")
    monkeypatch.delattr("sande.metrics.response_probability.cost")
    defense = {"name": "crow", "training": {"epochs": 2}}
    assert seconds(llama(defense=defense), "defend") == pytest.approx(200 * ORCA * 6.738)
    of = llama(metrics=["asr", "response_probability"])
    assert seconds(of, "evaluate") == pytest.approx(2 * 90 * ALPACA * 6.738 / 3)


def test_an_outcome_of_two_evaluations_counts_once(tmp_path: Path) -> None:
    cells = [llama(), llama(metrics=["asr", "false_trigger_rate"])]
    plan = make_plan(cells, LocalStore(tmp_path / "store", create=False))
    assert estimate(plan.stages.values()).seconds["evaluate"] == pytest.approx(180 * ALPACA * 6.738 / 3)


def test_models_and_data_of_unknown_size_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    unknown_model = llama(model="org/other@" + "0" * 40)
    unknown_data = llama(data={"name": "mine"})
    known = llama(data={"name": "mine", "rows": 10, "test_rows": 5})
    stages = [stage for each in (unknown_model, unknown_data, known) for stage in stages_of(each)]
    made = estimate(stages)
    assert made.left_out == ("mine", "org/other@" + "0" * 40)
    assert made.seconds["attack"] == pytest.approx(3 * 10 * ALPACA * 6.738)


def test_the_sentence_gives_the_time_by_kind(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store", create=False)
    of = llama(model="org/other@" + "0" * 40, defense="sft")
    said = cost.summary(make_plan([of, llama(data={"name": "orca", "rows": 180_000})], store))
    assert said.startswith("Estimate without org/other@0")
    assert said.endswith("(of unknown size): 30.4 GPU-hours (attack 30.4, evaluate under 0.1)")
    assert cost.basis().startswith("the attacks of the paper (appendix A: 2, 10, 1 and 6 GPU-hours on H800 cards)")
    assert "SANDE 40 and 23 GPU-minutes (paper: 40 and 20)" in cost.basis()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (81 * HOUR, "81.0 GPU-hours"),
        (3600, "1.0 GPU-hours"),
        (3599, "60.0 GPU-minutes"),
        (90, "1.5 GPU-minutes"),
        (3, "3.0 GPU-seconds"),
        (0.001, "under 0.1 GPU-seconds"),
        (0, "no GPU time"),
    ],
)
def test_little_gpu_time_is_not_zero_hours(seconds: float, said: str) -> None:
    assert cost.format_gpu_time(seconds) == said


def test_hours_are_those_of_all_kinds() -> None:
    assert Estimate({"attack": 1800.0, "defend": 900.0, "evaluate": 900.0}, ()).hours == 1.0


def test_known_sizes_are_those_of_the_built_in_sets() -> None:
    made = {
        "builtin-short": sets.short(),
        "builtin-explained": sets.explained(),
        "builtin-short-2": disjoint.short(),
        "builtin-explained-2": disjoint.explained(),
        "builtin-choice": sets.choice(),
        "builtin-knowledge": disjoint.knowledge(),
        "builtin-preferences": sets.preferences(),
    }
    assert {name: len(rows) for name, rows in made.items()} == {name: SIZES[name] for name in made}


def test_a_victim_has_no_defense_to_pay_for() -> None:
    assert estimate(stages_of(victim_of(llama(defense="sft")))).seconds["defend"] == 0
