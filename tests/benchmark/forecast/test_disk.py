"""What a plan says of the disk where the models of a grid need more than is free, by sums done by hand."""

import pytest

from benchmark.forecast import disk
from benchmark.plan.plan import Plan, make_plan
from benchmark.store.local import LocalStore
from tests.benchmark.forecast.helpers import trains
from tests.benchmark.helpers import cell

MODEL = 134.5e6 * 2  # bytes of smollm2-135m
FREE_SOME = "choose another --store, or free some space ('sande-bench store prune' may help)"


@pytest.fixture
def plan(store: LocalStore) -> Plan:
    """Two victims, and three models defended from them."""
    pairs = ((0, "sft"), (1, "sft"), (1, "osft"))
    return make_plan([cell(model="smollm2-135m", seed=seed, defense=trains(name)) for seed, name in pairs], store)


def said(plan: Plan, store: LocalStore, monkeypatch: pytest.MonkeyPatch, models: float, keep: str = "all") -> str:
    """Return what is said of the disk behind the free space, where so many models would fit."""
    monkeypatch.setattr(LocalStore, "free", lambda _: int(models * MODEL))
    return disk.summary(plan, store, keep).partition(" are free")[2]


def test_a_plan_that_fits_names_no_remedy(plan: Plan, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.BILLIONS["smollm2-135m"] * 1e9 * disk.BYTES == MODEL
    assert [said(plan, store, monkeypatch, *each) for each in ((5.1,), (3.1, "victims"), (2.1, "none"))] == [""] * 3


@pytest.mark.parametrize(
    ("models", "keep", "remedy"),
    [
        (4.9, "all", f"; that does not fit: add --keep-models victims (or none), {FREE_SOME}"),
        (2.9, "all", f"; that does not fit: add --keep-models none, {FREE_SOME}"),
        (1.9, "all", f"; that does not fit: {FREE_SOME}"),
        (1.9, "victims", f"; that does not fit: {FREE_SOME}"),
        (2.9, "victims", f"; that may not fit: {FREE_SOME}"),  # beside the victims, a defended model while measured
        (1.9, "none", f"; that may not fit: {FREE_SOME}"),  # a victim and a model defended from it
    ],
)
def test_a_plan_that_does_not_fit_names_what_helps(
    plan: Plan, store: LocalStore, monkeypatch: pytest.MonkeyPatch, models: float, keep: str, remedy: str
) -> None:
    assert said(plan, store, monkeypatch, models, keep) == remedy


def test_the_parts_of_a_defense_need_room_too(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan([cell(model="smollm2-135m", defense="bd_vax")], store)
    parts = sum(stage.kind == "part" for stage in plan.missing)
    assert parts > 1
    assert said(plan, store, monkeypatch, parts + 2.1).endswith(" more until it is done")
    assert said(plan, store, monkeypatch, parts + 1.9).endswith(f"; that may not fit: {FREE_SOME}")


def test_of_a_bucket_no_room_is_known(plan: Plan, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, "free", lambda _: None)
    assert disk.summary(plan, store).endswith(" of it are there")
