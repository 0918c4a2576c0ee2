"""The published results: their pages are what follows from their rows, and nothing but `publish` writes there."""

import shutil
import subprocess
from pathlib import Path

import pytest

from benchmark import publish
from benchmark.records import erratum, published, record

pytestmark = pytest.mark.usefixtures("few_pixels")
ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / published.FOLDER
FOLDERS = sorted(path for path in PUBLISHED.iterdir() if path.is_dir())
PAGES = (
    "README.md",
    "tables/*.md",
    "comparison.md",
    "leaderboard/*.md",
    "detection.md",
    "scans/*/scan.md",
    "board/**/*.html",
)
PICTURES = ("figures/*", "leaderboard/*.png", "leaderboard/*.svg", "detection.png", "detection.svg")


def pages(folder: Path) -> dict[str, str]:
    found = (path for pattern in PAGES for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in found}


def names(folder: Path, patterns: tuple[str, ...]) -> set[str]:
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern)}


def test_there_are_some() -> None:
    assert {"quickstart", "smollm2", "detection_open"} <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_pages_are_those_that_follow_from_the_rows(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / folder.name
    made.mkdir()
    shutil.copy(PUBLISHED / published.MARKER, tmp_path)
    for name in ("rows.parquet", "outcomes.parquet", record.NAME, erratum.NAME, "search.md", "detection.json"):
        if (folder / name).is_file():
            shutil.copy(folder / name, made)
    for path in folder.glob("scans/*/scan.json"):
        (made / path.parent.relative_to(folder)).mkdir(parents=True)
        shutil.copy(path, made / path.relative_to(folder))
    for name in names(folder, ("comparison.md", "leaderboard/leaderboard.md", "board/index.html")):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).touch()
    publish.make_pages(made, folder.relative_to(ROOT))
    assert pages(made) == pages(folder), f"run 'sande-bench publish {folder.relative_to(ROOT)}'"
    assert names(made, PICTURES) == names(folder, PICTURES)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_has_a_record_whose_command_stands_on_its_page(folder: Path) -> None:
    made = record.read(folder)
    assert made is not None
    assert made.complete
    assert f"`{made.command}`" in (folder / "README.md").read_text(encoding="utf-8")
    assert published.is_published(folder)


def test_git_ignores_what_runs_write_and_tracks_what_is_published() -> None:
    def ignored(path: str) -> bool:
        done = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", path], cwd=ROOT, check=False)
        return done.returncode == 0

    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout")
    runs = ["quickstart", "quickstart--model=tiny", "paper-tiny", "leaderboard", "detection/scans"]
    assert all(ignored(f"results/{name}/README.md") for name in runs)
    assert not ignored("results/published/quickstart/README.md")
    assert not ignored("results/published/new/figures/asr.svg")
