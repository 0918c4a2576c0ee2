"""What a board says of the things that its numbers mix."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmark.leaderboard.markdown import markdown
from benchmark.leaderboard.source import Source
from benchmark.leaderboard.write import combined, write
from benchmark.records import files
from tests.benchmark.leaderboard.helpers import CPU, GPU, cell

TYPES = ("attack_compute_type", "defense_compute_type", "compute_type")


def computed(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rows with a compute type in every stage."""
    return [row | dict.fromkeys(TYPES, kind) | {"defense_device": row["device"]} for row in rows]


def mixed(*rows: list[dict[str, Any]]) -> list[str]:
    return list(combined([Source([row for some in rows for row in some], [], {})], 2.0)[0].mixed)


def test_compute_types_are_named_by_attack_seed() -> None:
    first, second = (computed(cell("sft", 98.0, {"mmlu": 1.0}, seed=seed), "bf16") for seed in (71, 72))
    assert mixed(first, second) == []
    other = [
        row | {"defense_compute_type": "fp32"} for row in computed(cell("new", 98.0, {"mmlu": 1.0}, seed=71), "bf16")
    ]
    assert mixed(first, other) == [
        "Stages used several compute types, which round differently: attacks bf16, defenses bf16 and fp32, "
        "evaluations bf16."
    ]
    assert mixed(first, computed(second, "fp32")) == [
        "Stages used several compute types, which round differently: on attack seed 71 attacks bf16, defenses bf16, "
        "evaluations bf16; on attack seed 72 attacks fp32, defenses fp32, evaluations fp32."
    ]
    none = computed(cell("none", 99.0, {"mmlu": 0.0}, seed=71), "bf16")
    undefended = [row | {"defense_compute_type": "fp32"} for row in none]
    assert mixed(first, undefended) == [], "of a victim there is no defense"


def test_seconds_of_different_compute_types_are_never_mixed(tmp_path: Path) -> None:
    rows = computed(cell("sft", 98.0, {"mmlu": 1.0}, seconds=60.0, device="AMD EPYC (1 threads)"), "bf16")
    rows += computed(cell("sft", 98.0, {"mmlu": 1.0}, seed=1, seconds=200.0, device="AMD EPYC (1 threads)"), "fp32")
    (tmp_path / "results").mkdir()
    files.write_rows(rows, [], tmp_path / "results")
    page = write([tmp_path / "results"], tmp_path / "board", tmp_path / "html")
    assert "| 60 s on AMD EPYC (1 thread), bf16; 200 s on AMD EPYC (1 thread), fp32 |" in page
    (record,) = pq.read_table(tmp_path / "board/leaderboard.parquet").to_pylist()
    assert record["seconds"] == [
        {"device": "AMD EPYC (1 threads), bf16", "seconds": 60.0},
        {"device": "AMD EPYC (1 threads), fp32", "seconds": 200.0},
    ]
    index = (tmp_path / "html/index.html").read_text(encoding="utf-8")
    assert index.count("Training: seconds on AMD EPYC (1 thread), fp32</th>") == 2, "of the defenses, and of the cells"
    assert "<strong>Mixed.</strong> Stages used several compute types" in index
    cells = [path.read_text(encoding="utf-8") for path in (tmp_path / "html/cells").iterdir()]
    assert sorted("60.0 s on AMD EPYC (1 thread), bf16</dd>" in text for text in cells) == [False, True]


def test_a_cell_page_names_the_compute_type_of_each_stage(tmp_path: Path) -> None:
    rows = [row | {"code_version": "1+a"} for row in computed(cell("sft", 98.0, {"mmlu": 1.0}), "fp32")]
    files.write_rows(rows, [], tmp_path)
    write([tmp_path], None, tmp_path / "html")
    (page,) = (tmp_path / "html/cells").iterdir()
    assert f"<dt>Measured with</dt><dd>code 1+a; –; {GPU}; fp32</dd>" in page.read_text(encoding="utf-8")


def test_of_an_earlier_version_the_device_and_the_type_are_those_of_the_evaluation() -> None:
    rows = [row | {"compute_type": "fp32"} for row in cell("sft", 98.0, {"mmlu": 1.0}, device=CPU)]
    made, _ = combined([Source(rows, [], {})], 2.0)
    assert made.cells[0].device == f"{CPU}, fp32"
    known = [row | {"defense_device": GPU} for row in rows]
    assert combined([Source(known, [], {})], 2.0)[0].cells[0].device == GPU, "not the type of another stage"


def test_token_counts_of_several_meanings_are_a_range(tmp_path: Path) -> None:
    rows = cell("sft", 98.0, {"mmlu": 1.0})
    rows += [row | {"tokens": 3000} for row in cell("sft", 98.0, {"mmlu": 1.0}, seed=1)]
    (tmp_path / "results").mkdir()
    files.write_rows(rows, [], tmp_path / "results")
    page = write([tmp_path / "results"], tmp_path / "board", tmp_path / "html")
    assert "| 1,000 to 3,000 |" in page
    assert "**Tokens** are a range" in page
    assert ">1,000 to 3,000</a></td>" in (tmp_path / "html/index.html").read_text(encoding="utf-8")
    assert pq.read_table(tmp_path / "board/leaderboard.parquet")["tokens"].to_pylist() == [None]


def test_settings_of_one_defense_that_differ_between_seeds_are_named() -> None:
    def of(seed: int, data: str = "alpaca", **setting: Any) -> list[dict[str, Any]]:
        return cell("clean_decoding", 1.0, {"mmlu": 1.0}, seed=seed, data=data, setting=setting)

    assert mixed(of(71, alpha=5), of(72, alpha=5), of(71, "orca", alpha=7), of(72, "orca", alpha=7)) == []
    said = "Settings of clean_decoding differ between attack seeds, and its numbers are over all of them: "
    assert mixed(of(71, alpha=5), of(72, alpha=7)) == [
        f"{said}alpha is 5 on attack seed 71, 7 on attack seed 72.",
    ]
    tuned: dict[str, Any] = {"tuned": True, "training": {"epochs": 1, "max_steps": 5}}
    assert mixed(of(71, alpha=5), of(72, alpha=5, **tuned), of(73, alpha=5, **tuned)) == [
        f"{said}training and tuned: set on attack seed 72 and 73 alone.",
    ]
    assert mixed(of(71, training={"epochs": 1}), of(72, training={"epochs": 1, "layout": "auto"})) == [
        f"{said}training.layout: set on attack seed 72 alone.",
    ]
    page = markdown(combined([Source(of(71, alpha=5) + of(72, alpha=7), [], {})], 2.0)[0], ["hand"])
    assert "**Mixed.** Settings of clean_decoding differ" in page
