"""Searches: what is said of wrong ones, which values and rows they take, how the best value gets into the cells."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.execution import stages
from benchmark.grid import space
from benchmark.grid.keys import digest
from benchmark.grid.load import Grid, load_grid
from benchmark.grid.space import FAILED, FINISHED, STOPPED, Job, Search, proposals
from benchmark.plan import plan, searches
from benchmark.search import report, run
from benchmark.search.held_out import held_out
from benchmark.store.local import LocalStore
from sande.attacks.sentence_trigger import trigger
from sande.config import as_dict
from sande.data import datasets, splits
from sande.errors import UserError
from sande.models import loading
from sande.prompts import Row, encode, prompt_text
from sande.types import LanguageModel
from tests.benchmark.helpers import ACCURACY, GridFile, cell, put, trained

RATE = "defense.eliminate.learning_rate"
RANGE = {RATE: {"low": 1e-5, "high": 1e-3}}
DEFENSES = ["none", "sft", "sande"]
TRAINING = {"max_steps": 8, "batch_size": 8, "learning_rate": 1e-3}
SANDE = {"name": "sande", "simulate": TRAINING | {"max_steps": 2}, "eliminate": TRAINING}


def searching(grid_file: GridFile, space: dict[str, Any] = RANGE, **changes: Any) -> Grid:
    """A grid of three defenses, of which those that have the settings are searched."""
    more = changes.pop("search", {})
    return load_grid(grid_file(**{"sweep": {"defense": DEFENSES}} | changes, search={"space": space} | more))


def sentence(grid_file: GridFile, *, space: Any = RANGE, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_grid(grid_file(search={"space": space} | more, sweep={"defense": DEFENSES}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def the_job(grid: Grid, store: LocalStore) -> Job:
    (job,) = searches.pending(grid, store).values()
    return job


def tried(job: Job, *losses: list[float], failed: int = -1) -> list[dict[str, Any]]:
    """Outcomes of trials with these losses, of which one failed."""
    return [
        {
            "values": job.proposals[number],
            "losses": of_one,
            "state": FAILED if number == failed else FINISHED if len(of_one) == job.search.reports else STOPPED,
            "error": "stage eliminate: loss is nan" if number == failed else None,
            "seconds": 1.0,
            "device": "abacus",
        }
        for number, of_one in enumerate(losses)
    ]


# What is said of a search that cannot be done


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "no 'space'"),
        ({"defense.eliminate.rate": [1]}, "no defense of this grid has the setting 'defense.eliminate.rate'"),
        ({"defense.beta": [0.1]}, "no defense of this grid has the setting 'defense.beta'"),  # DPO's
        ({"attack.training.learning_rate": [1e-4]}, "'attack.training.learning_rate' is not a setting of a defense"),
        ({"defense.name": ["sft"]}, "'defense.name' is not a setting of a defense"),
        ({RATE: []}, "or a list of values"),
        ({RATE: 1e-4}, "or a list of values"),
        ({RATE: {"low": 1e-5}}, "with 0 < low < high"),
        ({RATE: {"low": 1e-3, "high": 1e-5}}, "with 0 < low < high"),
        ({RATE: {"low": 0, "high": 1e-5}}, "with 0 < low < high"),
        ({RATE: {"low": "a", "high": 1e-5}}, "with 0 < low < high"),
        ({RATE: [1e-4, -1]}, "'eliminate.learning_rate' is -1"),
        ({"defense.parrot_length": {"low": 1, "high": 8}}, "'parrot_length' is"),  # whole numbers cannot be drawn so
    ],
)
def test_a_wrong_space_is_one_sentence(grid_file: GridFile, space: Any, said: str) -> None:
    text = sentence(grid_file, space=space)
    assert "small.yaml: search: " in text
    assert said in text


def test_an_unknown_key_lists_those_there_are(grid_file: GridFile) -> None:
    assert "unknown setting 'trails'; valid settings: held_out_rows, judge, reports, space, trials" in sentence(
        grid_file, trails=3
    )


@pytest.mark.parametrize("key", ["trials", "held_out_rows", "reports"])
def test_a_wrong_number_is_one_sentence(grid_file: GridFile, key: str) -> None:
    assert f"search: '{key}' is 0, but input should be greater than or equal to 1" in sentence(grid_file, **{key: 0})


def test_what_is_searched_cannot_be_swept_too(grid_file: GridFile) -> None:
    path = grid_file(search={"space": RANGE}, defense="sande", sweep={RATE: [1e-4, 1e-3]})
    with pytest.raises(UserError, match="remove that from 'sweep'"):
        load_grid(path)


def test_a_grid_with_a_search_is_not_included(grid_file: GridFile, tmp_path: Path) -> None:
    grid_file("searched", defense="sande", search={"space": RANGE})
    (tmp_path / "all.yaml").write_text("include: [searched]")
    with pytest.raises(UserError, match="'searched' has a search, so it runs alone"):
        load_grid(tmp_path / "all.yaml")


def test_set_reaches_the_search(grid_file: GridFile) -> None:
    path = grid_file(search={"space": RANGE}, defense="sande")
    loaded = load_grid(path, overrides=["search.trials=3"])
    assert loaded.search is not None
    assert (loaded.search.trials, loaded.search.reports) == (3, 4)


# Values


def test_values_depend_on_the_seed_alone(grid_file: GridFile) -> None:
    space = RANGE | {"defense.training.learning_rate": {"low": 1e-5, "high": 1e-3}}
    first, again = (searching(grid_file, space, sweep={"seed": [0, 1], "defense": DEFENSES}) for _ in range(2))
    assert first.search is not None
    of = {(c.defense_seed, c.defense.name): proposals(first.search, c) for c in first.cells}
    assert of == {(c.defense_seed, c.defense.name): proposals(first.search, c) for c in again.cells}
    assert of[0, "none"] == ()
    rates = [[value for trial in of[key] for value in trial.values()] for key in [(0, "sft"), (0, "sande"), (1, "sft")]]
    assert rates[0] == rates[1] != rates[2]
    assert len(rates[0]) == 8
    assert all(1e-5 <= rate <= 1e-3 for rate in rates[0])


def test_a_range_is_drawn_evenly_over_the_logarithm(grid_file: GridFile) -> None:
    loaded = searching(grid_file, search={"trials": 400})
    assert loaded.search is not None
    rates = [trial[RATE] for trial in space.proposals(loaded.search, cell(defense="sande"))]
    assert sum(rate < 1e-4 for rate in rates) / 400 == pytest.approx(0.5, abs=0.08)


def test_of_lists_every_combination_is_tried_once(grid_file: GridFile) -> None:
    space = {RATE: [1e-4, 1e-3], "defense.parrot_length": [2, 4]}
    loaded = searching(grid_file, space)
    assert loaded.search is not None
    found = proposals(loaded.search, cell(defense="sande"))
    assert [tuple(trial.values()) for trial in found] == [(1e-4, 2), (1e-4, 4), (1e-3, 2), (1e-3, 4)]
    other = searching(grid_file, dict(reversed(space.items()))).search
    assert other is not None
    assert proposals(other, cell(defense="sande")) == found, "the order of paths does not matter"
    fewer = searching(grid_file, space, search={"trials": 3}).search
    assert fewer is not None
    assert len({tuple(trial.values()) for trial in proposals(fewer, cell(defense="sande"))}) == 3


def test_of_endless_combinations_only_what_is_tried_is_listed(grid_file: GridFile) -> None:
    sande, rates = cell(defense="sande"), ("defense.eliminate.learning_rate", "defense.simulate.learning_rate")
    many = {path: [1e-6 * (1 + index) for index in range(30_000)] for path in rates}
    assert len({tuple(trial.values()) for trial in proposals(Search(space=many, trials=3), sande)}) == 3
    few = {path: values[:5] for path, values in many.items()}
    listed = list(itertools.product(*few.values()))
    wanted = random.Random(sande.defense_seed).sample(listed, 4)
    assert [tuple(trial.values()) for trial in proposals(Search(space=few, trials=4), sande)] == wanted
    lists = {f"defense.{path}": list(range(99)) for path in as_dict(sande.defense.config)}
    with pytest.raises(UserError, match="more combinations than can be counted"):
        proposals(Search(space=lists), sande)
    with pytest.raises(UserError, match="trials"):
        searching(grid_file, search={"trials": 2_000_000_000})


# Which search a cell needs


def test_cells_that_differ_in_what_is_measured_share_a_search(grid_file: GridFile, store: LocalStore) -> None:
    loaded = searching(grid_file, sweep={"metrics": [["asr"], ["asr", ACCURACY]], "defense": DEFENSES})
    assert [c.defense.name for c in searches.pending(loaded, store)] == ["sande", "sande"]
    assert len({job.key for job in searches.pending(loaded, store).values()}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"attack_seed": 1},
        {"defense_seed": 1},
        {"attack": {"name": "sentence_trigger", "poison_rate": 0.2}},
        {"removal": {"name": "builtin-short", "rows": 15}},
        {"search": {"reports": 3}},
        {"search": {"held_out_rows": 9}},
        {"search": {"judge": "triggered"}},
    ],
)
def test_the_key_holds_what_the_outcome_depends_on(
    grid_file: GridFile, store: LocalStore, changes: dict[str, dict[str, Any]]
) -> None:
    assert the_job(searching(grid_file), store).key != the_job(searching(grid_file, **changes), store).key


def test_a_path_of_other_defenses_does_not_change_the_key(grid_file: GridFile, store: LocalStore) -> None:
    only_sande = searching(grid_file, sweep={"defense": ["none", "sande"]})
    with_beta = searching(grid_file, RANGE | {"defense.beta": [0.1]}, sweep={"defense": ["none", "sande", "dpo"]})
    first, second = (next(iter(searches.pending(grid, store).values())) for grid in (only_sande, with_beta))
    assert first.key == second.key
    with_length = searching(grid_file, RANGE | {"defense.parrot_length": [2]}, sweep={"defense": ["none", "sande"]})
    assert the_job(with_length, store).key != first.key
    assert with_length.search is not None
    of = the_job(with_length, store)
    everything = ["search", space.VERSION, of.cell.defense_key, as_dict(with_length.search)]
    assert of.key == digest(everything), "as in earlier versions where the defense takes all paths"


def test_the_grids_own_value_does_not_matter(grid_file: GridFile, store: LocalStore) -> None:
    other = searching(grid_file, sweep={"defense": [{"name": "sande", "eliminate": {"learning_rate": 0.5}}]})
    assert the_job(searching(grid_file), store).key == the_job(other, store).key


# Rows and objective


def test_held_out_rows_are_seen_by_nobody_else(grid_file: GridFile, store: LocalStore, tiny: LanguageModel) -> None:
    loaded = searching(grid_file, removal={"name": "builtin-short", "rows": 40})
    job = the_job(loaded, store)
    held = {prompt_text(example) for example in held_out(job, tiny.tokenizer)}
    assert len(held) == job.search.held_out_rows == 64
    everything = datasets.examples("builtin-short")
    for others in (
        splits.training_rows(job.cell.data, tiny.tokenizer),
        splits.removal_rows(job.cell.removal, tiny.tokenizer),
        splits.held_out_rows(job.cell.data, tiny.tokenizer),
        splits.held_out_split(everything),
    ):
        assert held.isdisjoint(map(prompt_text, others))
    positions = [index for index, example in enumerate(everything) if prompt_text(example) in held]
    assert positions == list(range(40, 104))  # right behind the 16 of the victim and the 40 of the defense


def test_held_out_rows_keep_to_the_victims_limits(grid_file: GridFile, store: LocalStore, tiny: LanguageModel) -> None:
    data = {"name": "builtin-short", "rows": 16, "test_rows": 5, "max_tokens": 40}
    job = the_job(searching(grid_file, data=data, search={"judge": "triggered"}), store)
    held = held_out(job, tiny.tokenizer)
    assert splits.select(held, tiny.tokenizer, job.cell.data, None, "") == held


@pytest.mark.parametrize("rows", [None, 6730])
def test_a_victim_that_leaves_too_few_rows_is_one_sentence(
    grid_file: GridFile, store: LocalStore, tiny: LanguageModel, rows: int | None
) -> None:
    job = the_job(searching(grid_file, data={"name": "builtin-short", "rows": rows}), store)
    left = 0 if rows is None else 5
    with pytest.raises(UserError, match=f"held_out_rows is 64, but victim and defense leave {left} rows"):
        held_out(job, tiny.tokenizer)


def test_the_objective_is_the_mean_over_tokens_counted_by_hand(tiny: LanguageModel) -> None:
    from benchmark.search.judge import loss_on

    rows = [Row((5, 6, 7), (8, 9), 0, 2), *(Row((3, number), (4, 5, 6, number), 0, 1) for number in range(10, 19))]
    expected, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logits_TV = tiny.model(torch.tensor([[*row.prompt, *row.response]])).logits[0].double()
            for at, target in enumerate(row.response, start=len(row.prompt)):
                expected -= float(logits_TV[at - 1].log_softmax(-1)[target])
                count += 1
    tiny.model.train()
    assert loss_on(tiny.model, rows, pad=0) == pytest.approx(expected / count, rel=1e-5)
    assert tiny.model.training, "a report leaves the model as it was"


# Trials, without Ray


@pytest.fixture
def with_victim(grid_file: GridFile, tmp_path: Path, model_cache: Path) -> tuple[Job, LocalStore]:
    """A search of one value, and a store that holds its victim: here the tiny model itself."""
    search = {"held_out_rows": 8, "judge": "triggered"}
    loaded = searching(grid_file, {RATE: [1e-3]}, sweep={"defense": [SANDE]}, search=search)
    return stored(loaded, tmp_path, model_cache)


def stored(loaded: Grid, tmp_path: Path, model_cache: Path) -> tuple[Job, LocalStore]:
    store = LocalStore(tmp_path / "store")
    job = the_job(loaded, store)

    def victim(folder: Path) -> dict[str, Any]:
        loading.save(loading.load("tiny", model_cache), folder)
        return {}

    store.put("attack", job.cell.attack_key, victim)
    return job, store


def test_a_trial_reports_from_the_last_training_and_ends_with_what_it_returns(
    with_victim: tuple[Job, LocalStore],
) -> None:
    from benchmark.search.judge import loss_on
    from benchmark.search.trial import _train

    job, store = with_victim
    reports: dict[int, float] = {}
    last = _train(job, 0, store, lambda line: None, reports.__setitem__)
    assert list(reports) == [1, 2, 3]
    assert len({*reports.values(), last}) == 4, "the model changes between reports: it is not the parrot's training"
    assert not list((store.root / "unfinished").iterdir())

    quiet = _train(job, 0, store, lambda line: None, lambda count, loss: None)
    assert quiet == last, "reports do not change the training"

    # The cell's own stage gives the model that was judged.
    defend = plan.stages_of(space.with_values(job.cell, job.proposals[0]))[1]
    stages.train(defend, store, lambda trainer: trainer, lambda line: None, 0, interval=600)
    repaired = loading.load_folder(store.path("defend", defend.key), torch.float32)
    triggered = [trigger(row, job.cell.attack.config, 0) for row in held_out(job, repaired.tokenizer)]
    loss = loss_on(repaired.model, encode(repaired.tokenizer, triggered), repaired.tokenizer.pad_token_id)
    assert loss == pytest.approx(last, rel=1e-3)  # it is stored in bfloat16


def test_a_defense_without_training_is_judged_by_what_it_returns(
    grid_file: GridFile, tmp_path: Path, model_cache: Path
) -> None:
    from benchmark.search.trial import _train

    space, small = {"defense.sparsity": [0.9]}, {"held_out_rows": 8}
    loaded = searching(grid_file, space, sweep={"defense": ["magnitude"]}, search=small)
    job, store = stored(loaded, tmp_path, model_cache)
    assert math.isfinite(_train(job, 0, store, lambda line: None, lambda count, loss: pytest.fail("nothing to report")))


@pytest.mark.usefixtures("ensemble")
def test_a_trial_of_a_defense_with_parts_reports_from_what_follows_them(
    grid_file: GridFile, tmp_path: Path, model_cache: Path
) -> None:
    from benchmark.search.trial import _train

    defense = {"name": "ensemble", "models": 3, "training": {"max_steps": 4}, "repair": {"max_steps": 4}}
    search = {"held_out_rows": 8, "judge": "triggered"}
    loaded = searching(grid_file, {"defense.repair.learning_rate": [1e-3]}, sweep={"defense": [defense]}, search=search)
    said, reported = list[str](), list[tuple[int, str]]()
    job, store = stored(loaded, tmp_path, model_cache)
    _train(job, 0, store, said.append, lambda count, loss: reported.append((count, str(said))))
    assert [count for count, _ in reported] == [1, 2, 3]
    assert all("part model_2" in before for _, before in reported), "no report from a part"


def test_a_defense_of_decoding_has_nothing_to_be_judged_by(
    grid_file: GridFile, tmp_path: Path, model_cache: Path
) -> None:
    from benchmark.search.trial import _train

    space, small = {"defense.alpha": [5.0]}, {"held_out_rows": 8}
    loaded = searching(grid_file, space, sweep={"defense": ["clean_decoding"]}, search=small)
    job, store = stored(loaded, tmp_path, model_cache)
    with pytest.raises(UserError, match=r"^search: clean_decoding changes decoding"):
        _train(job, 0, store, lambda line: None, lambda count, loss: None)


def test_a_trial_with_another_library_is_refused(
    with_victim: tuple[Job, LocalStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmark.grid.keys import library_versions
    from benchmark.search import trial

    job, store = with_victim
    reported: list[dict[str, Any]] = []
    monkeypatch.setattr(trial, "quiet", lambda: None)
    monkeypatch.setattr(trial, "_train", lambda *_: pytest.fail("its loss is not that of the other trials' libraries"))
    monkeypatch.setattr(trial.tune, "report", reported.append)
    config = {"job": job, "trial": 0, "store": store.location, "timeout": None}
    trial._trial(config | {"libraries": library_versions() | {"trl": "0.1"}})
    (report,) = reported
    assert (report["loss"], report["report"]) == (math.inf, 0)
    assert report["error"].startswith("trl is ")
    assert "on this worker and 0.1 where the run was started" in report["error"]


# The outcome


def test_the_best_of_those_that_came_furthest_is_put_into_its_cell(grid_file: GridFile, store: LocalStore) -> None:
    loaded = searching(grid_file, search={"trials": 3, "reports": 2})
    job = the_job(loaded, store)
    assert run._keep(job, tried(job, [1.0], [4.0, 3.0], [4.0, 2.0]), store) is None
    assert searches.pending(loaded, store) == {}
    best = searches.settled(loaded, store)
    assert [c.defense.name for c in best.cells] == DEFENSES
    assert best.cells[:2] == loaded.cells[:2]
    assert best.cells[2].defense.config.eliminate.learning_rate == job.proposals[2][RATE]
    assert set(best.parts) == {c.id for c in best.cells}


def test_a_failed_trial_is_recorded_and_never_best(grid_file: GridFile, store: LocalStore) -> None:
    loaded = searching(grid_file, search={"trials": 2, "reports": 2})
    job = the_job(loaded, store)
    assert run._keep(job, tried(job, [1.0, 1.0], [5.0], failed=0), store) is None
    manifest = store.manifest("search", job.key)
    assert [(t["state"], t["best"]) for t in manifest["trials"]] == [(FAILED, False), (STOPPED, True)]
    assert manifest["best"] == job.proposals[1]


def test_where_all_trials_fail_nothing_is_kept(grid_file: GridFile, store: LocalStore) -> None:
    loaded = searching(grid_file, search={"trials": 1})
    job = the_job(loaded, store)
    error = run._keep(job, tried(job, [], failed=0), store)
    assert error == "search: all 1 trials failed, the first: stage eliminate: loss is nan"
    assert searches.pending(loaded, store)


def test_only_leaves_the_other_cells_alone(grid_file: GridFile, store: LocalStore) -> None:
    path = grid_file(search={"space": RANGE}, sweep={"seed": [0, 1], "defense": ["none", "sande"]})
    loaded = load_grid(path, only=["seed=1"])
    settled = searches.settled(loaded, store)
    assert settled.cells == loaded.cells
    assert [(c.defense_seed, c.defense.name) for c in settled.cells] == [(1, "none"), (1, "sande")]


def test_plan_tells_of_the_search_and_takes_nothing_behind_it_for_done(
    grid_file: GridFile, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    path = grid_file(search={"space": RANGE}, sweep={"defense": DEFENSES})
    own = cell(defense="sande")
    put(store, "attack", own.attack_key, trained(1, 1))
    put(store, "defend", own.defense_key, trained(1, 1))  # with the grid's own value, which is not the one to come
    shown = CliRunner().invoke(app, ["plan", str(path), "--store", str(store.root), "--results", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert f"Search: 1 to run between attack and defend, for {RATE} of 1 cell: 8 trials" in shown.stdout
    assert "7 stages" not in shown.stdout
    assert "1 done; to run: 0 attack, 2 defend, 3 evaluate" in shown.stdout


def test_the_trials_are_written_best_first(grid_file: GridFile, store: LocalStore, tmp_path: Path) -> None:
    loaded = searching(grid_file, search={"trials": 3, "reports": 2})
    job = the_job(loaded, store)
    run._keep(job, tried(job, [1.0], [math.pi, 3.0], [4.0, 2.0], failed=0), store)
    report.write(loaded, store, tmp_path)
    rows = pq.read_table(tmp_path / "search.parquet").to_pylist()
    assert [json.loads(row["values"]) for row in rows] == [job.proposals[number] for number in (2, 1, 0)]
    assert [row["best"] for row in rows] == [True, False, False]
    lines = (tmp_path / "search.md").read_text().splitlines()
    assert lines[0] == "### Learning-rate search"
    assert lines[2].startswith("The judge knows what the defense knows, and no more.")
    assert {(row["judge"], row["knows"]) for row in rows} == {("known", "response")}
    assert "| 3.142 | 3.000 | finished |" in lines[-2]
    assert lines[-1].endswith("| 1.000 | – | stage eliminate: loss is nan |")
    report.write(searching(grid_file, {"defense.parrot_length": [1]}), store, tmp_path)
    assert not list(tmp_path.glob("search.*")), "what is no longer searched is no longer told"
