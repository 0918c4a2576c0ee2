"""Manifests of other forms than this version's: an earlier one records less, and a damaged one anything."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmark.forecast.measured import samples_of
from benchmark.forecast.wall_time import summary
from benchmark.grid.resources import Resources
from benchmark.plan import maintenance
from benchmark.plan.memory import KINDS, peaks_of
from benchmark.plan.plan import make_plan
from benchmark.records.files import table_of
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import cell, finish, outcomes_of, rows_of

ODD = st.none() | st.booleans() | st.integers(-1, 2**70) | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
CELL = cell(defense="sft")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, dict[Path, dict[str, Any]]]:
    """A store with all artifacts of a cell, whose manifests are of the form before checksums, and what they hold."""
    store = LocalStore(tmp_path_factory.mktemp("filled") / "store")
    finish(store, CELL, {"asr": 49}, {"asr": 3})
    found = {}
    for kind, key in maintenance.artifacts(store):
        made = store.manifest(kind, key)
        made |= {
            "kind": kind,
            "settings": CELL.settings(),
            "device": "abacus (2 threads)",
            "device_memory_bytes": 2**34,
        }
        made.setdefault("peak_memory_bytes", 2**30)
        found[store.path(kind, key) / "manifest.json"] = made
    return store, found


def use(store: LocalStore) -> None:
    """All that reads manifests."""
    maintenance.listing(store)
    for kind in KINDS:
        list(samples_of(store.manifests(kind)))
    peaks_of(store)
    summary(make_plan([CELL], store), store, Resources(), 1, "abacus")
    table_of(rows_of(store, CELL))
    outcomes_of(store, CELL)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of each value in a manifest."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(leaf for key, each in inner for leaf in leaves(each, (*path, key)))][0 if path else 1 :]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(data=st.data())
def test_a_manifest_that_lacks_something_or_holds_odd_values_is_a_sentence_or_is_left_out(filled, data) -> None:
    store, known = filled
    for path, made in known.items():
        path.write_text(json.dumps(made))
    path = data.draw(st.sampled_from(sorted(known)))
    changed = json.loads(json.dumps(known[path]))
    *above, last = data.draw(st.sampled_from(leaves(changed)))
    at = changed
    for step in above:
        at = at[step]
    if data.draw(st.booleans()):
        del at[last]
    else:
        at[last] = data.draw(ODD)
    path.write_text(json.dumps(changed))
    with suppress(UserError):
        use(store)


def test_manifests_of_the_form_before_checksums_are_taken_as_they_are(filled) -> None:
    store, known = filled
    for path, made in known.items():
        path.write_text(json.dumps(made))
    use(store)
    assert [row["status"] for row in rows_of(store, CELL)] == ["ok"] * len(rows_of(store, CELL))


def test_rows_of_a_manifest_of_an_earlier_version_name_the_folders_to_remove(filled) -> None:
    store, known = filled
    for path, made in known.items():
        path.write_text(json.dumps(made))
    place = store.path("defend", CELL.defense_key)
    (place / "manifest.json").write_text('{"content": "old"}')
    with pytest.raises(UserError, match=r"a manifest is of another version \(KeyError: 'seconds'\); remove") as caught:
        rows_of(store, CELL)
    assert str(place) in str(caught.value)
