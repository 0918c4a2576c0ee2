"""What the suite writes replaces no file of others: every output, every name that it writes."""

from pathlib import Path

import pytest

from benchmark.grid.load import load_grid
from benchmark.io import plots
from benchmark.records import mark
from benchmark.report import layouts
from sande.errors import UserError
from tests.benchmark import outputs
from tests.benchmark.helpers import GridFile, mistake

OTHERS = b"written by hand"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are files of a few bytes, as drawing takes most of the time."""

    def save(figure: object, folder: Path, name: str) -> None:
        for suffix in ("png", "svg"):
            (folder / f"{name}.{suffix}").write_bytes(b"picture")

    monkeypatch.setattr(plots, "save", save)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outputs.results(tmp_path_factory.mktemp("source"))


def write(name: str, source: Path, out: Path) -> dict[str, bytes]:
    """What a writer makes in a folder that holds only the rows that it needs."""
    before = contents(out)
    outputs.WRITERS[name](source, out, outputs.harmless)
    return {path: content for path, content in contents(out).items() if before.get(path) != content}


@pytest.mark.parametrize("name", outputs.WRITERS)
def test_no_file_of_others_is_replaced_or_removed(name: str, source: Path, tmp_path: Path) -> None:
    made = write(name, source, tmp_path / "first")
    own = [path for path in made if path not in ("rows.parquet", "outcomes.parquet", mark.MARK)]
    assert len(own) >= 1
    for number, path in enumerate(own):
        out = tmp_path / f"second-{number}"
        (out / path).parent.mkdir(parents=True)
        (out / path).write_bytes(OTHERS)
        with pytest.raises(UserError, match=r"is not one that sande-bench wrote|choose another"):
            write(name, source, out)
        assert (out / path).read_bytes() == OTHERS


@pytest.mark.parametrize("name", outputs.WRITERS)
def test_files_of_others_in_the_same_folders_stay(name: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = write(name, source, out)
    places = {(out / path).parent for path in made}
    for place in places:
        for other in ("notes.md", "mine.html", "asr_notes.png"):
            (place / other).write_bytes(OTHERS)
    again = write(name, source, out)
    assert {path: content for path, content in contents(out).items() if path in made} == made | {
        path: content for path, content in again.items() if path in made
    }
    assert all((place / other).read_bytes() == OTHERS for place in places for other in ("notes.md", "asr_notes.png"))


def test_what_a_version_without_a_mark_wrote_is_replaced(source: Path, tmp_path: Path) -> None:
    for name in outputs.WRITERS:
        out = tmp_path / name
        made = write(name, source, out)
        (out / mark.MARK).unlink(missing_ok=True)
        write(name, source, out)
        assert made.keys() - {mark.MARK} <= contents(out).keys()


def test_only_listed_tables_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    outputs.WRITERS["report"](out, out, outputs.harmless)
    (out / "tables/old.md").write_bytes(OTHERS)
    (out / mark.MARK).write_text(mark.write(mark.listed(out) | {"tables/gone.md", "../outside.md"}))
    (out / "tables/gone.md").write_text("of an earlier report")
    (tmp_path / "outside.md").write_bytes(OTHERS)
    outputs.WRITERS["report"](out, out, outputs.harmless)
    assert not (out / "tables/gone.md").exists()
    assert (out / "tables/old.md").exists()
    assert (tmp_path / "outside.md").exists()


@pytest.mark.parametrize("marked", [True, False])
def test_the_rows_of_an_interrupted_run_go_and_files_of_others_stay(marked: bool, tmp_path: Path) -> None:
    out = tmp_path / "unfinished"
    outputs.WRITERS["report"](out, out, outputs.harmless)
    if not marked:
        (out / mark.MARK).unlink()
    (out / "tables/notes.md").write_bytes(OTHERS)
    mark.remove(out, mark.RESULTS)
    assert contents(out) == {"tables/notes.md": OTHERS}
    (out / "tables/notes.md").unlink()
    mark.remove(out, mark.RESULTS)


@pytest.mark.parametrize("part", ["two\nlines", "a\u2028b", "x" * 90, "“quotes” '\""])
def test_tables_of_any_grid_are_written_again(part: str, tmp_path: Path) -> None:
    for _ in range(2):
        outputs.WRITERS["report"](tmp_path, tmp_path, lambda name: part if name == "grids" else outputs.harmless(name))
        with mark.staged(tmp_path, mark.RESULTS) as work:
            (work / "tables").mkdir()
            (work / f"tables/{part}_asr.md").write_text("a table")
    assert f"tables/{part}_asr.md" in mark.listed(tmp_path)


def test_a_link_to_a_folder_elsewhere_is_refused(tmp_path: Path) -> None:
    out = outputs.results(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (out / "tables").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="tables"):
        outputs.WRITERS["report"](out, out, outputs.harmless)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_names_of_earlier_tables_are_those_of_the_layouts() -> None:
    found = {
        f"{kind}/{name}"
        for one in (layouts.GENERIC, *layouts.PAPER.values())
        for kind, specs in (("tables", (*one.tables, *one.details)), ("figures", one.figures))
        for name in [
            *(spec if isinstance(spec, str) else spec.name for spec in specs),
            *([one.cases] * (kind[0] == "t")),
        ]
    }
    assert [name for name in sorted(found) if not mark.re.fullmatch(mark.RESULTS.earlier, f"{name}.md")] == []


@pytest.mark.parametrize("name", ["...yaml", "..yaml", ".yaml", ".hidden.yaml", "a\x1b[0m.yaml", f"{'n' * 200}.yaml"])
def test_a_grid_whose_name_is_not_that_of_a_folder_is_refused(name: str, grid_file: GridFile, tmp_path: Path) -> None:
    path = grid_file().rename(tmp_path / name)
    with pytest.raises(UserError, match="choose another name"):
        load_grid(path)


def test_a_run_into_the_folder_of_others_is_refused_before_it_computes(grid_file: GridFile, tmp_path: Path) -> None:
    (tmp_path / "results/small").mkdir(parents=True)
    for name in ("README.md", "rows.parquet", "tables"):
        path = tmp_path / "results/small" / name
        path = path / "table.md" if name == "tables" else path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(OTHERS)
        line = mistake("run", grid_file(), "--results", tmp_path / "results", "--store", tmp_path / "store")
        assert str(path) in line
        assert contents(tmp_path / "results") == {f"small/{path.relative_to(tmp_path / 'results/small')}": OTHERS}
        path.unlink()
