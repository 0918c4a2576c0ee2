"""Mark what the suite writes, and replace nothing else.

A folder that a command writes has the file `.sande-bench`, which names the files that the suite wrote there. A file of
the same name that is not in it, and does not hold what the suite writes, is another's: the command refuses to go on.
So results of versions without a mark count as the suite's own. Published folders have `published.json` as their mark.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from benchmark.io.files import part_suffix, write_atomically
from benchmark.records.published import is_published
from sande.errors import UserError

MARK = ".sande-bench"
_ABOUT = "Files that sande-bench wrote here. It replaces and removes these alone."
_MOST_BYTES = 2**26  # of a file that is looked into


@dataclass(frozen=True, slots=True)
class Kind:
    """Files that a command writes into a folder.

    Attributes:
        keys: files by name, each with a function that returns whether a file holds what the suite writes.
        others: names and patterns of files that do not show who wrote them. They count as the suite's where the first
            key is there.
        earlier: matches the names that `others` had in versions without a mark.
    """

    keys: Mapping[str, Callable[[Path], bool]]
    others: tuple[str, ...] = ()
    earlier: str = ""


def begins(text: str, then: str = "") -> Callable[[Path], bool]:
    """Return a function that tells whether a file begins with a text, and soon has another one; or is empty."""

    def check(path: Path) -> bool:
        head = _head(path, 4096)
        return not head or (head.startswith(text) and then in head)

    return check


def holds(text: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a text is in a file."""
    return lambda path: text in _head(path, _MOST_BYTES)


def has_keys(*names: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a file is a JSON object, or a list of objects, with these keys."""

    def check(path: Path) -> bool:
        try:
            found = json.loads(_head(path, _MOST_BYTES))
        except (ValueError, RecursionError):
            return False
        first = found[0] if isinstance(found, list) and found else found
        return isinstance(first, dict) and set(names) <= first.keys()

    return check


def has_columns(*names: str) -> Callable[[Path], bool]:
    """Return a function that tells whether a file is Parquet with these columns, or damaged Parquet."""

    def check(path: Path) -> bool:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return path.is_file() and set(names) <= set(pq.read_schema(path).names)
        except (pa.ArrowException, OSError, ValueError):
            return _head(path, 4) == "PAR1"

    return check


def _head(path: Path, size: int) -> str:
    """Return the first characters of a regular file; of another one a text that no file of the suite begins with."""
    try:
        if not path.is_file():
            return "\0"
        with path.open("rb") as file:
            return file.read(size).decode(errors="replace")
    except OSError:
        return "\0"


_PICTURES = "md|parquet|png|svg"
_TABLES = (
    *("asr", "asr_recovery", "asr_utility", "backdoor", "case_study", "cost", "every_time", "figure_[0-9]+", "quality"),
    *("recovery", "table_[0-9]+", "utility", "utility_detail"),
)
RESULTS = Kind(
    {
        "README.md": begins("# Results of `"),
        "rows.parquet": has_columns("cell", "metric", "settings"),
        "outcomes.parquet": has_columns("cell", "metric", "outcome"),
        "run.json": has_keys("command", "code_version"),
        "search.parquet": has_columns("search", "defense", "losses"),
        "search.md": begins("### Learning-rate search"),
    },
    ("tables/*", "figures/*"),
    rf"(tables|figures)/([^/]+_)?({'|'.join(_TABLES)})\.({_PICTURES})",
)
COMPARISON = Kind(
    {
        "comparison.md": begins("# `", "compared with the paper"),
        "comparison.parquet": has_columns("table", "verdict", "defense"),
        "comparison_scores.parquet": has_columns("score", "found", "beyond_chance"),
    }
)
BOARD = Kind(
    {
        "leaderboard.md": begins("# Leaderboard of defenses"),
        "leaderboard.parquet": has_columns("knows", "rank", "defense"),
    },
    ("leaderboard.png", "leaderboard.svg"),
)
PAGES = Kind(
    {
        "index.html": holds("<title>Leaderboard of defenses against backdoors</title>"),
        "leaderboard.parquet": BOARD.keys["leaderboard.parquet"],
    },
    ("cells/*",),
    r"cells/[0-9a-f]+\.html",
)
REPETITION = Kind(
    {"repeat.md": begins("# Cells of `", "trained again"), "repeat.parquet": has_columns("cell", "metric", "again")}
)
SCAN = Kind({"scan.json": has_keys("detector", "model_identity")}, ("scan.md", "scan.png", "scan.svg"))
DETECTION = Kind(
    {
        "detection.json": lambda path: any(has_keys(name)(path) for name in ("scans", "detector")),
        "detection.parquet": has_columns("detector", "score"),
        "detectors.parquet": has_columns("detector", "rule"),
        "groups.parquet": has_columns("detector", "group", "value"),
        "detection.md": holds("### Detectors on victims and twins"),  # earlier versions began with it
    },
    ("detection.png", "detection.svg"),
)


def claim(folder: Path, kind: Kind, option: str = "") -> None:
    """Make the folder, and list in its mark the files that a command will write there.

    Args:
        folder: of a command's files.
        kind: the files.
        option: option of the command line that named the folder, if any.

    Raises:
        UserError: another's file has the name of one of them, or the folder cannot be written.
    """
    if not is_published(folder):
        _list(folder, check(folder, kind, option), option)


def check(folder: Path, kind: Kind, option: str = "") -> set[str]:
    """Return the names of the files that the suite wrote or will write in a folder; change nothing there.

    Raises:
        UserError: another's file has the name of one of them.
    """
    before = listed(folder)
    for name in kind.keys:
        if _exists(folder / name) and name not in before and not kind.keys[name](folder / name):
            _refuse(folder / name, option)
    shown = _exists(folder / next(iter(kind.keys)))
    own = {name for name in kind.others if "*" not in name}
    rest = [name for pattern in kind.others for name in _names(folder, pattern) if name not in before]
    for name in rest:
        if not shown and (name in own or not before):
            _refuse(folder / name, option)
    earlier = {name for name in rest if re.fullmatch(kind.earlier, name)} if not before else set()
    return {*before, *kind.keys, *own, *earlier}


@contextmanager
def staged(folder: Path, kind: Kind, option: str = "") -> Iterator[Path]:
    """Yield an empty folder whose files replace those of the same names at the end.

    Files that the suite wrote earlier, match a pattern of the kind and are not written again are removed.

    Raises:
        UserError: as `claim`.
    """
    claim(folder, kind, option)
    patterns = [pattern for pattern in kind.others if "*" in pattern]
    for parent in {folder / PurePosixPath(pattern).parent for pattern in patterns}:
        if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
            _refuse(parent, option)
    published = is_published(folder)
    earlier = {name for pattern in patterns for name in _names(folder, pattern)}
    states = {name: _state(folder / name) for name in (earlier if published else earlier & listed(folder))}
    work = Path(tempfile.mkdtemp(prefix=".written.", suffix=part_suffix(), dir=folder))
    try:
        yield work
        names = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
        if not published:
            before = listed(folder)
            for name in names:
                if name not in before and _exists(folder / name):
                    _refuse(folder / name, option)
            _list(folder, before | set(names), option)
        for path in sorted(path for path in work.rglob("*") if path.is_dir()):
            (folder / path.relative_to(work)).mkdir(exist_ok=True)
        for name in names:
            (work / name).replace(folder / name)
        # Another run of the grid may be writing the same files: only what nobody changed meanwhile is removed.
        for name in states.keys() - set(names):
            if _state(folder / name) == states[name]:
                (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def claim_file(path: Path, is_ours: Callable[[Path], bool], option: str) -> None:
    """Refuse to replace a file that the suite did not write.

    Args:
        path: of the file, which need not exist.
        is_ours: returns whether an existing file is the suite's.
        option: option of the command line that named it.

    Raises:
        UserError: the file is another's.
    """
    if _exists(path) and not is_ours(path):
        _refuse(path, option)


def remove(folder: Path, kind: Kind) -> None:
    """Remove the files that the suite wrote in a folder, and the folder if nothing else is in it."""
    names = listed(folder) or _recognised(folder, kind)
    for name in names:
        with suppress(OSError):
            if (folder / name).parent.resolve().is_relative_to(folder.resolve()):  # not behind a link
                (folder / name).unlink(missing_ok=True)
    if names:
        (folder / MARK).unlink(missing_ok=True)
    for place in (*{folder / PurePosixPath(name).parent for name in names}, folder):
        with suppress(OSError):
            place.rmdir()


def _recognised(folder: Path, kind: Kind) -> set[str]:
    """Return the files of a folder without a mark that hold what the suite writes, or have such a name beside them."""
    found = {name for name, check in kind.keys.items() if check(folder / name)}
    if next(iter(kind.keys)) not in found:
        return found
    earlier = (name for pattern in kind.others if "*" in pattern for name in _names(folder, pattern))
    return found | {name for name in earlier if re.fullmatch(kind.earlier, name)}


def listed(folder: Path) -> set[str]:
    """Return the names of the files that the suite wrote in a folder; none without a mark."""
    return parse(_head(folder / MARK, _MOST_BYTES))


def parse(text: str) -> set[str]:
    """Return the names in a mark, without those that lead out of its folder."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return set()
    if not isinstance(values, dict) or values.get("about") != _ABOUT or not isinstance(values.get("files"), list):
        return set()
    names = {name for name in values["files"] if isinstance(name, str) and name}
    return {name for name in names if not PurePosixPath(name).is_absolute() and ".." not in name.split("/")}


def write(names: Iterable[str]) -> str:
    """Return the text of a mark."""
    return json.dumps({"about": _ABOUT, "files": sorted(names)}, indent=1) + "\n"


def _list(folder: Path, names: set[str], option: str) -> None:
    if names == listed(folder):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MARK, write(names))
    except OSError as error:
        raise UserError(
            f"{option} {folder}: the folder cannot be written ({error.strerror}); choose another folder".strip()
        ) from None


def _names(folder: Path, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _state(path: Path) -> tuple[int, int] | None:
    """Return values of a file that change when it is written again; None where it is gone."""
    try:
        about = path.lstat()
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _refuse(path: Path, option: str) -> None:
    what = f"{option} {path}".strip()
    raise UserError(f"{what}: the file is not one that sande-bench wrote, and would be replaced; choose another folder")
