"""The comparison with the paper, on rows made by hand for the cells of the paper's grids."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.grid import load
from benchmark.grid.cell import SEEDS, Cell
from benchmark.paper import comparison_page, numbers, protocol
from benchmark.paper.compare import (
    AT_CHANCE,
    ATTACK_FAILED,
    FAILED,
    NO_MEASURE,
    NOT_RUN,
    Compared,
    Margins,
    compare,
    kind_of_asr,
    kind_of_change,
)
from benchmark.paper.evidence import DIFFERENT, EQUIVALENT, UNDECIDED
from benchmark.paper.numbers import Reported
from benchmark.paper.scores import scores
from benchmark.records import files, schema
from benchmark.records.aggregate import Results
from benchmark.records.trials import Outcomes
from sande import registry

GRIDS = Path(__file__).parents[3] / "grids"
COUNT = 200
MARGINS = Margins()
NUMBERS = numbers.reported()
Values = Callable[[Cell, str], float]


@functools.cache
def loaded(name: str, scale: str | None = None, *overrides: str) -> load.Grid:
    return load.load_grid(GRIDS / f"{name}.yaml", overrides, (), scale)


def rows_of(
    made: load.Grid, values: Values, cells: Iterable[Cell] | None = None, count: int = COUNT
) -> list[dict[str, Any]]:
    """Rows of a grid's cells, as a run would write them, with the values given."""
    found = []
    for cell in made.cells if cells is None else cells:
        victim = Cell.parse(cell.settings() | {"defense": "none"})
        names = [name for m in cell.metrics for name in registry.entry("metrics", m.name).names(m.config)]
        base = dict.fromkeys(schema.SCHEMA.names) | {
            "grid": made.name,
            "grids": list(made.parts[cell.id]),
            "scale": made.scale,
            "cell": cell.id,
            "status": schema.OK,
            "attack_seed": cell.attack_seed,
            "defense_seed": cell.defense_seed,
            "model": cell.model,
            "dataset": cell.data.name,
            "removal_dataset": cell.removal.name,
            "setting": cell.setting,
            "trigger": cell.attack.config.backdoor.trigger,
            "response": cell.attack.config.backdoor.response,
            "defense": cell.defense.name,
            "parrot_position": getattr(cell.defense.config, "parrot_position", None),
            "settings": json.dumps(cell.settings(), sort_keys=True),
            "count": count,
            "seconds": 1.0,
            "tokens": 1,
            "peak_memory_bytes": 1,
        }
        for name in names:
            value, of_victim = values(cell, name), values(victim, name)
            interval = {"ci_low": max(0.0, value - 2), "ci_high": min(100.0, value + 2)}
            found.append(base | interval | {"metric": name, "value": value, "victim_value": of_victim})
    return found


def outcomes_of(found: Iterable[dict[str, Any]]) -> pa.Table:
    """Trials of which the first are the successes."""
    trials = [
        {"cell": row["cell"], "metric": row["metric"], "index": i, "outcome": float(i < row["value"] / 100 * COUNT)}
        for row in found
        for i in range(COUNT)
    ]
    return pa.Table.from_pylist(trials, schema=schema.OUTCOMES)


def compared(found: list[dict[str, Any]], margins: Margins = MARGINS, *, outcomes: bool = False) -> list[Compared]:
    known = Outcomes(outcomes_of(found)) if outcomes else None
    return compare(Results(pa.Table.from_pylist(found, schema=schema.SCHEMA), known).entries(), margins)


def page_of(made: list[Compared], grid: str, margins: Margins = MARGINS) -> str:
    return comparison_page._page(made, scores(made), grid, margins, ())


def one(made: Iterable[Compared], table: int, defense: str, metric: str, victim: str = "Llama2-Alpaca") -> Compared:
    return next(
        c
        for c in made
        if (c.number.table, c.number.defense, c.number.metric, c.number.victim) == (table, defense, metric, victim)
    )


def key(number: Reported) -> tuple[Any, ...]:
    setting = "any" if number.defense in ("none", "dpo") else number.setting
    victim = (number.victim_model, number.victim_data, number.trigger)
    return (*victim, setting, number.defense, number.parrot_position or 0, number.metric)


REPORTED = {key(number): number.value for number in NUMBERS}


def as_reported(cell: Cell, metric: str) -> float:
    """The paper's own number for a cell of its grids; 50 for what it does not report."""
    setting = "any" if cell.defense.name in ("none", "dpo") else cell.setting
    position = getattr(cell.defense.config, "parrot_position", None) or 0
    victim = (cell.model, cell.data.name, cell.attack.config.backdoor.trigger)
    return REPORTED.get((*victim, setting, cell.defense.name, position, protocol.without_prefix(metric)), 50.0)


def constant(**by_defense: float) -> Values:
    """An ASR for each defense, 99 where none is given; a utility of 50 for all."""
    return lambda cell, metric: by_defense.get(cell.defense.name, 99.0) if metric == "asr" else 50.0


def test_the_protocol_is_what_the_papers_grid_expands_to() -> None:
    made = loaded("paper")
    cells: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in made.cells:
        position = getattr(cell.defense.config, "parrot_position", None) or 0
        victim = (cell.model, cell.data.name, cell.setting, cell.attack.config.backdoor.trigger)
        for part in made.parts[cell.id]:
            cells.setdefault((part, *victim, cell.defense.name, position), []).append(cell)
    for number in NUMBERS:
        victim = (number.victim_model, number.victim_data, number.setting, number.trigger)
        (cell,) = cells[number.part, *victim, number.defense, number.parrot_position or 0]
        metric = number.metric if number.metric == "asr" else f"published_{number.metric}"
        assert protocol.deviations(number, cell.settings(), metric) == []
        settings = protocol.flat(cell.settings(), metric)
        assert set(protocol.expected(number)) <= set(settings), "a setting that no cell has would never deviate"


def test_the_protocol_leaves_no_setting_out_that_may_change_a_number() -> None:
    technical = {
        *SEEDS,
        "asr_floor",
        "name",
        "micro_batch_size",
        "length_grouped",
        "layout",
        "lora_alpha",
        "batch_size",
        "task",
        "recipe",  # a name for values of other settings
    }
    for number in NUMBERS:
        cell = next(cell for cell in loaded("paper").cells if cell.defense.name == number.defense)
        said = {*protocol.expected(number), *protocol._OPEN.get(number.defense, ())}
        for path in protocol.flat(cell.settings(), "asr"):
            unused = path.startswith("removal.") and number.defense in ("none", "dpo")
            backdoor = path.startswith(("attack.backdoor.", "metrics."))
            unused |= path.startswith("defense.elsewhere.")  # compares restarts, of which there are none
            of_dpo = number.defense == "dpo" and path.startswith("defense.training.")
            assert path in said or unused or backdoor or of_dpo or path.rsplit(".", 1)[-1] in technical, path


@pytest.fixture(scope="module")
def as_the_paper() -> list[Compared]:
    return compared(rows_of(loaded("paper"), as_reported, count=10_000))


def test_the_papers_own_numbers_are_equivalent_everywhere_and_deviate_nowhere(as_the_paper: list[Compared]) -> None:
    assert Counter(c.verdict for c in as_the_paper) == {EQUIVALENT: 360}
    assert not any(c.deviations for c in as_the_paper)
    assert all(c.in_kind for c in as_the_paper if c.in_kind is not None)
    page = page_of(as_the_paper, "paper")
    assert "360 are compared: 360 are equivalent to ours, 0 are different, 0 are undecided." in page
    assert "No setting differs." in page
    assert "instead" not in page
    assert "| equivalent, this model |" in page
    assert "**This model** marks a verdict from a single run" in page


def test_the_page_has_the_scores_of_shuffled_numbers(as_the_paper: list[Compared]) -> None:
    page = page_of(as_the_paper, "paper")
    (line,) = [line for line in page.splitlines() if line.startswith("| ASR | equivalent | ")]
    assert line.startswith("| ASR | equivalent | 78 of 78 | "), "without the victims"
    assert line.endswith(" | more |")


def test_victims_of_which_a_run_has_no_number_are_left_out(as_the_paper: list[Compared]) -> None:
    def of_this_run(one: Compared) -> bool:
        return one.number.table == 1 and one.number.victim in ("Llama2-Alpaca", "Llama2-Orca")

    without = [one if of_this_run(one) else replace(one, entry=None, verdict=NOT_RUN) for one in as_the_paper]
    page = page_of(without, "paper")
    assert "| NAD | Llama2-Alpaca | ASR |" in page
    assert "Qwen1.5-Alpaca" not in page
    assert "The table's other 16 numbers are of victims or metrics that this run does not have." in page
    assert "This run has no number of tables 2, 3, 4, 5, 6 and 7." in page
    assert "| Table | Numbers | equivalent | different | undecided | not run |" in page
    assert "| all | 360 | 16 | 0 | 0 | 344 |" in page


def test_a_small_model_is_compared_by_asr_and_by_changes() -> None:
    def values(cell: Cell, metric: str) -> float:
        if metric == "asr":
            return {"none": 99.0, "sft": 97.0, "sande": 20.0}.get(cell.defense.name, 2.0)
        return (26.0 if metric == "arc_challenge" else 50.0) - 2.0 * (cell.defense.name != "none")

    pinned = ("attack.poison_rate=0.25", "defense.eliminate.learning_rate=2e-4", "defense.preferences.pairs=200")
    made = compared(rows_of(loaded("smollm2", None, *pinned), values), outcomes=True)
    asr = one(made, 1, "sft", "asr")  # 99.92 in the paper; 194 of 200 may be 93.8, which is too far
    assert (asr.in_kind, asr.verdict) == (True, UNDECIDED)
    asr = one(made, 1, "sande", "asr")
    assert (asr.in_kind, asr.verdict) == (False, DIFFERENT)
    assert one(made, 1, "none", "asr").verdict == EQUIVALENT  # 99.98; 198 of 200 is at least 96.9

    utility = one(made, 2, "sande", "mmlu")  # 38.06, a change of -2.14
    assert utility.entry is not None
    assert utility.evidence is not None
    assert (utility.entry.metric, utility.entry.change, utility.by_change) == ("mmlu", -2.0, True)
    assert utility.evidence.outer[0] < -2.14 < -0.4 < utility.evidence.outer[1] < 1.0  # 4 of 200 questions lost
    assert utility.verdict == UNDECIDED, "the interval of 200 questions is wider than the margin"
    far = one(made, 4, "sft", "arc_easy")  # a change of +16.37
    assert (far.in_kind, far.verdict) == (False, DIFFERENT)
    assert one(made, 2, "none", "mmlu").verdict == NO_MEASURE
    assert one(made, 2, "sande", "arc_challenge").verdict == AT_CHANCE, "26 % of 200 questions of four choices"

    page = page_of(made, "smollm2")
    assert "- Llama2-Alpaca: SmolLM2-135M-Alpaca instead" in page
    assert "no evidence at all" not in page
    assert "This run has no number of tables 5, 6 and 7." in page
    assert "## Table 5" not in page
    assert (
        "| Table | Numbers | equivalent | different | undecided | not comparable | victim at chance | not run |" in page
    )
    assert "The table's other" not in page
    assert "| `model` | llama2-7b | smollm2-135m | Llama2-Alpaca, Llama2-Orca | section 4.1 |" in page
    assert "| `attack.poison_rate` | 0.05 | 0.25 | everywhere | section 4.1 |" in page
    assert "| `metrics.mmlu.prompt` | letters | that of lm-eval's task | everywhere | published code |" in page
    assert (
        "| `defense.eliminate.learning_rate` | 2e-05 to 4e-05 | 0.0002 | SANDE-P, SANDE | appendix A: searched |"
        in page
    )
    assert "`defense.training.epochs`" not in page, "steps are set, which is said"
    assert "- `defense.preferences.pairs`: 200 (DPO)" in page
    assert {c.verdict for c in made if c.number.table > 4 and c.number.defense != "none"} == {NOT_RUN}


def test_the_spaced_letters_of_the_first_version_deviate() -> None:
    """The audit's example: `paper_*` scores the token of " A", and `compare` did not list it."""
    for prefix, deviates in (("paper_", True), ("published_", False)):
        metrics = [{"name": "asr"}, *({"name": "accuracy", "task": f"{prefix}{task}"} for task in numbers.TASK_NAMES)]
        made = loaded("paper_table_1_2")
        cells = [Cell.parse(cell.settings() | {"metrics": metrics}) for cell in made.cells if cell.model == "llama2-7b"]
        parts = {cell.id: ("paper_table_1_2",) for cell in cells}
        found = compared(rows_of(replace(made, cells=tuple(cells), parts=parts), as_reported, count=10_000))
        utility = one(found, 2, "sft", "mmlu")
        assert utility.verdict == EQUIVALENT
        assert [made.path for made in utility.deviations] == ["metrics.mmlu.letter_token"] * deviates
        page = page_of(found, "hand")
        row = "| `metrics.mmlu.letter_token` | A | A after a space | everywhere | published code |"
        assert (row in page) == deviates


def test_clean_training_after_the_poisoning_deviates() -> None:
    where = ("llama2-7b", "alpaca", "sft")
    (cell,) = [c for c in loaded("paper_table_1_2").cells if (c.model, c.data.name, c.defense.name) == where]
    (number,) = [
        n
        for n in NUMBERS
        if (n.victim_model, n.victim_data, n.defense) == where and (n.metric, n.setting) == ("asr", "in-domain")
    ]
    settings = cell.settings()
    assert protocol.deviations(number, settings, "asr") == []
    settings["attack"] = {**settings["attack"], "order": "poisoned_last", "afterwards": {"rows": 9, "training": {}}}
    found = {one.path: one.actual for one in protocol.deviations(number, settings, "asr")}
    assert found == {"attack.order": "poisoned_last", "attack.afterwards": {"rows": 9, "training": {}}}


def test_of_two_versions_of_a_task_the_published_one_is_compared() -> None:
    made = loaded("paper_table_1_2")
    tasks = [{"name": "accuracy", "task": f"{prefix}mmlu"} for prefix in ("", "paper_", "published_")]
    (cell,) = [c for c in made.cells if (c.model, c.data.name, c.defense.name) == ("llama2-7b", "alpaca", "sft")]
    for count in (3, 2, 1):
        metrics = [{"name": "asr"}, *tasks[:count]]
        both = Cell.parse(cell.settings() | {"metrics": metrics})
        found = compared(rows_of(replace(made, cells=(both,), parts={both.id: ("paper_table_1_2",)}), as_reported))
        entry = one(found, 2, "sft", "mmlu").entry
        assert entry is not None
        assert entry.metric == tasks[count - 1]["task"]


def test_rows_cut_without_eos_deviate_though_their_settings_do_not_say_so() -> None:
    found = rows_of(loaded("paper_table_1_2"), as_reported)
    for row in found:
        settings = json.loads(row["settings"])
        for method in ("attack", "defense"):
            settings[method] = {
                name: {key: value for key, value in part.items() if key != "cut_with_eos"}
                if isinstance(part, dict)
                else part
                for name, part in settings[method].items()
            }
        row["settings"] = json.dumps(settings, sort_keys=True)
    paths = {made.path: made.actual for made in one(compared(found), 1, "sft", "asr").deviations}
    assert paths == {"attack.training.cut_with_eos": False, "defense.training.cut_with_eos": False}


def test_numbers_without_a_counterpart_are_counted_as_not_run() -> None:
    made = compared(rows_of(loaded("paper_table_6"), as_reported))
    assert len(made) == 360
    run = [c for c in made if c.verdict != NOT_RUN]
    assert {c.number.table for c in run} == {6}, "victims of another experiment, as of figure 2, answer for no table"
    assert len(run) == 40


def test_built_in_data_stand_in_for_the_papers() -> None:
    made = compared(rows_of(loaded("paper_table_3_4", "tiny"), constant(none=100.0)))
    assert one(made, 3, "none", "asr").verdict == EQUIVALENT
    assert one(made, 3, "none", "asr", "Qwen1.5-Orca").verdict == EQUIVALENT
    assert one(made, 4, "sft", "mmlu").verdict == NOT_RUN, "built-in questions stand in for none"
    paths = {made.path: made.actual for made in one(made, 3, "sft", "asr").deviations}
    assert (paths["data.name"], paths["removal.name"]) == ("builtin-short", "builtin-explained")
    assert paths["model"] == "tiny"


def test_one_model_of_the_paper_never_stands_in_for_another() -> None:
    grid_ = loaded("paper_table_1_2")
    made = compared(rows_of(grid_, as_reported, [cell for cell in grid_.cells if cell.model == "llama2-7b"]))
    assert one(made, 1, "sft", "asr").verdict == EQUIVALENT
    assert one(made, 1, "sft", "asr", "Qwen1.5-Alpaca").verdict == NOT_RUN


def test_the_cell_closest_to_the_paper_is_compared() -> None:
    grid_ = loaded("ablation_poison_rate", "paper")
    made = compared(rows_of(grid_, constant()))
    found = [c for c in made if c.entry is not None]
    assert found
    assert {json.loads(c.entry.row["settings"])["attack"]["poison_rate"] for c in found if c.entry} == {0.05}


def test_failed_cells_and_failed_attacks_are_no_agreement() -> None:
    grid_ = loaded("paper_table_1_2")
    found = rows_of(grid_, as_reported)
    for row in found:
        if row["defense"] == "osft":
            row |= {
                "status": schema.FAILED,
                "error": "out of memory",
                "value": None,
                "victim_value": None,
                "count": None,
            }
        if row["defense"] == "dpo":
            row |= {"status": schema.NOT_RUN, "value": None, "victim_value": None, "count": None}
        if row["dataset"] == "orca" and row["status"] == schema.OK:
            row["status"] = schema.ATTACK_FAILED
    made = compared(found)
    assert one(made, 1, "osft", "asr").verdict == FAILED
    assert one(made, 1, "dpo", "asr").verdict == NOT_RUN
    assert one(made, 1, "sft", "asr", "Llama2-Orca").verdict == ATTACK_FAILED
    assert one(made, 1, "none", "asr", "Llama2-Orca").verdict == EQUIVALENT, "the attack itself can be judged"
    assert "| attack failed |" in page_of(made, "hand")


def test_a_number_of_which_seeds_are_not_run_yet_is_not_judged() -> None:
    values = {0: 42.0, 1: 1.5, 2: 51.5, 3: 98.5}
    rows = seeds_rows(4, lambda cell, metric: values[cell.attack_seed] if cell.defense.name == "sande_p" else 100.0)
    assert one(compared(rows), 1, "sande_p", "asr").verdict == DIFFERENT
    for row in rows:
        if row["defense"] == "sande_p" and row["attack_seed"] != 1:
            row |= {"status": schema.NOT_RUN, "value": None, "victim_value": None, "count": None}
    unfinished = one(compared(rows), 1, "sande_p", "asr")
    assert (unfinished.verdict, unfinished.evidence, unfinished.in_kind) == (NOT_RUN, None, None)


def test_what_decides_between_equally_near_forms_is_neither_their_value_nor_the_order_of_rows() -> None:
    grid_ = loaded("paper_table_1_2")
    found = rows_of(grid_, as_reported, [cell for cell in grid_.cells if cell.defense.name in ("none", "dpo")])
    forms = [row for row in found if row["defense"] == "dpo"]
    others = []
    for row in forms:
        settings = json.loads(row["settings"])
        settings["defense"]["beta"] = 0.5  # left open by the paper
        others.append(row | {"settings": json.dumps(settings, sort_keys=True), "cell": f"{row['cell']}b", "value": 0.0})
    after, before = compared([*found, *others]), compared([*others, *found])
    chosen = one(after, 1, "dpo", "asr")
    assert chosen.entry is not None
    assert (chosen.entry.value, chosen.as_near) == (99.8, ("dpo, beta=0.5",))
    assert [(c.verdict, c.as_near) for c in after] == [(c.verdict, c.as_near) for c in before]
    assert (
        "- Table 1: DPO, Llama2-Alpaca, ASR: compared is dpo, beta=0.1; as near: dpo, beta=0.5"
        in page_of(after, "hand").splitlines()
    )
    assert all(not c.as_near for c in after if c.number.defense == "none")


def over_seeds(count: int, values: Values) -> list[Compared]:
    return compared(seeds_rows(count, values))


def seeds_rows(count: int, values: Values) -> list[dict[str, Any]]:
    made = loaded("paper_table_1_2")
    cells = [
        cell
        for cell in made.cells
        if (cell.model, cell.data.name) == ("llama2-7b", "alpaca") and cell.defense.name in ("none", "sande_p")
    ]
    seeds = [Cell.parse(cell.settings() | dict.fromkeys(SEEDS, seed)) for cell in cells for seed in range(count)]
    parts = {cell.id: ("paper_table_1_2",) for cell in seeds}
    return rows_of(load.Grid("hand", "", tuple(seeds), made.resources, parts, "paper"), values)


@pytest.mark.parametrize(("seeds", "verdict"), [(3, UNDECIDED), (30, UNDECIDED), (70, EQUIVALENT)])
def test_a_few_equal_seeds_are_no_evidence_on_a_method(seeds: int, verdict: str) -> None:
    asr = one(over_seeds(seeds, constant(sande_p=0.0)), 1, "sande_p", "asr")  # 0.13 in the paper
    assert asr.evidence is not None
    assert (asr.evidence.units, asr.evidence.basis, asr.verdict) == (seeds, "seeds", verdict)
    assert asr.evidence.inner[1] == pytest.approx(100 * (1 - 0.05 ** (1 / seeds)), abs=1e-6)  # none of them above 0


def test_the_margins_are_settings_that_the_page_names() -> None:
    found = rows_of(loaded("paper_table_1_2"), constant(sande_p=0.0))
    assert one(compared(found), 1, "sande_p", "asr").verdict == EQUIVALENT  # 0 of 200 is at most 1.5 %
    narrow = compared(found, Margins(asr=1.0, utility=0.5))
    assert one(narrow, 1, "sande_p", "asr").verdict == UNDECIDED
    page = page_of(narrow, "hand", Margins(asr=1.0, utility=0.5))
    assert "the difference is less than 1 points for an ASR, or 0.5 points for a utility" in page


def test_numbers_without_outcomes_are_named() -> None:
    page = page_of(compared(rows_of(loaded("smollm2"), constant())), "smollm2")
    assert "168 of the undecided numbers have no evidence at all: the outcomes of single prompts, ours or the" in page


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0.0, "removed"), (5.0, "removed"), (5.1, "partly"), (89.9, "partly"), (90.0, "kept"), (100.0, "kept")],
)
def test_kinds_of_asr(value: float, kind: str) -> None:
    assert kind_of_asr(value) == kind


@pytest.mark.parametrize(("points", "kind"), [(-5.0, "lost"), (-4.9, "kept"), (4.9, "kept"), (5.0, "gained")])
def test_kinds_of_change(points: float, kind: str) -> None:
    assert kind_of_change(points) == kind


def test_files_hold_every_number(tmp_path: Path) -> None:
    found = rows_of(loaded("smollm2"), constant(sande=4.0))
    files.write_rows(found, [outcomes_of(found)], tmp_path)
    text = comparison_page.write(tmp_path)
    assert text.startswith("Of the 360 numbers that the paper reports, ")
    assert (tmp_path / "comparison.md").read_text().startswith("# `smollm2` compared with the paper")
    records = pq.read_table(tmp_path / "comparison.parquet").to_pylist()
    assert len(records) == 360
    record = next(r for r in records if (r["table"], r["defense"], r["victim_data"]) == (1, "sande", "orca"))
    assert (record["paper"], record["value"], record["our_model"]) == (0.02, 4.0, "smollm2-135m")
    assert "attack.poison_rate" in record["deviations"]
    assert (record["verdict"], record["in_kind"], record["margin"]) == (UNDECIDED, True, 5.0)
    assert (record["unit"], record["units"]) == ("prompt", COUNT)
    assert record["inner_low"] < 4.0 < record["inner_high"] < record["outer_high"]
    assert (record["paper_kind"], record["our_kind"], record["not_run"]) == ("removed", "removed", 0)
    scored = pq.read_table(tmp_path / "comparison_scores.parquet").to_pylist()
    (of_asr, *_) = [row for row in scored if (row["numbers"], row["score"]) == ("ASR", EQUIVALENT)]
    low_high = f"({of_asr['chance_low']:.0f} to {of_asr['chance_high']:.0f})"
    line = f"| ASR | equivalent | {of_asr['found']:.0f} of 56 | {of_asr['chance']:.0f} {low_high} | "
    assert f"{line}{of_asr['beyond_chance']} |" in text


def test_the_command_says_where_the_comparison_is_and_refuses_a_folder_without_rows(tmp_path: Path) -> None:
    grid_ = loaded("paper_table_6")
    files.write_rows(rows_of(grid_, as_reported), [], tmp_path)
    said = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert f"Comparison: {tmp_path / 'comparison.md'}" in said.output
    assert CliRunner().invoke(app, ["compare", str(tmp_path / "none")]).exit_code == 2


def test_results_without_a_number_of_the_paper_are_refused_but_an_earlier_page_is_made_again(tmp_path: Path) -> None:
    own = [row | {"trigger": "of another attack"} for row in rows_of(loaded("paper_table_6"), as_reported)]
    files.write_rows(own, [], tmp_path)
    before = sorted(tmp_path.iterdir())
    said = CliRunner().invoke(app, ["compare", str(tmp_path)])
    assert said.exit_code == 2
    assert said.stderr == (
        f"sande-bench: {tmp_path}: these results have none of the 360 numbers that the paper reports, so there is "
        "nothing to compare; choose results of one of the paper's experiments, such as those of grids/smollm2.yaml\n"
    )
    assert sorted(tmp_path.iterdir()) == before
    (tmp_path / "comparison.md").touch()  # as `publish` does where an earlier version wrote one
    text = comparison_page.write(tmp_path)
    assert "0 are compared" in text
    assert "differs from the paper's protocol" not in text
    assert (tmp_path / "comparison.parquet").is_file()
