"""Clusters of prompts, measurements without a value, and costs of decoding, from a metric to its row and its page."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmark.execution import stages
from benchmark.execution.stages import evaluate
from benchmark.grid.cell import Cell
from benchmark.plan import failures
from benchmark.records import files
from benchmark.records.schema import DECODING, FAILED, OK
from benchmark.report import page
from benchmark.store.local import LocalStore
from sande import registry
from sande.api_types import Measured
from sande.defenses import clean_decoding
from sande.errors import UnscorableError, UserError
from sande.models import loading
from sande.statistics import wilson
from sande.types import Guard, LanguageModel, Measurement, TestData
from tests.benchmark.helpers import (
    ACCURACY,
    cell,
    finish,
    measured,
    outcomes_of,
    put,
    report_folder,
    rows_of,
    stage,
    trained,
)

METRICS = ["asr", ACCURACY]
GROUPS = tuple(f"template {index % 10}" for index in range(40))


@pytest.fixture
def clustered(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A victim whose prompts are from ten templates, each of which works or does not."""
    of = cell(metrics=["asr"])
    put(store, "attack", of.attack_key, trained(1, 1))
    outcomes = tuple(int(group[-1]) < 5 for group in GROUPS)
    return measured(store, of, monkeypatch, asr=[Measurement("asr", outcomes, groups=GROUPS)])


def test_outcomes_name_their_cluster_and_the_row_counts_clusters(store: LocalStore, clustered: Cell) -> None:
    assert tuple(outcomes_of(store, clustered)["cluster"].to_pylist()) == GROUPS
    (row,) = rows_of(store, clustered)
    assert (row["value"], row["count"], row["clusters"]) == (50.0, 40, 10)
    low, high = wilson(3.7, 7.4)  # ten templates, adjusted to their degrees of freedom
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(low, abs=2), pytest.approx(high, abs=2))
    assert row["ci_high"] - row["ci_low"] > 1.5 * (wilson(20, 40)[1] - wilson(20, 40)[0])


def test_a_measurement_of_the_api_has_the_same_interval(store: LocalStore, clustered: Cell) -> None:
    (row,) = rows_of(store, clustered)
    found = Measured.of(Measurement("asr", tuple(int(group[-1]) < 5 for group in GROUPS), groups=GROUPS))
    assert (found.low, found.high) == (row["ci_low"], row["ci_high"])
    with pytest.raises(UserError, match=r"^measure: x is missing \(why\); leave it out$"):
        Measured.of(Measurement("x", (), missing="why"))


def test_repetitions_that_differ_widen_the_interval_and_those_that_agree_narrow_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parrots after which 40 prompts of ten templates are answered alike, or not at all alike."""
    found = []
    for number, parts in enumerate([((0.8, 0.9) * 20, (0.2, 0.3) * 20), ((0.5, 0.6) * 20,) * 2]):
        means = tuple(sum(each) / 2 for each in zip(*parts, strict=True))
        of = cell(metrics=["asr"], attack_seed=70 + number)
        put(store, "attack", of.attack_key, trained(1, 1))
        one = Measurement("asr", means, groups=GROUPS, repeats=parts)
        measured(store, of, monkeypatch, asr=[one])
        (row,) = rows_of(store, of)
        api = Measured.of(one)
        assert (api.low, api.high) == pytest.approx((row["ci_low"], row["ci_high"]))
        alone = Measured.of(Measurement("asr", means, groups=GROUPS))
        found.append((row["value"], api.high - api.low, alone.high - alone.low))
    (value, width, of_prompts), (_, agreed, same) = found
    assert value == pytest.approx(55.0)
    assert (width, of_prompts) == (100.0, pytest.approx(9, abs=1)), "Student's t of two is 12.7"
    assert agreed == pytest.approx(same)


def test_results_of_older_versions_have_no_clusters(store: LocalStore, clustered: Cell, tmp_path: Path) -> None:
    folder = report_folder(store, tmp_path / "r", clustered)
    for name, dropped in (("rows", ["clusters", *DECODING]), ("outcomes", ["cluster"])):
        path = folder / f"{name}.parquet"
        pq.write_table(pq.read_table(path).drop_columns(dropped), path)
    assert files.read_outcomes(folder)["cluster"].null_count == 40
    rows = files.read_rows(folder)
    assert all(rows[name].null_count == rows.num_rows for name in ("clusters", *DECODING))


@pytest.fixture
def guarded(store: LocalStore, tiny: LanguageModel) -> Cell:
    """A victim under CleanGen, not yet measured."""
    of = cell(metrics=METRICS, defense="clean_decoding", asr_floor=0)
    finish(store, cell(metrics=METRICS, asr_floor=0), {"asr": 50, "builtin-choice": 20})
    reference = loading.load("tiny", store.models).model

    def build(folder: Path) -> dict[str, object]:
        config = clean_decoding.Config()
        guard = Guard(
            "clean_decoding", {}, reference, clean_decoding.rule(config, ()), clean_decoding.distribution(config, ())
        )
        loading.save(LanguageModel(tiny.model, tiny.tokenizer, guard), folder)
        return trained(58.4, 0)

    store.put("defend", of.defense_key, build)
    return of


def test_a_guard_is_scored_and_its_passes_are_counted(store: LocalStore, guarded: Cell, tmp_path: Path) -> None:
    evaluate(stage(guarded, "evaluate"), store, lambda line: None, "built-in")
    rows = {row["metric"]: row for row in rows_of(store, guarded)}
    assert rows["builtin-choice"]["status"] == OK
    assert (rows["asr"]["decoding_models"], rows["builtin-choice"].get("decoding_models")) == (2, None)
    assert rows["asr"]["decoded_tokens"] >= 50
    assert rows["asr"]["decoding_seconds"] > 0
    (text,) = [text for text in page.write(report_folder(store, tmp_path / "r", guarded)) if "Cost of the" in text]
    assert "nothing; 2 passes a token in every answer" in text


@pytest.mark.parametrize(("share", "told"), [(0.88, True), (0.4, False), (None, False)])
def test_a_training_that_moved_few_weights_is_told_with_its_cost(
    store: LocalStore, tmp_path: Path, share: float | None, told: bool
) -> None:
    of = finish(store, cell(defense="dpo", metrics=["asr"]), {"asr": 50}, {"asr": 50})
    manifest = store.manifest("defend", of.defense_key) | {
        "facts": {} if share is None else {"unchanged_weights": share}
    }
    store.remove("defend", of.defense_key)
    put(store, "defend", of.defense_key, manifest)
    (text,) = [text for text in page.write(report_folder(store, tmp_path / "r", of)) if "Cost of the" in text]
    assert ("; 88 % of the weights are as before" in text) == told


def test_a_guard_that_cannot_be_scored_has_no_utility(
    store: LocalStore, guarded: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(clean_decoding, "distribution")
    evaluate(stage(guarded, "evaluate"), store, lambda line: None, "built-in")
    rows = {row["metric"]: row for row in rows_of(store, guarded)}
    assert rows["asr"]["status"] == OK
    row = rows["builtin-choice"]
    assert (row["status"], row["failure"], row.get("value")) == (FAILED, failures.UNSCORABLE, None)
    assert row["error"] == (
        "defense clean_decoding: the probability of a text under its guard is unknown; define 'distribution' in the "
        "defense"
    )
    folder = report_folder(store, tmp_path / "r", guarded)
    (text,) = [text for text in page.write(folder) if text.startswith("### Utility")]
    assert "| `clean_decoding` | builtin-choice | no score |" in text
    assert "No score: column `error` of `rows.parquet` says why." in text
    assert not files.is_failed(row), "the cell did not fail: another run would not change it"
    assert files.is_failed(row | {"failure": failures.OTHER})
    found = files.read_rows(folder)
    assert files.of_failed_cells(found).to_pylist() == [False] * found.num_rows
    assert "## Failed cells" not in (folder / "README.md").read_text(encoding="utf-8")


def test_a_metric_that_cannot_score_says_so_for_each_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = cell(metrics=METRICS).metrics[1]

    def refuse(*_: object) -> None:
        raise UnscorableError("why")

    monkeypatch.setattr(registry.entry("metrics", "accuracy"), "measure", refuse)
    (found,) = stages._measurements(None, TestData((), (), ""), metric, 0)  # type: ignore[arg-type]
    assert (found.name, found.outcomes, found.missing) == ("builtin-choice", (), "why")
