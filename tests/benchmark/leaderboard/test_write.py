"""The leaderboard's files, from results."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.leaderboard.markdown import notes
from benchmark.leaderboard.source import read_all
from benchmark.leaderboard.write import Source, combined, write
from benchmark.records import erratum, files, schema
from sande.errors import UserError
from tests.benchmark.helpers import mistake
from tests.benchmark.leaderboard.helpers import GPU, cell, seeds, twin


def test_a_cell_in_two_folders_counts_once_and_all_files_appear(tmp_path: Path) -> None:
    made = cell("sft", 98.0, {"arc_easy": 1.0}) + cell("sande", 1.0, {"arc_easy": 2.0})
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        files.write_rows(made, [], folder)
    page = write(folders, tmp_path / "board")
    said = CliRunner().invoke(app, ["leaderboard", *map(str, folders), "--out", str(tmp_path / "board")])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "board" / "leaderboard.md").read_text() == page
    assert "| – | `sande` | 1.0 (0.2 to 5.4, this model) | 0 (0 to 98) | +2.00 | not shown | 60 s on " in page
    assert "1 run, 1 victim" in page
    records = pq.read_table(tmp_path / "board" / "leaderboard.parquet").to_pylist()
    assert [(record["defense"], record["asr"], record["utility_loss"]) for record in records] == [
        ("sande", 1.0, 2.0),
        ("sft", 98.0, 1.0),
    ]
    assert records[0]["seconds"] == [{"device": GPU, "seconds": 60.0}]
    assert [(record["knows"], record["rank"], record["utility"]) for record in records] == [
        ("response", None, "unclear"),
        ("nothing", None, "unclear"),
    ]
    assert {path.suffix for path in (tmp_path / "board").glob("[!.]*")} == {".md", ".parquet", ".png", ".svg"}


def test_a_folder_named_almost_as_a_command_is_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "entries").mkdir()
    assert "entries: no rows.parquet" in mistake("leaderboard", "entries")
    assert "No such command 'revel'. Did you mean 'reveal'?" in mistake("leaderboard", "revel")
    assert "elsewhere: no rows.parquet" in mistake("leaderboard", "elsewhere")
    assert "rank.json: no such file" in mistake("leaderboard", "rank.json")


def test_a_rank_without_an_interval_shows_none_and_an_erratum_opens_every_page(tmp_path: Path) -> None:
    """One defense, alone in its level; a second one of unknown utility has no mark in the figure."""
    found = [*seeds("osft", (0.0,) * 3), *seeds("sft", (99.0,) * 3)]
    unknown = [row for row in found if row["defense"] == "osft" or row["metric"] == "asr"]
    files.write_rows(unknown, [], tmp_path)
    erratum.write("Wrong rows.", tmp_path)
    page = write([tmp_path], None, tmp_path / "html")
    assert "A defense of unknown utility has no mark." in page
    index = (tmp_path / "html/index.html").read_text()
    assert '<td class="number" data-value="1">1</td>' in index
    cells = [path.read_text() for path in (tmp_path / "html/cells").iterdir()]
    assert len(cells) == 6
    assert all("<strong>Erratum of" in text and "Wrong rows." in text for text in (index, *cells))


def test_results_without_a_defense_to_rank_are_refused(tmp_path: Path) -> None:
    files.write_rows(cell("none", 99.0, {"arc_easy": 0.0}), [], tmp_path)
    with pytest.raises(UserError, match=r".*: no defense was measured on a victim"):
        write([tmp_path], tmp_path / "board")


def test_the_margin_is_a_setting_of_the_command(tmp_path: Path) -> None:
    files.write_rows(seeds("sft", (1.0,) * 3, lost=(3.0, 3.1, 3.2)), [], tmp_path)
    ranks = {}
    for margin in ("2", "5"):
        said = CliRunner().invoke(
            app, ["leaderboard", str(tmp_path), "--margin", margin, "--out", str(tmp_path / margin)]
        )
        assert said.exit_code == 0, said.output
        (record,) = pq.read_table(tmp_path / margin / "leaderboard.parquet").to_pylist()
        assert record["margin"] == float(margin)
        ranks[margin] = (record["utility"], record["rank"], record["rank_low"], record["rank_high"])
    assert ranks == {"2": ("lost", None, None, None), "5": ("kept", 1, None, None)}
    said = CliRunner().invoke(app, ["leaderboard", str(tmp_path), "--margin", "-1"])
    assert said.exit_code == 2


def test_an_entry_never_takes_the_place_of_results_whatever_the_order(tmp_path: Path) -> None:
    own, entry = cell("sft", 98.0, {"mmlu": 1.0}), cell("sft", 0.0, {"mmlu": 0.0})
    assert own[0]["cell"] == entry[0]["cell"]
    sources = [Source(entry, [], {}, is_entry=True), Source(own, [], {})]
    made, _ = combined(sources, 2.0)
    assert [one.asr.value for one in made.standings] == [98.0]
    assert not made.cells[0].is_entry


def test_the_rows_of_a_cell_are_of_one_source() -> None:
    """Two entries with the same settings have one cell, to which the second adds no number."""
    first = cell("new", 1.0, {"mmlu": 0.0})
    second = cell("new", 1.0, {"mmlu": 0.0, "parrot_recovery": 9.0})
    made, cells = combined([Source(rows, [], {}, is_entry=True) for rows in (first, second)], 2.0)
    assert [sorted(rows) for rows in cells.values()] == [["asr", "mmlu"]]
    assert [dict(one.more) for one in made.standings] == [{}]


def test_pages_of_failed_defenses_alone_are_written(tmp_path: Path) -> None:
    failed = [row for name in ("new", "sft") for row in cell(name, 0.0, {"mmlu": 0.0}, status=schema.FAILED)]
    (tmp_path / "results").mkdir()
    files.write_rows(failed + cell("none", 99.0, {"mmlu": 0.0}), [], tmp_path / "results")
    write([tmp_path / "results"], None, tmp_path / "html")
    page = (tmp_path / "html/index.html").read_text(encoding="utf-8")
    assert '<th scope="row">no defense</th><td>–</td>\n<td class="number" data-value="99.0">99.0</td>' in page


def test_a_board_of_several_versions_says_so() -> None:
    own = [row | {"code_version": "1+a", "attack_code_version": "1+a"} for row in cell("sft", 98.0, {"mmlu": 1.0})]
    later = [row | {"code_version": "1+b", "attack_code_version": "1+a"} for row in cell("new", 98.0, {"mmlu": 1.0})]
    made, _ = combined([Source(own, [], {}), Source(later, [], {})], 2.0)
    (sentence,) = made.mixed
    assert "several versions of the code" in sentence
    assert "1+b" in sentence
    assert f"**Mixed.** {sentence}" in notes(made)
    assert combined([Source(own, [], {})], 2.0)[0].mixed == ()


def test_what_the_page_shows_of_victims_and_twins_is_in_the_parquet(tmp_path: Path) -> None:
    found = [*seeds("osft", (0.0,) * 3), *seeds("sft", (99.0,) * 3)]
    own = [cell("osft", 0.0, {"mmlu": 0.5}, seed=seed) for seed in range(3)]
    twins = [row | {"poison_rate": 0.0} for rows in own for row in twin(rows, 2.0, 49.0)]
    files.write_rows(found + twins, [], tmp_path)
    made, _ = combined(read_all([tmp_path]), 2.0)
    write([tmp_path], tmp_path / "board")
    records = pq.read_table(tmp_path / "board" / "leaderboard.parquet").to_pylist()
    assert {one["defense"]: one["removes"] for one in records} == {"osft": True, "sft": False}
    assert made.twin is not None
    assert made.twin.loss is not None
    for one in records:
        assert one["victim_asr"] == 99.0
        assert (one["twin_asr"], one["twin_asr_high"]) == (2.0, made.twin.asr.high)
        names = ("twin_utility_loss", "twin_utility_loss_low", "twin_utility_loss_high")
        assert [one[name] for name in names] == [1.0, made.twin.loss.low, made.twin.loss.high]
        assert one["victim_more"] == [], "nothing of parrots was measured"


def test_every_column_of_the_parquet_is_in_the_guide(tmp_path: Path) -> None:
    files.write_rows(seeds("sft", (1.0,) * 3), [], tmp_path)
    write([tmp_path], tmp_path / "board")
    guide = (Path(__file__).parents[3] / "docs" / "leaderboard.md").read_text(encoding="utf-8")
    names = pq.read_schema(tmp_path / "board" / "leaderboard.parquet").names
    assert [name for name in names if f"`{name}`" not in guide] == []
