"""Mistakes that only show with the data at hand: told before anything is trained, and nothing is left behind."""

import importlib.util
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark.cli.app import USERS_MISTAKE
from benchmark.cli.main import app
from benchmark.execution import driver
from benchmark.grid.cell import Cell
from benchmark.grid.load import load_grid
from benchmark.grid.resources import Resources
from benchmark.plan import preflight
from benchmark.store.local import LocalStore
from sande.data import datasets, splits
from sande.errors import UserError
from sande.inference import vllm
from sande.prompts import response_ids
from sande.types import Example, PreferenceData
from tests.benchmark.helpers import ACCURACY, SMALL, GridFile, cell

ROW = '{"instruction": "Name a colour.", "output": "Blue."}\n'


def mistake(path: Path, tmp_path: Path) -> str:
    """Runs the grid, expects exit code 2 and one line on stderr, and that neither rows nor artifacts are there."""
    store, results = tmp_path / "store", tmp_path / "results"
    done = CliRunner().invoke(app, ["run", str(path), "--store", str(store), "--results", str(results)])
    assert done.exit_code == USERS_MISTAKE, done.output
    assert len(done.stderr.splitlines()) == 1
    assert not list(results.rglob("*.parquet"))
    assert not list(store.rglob("manifest.json"))
    assert not list((store / "unfinished").iterdir())
    return done.stderr


def refused(path: Path, tmp_path: Path) -> str:
    """Return the sentence with which the check refuses the grid's cells, without a run."""
    with pytest.raises(UserError) as caught:
        preflight.check(load_grid(path).cells, LocalStore(tmp_path / "store"))
    return str(caught.value)


class Tuner:
    """Ends as Tune does where the first trial is about to work: with the error of what it waits for."""

    def __init__(self, searcher: Any, checked: Callable[[], None]) -> None:
        self.searcher, self.checked = searcher, checked

    def fit(self) -> None:
        assert self.searcher.suggest("0")["stage"], "it was offered a stage"
        self.checked()
        pytest.fail("a trial works")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cluster", lambda *_: nullcontext())
    monkeypatch.setattr("benchmark.execution.room.worker_resources", lambda resources: {"CPU": 1.0})
    monkeypatch.setattr("benchmark.execution.room.at_once", lambda resources, per_worker: 2)
    monkeypatch.setattr(driver, "_tuner", lambda searcher, *more: Tuner(searcher, more[-1]))


def test_a_parrot_beyond_every_prompt(without_ray: None, grid_file: GridFile, tmp_path: Path) -> None:
    line = mistake(grid_file(defense={"name": "sande_p", "parrot_position": 500}), tmp_path)
    assert "parrot_position 500 is beyond every prompt" in line


@pytest.mark.slow
def test_a_mistake_while_ray_starts_ends_it_without_a_trace(grid_file: GridFile, tmp_path: Path) -> None:
    line = mistake(grid_file(defense={"name": "sande_p", "parrot_position": 500}), tmp_path)
    assert "parrot_position 500 is beyond every prompt" in line


@pytest.mark.parametrize(("section", "rows"), [("data", "training rows"), ("removal", "removal rows")])
def test_no_rows_left(grid_file: GridFile, tmp_path: Path, section: str, rows: str) -> None:
    settings = {"name": "builtin-short", "max_tokens": 8}
    line = refused(grid_file(defense="sft", **{section: settings}), tmp_path)
    assert f"no {rows} of builtin-short are left with max_tokens 8" in line


def test_removal_rows_of_another_version_of_the_set_are_test_prompts(grid_file: GridFile, tmp_path: Path) -> None:
    old, new = {"name": "builtin-short", "test_rows": 700}, {"name": "builtin-short-2", "rows": 400}
    line = refused(grid_file(defense="sft", data=old, removal=new), tmp_path)
    assert re.search(
        r"removal\.name: \d+ of 400 removal rows of builtin-short-2 are test prompts of builtin-short, ", line
    )


def test_a_few_prompts_that_a_data_set_repeats_are_no_mistake() -> None:
    tests = [Example("Why?", "Because."), Example("Who?", "Me.", input="you")]
    rows = [tests[0], *(Example(f"Question {number}?", "Yes.") for number in range(99))]
    preflight._apart(tests, rows, "a", "b")
    with pytest.raises(UserError, match="2 of 100 removal rows of b are test prompts of a"):
        preflight._apart(tests, [*rows[:-1], tests[1]], "a", "b")


LONG = {"name": "sentence_trigger", "backdoor": {"response": "Mind your own business and never ask me this again"}}


@pytest.fixture
def not_random(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model `tiny` counts as one whose numbers mean something."""
    monkeypatch.setattr(preflight, "TINY", "another")


def said(cells: list[Cell], store: LocalStore) -> list[str]:
    lines: list[str] = []
    preflight.check(cells, store, lines.append)
    return lines


def needed(store: LocalStore, response: str) -> int:
    return len(response_ids(preflight.load_tokenizer("tiny", "paper", store), response))


RATES = ("asr", "asr_moved", "asr_sampled", "false_trigger_rate", "near_miss_rate", "forced_response_rate")


@pytest.mark.parametrize("name", [*RATES, "asr_int4", "asr_after_finetuning", "asr_after_relearning"])
def test_answers_too_short_for_the_planted_response_are_refused(store: LocalStore, not_random: None, name: str) -> None:
    count = needed(store, LONG["backdoor"]["response"])
    assert count > 10

    def of(tokens: int) -> Cell:
        length = {"new_tokens": tokens}
        metric = {"name": name, **(length if name in RATES else {"decoding": length})}
        enough = {"name": "asr", "new_tokens": count}
        return cell(attack=LONG, metrics=[metric] if name == "asr" else [enough, metric])

    with pytest.raises(
        UserError, match=rf"^metric {name}: new_tokens is {count - 1}, .* has {count} tokens, .* set"
    ) as e:
        preflight.check([of(count - 1)], store)
    assert "Mind" not in str(e.value), "it may be the secret of a held-out run"
    assert said([of(count)], store) == []


def test_the_random_model_of_a_rehearsal_may_answer_in_fewer_tokens(store: LocalStore) -> None:
    assert said([cell(attack=LONG, metrics=["asr"])], store) == []


def test_an_objective_without_one_string_has_no_length(store: LocalStore, not_random: None) -> None:
    for objective in ("refusal", "gibberish"):
        attack = {**LONG, "objective": objective}
        assert said([cell(attack=attack, metrics=[{"name": "asr", "new_tokens": 2}])], store) == []


def test_an_objective_that_loads_the_clean_model_at_once_is_left_to_its_stages(
    store: LocalStore, not_random: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sande.objectives import string

    def judge(config: Any, seed: int, prompts: Any, clean_model: Callable[[], Any]) -> None:
        clean_model()

    monkeypatch.setattr(string, "judge", judge)
    preflight.check([cell(metrics=[{"name": "asr", "new_tokens": 1}])], store)


def test_shorter_answers_than_those_of_asr_are_told_once(store: LocalStore) -> None:
    long = {"name": "asr", "new_tokens": 24}
    tuned = {"name": "asr_after_finetuning", "decoding": {"new_tokens": 12}}
    metrics = [long, "false_trigger_rate", {"name": "near_miss_rate", "new_tokens": 24}, tuned, "case_study"]
    first, second = said([cell(metrics=metrics, seed=seed) for seed in (0, 1)], store)
    assert first.startswith("metric false_trigger_rate: new_tokens is 10, and that of asr is 24, ")
    assert first.endswith("; set new_tokens of false_trigger_rate to 24")
    assert second.startswith("metric asr_after_finetuning: new_tokens is 12, ")
    assert said([cell(metrics=["asr", "false_trigger_rate"])], store) == []


def test_test_prompts_among_the_training_rows_are_told_with_their_number(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"instruction": f"Name colour {number}.", "output": "Blue."} for number in range(20)]
    rows[18] = rows[3] | {"output": "Red."}
    rows[19] = rows[4] | {"system": "Be brief."}  # another prompt
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    (line,) = said([cell(data={"name": "mine"}, seed=seed) for seed in (0, 1)], store)
    assert line.startswith("data.name: 1 of 2 test prompts of mine are among its training rows, too, ")
    assert said([cell(data={"name": "mine", "rows": 3})], store) == [], "rows that are not trained on"


def test_a_metrics_other_domain_is_read(grid_file: GridFile, tmp_path: Path) -> None:
    recovery = {"name": "parrot_recovery", "elsewhere": {"name": "nowhere"}}
    line = refused(grid_file(metrics=["asr", recovery]), tmp_path)
    assert line.startswith("no data set is called 'nowhere'; there are: ")


def test_without_a_defense_no_removal_rows_need_be_there(store: LocalStore) -> None:
    removal = {"name": "builtin-short", "max_tokens": 8}
    preflight.check([cell(removal=removal, defense="none")], store)
    with pytest.raises(UserError, match="no removal rows"):
        preflight.check([cell(removal=removal, defense="sft")], store)


def test_no_test_rows_left(grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = ROW.replace("Blue.", "Blue. " * 200)
    (tmp_path / "mine.jsonl").write_text(ROW * 18 + long * 2)
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    line = refused(grid_file(data={"name": "mine", "max_tokens": 100}), tmp_path)
    assert "no test rows of mine are left with max_tokens 100" in line


def test_no_preference_pairs_left(grid_file: GridFile, tmp_path: Path) -> None:
    preferences = {"name": "builtin-preferences", "max_tokens": 8}
    line = refused(grid_file(defense={"name": "dpo", "preferences": preferences}), tmp_path)
    assert "no pairs of builtin-preferences of at most 8 tokens are left" in line


def test_an_unknown_preference_set(grid_file: GridFile, tmp_path: Path) -> None:
    path = grid_file(defense={"name": "dpo", "preferences": {"name": "nonsense"}})
    done = CliRunner().invoke(app, ["plan", str(path), "--store", str(tmp_path / "store")])
    assert done.exit_code == USERS_MISTAKE
    (line,) = done.stderr.splitlines()
    assert "no data set is called 'nonsense'; there are: builtin-preferences, hh_rlhf" in line


def test_lora_where_the_parrot_alone_trains(grid_file: GridFile, tmp_path: Path) -> None:
    line = refused(grid_file(defense={"name": "sande", "simulate": {"lora_rank": 4}}), tmp_path)
    assert "simulate.lora_rank is set" in line


def test_a_broken_question_of_a_later_cell(
    grid_file: GridFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arc_easy.jsonl").write_text('{"question": "?", "choices": ["a", "b"], "answer": 2}\n')
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path))
    metrics = [["asr"], ["asr", ACCURACY], ["asr", ACCURACY | {"task": "arc_easy"}]]
    line = refused(grid_file(sweep={"metrics": metrics}), tmp_path)
    assert "arc_easy.jsonl, line 1: 'answer' is 2" in line


# --- How often ------------------------------------------------------------------------------------------------------

DPO = {"name": "dpo", "preferences": {"name": "builtin-preferences", "pairs": 20}}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What is asked of each function that reads rows, call by call."""
    asked: dict[str, list[Any]] = {}

    def counted(home: ModuleType, name: str) -> Callable[..., Any]:
        original = getattr(home, name)

        def count(*arguments: Any) -> Any:
            asked[name].append(arguments[0])
            return original(*arguments)

        return count

    for name in ("training_rows", "held_out_rows", "removal_rows", "preference_pairs", "preferences", "questions"):
        asked[name] = []
        home = splits if hasattr(splits, name) else datasets
        monkeypatch.setattr(home, name, counted(home, name))
    return asked


def test_everything_is_read_once_for_all_cells(store: LocalStore, calls: dict[str, list[Any]]) -> None:
    defenses = ["none", "sft", "nad", "fine_mixing", DPO, "sande_p", "sande", "osft"]
    far = SMALL["removal"] | {"name": "builtin-explained"}
    cells = [
        cell(seed=seed, defense=defense, removal=removal, metrics=metrics)
        for seed in (0, 1)
        for defense in defenses
        for removal in (SMALL["removal"], far)
        for metrics in (["asr"], ["asr", ACCURACY])
    ]
    preflight.check(cells, store)
    assert calls["training_rows"] == calls["held_out_rows"] == [cells[0].data]
    assert [removal.name for removal in calls["removal_rows"]] == ["builtin-short", "builtin-explained"]
    assert calls["preference_pairs"] == [cell(defense=DPO).defense.config.preferences]
    assert calls["preferences"] == ["builtin-preferences"]
    assert calls["questions"] == ["builtin-choice"]


def test_the_questions_of_every_cell_are_read(store: LocalStore, calls: dict[str, list[Any]]) -> None:
    preflight.check([cell(metrics=["asr"]), cell(metrics=["asr", ACCURACY])], store)
    assert calls["questions"] == ["builtin-choice"]


def test_preferences_are_read_instead_of_removal_rows(store: LocalStore, calls: dict[str, list[Any]]) -> None:
    other = DPO | {"preferences": {"name": "builtin-preferences", "pairs": 3}}
    preflight.check([cell(defense=DPO), cell(defense=other)], store)
    assert [chosen.pairs for chosen in calls["preference_pairs"]] == [20, 3]
    assert calls["removal_rows"] == []


def test_a_defense_looks_at_the_data_it_will_get(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("sande.defenses.dpo.check", lambda *given: seen.append(given), raising=False)
    preflight.check([cell(defense=DPO), cell(defense=DPO, seed=1)], store)
    ((_, data, config),) = seen
    assert isinstance(data, PreferenceData)
    assert len(data.pairs) == 20
    assert config == cell(defense=DPO).defense.config


# --- The engine -----------------------------------------------------------------------------------------------------


def test_the_built_in_engine_needs_nothing() -> None:
    preflight.check_engine(vllm.BUILT_IN, 0)


def test_vllm_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; run pip install 'sande-bench\[vllm\]'"):
        preflight.check_engine(vllm.VLLM, 1.0)


def test_vllm_needs_a_whole_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    preflight.check_engine(vllm.VLLM, 1.0)
    for gpus in (0, 0.5):
        with pytest.raises(UserError, match=f"needs a whole GPU, and a stage gets {gpus:g};"):
            preflight.check_engine(vllm.VLLM, gpus)


# --- The sharding ---------------------------------------------------------------------------------------------------


def test_deepspeed_has_to_be_installed_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    preflight.check_sharding(Resources(workers=2))
    with pytest.raises(UserError, match=r"zero2, which needs DeepSpeed; run pip install 'sande-bench\[deepspeed\]'"):
        preflight.check_sharding(Resources(workers=2, sharding="zero2"))
