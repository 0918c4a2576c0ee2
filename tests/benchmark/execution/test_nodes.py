"""What is wrong on a node, as a sentence; the tasks on a real cluster are in tests/integration/test_nodes.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark.execution import nodes
from benchmark.execution.nodes import Wanted
from benchmark.store.local import LocalStore
from sande.models import loading
from tests.benchmark.helpers import ACCURACY, cell


@pytest.fixture
def made(store: LocalStore) -> Wanted:
    mark = store.scratch("nodes")
    metrics = [{"name": "asr"}, ACCURACY]
    return nodes.wanted([cell(metrics=metrics), cell(metrics=metrics, defense="dpo")], store, mark)


def test_where_all_is_as_on_the_driver_nothing_is_said(made: Wanted) -> None:
    assert nodes.problems(made) == []
    assert set(made.versions) >= {"python", "ray", "torch", "transformers", "trl"}
    assert {kind for _, kind in made.data} == {"rows", "questions", "preference pairs"}
    assert set(made.models) == {"tiny"}


def test_nodes_are_asked_for_the_libraries_that_a_metric_declares(made: Wanted, store: LocalStore) -> None:
    assert "lm-eval" in made.versions
    assert "lm-eval" not in nodes.wanted([cell(metrics=["asr"])], store, Path("mark")).versions


def test_nodes_are_asked_for_the_models_that_a_defense_names(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "model_facts", lambda name: name)
    of = cell(defense={"name": "clean_decoding", "models": ["smollm2-135m"]})
    assert set(nodes.wanted([of], store, Path("mark")).models) == {"tiny", "smollm2-135m"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"versions": {"torch": "1.0.0"}}, "and 1.0.0 where the run was started; install torch==1.0.0 there"),
        ({"versions": {"lm-eval": "0.0.1"}}, "and 0.0.1 where the run was started; install lm-eval==0.0.1 there"),
        ({"versions": {"no-such-library": "1"}}, "no-such-library is absent, and 1 where the run was started"),
        ({"code": ("0.0.1", "0")}, "and 0.0.1 where the run was started; install the same there"),
        ({"code": (nodes.code()[0], "0")}, "its sande-bench has other files than that where the run was started"),
        ({"models": {"tiny": "tiny:other"}}, "model tiny has other files than where the run was started"),
        ({"models": {"/not/there": "config.json 3"}}, "model /not/there: no model is called"),
        ({"data": {("builtin-short", "rows"): "sha256:0"}}, "data set builtin-short has other files"),
        ({"data": {("own", "rows"): "sha256:0"}}, "data set own: "),
        ({"store": "/not/there"}, "store /not/there is not there; mount it at the same path"),
        ({"mark": "/not/there"}, "is another folder than that of the driver"),
    ],
)
def test_what_differs_is_a_clause_with_its_mend(
    made: Wanted, changes: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SEEN", 0.1)
    (problem,) = nodes.problems(replace(made, **changes))
    assert told in problem
    assert "\n" not in problem


def test_a_store_that_the_node_may_not_write_is_a_clause(made: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/store/unfinished/x")

    monkeypatch.setattr(Path, "touch", refused)
    (problem,) = nodes.problems(made)
    assert "cannot be written (/store/unfinished/x: Permission denied)" in problem


def test_a_model_is_known_by_the_sizes_of_its_files(model_cache: Path, tmp_path: Path) -> None:
    folder = loading.prepare("tiny", model_cache)
    facts = nodes.model_facts(str(folder))
    assert "model.safetensors " in facts
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert nodes.model_facts(str(copy)) == facts
    (copy / "config.json").write_text("{ }")
    assert nodes.model_facts(str(copy)) != facts


def test_a_run_on_one_machine_looks_at_no_node(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "others", dict)
    monkeypatch.setattr(nodes, "wanted", lambda *_: pytest.fail("nobody is to be asked"))
    nodes.check([cell()], store)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("first\nModuleNotFoundError: No module named 'benchmark'\nlast"), "cannot be imported"),
        (RuntimeError("first\nlast"), "it cannot run a task (last); check its log"),
        (RuntimeError(""), "it cannot run a task (RuntimeError)"),
    ],
)
def test_a_node_that_cannot_look_is_a_clause(error: Exception, told: str) -> None:
    def get() -> list[str]:
        raise error

    (problem,) = nodes._answer(get)
    assert told in problem
