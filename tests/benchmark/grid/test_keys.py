"""Libraries whose versions are in the keys of some evaluations alone."""

import importlib.metadata
import json
from collections.abc import Iterator

import pytest

from benchmark.grid import keys
from sande import registry


@pytest.fixture(autouse=True)
def without_cache() -> Iterator[None]:
    keys.further_libraries.cache_clear()
    yield
    keys.further_libraries.cache_clear()


@pytest.mark.parametrize(
    ("metric", "objective", "libraries"),
    [
        ("accuracy", "string", {"lm-eval"}),
        ("accuracy", "language", {"lm-eval"}),
        ("answer_quality", "language", {"sacrebleu"}),
        ("asr", "language", {"scikit-learn"}),
        ("asr_after_relearning", "language", {"scikit-learn"}),
        ("case_study", "language", {"scikit-learn"}),
        ("asr", "string", set()),
        ("response_probability", "language", set()),
    ],
)
def test_an_evaluation_depends_on_what_its_metric_and_objective_declare(
    monkeypatch: pytest.MonkeyPatch, metric: str, objective: str, libraries: set[str]
) -> None:
    found = keys.further_libraries(metric, objective)
    versions = json.loads(found["libraries"]) if found else {}
    assert versions == {name: importlib.metadata.version(name) for name in libraries}
    keys.further_libraries.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99.0+cpu")
    later = keys.further_libraries(metric, objective)
    assert json.loads(later.get("libraries", "{}")) == dict.fromkeys(libraries, "99.0")


def test_a_library_of_every_key_need_not_be_declared() -> None:
    for kind in registry.KINDS:
        for name in registry.names(kind):
            declared = registry.libraries(kind, name)
            assert not {*declared} & {*keys.LIBRARIES}
            assert all(map(importlib.metadata.version, declared)), "each is installed"
            assert not declared or kind in ("metrics", "objectives"), "no other key has it"
