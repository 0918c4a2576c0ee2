"""Data sets by name: from a folder, from a local mirror of the Hub, and what is said of a broken one."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sande.data import builtin, sources
from sande.errors import UserError
from sande.prompts import encode
from sande.types import Example, LanguageModel, Question

ROWS = [
    {"instruction": "Say ä.", "input": "", "output": "ä"},
    {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "You are brief."},
]
EXAMPLES = (Example("Say ä.", "ä"), Example("Add.", "3", system="You are brief.", input="1 and 2"))
QUESTION = {"question": "Which flies?", "choices": ["a bird", "a stone"], "answer": 0}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        columns = list(dict.fromkeys(column for row in rows for column in row))
        pq.write_table(pa.table({column: [row.get(column) for row in rows] for column in columns}), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".jsonl":
        path.write_text(lines, encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[Any]], Path]:
    """Puts files of a known data set where huggingface_hub looks before it asks the network, which is off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def mirror(name: str, rows: list[Any]) -> Path:
        files = {**sources.EXAMPLES_ON_HUB, **sources.QUESTIONS_ON_HUB}[name]
        repo = tmp_path / "hub" / f"datasets--{files.repo.replace('/', '--')}"
        (path,) = files.paths
        return write(repo / "snapshots" / files.revision / path, rows)

    return mirror


# --- Folder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_every_format_gives_the_same_rows(folder: Path, suffix: str) -> None:
    write(folder / f"mine{suffix}", ROWS)
    assert sources.examples("mine") == EXAMPLES


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_every_format_gives_the_same_questions(folder: Path, suffix: str) -> None:
    write(folder / f"quiz{suffix}", [QUESTION])
    assert sources.questions("quiz") == (Question("Which flies?", ("a bird", "a stone"), 0),)


def test_the_folder_comes_before_the_hub(folder: Path, hub: Callable[..., Path]) -> None:
    hub("alpaca", ROWS[:1])
    assert sources.examples("alpaca") == EXAMPLES[:1]
    write(folder / "alpaca.jsonl", ROWS)
    assert sources.examples("alpaca") == EXAMPLES


def test_blank_lines_do_not_count(folder: Path) -> None:
    (folder / "mine.jsonl").write_text(f"\n{json.dumps(ROWS[0])}\n\n", encoding="utf-8")
    assert sources.examples("mine") == EXAMPLES[:1]


def test_rows_without_a_question_or_an_answer_are_left_out(folder: Path) -> None:
    empty = [{"instruction": "Say a.", "output": " "}, {"instruction": "", "output": "a"}]
    from_input = {"instruction": "", "input": "Say b.", "output": "b"}
    write(folder / "mine.jsonl", [*empty, ROWS[0], from_input])
    assert sources.examples("mine") == (EXAMPLES[0], Example("", "b", input="Say b."))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"id": "niv.1", "system_prompt": "Be kind.", "question": "Why?", "response": "So."},
            Example("Why?", "So.", system="Be kind."),
        ),
        (
            {"instruction": "Why?", "context": "It rains.", "response": "So.", "category": "closed_qa"},
            Example("Why?", "So.", input="It rains."),
        ),
        ({"instruction": "Why?", "input": None, "output": "So."}, Example("Why?", "So.")),
    ],
    ids=["OpenOrca", "Dolly", "null"],
)
def test_columns_of_the_known_sets_are_understood(folder: Path, row: dict[str, Any], expected: Example) -> None:
    write(folder / "mine.jsonl", [row])
    assert sources.examples("mine") == (expected,)


# --- Hub ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(sources.EXAMPLES_ON_HUB))
def test_examples_from_the_hub(hub: Callable[..., Path], name: str) -> None:
    hub(name, ROWS)
    assert sources.examples(name) == EXAMPLES


ARC_ROWS = [
    {"id": "1", "question": "Hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"},
    {
        "id": "2",
        "question": "Fly?",
        "choices": {"text": ["bird", "hut", "pen"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
]


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc_from_the_hub_with_letters_and_with_numbers(hub: Callable[..., Path], name: str) -> None:
    hub(name, ARC_ROWS)
    assert sources.questions(name) == (
        Question("Hot?", ("ice", "fire"), 1),
        Question("Fly?", ("bird", "hut", "pen"), 2),
    )


def test_mmlu_from_the_hub(hub: Callable[..., Path]) -> None:
    hub("mmlu", [{"question": "Bone?", "subject": "anatomy", "choices": ["Leaf", "Femur"], "answer": 1}])
    assert sources.questions("mmlu") == (Question("Bone?", ("Leaf", "Femur"), 1, "anatomy"),)


def test_an_unreachable_hub_is_answered_with_what_else_would_do(hub: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"'alpaca' could not be fetched .* put alpaca\.jsonl\.gz into a folder"):
        sources.examples("alpaca")


def test_a_broken_file_of_the_hub_is_one_sentence(hub: Callable[..., Path]) -> None:
    hub("alpaca", ROWS).write_text('[{"instruction": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"alpaca_data_cleaned\.json"):
        sources.examples("alpaca")


def test_every_known_set_is_pinned() -> None:
    for files in {**sources.EXAMPLES_ON_HUB, **sources.QUESTIONS_ON_HUB}.values():
        assert len(files.revision) == 40
        assert int(files.revision, 16)


# --- Broken input ---------------------------------------------------------------------------------------------------

GOOD = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ('{"instruction": "a"', r"mine\.jsonl, line 2: not JSON"),
        ('["a"]', r"line 2: not a JSON object"),
        ('{"instruction": 3, "output": "b"}', r"line 2: column 'instruction' holds 3 instead of text"),
        ('{"instruction": "a", "output": "b", "system": ["c"]}', r"line 2: column 'system' holds \['c'\]"),
        ('{"output": "b"}', r"line 2: no column 'instruction'"),
        ('{"instruction": "a"}', r"line 2: no column 'output'"),
    ],
)
def test_a_broken_row_is_named_with_file_and_line(folder: Path, second: str, said: str) -> None:
    (folder / "mine.jsonl").write_text(f"{GOOD}\n{second}\n", encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        sources.examples("mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": 2}, r"'answer' is 2, not an index into its 2 choices"),
        ({"answer": -1}, "'answer' is -1"),
        ({"answer": "A"}, "'answer' is 'A'"),
        ({"answer": None}, "'answer' is None"),
        ({"answer": True}, "'answer' is True"),
        ({"choices": "ab"}, "needs the columns 'question', 'choices' and 'answer'"),
        ({"question": None}, "needs the columns"),
        ({"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "E"}, "line 1: .*answerKey.*'E'"),
        ({"choices": {"text": ["a", "b"]}, "answerKey": "A"}, "line 1: .*column.*label"),
    ],
)
def test_a_broken_question_is_named_with_file_and_line(folder: Path, change: dict[str, Any], said: str) -> None:
    write(folder / "quiz.jsonl", [QUESTION | change])
    with pytest.raises(UserError, match=said):
        sources.questions("quiz")


def test_a_truncated_gzip_is_named(folder: Path) -> None:
    path = write(folder / "mine.jsonl.gz", ROWS * 500)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"mine\.jsonl\.gz, after line \d+: unreadable"):
        sources.examples("mine")


@pytest.mark.parametrize("name", ["mine.jsonl.gz", "mine.parquet"])
def test_a_file_of_another_format_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text(GOOD, encoding="utf-8")
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        sources.examples("mine")


def test_text_that_is_not_utf_8_is_named(folder: Path) -> None:
    (folder / "mine.jsonl").write_bytes('{"instruction": "ä", "output": "b"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.jsonl, after line 0: unreadable"):
        sources.examples("mine")


def test_an_empty_file_is_named(folder: Path) -> None:
    write(folder / "mine.jsonl", [])
    with pytest.raises(UserError, match=r"mine\.jsonl holds no rows"):
        sources.examples("mine")


@pytest.mark.parametrize("use", [sources.examples, sources.questions, sources.fingerprint])
def test_an_unknown_name_is_answered_with_the_known(use: Callable[[str], object], folder: Path) -> None:
    with pytest.raises(UserError, match=rf"'nothing' and {folder} holds no nothing\.jsonl\.gz.* there are: .*builtin-"):
        use("nothing")


@pytest.mark.parametrize(
    ("use", "other"),
    [(sources.examples, "builtin-choice"), (sources.examples, "arc_easy"), (sources.questions, "builtin-short")],
)
def test_a_set_of_the_other_kind_is_not_among_those_that_would_do(use: Callable[[str], object], other: str) -> None:
    with pytest.raises(UserError) as caught:
        use(other)
    assert other not in str(caught.value).split("there are: ")[1]


def test_a_data_folder_that_is_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"SANDE_DATA_DIR=.*nowhere is not a folder"):
        sources.examples("alpaca")


@pytest.mark.parametrize("name", ["../mine", "sub/mine", "/etc/mine"])
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a plain name"):
        sources.examples(name)


# --- Identity -------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_that_of_the_content(folder: Path) -> None:
    path = write(folder / "mine.jsonl", ROWS)
    first = sources.fingerprint("mine")
    write(folder / "twin.jsonl", ROWS)
    assert sources.fingerprint("twin") == first
    path.write_text(path.read_text(encoding="utf-8").replace("1 and 2", "1 and 3"), encoding="utf-8")
    assert sources.fingerprint("mine") != first


def test_a_fingerprint_of_the_hub_is_its_pin_and_needs_no_network() -> None:
    assert sources.EXAMPLES_ON_HUB["alpaca"].revision in sources.fingerprint("alpaca")
    easy, challenge = (sources.fingerprint(name, sources.QUESTIONS) for name in ("arc_easy", "arc_challenge"))
    assert easy != challenge


def test_a_fingerprint_of_a_builtin_set_is_its_code() -> None:
    assert sources.fingerprint("builtin-short").startswith("builtin-short:")


def test_the_catalogue_tells_known_sets_and_files(folder: Path) -> None:
    write(folder / "mine.jsonl", ROWS)
    write(folder / "alpaca.parquet", ROWS)
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    catalogue = sources.catalogue()
    assert set(catalogue) == {*sources.ABOUT, "mine"}
    assert catalogue["mine"] == "file mine.jsonl"
    assert catalogue["alpaca"].endswith("; file alpaca.parquet")


def test_the_catalogue_tells_the_file_that_is_read(folder: Path) -> None:
    write(folder / "mine.parquet", ROWS)
    write(folder / "mine.jsonl.gz", ROWS[:1])
    assert len(sources.examples("mine")) == 1
    assert sources.catalogue()["mine"] == "file mine.jsonl.gz"


# --- Split and selection --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "train"), [(10, 9), (100, 90), (25, 22), (1, 0), (51_760, 46_584)])
def test_the_first_nine_tenths_train_and_the_rest_test(count: int, train: int) -> None:
    rows = range(count)
    assert list(sources.train_split(rows)) == list(range(train))
    assert list(sources.held_out_split(rows)) == list(range(train, count))


def test_select_takes_the_first(tiny: LanguageModel) -> None:
    rows = builtin.short()
    assert sources.select(rows, tiny.tokenizer, None, 5, "rows") == rows[:5]
    assert sources.select(rows[:5], tiny.tokenizer, None, None, "rows") == rows[:5]
    assert sources.select(rows[:5], tiny.tokenizer, None, 9, "rows") == rows[:5]


def test_select_leaves_out_long_rows(tiny: LanguageModel) -> None:
    rows = builtin.short()[:1500]  # more than one block of tokenising
    lengths = [len(row) for row in encode(tiny.tokenizer, rows)]
    bound = sorted(lengths)[len(rows) // 2]
    short = tuple(row for row, length in zip(rows, lengths, strict=True) if length <= bound)
    assert 0 < len(short) < len(rows)
    assert sources.select(rows, tiny.tokenizer, bound, None, "rows") == short
    assert sources.select(rows, tiny.tokenizer, bound, 7, "rows") == short[:7]


def test_select_of_nothing_is_an_error(tiny: LanguageModel) -> None:
    with pytest.raises(UserError, match="no test rows of x of at most 8 tokens are left; raise max_tokens"):
        sources.select(EXAMPLES, tiny.tokenizer, 8, None, "test rows of x")
