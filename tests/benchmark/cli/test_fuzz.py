"""Whatever stands in a grid, in rows, in an entry, a scan or a manifest: it is read right, or refused in one sentence.

Derandomised, so that the default suite tries the same examples every time; `slow` tries many more.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmark.detection import evaluate, page
from benchmark.detection.outcome import judged
from benchmark.detection.summary import summaries
from benchmark.grid.cell import DEFAULTS, Cell
from benchmark.grid.load import load_grid
from benchmark.leaderboard import submission
from benchmark.records import files, schema
from benchmark.store.local import LocalStore
from sande.data import datasets
from sande.errors import UserError
from tests.benchmark.cli.bad_input import furnish
from tests.benchmark.helpers import SMALL

T = TypeVar("T")
GRIDS = sorted((Path(__file__).parents[3] / "grids").glob("*.yaml"))

pytestmark = pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.slow)])

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10),
    st.integers(),
    st.sampled_from([10**12, 2**63, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["sft", "none", "tiny", "builtin-short", "asr", "name", "..", "/etc/passwd", "\ud800", "\n"]),
    st.dates(),
)
WORDS = st.sampled_from(["name", "rows", "training", "backdoor", "trigger", "where", "set", "space", "task", "models"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | SCALARS, inner, max_size=3),
    max_leaves=8,
)
RICH: dict[str, Any] = SMALL | {
    "attack": {
        "name": "sentence_trigger",
        "poison_rate": 0.25,
        "backdoor": {"trigger": "a"},
        "training": {"epochs": 1.0},
    },
    "defense": {"name": "sande", "simulate": {"max_steps": 3}, "parrot_length": 2},
    "metrics": ["asr", {"name": "accuracy", "task": "builtin-choice"}],
    "sweep": {"seed": [0, 1], "defense.parrot_position": [2, 3]},
    "rules": [{"where": {"seed": [0]}, "set": {"data.rows": 8}, "default": {"removal.rows": 4}}],
    "search": {"space": {"defense.eliminate.learning_rate": {"low": 1e-5, "high": 1e-3}}, "trials": 2},
    "resources": {"cpus": 1},
}
KEYS = st.sampled_from([*DEFAULTS, "sweep", "rules", "scale", "include", "search", "resources", "about"])


def tried(examples: int, check: Callable[[Any], object], strategy: st.SearchStrategy[Any]) -> None:
    """Give `check` so many examples."""
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    how = settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=quiet)

    def test(value: Any) -> None:
        check(value)

    how(given(strategy)(test))()


def read(reader: Callable[..., T], *arguments: Any) -> T | None:
    """What the reader gives, or None where it refuses; anything else that it does fails."""
    try:
        return reader(*arguments)
    except UserError:
        return None


def within(text: bytes) -> st.SearchStrategy[bytes]:
    """The bytes with a piece of them gone, doubled, or put in place of by others."""
    places = st.tuples(st.integers(0, len(text)), st.integers(0, 40), st.binary(max_size=8))
    return places.map(lambda drawn: text[: drawn[0]] + drawn[2] + text[drawn[0] + drawn[1] :])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def placed(document: Any, values: st.SearchStrategy[Any] = JSON) -> st.SearchStrategy[Any]:
    """The document with one of the values at one of its places."""

    def paths(value: Any) -> list[tuple[Any, ...]]:
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [(), *((key, *rest) for key, inner in inside for rest in paths(inner))]

    def change(path: tuple[Any, ...], value: Any) -> Any:
        changed = copy.deepcopy(document)
        if not path:
            return value
        holder = changed
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = value
        return changed

    return st.builds(change, st.sampled_from(paths(document)), values)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz") / "made"
    furnish(made)
    return made


def loads(path: Path) -> None:
    loaded = read(load_grid, path)
    for cell in loaded.cells if loaded else ():
        assert Cell.parse(cell.settings()) == cell


def test_a_grid_of_any_bytes(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    tried(examples, lambda content: loads((path.write_bytes(content), path)[1]), st.binary(max_size=60))


def test_a_grid_of_any_text(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    text = st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#?, \n\t01e.<~%@`")), max_size=40)
    tried(examples, lambda content: loads((path.write_text(content), path)[1]), text)


def test_a_shipped_grid_with_a_piece_changed(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    strategy = st.one_of(within(grid.read_bytes()) for grid in GRIDS)
    tried(examples, lambda content: loads((path.write_bytes(content), path)[1]), strategy)


def test_a_grid_with_any_value_at_a_place(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"

    def check(values: Any) -> None:
        path.write_bytes(yaml.dump(values, allow_unicode=True).encode(errors="surrogatepass"))
        loads(path)

    changes = st.dictionaries(KEYS, VALUES, min_size=1, max_size=2)
    tried(examples, check, changes.map(lambda changes: SMALL | changes))
    tried(examples, check, placed(RICH, VALUES))


def test_an_option_of_any_text(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    texts = st.builds("{}={}".format, st.text(max_size=6) | KEYS, st.text(max_size=12)) | st.text(max_size=12)
    tried(examples, lambda text: read(load_grid, path, [text]), texts)
    tried(examples, lambda text: read(load_grid, path, [], [text]), texts)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.parquet"])
def test_a_data_file_of_any_bytes(examples: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(datasets.DATA_DIR, str(tmp_path))
    good = [{"instruction": f"What is {n}?", "output": f"{n}."} for n in range(20)]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(good), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in good))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        for example in read(datasets.examples, "mine") or ():
            for text in (example.instruction, example.input, example.output, example.system):
                text.encode()

    tried(examples, check, within(path.read_bytes()) | st.binary(max_size=40))


def test_rows_of_any_bytes(examples: int, place: Path, tmp_path: Path) -> None:
    good = (place / "results/good/rows.parquet").read_bytes()
    wanted = files.read_rows(place / "results/good")

    def check(content: bytes) -> None:
        (tmp_path / "rows.parquet").write_bytes(content)
        found = read(files.read_rows, tmp_path)
        assert found is None or found.equals(wanted)

    tried(examples, check, within(good) | st.binary(max_size=40))


def test_rows_with_any_value_in_a_column(examples: int, place: Path, tmp_path: Path) -> None:
    good = pq.read_table(place / "results/good/rows.parquet").to_pylist()
    cells = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5) | st.booleans()

    def check(drawn: tuple[str, Any, bool]) -> None:
        name, value, everywhere = drawn
        changed = [row | {name: value} if everywhere or not number else row for number, row in enumerate(good)]
        try:
            pq.write_table(pa.Table.from_pylist(changed), tmp_path / "rows.parquet")
        except (pa.ArrowException, UnicodeEncodeError):  # no file can hold that
            return
        table = read(files.read_rows, tmp_path)
        if table is not None:
            read(submission.make, tmp_path, "sft")

    tried(examples, check, st.tuples(st.sampled_from(schema.SCHEMA.names), cells, st.booleans()))


def test_an_entry_with_any_value_at_a_place(examples: int, place: Path, tmp_path: Path) -> None:
    path = tmp_path / "entry.json"

    def check(document: Any) -> None:
        path.write_text(json.dumps(document))
        entry = read(submission.read, path)
        if entry is not None:
            pa.Table.from_pylist(submission.to_rows(entry), schema=schema.SCHEMA)
            assert submission.samples(entry) == []

    tried(examples, check, placed(json.loads((place / "entry.json").read_text())))


def test_a_scan_and_a_list_of_scans_with_any_value_at_a_place(examples: int, place: Path, tmp_path: Path) -> None:
    record = json.loads((place / "scan/scan.json").read_text())
    record["candidates"] = [{"text": "a", "ids": [3], "score": 1.0}]
    listed = {"scans": [{"scan": ".", "label": "x", "calibration": True}]}

    def check(drawn: tuple[Any, Any]) -> None:
        (tmp_path / "scan.json").write_text(json.dumps(drawn[0]))
        (tmp_path / "scans.yaml").write_text(json.dumps(drawn[1]))
        cases = read(evaluate.cases, tmp_path / "scans.yaml") or []
        found = [read(evaluate.outcome, case, tmp_path, tmp_path) for case in cases if case.response is None]
        if found and None not in found:
            rows = judged(found, 0.05)
            assert page.markdown(rows, summaries(rows, 0.05))

    tried(examples, check, st.tuples(placed(record), st.just(listed)) | st.tuples(st.just(record), placed(listed)))


def test_a_mark_of_a_store_of_any_value(examples: int, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()

    def check(content: bytes) -> None:
        (tmp_path / "store/store.json").write_bytes(content)
        read(LocalStore, tmp_path / "store")

    values = placed({"format": 1}).map(lambda value: json.dumps(value).encode())
    tried(examples, check, values | st.binary(max_size=30))


def test_a_manifest_of_any_bytes(examples: int, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("attack", "key", lambda folder: {"seconds": 1.5, "tokens": 3})
    path = store.path("attack", "key") / "manifest.json"
    good, wanted = path.read_bytes(), store.manifest("attack", "key")

    def check(content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        found = read(store.manifest, "attack", "key")
        # Manifests from before there were checksums are taken at their word.
        assert found in (None, wanted) or not content.startswith(good[:12])
        assert isinstance(store.has("attack", "key"), bool)

    tried(examples, check, within(good) | st.binary(max_size=30))
