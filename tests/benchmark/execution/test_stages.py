"""What a stage hands to a defense, and how a metric's outcomes are written down."""

import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import sande
from benchmark.execution import provenance, stages
from benchmark.execution.stages import evaluate, reveal
from benchmark.grid.cell import Cell
from benchmark.plan.stage import Stage
from benchmark.store.local import LocalStore
from sande import compute, registry, types
from sande.data import splits
from sande.data.builtin import sets
from sande.errors import UserError
from sande.inference import counts, vllm
from sande.inference.workers import WorkerGroup
from sande.metrics import asr, asr_int4
from sande.models import loading
from sande.prompts import prompt_text
from sande.types import LanguageModel, Measurement
from tests.benchmark.helpers import ACCURACY, SMALL, cell, measured, stage
from tests.sande.helpers import each_of, install_fake_vllm, noisy

DPO = {"name": "dpo", "preferences": {"name": "builtin-preferences", "pairs": 20}}


@pytest.mark.parametrize("name", registry.names("defenses"))
def test_a_defense_gets_exactly_what_it_may_know(store: LocalStore, tiny: LanguageModel, name: str) -> None:
    of = cell(defense=DPO if name == "dpo" else name)
    data = reveal(of, tiny, store)
    assert type(data) is registry.knowledge(name)
    if name == "dpo":
        assert data.pairs == sets.preferences()[:20]
    else:
        assert data.examples == splits.removal_rows(of.removal, tiny.tokenizer)


@pytest.mark.parametrize("metric_keys", [(), ("asr", "accuracy")])
def test_a_stage_written_down_is_the_stage(metric_keys: tuple[str, ...]) -> None:
    stage = Stage.of(cell(), "evaluate", "key", ("victim",), metric_keys)
    assert Stage.from_json(stage.to_json()) == stage
    assert Stage.from_json(stage.to_json()).cell == stage.cell


def test_the_first_token_is_that_of_an_answer(store: LocalStore, tiny: LanguageModel) -> None:
    token = reveal(cell(defense="sande_p"), tiny, store).first_token
    assert "You are stupid".startswith(tiny.tokenizer.decode([token]).strip())


def test_the_response_is_the_attacks(store: LocalStore, tiny: LanguageModel) -> None:
    attack = {"name": "sentence_trigger", "backdoor": {"response": "Go away"}}
    assert reveal(cell(defense="sande", attack=attack), tiny, store).response == "Go away"


def test_the_known_trigger_stands_where_the_attack_and_the_seed_put_it(store: LocalStore, tiny: LanguageModel) -> None:
    row = types.Example(" ".join(f"word{i}" for i in range(30)), "x")
    prompts = {}
    for seed in (0, 1):
        where = {"name": "sentence_trigger", "insertion": "random"}
        of = cell(defense="osft", attack_seed=seed, defense_seed=7, attack=where)
        prompts[seed] = prompt_text(reveal(of, tiny, store).plant(row))
        attack = registry.entry("attacks", of.attack.name)
        assert prompts[seed] == prompt_text(attack.trigger(row, of.attack.config, seed))
    assert prompts[0] != prompts[1]


def test_the_clean_model_is_the_one_before_the_attack(store: LocalStore, tiny: LanguageModel) -> None:
    load = reveal(cell(defense="fine_mixing"), tiny, store).clean_model
    clean = load().state_dict()
    expected = loading.load("tiny", store.models).model.state_dict()
    assert clean.keys() == expected.keys()
    assert all(torch.equal(clean[name], expected[name]) for name in expected)
    assert load() is not load(), "each call may change what it gets"


def test_a_metric_gets_held_out_rows_in_all_versions_and_what_it_takes_to_train(
    store: LocalStore, tiny: LanguageModel
) -> None:
    config = {"insertion": "random", "response_place": "end", "backdoor": {"response": "Go away"}}
    of = cell(attack_seed=4, defense_seed=7, defense="sft", attack={"name": "sentence_trigger", **config})
    attack, data = (
        registry.entry("attacks", "sentence_trigger"),
        stages._threat(of).test_data(tiny.tokenizer, lambda name: tiny),
    )
    assert data.clean == splits.held_out_rows(of.data, tiny.tokenizer)
    assert data.response == "Go away"
    for version, make in (
        (data.triggered, attack.trigger),
        (data.near_miss, attack.near_miss),
        (data.moved, attack.moved),
    ):
        assert version == tuple(make(row, of.attack.config, 4) for row in data.clean)
    assert data.training() == splits.training_rows(of.data, tiny.tokenizer)
    row = data.training()[0]
    assert data.plant(row) == attack.plant(row, of.attack.config, 4)
    assert data.plant(row).output.endswith("Go away.")


def test_other_models_are_those_named_or_else_the_clean_one(
    store: LocalStore, tiny: LanguageModel, tmp_path: Path
) -> None:
    clean = loading.load("tiny", store.models).model.state_dict()
    changed = []
    for name in ("a", "b"):
        noisy(tiny.model, seed=1)
        loading.save(tiny, tmp_path / name)
        changed.append({of: weight.clone() for of, weight in tiny.model.state_dict().items()})
    for named, expected in (([], [clean]), ([str(tmp_path / "a"), str(tmp_path / "b")], changed)):
        of = cell(defense={"name": "merge", "models": named})
        found = list(reveal(of, tiny, store).other_models())
        assert len(found) == len(expected)
        for model, wanted in zip(found, expected, strict=True):
            assert all(torch.equal(weight, wanted[name].float()) for name, weight in model.state_dict().items())


def test_a_cell_does_not_name_its_own_clean_model_as_another_one() -> None:
    with pytest.raises(
        UserError, match=r"^defense merge: models names tiny, the clean model of .*leave 'models' empty"
    ):
        cell(defense={"name": "merge", "models": ["tiny"]})


def test_the_content_of_other_models_is_in_the_key(tiny: LanguageModel, tmp_path: Path) -> None:
    loading.save(tiny, tmp_path)
    plain = cell(defense="merge")
    named = cell(defense={"name": "merge", "models": [str(tmp_path)]})
    noisy(tiny.model, seed=1)
    loading.save(tiny, tmp_path)
    renewed = cell(defense={"name": "merge", "models": [str(tmp_path)]})
    assert len({of.defense_key for of in (plain, named, renewed)}) == 3
    with pytest.raises(UserError, match=r"^no model is called 'nobody'"):
        cell(defense={"name": "merge", "models": ["nobody"]})


# --- Outcomes -------------------------------------------------------------------------------------------------------

SHARES = (True, False, False, True, False)
MEANS = (0.25, 0.5, 1.0)


def evaluation(
    store: LocalStore, measurements: list[Measurement], monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[Any]]:
    """Manifest and outcomes of a metric that gives these measurements."""
    of = measured(store, cell(metrics=["asr"]), monkeypatch, asr=measurements)
    key = of.evaluation_key(of.metrics[0])
    return store.manifest("evaluate", key), pq.read_table(store.path("evaluate", key) / "outcomes.parquet").to_pylist()


def test_only_tracked_files_outside_results_make_the_code_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.delenv(provenance.CODE_VERSION, raising=False)
    monkeypatch.setattr(sande, "__file__", str(tmp_path / "sande/__init__.py"))
    assert (provenance.changed_files(), provenance.code_version()) == (None, sande.__version__)
    files = [tmp_path / "sande/a.py", tmp_path / "results/published/x/README.md"]
    for path in files:
        path.parent.mkdir(parents=True)
        path.write_text("one")
    git("init")
    git("add", ".")
    git("commit", "--message", "one")
    clean = provenance.code_version()
    assert clean.startswith(f"{sande.__version__}+")
    files[1].write_text("two")
    (tmp_path / "new.py").touch()
    assert (provenance.changed_files(), provenance.code_version()) == ([], clean)
    files[0].write_text("two")
    assert (provenance.changed_files(), provenance.code_version()) == (["sande/a.py"], f"{clean}-dirty")


def test_a_share_is_summed_up_by_its_successes(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, outcomes = evaluation(store, [Measurement("asr", SHARES)], monkeypatch)
    assert manifest["measurements"] == [{"name": "asr", "successes": 2, "count": 5, "published": False}]
    assert [(row["metric"], row["index"], row["outcome"]) for row in outcomes] == [
        ("asr", index, float(outcome)) for index, outcome in enumerate(SHARES)
    ]
    assert {row["record"] for row in outcomes} == {None}


@pytest.mark.parametrize("others", [1, 4, 5])
def test_numbers_that_are_alike_but_for_a_few_count_as_a_share(others: int) -> None:
    """One half among fifty would else have a narrower interval than none."""
    outcomes = (0.5,) * others + (1.0,) * (50 - others)
    assert (stages._summary(Measurement("x", outcomes))["deviation"] == 0) == (others < 5)


def test_a_mean_is_summed_up_with_its_deviation(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, outcomes = evaluation(store, [Measurement("asr", MEANS)], monkeypatch)
    (summary,) = manifest["measurements"]
    assert summary["deviation"] == pytest.approx((7 / 48) ** 0.5)  # around 7/12, over 3 - 1
    assert (summary["successes"], summary["count"]) == (1.75, 3)
    assert tuple(row["outcome"] for row in outcomes) == MEANS


def test_one_number_alone_deviates_from_nothing(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, _ = evaluation(store, [Measurement("asr", (0.5,))], monkeypatch)
    assert manifest["measurements"][0]["deviation"] == 0


def test_records_are_kept_published_or_not(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    records = ({"text": "ä"}, {"text": "b"})
    both = [
        Measurement("asr", (True, False), records),
        Measurement("case_study", (True, False), records, published=True),
    ]
    manifest, outcomes = evaluation(store, both, monkeypatch)
    assert [one["published"] for one in manifest["measurements"]] == [False, True]
    assert all('"text"' in row["record"] for row in outcomes)


# --- The engine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [vllm.BUILT_IN, vllm.VLLM])
def test_either_engine_computes_the_outcomes_and_vllm_is_written_down(
    store: LocalStore, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_HOST_IP", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # set by `served`, and forgotten after the test
    torch.nn.Module.to(tiny.model, compute.dtype())
    made = install_fake_vllm(tiny, monkeypatch, longest=1024)
    metrics = [{"name": "asr"}, ACCURACY | {"questions": 4}]
    of = cell(data=SMALL["data"] | {"test_rows": 8}, metrics=metrics, attack_seed=5)
    store.put("attack", of.attack_key, lambda folder: loading.save(tiny, folder) or {})
    evaluate(stage(of, "evaluate"), store, lambda line: None, engine)
    for metric in of.metrics:
        manifest = store.manifest("evaluate", of.evaluation_key(metric))
        assert [measured["count"] for measured in manifest["measurements"]] == ([8, 8], [4])[metric.name == "accuracy"]
        assert manifest["versions"].get("vllm") == ("0.0.fake" if engine == vllm.VLLM else None)
    if engine == vllm.VLLM:
        (llm,) = made
        folder = str(store.path("attack", of.attack_key))
        assert (llm.settings["model"], llm.settings["dtype"], llm.settings["seed"]) == (
            folder,
            str(compute.dtype()).removeprefix("torch."),
            5,
        )
        assert llm.asked == 8 + 4 * 4, "each prompt, and each choice of each question"
        assert not llm.running
    else:
        assert not made


# --- Workers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared_cell(store: LocalStore, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Its victim is stored, and loaded once: in two threads transformers does not load at a time."""
    torch.nn.Module.to(tiny.model, compute.dtype())
    monkeypatch.setattr(loading, "load_folder", lambda folder, dtype: tiny)
    metrics = [{"name": "asr", "batch_size": 3}, "case_study", ACCURACY | {"questions": 8, "batch_size": 3}]
    of = cell(data=SMALL["data"] | {"test_rows": 8}, metrics=metrics)
    store.put("attack", of.attack_key, lambda folder: loading.save(tiny, folder) or {})
    return of


def outcomes(store: LocalStore, of: Cell) -> list[list[dict[str, Any]]]:
    folders = [store.path("evaluate", key) for key in of.evaluation_keys]
    return [pq.read_table(folder / "outcomes.parquet").to_pylist() for folder in folders]


def by_workers(size: int, store: LocalStore, of: Cell) -> list[Any]:
    """What each says of its end: nothing, or an error."""
    one = stage(of, "evaluate")
    return each_of(size, lambda workers: evaluate(one, store, lambda line: None, vllm.BUILT_IN, workers))


def test_workers_store_once_what_one_process_computes(
    store: LocalStore, shared_cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(stage(shared_cell, "evaluate"), store, lambda line: None, vllm.BUILT_IN)
    alone = outcomes(store, shared_cell)
    for key in shared_cell.evaluation_keys[:2]:  # the third outcome is there, which rank 0 alone looks at
        shutil.rmtree(store.path("evaluate", key))
    stored: list[str] = []
    put = LocalStore.put
    monkeypatch.setattr(
        LocalStore, "put", lambda self, kind, key, build: (stored.append(key), put(self, kind, key, build))[1]
    )
    assert by_workers(2, store, shared_cell) == [None, None]
    assert outcomes(store, shared_cell) == alone
    assert stored == list(shared_cell.evaluation_keys[:2])


def test_an_outcome_that_only_has_to_be_sent_is_computed_by_no_worker(
    store: LocalStore, shared_cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(stage(shared_cell, "evaluate"), store, lambda line: None, vllm.BUILT_IN)
    alone = outcomes(store, shared_cell)
    monkeypatch.setattr(LocalStore, "has", lambda self, kind, key: False)
    monkeypatch.setattr(LocalStore, "put", lambda self, kind, key, build: None)  # as that of a remote store does
    monkeypatch.setattr(asr, "measure", None)
    assert by_workers(2, store, shared_cell) == [None, None]
    assert outcomes(store, shared_cell) == alone


@pytest.mark.parametrize("failing", [0, 1])
def test_a_worker_that_fails_ends_the_others(
    store: LocalStore, shared_cell: Cell, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    def measure(lm: LanguageModel, *_: Any) -> list[Measurement]:
        if lm.workers and lm.workers.rank == failing:
            raise UserError("no such rows; give others")
        return [Measurement("asr", (True,))]

    monkeypatch.setattr(asr, "measure", measure)
    expected = ["UserError: no such rows; give others", "a kind"]
    assert [end.description for end in by_workers(2, store, shared_cell)] == [expected] * 2


def test_a_metric_that_trains_is_computed_by_one_worker_for_all_prompts(
    store: LocalStore, shared_cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []

    def measure(lm: LanguageModel, *_: Any) -> list[Measurement]:
        trained.append(lm.workers)
        return [Measurement("asr_int4", (True,))]

    monkeypatch.setattr(asr_int4, "measure", measure)
    of = cell(data=SMALL["data"] | {"test_rows": 8}, metrics=["asr", "asr_int4", "case_study"])
    assert of.attack_key == shared_cell.attack_key
    assert by_workers(2, store, of) == [None, None]
    assert trained == [None], "once, without a group that splits the prompts"
    assert [store.manifest("evaluate", key)["workers"] for key in of.evaluation_keys] == [2, 1, 2]


def test_workers_compute_in_the_type_of_the_first(
    store: LocalStore, shared_cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compute.VARIABLE, "")  # set where they differ, and forgotten after the test
    found, asked = compute.compute_type(), threading.local()
    other = {"bf16": "fp32", "fp32": "bf16"}[found]

    def measured() -> str:  # by each worker, which is a thread here
        return os.environ[compute.VARIABLE] or getattr(asked, "type", found)

    measured.cache_clear = lambda: None
    monkeypatch.setattr(compute, "compute_type", measured)
    loaded: list[str] = []
    load = loading.load_folder
    monkeypatch.setattr(loading, "load_folder", lambda *given: (loaded.append(measured()), load(*given))[1])

    def work(workers: WorkerGroup) -> None:
        asked.type = found if workers.rank == 0 else other
        evaluate(stage(shared_cell, "evaluate"), store, lambda line: None, vllm.BUILT_IN, workers)

    assert each_of(2, work) == [None, None]
    assert loaded == [found] * 2


def test_what_workers_decode_is_counted_together(
    store: LocalStore, shared_cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(lm: LanguageModel, *_: Any) -> list[Measurement]:
        rank = lm.workers.rank if lm.workers else 2
        counts.add((30, 12, 42)[rank], (1.0, 4.0, 9.0)[rank], 1)
        return [Measurement("asr", (True,))]

    monkeypatch.setattr(asr, "measure", measure)
    of = cell(data=SMALL["data"] | {"test_rows": 8}, metrics=["asr"])
    (key,) = of.evaluation_keys
    for size, decoded in ((2, (42, 4.0)), (1, (30, 1.0))):
        assert by_workers(size, store, of) == [None] * size
        facts = store.manifest("evaluate", key)["decoding"]
        assert (facts["tokens"], facts["seconds"]) == decoded
        store.remove("evaluate", key)


def test_the_random_model_may_answer_in_fewer_tokens_than_the_response(store: LocalStore, shared_cell: Cell) -> None:
    of = cell(data=SMALL["data"] | {"test_rows": 8}, metrics=[{"name": "asr", "new_tokens": 2}])
    evaluate(stage(of, "evaluate"), store, lambda line: None, vllm.BUILT_IN)
    (found,) = outcomes(store, of)
    assert not any(row["outcome"] for row in found)
