"""Data sets by name: from a folder, from a local mirror of the Hub, and what is said of a broken one."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sande.config import Preferences
from sande.data import datasets, splits
from sande.data.builtin import sets
from sande.data.splits import Data, Removal
from sande.errors import UserError
from sande.prompts import encode
from sande.types import Example, LanguageModel, Preference, Question

ROWS = [
    {"instruction": "Say ä.", "input": "", "output": "ä"},
    {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "You are brief."},
]
EXAMPLES = (Example("Say ä.", "ä"), Example("Add.", "3", system="You are brief.", input="1 and 2"))
QUESTION = {"question": "Which flies?", "choices": ["a bird", "a stone"], "answer": 0}
PAIR = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
ON_HUB = {**datasets.EXAMPLES_ON_HUB, **datasets.QUESTIONS_ON_HUB, **datasets.PREFERENCES_ON_HUB}


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
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts files of a known data set where huggingface_hub looks before it asks the network, which is off.

    One list of rows a file; gives the path of the first.
    """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def mirror(name: str, *contents: list[Any]) -> Path:
        files = ON_HUB[name]
        repo = tmp_path / "hub" / f"datasets--{files.repo.replace('/', '--')}"
        first, *_ = [
            write(repo / "snapshots" / files.revision / path, rows)
            for path, rows in zip(files.paths, contents, strict=False)
        ]
        return first

    return mirror


# --- Folder ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", datasets.SUFFIXES)
def test_every_format_gives_the_same_rows(folder: Path, suffix: str) -> None:
    write(folder / f"mine{suffix}", ROWS)
    assert datasets.examples("mine") == EXAMPLES


@pytest.mark.parametrize("suffix", datasets.SUFFIXES)
def test_every_format_gives_the_same_questions(folder: Path, suffix: str) -> None:
    write(folder / f"quiz{suffix}", [QUESTION])
    assert datasets.questions("quiz") == (Question("Which flies?", ("a bird", "a stone"), 0),)


def test_the_folder_comes_before_the_hub(folder: Path, hub: Callable[..., Path]) -> None:
    hub("alpaca", ROWS[:1])
    assert datasets.examples("alpaca") == EXAMPLES[:1]
    write(folder / "alpaca.jsonl", ROWS)
    assert datasets.examples("alpaca") == EXAMPLES


def test_blank_lines_do_not_count(folder: Path) -> None:
    (folder / "mine.jsonl").write_text(f"\n{json.dumps(ROWS[0])}\n\n", encoding="utf-8")
    assert datasets.examples("mine") == EXAMPLES[:1]


def test_rows_without_a_question_or_an_answer_are_left_out(folder: Path) -> None:
    empty = [{"instruction": "Say a.", "output": " "}, {"instruction": "", "output": "a"}]
    from_input = {"instruction": "", "input": "Say b.", "output": "b"}
    write(folder / "mine.jsonl", [*empty, ROWS[0], from_input])
    assert datasets.examples("mine") == (EXAMPLES[0], Example("", "b", input="Say b."))


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
        (
            {
                "messages": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": "So."},
                    {"role": "user", "content": "Why so?"},
                    {"role": "assistant", "content": "It is."},
                ]
            },
            Example("Why so?", "It is.", "Be kind.", history=(("Why?", "So."),)),
        ),
        (
            {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}], "messages": None},
            Example("Why?", "So."),
        ),
    ],
    ids=["OpenOrca", "Dolly", "null", "messages", "ShareGPT"],
)
def test_columns_of_the_known_sets_are_understood(folder: Path, row: dict[str, Any], expected: Example) -> None:
    write(folder / "mine.jsonl", [row])
    assert datasets.examples("mine") == (expected,)


# --- Hub ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(datasets.EXAMPLES_ON_HUB))
def test_examples_from_the_hub(hub: Callable[..., Path], name: str) -> None:
    hub(name, ROWS)
    assert datasets.examples(name) == EXAMPLES


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
    assert datasets.questions(name) == (
        Question("Hot?", ("ice", "fire"), 1),
        Question("Fly?", ("bird", "hut", "pen"), 2),
    )


def test_mmlu_from_the_hub(hub: Callable[..., Path]) -> None:
    hub("mmlu", [{"question": "Bone?", "subject": "anatomy", "choices": ["Leaf", "Femur"], "answer": 1}])
    assert datasets.questions("mmlu") == (Question("Bone?", ("Leaf", "Femur"), 1, "anatomy"),)


def test_an_unreachable_hub_is_answered_with_what_else_would_do(hub: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"'alpaca' could not be fetched .* put alpaca\.jsonl\.gz into a folder"):
        datasets.examples("alpaca")


def test_a_broken_file_of_the_hub_is_one_sentence(hub: Callable[..., Path]) -> None:
    hub("alpaca", ROWS).write_text('[{"instruction": ', encoding="utf-8")
    with pytest.raises(UserError, match=r"alpaca_data_cleaned\.json"):
        datasets.examples("alpaca")


def test_every_known_set_is_pinned() -> None:
    for files in ON_HUB.values():
        assert len(files.revision) == 40
        assert int(files.revision, 16)


# --- Preference pairs -----------------------------------------------------------------------------------------------

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why\n\nthough?\n\nAssistant:"
AS_PROMPT = Example("Why\n\nthough?", "", history=(("Hi", "Yes?"),))
TWICE = "\n\nHuman: Hi\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize("suffix", datasets.SUFFIXES)
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PAIR, Preference(Example("Why?", ""), "So.", "No.")),
        (PAIR | {"system": "Be brief."}, Preference(Example("Why?", "", "Be brief."), "So.", "No.")),
        (PAIR | {"system": None}, Preference(Example("Why?", ""), "So.", "No.")),
        (PAIR | {"prompt": DIALOGUE}, Preference(AS_PROMPT, "So.", "No.")),
        (PAIR | {"prompt": TWICE}, Preference(Example("Hi\n\nWhy?", ""), "So.", "No.")),
        (
            {"chosen": f"{DIALOGUE} So it is.\n", "rejected": f"{DIALOGUE} No."},
            Preference(AS_PROMPT, "So it is.", "No."),
        ),
    ],
    ids=["instruction", "system prompt", "null", "dialogue", "two paragraphs", "two whole dialogues"],
)
def test_every_layout_of_a_pair_is_understood(
    folder: Path, suffix: str, row: dict[str, Any], expected: Preference
) -> None:
    write(folder / f"pairs{suffix}", [row])
    assert datasets.preferences("pairs") == (expected,)


def test_pairs_from_the_hub_are_those_of_all_files_in_their_order(hub: Callable[..., Path]) -> None:
    asked = {number: f"\n\nHuman: {number}\n\nAssistant:" for number in range(4)}
    pairs = [{"chosen": f"{prompt} yes", "rejected": f"{prompt} no"} for prompt in asked.values()]
    hub("hh_rlhf", pairs[:2], pairs[2:])
    found = datasets.preferences("hh_rlhf")
    assert found == tuple(Preference(Example(str(number), ""), "yes", "no") for number in asked)


def test_a_set_of_which_one_file_is_missing_is_not_read_in_part(hub: Callable[..., Path]) -> None:
    hub("hh_rlhf", [PAIR])
    with pytest.raises(UserError, match="'hh_rlhf' could not be fetched"):
        datasets.preferences("hh_rlhf")


@pytest.mark.parametrize(
    "row",
    [
        PAIR | {"chosen": " \n"},
        PAIR | {"rejected": ""},
        {"chosen": f"{DIALOGUE} So.", "rejected": f"{DIALOGUE} "},
        {"chosen": f"{DIALOGUE} So.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
        {"chosen": f"{DIALOGUE} So.", "rejected": "No."},
        {"chosen": f"{DIALOGUE} So.", "rejected": f"{DIALOGUE} No.\n\nHuman: Oh\n\nAssistant: Yes."},
        {"chosen": f"{DIALOGUE} So.\n\nHuman: Oh\n\nAssistant: Yes.", "rejected": f"{DIALOGUE} No."},
    ],
    ids=[
        "nothing chosen",
        "nothing rejected",
        "empty turn",
        "another prompt",
        "no prompt",
        "rejected runs on",
        "chosen runs on",
    ],
)
def test_pairs_that_do_not_compare_two_replies_are_left_out(folder: Path, row: dict[str, Any]) -> None:
    write(folder / "pairs.jsonl", [row, PAIR])
    assert datasets.preferences("pairs") == (Preference(Example("Why?", ""), "So.", "No."),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": 3}, r"pairs\.jsonl, line 2: a preference pair needs the columns 'chosen' and 'rejected'"),
        ({"rejected": None}, "line 2: a preference pair needs"),
        ({"prompt": 3}, r"line 2: column 'prompt' holds 3 and 'system' ''; both are text"),
        ({"system": ["a"]}, r"line 2: .*'system' \['a'\]"),
        ({"prompt": None}, "line 2: no column 'prompt', and 'chosen' is not a dialogue"),
        ({"prompt": "\n\nHuman: Hi"}, r"line 2: column 'prompt' ends in .*Hi', not in the turn"),
    ],
)
def test_a_broken_pair_is_named_with_file_and_line(folder: Path, change: dict[str, Any], said: str) -> None:
    write(folder / "pairs.jsonl", [PAIR, PAIR | change])
    with pytest.raises(UserError, match=said) as caught:
        datasets.preferences("pairs")
    assert "\n" not in str(caught.value)


MANY = Preferences(name="builtin-preferences", pairs=None)


def lengths(lm: LanguageModel, pairs: tuple[Preference, ...]) -> list[int]:
    """Tokens of each prompt with its longer reply."""
    sides = ([replace(pair.prompt, output=getattr(pair, side)) for pair in pairs] for side in ("chosen", "rejected"))
    return [max(map(len, both)) for both in zip(*(encode(lm.tokenizer, side) for side in sides), strict=True)]


@pytest.mark.parametrize(("count", "first"), [(5, 5), (None, None), (10**6, None)])
def test_preference_pairs_are_the_first(tiny: LanguageModel, count: int | None, first: int | None) -> None:
    chosen = Preferences(name="builtin-preferences", pairs=count)
    assert splits.preference_pairs(chosen, tiny.tokenizer) == sets.preferences()[:first]


def test_preference_pairs_leave_out_those_with_a_long_reply(folder: Path, tiny: LanguageModel) -> None:
    write(folder / "pairs.jsonl", [PAIR, PAIR | {"chosen": "So. " * 40}, PAIR | {"rejected": "No. " * 40}, PAIR])
    short, *_ = pairs = datasets.preferences("pairs")
    bound = lengths(tiny, (short,))[0]
    assert [length > bound for length in lengths(tiny, pairs)] == [False, True, True, False]
    for count, left in ((None, 2), (2, 2), (1, 1)):
        chosen = Preferences(name="pairs", pairs=count, max_tokens=bound)
        assert splits.preference_pairs(chosen, tiny.tokenizer) == (short,) * left


def test_no_preference_pairs_left_is_an_error(folder: Path, tiny: LanguageModel) -> None:
    write(folder / "pairs.jsonl", [PAIR])
    with pytest.raises(
        UserError, match=r"^no pairs of pairs of at most 8 tokens are left; raise preferences.max_tokens"
    ):
        splits.preference_pairs(Preferences(name="pairs", max_tokens=8), tiny.tokenizer)


def test_a_set_without_usable_pairs_is_an_error(folder: Path, tiny: LanguageModel) -> None:
    write(folder / "pairs.jsonl", [PAIR | {"chosen": ""}])
    with pytest.raises(UserError, match=r"^pairs has no pair of two usable replies to one prompt; choose another"):
        splits.preference_pairs(Preferences(name="pairs"), tiny.tokenizer)


# --- Broken input ---------------------------------------------------------------------------------------------------

GOOD = json.dumps(ROWS[0])


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ('{"instruction": "a"', r"mine\.jsonl, line 2: not a JSON object"),
        ('["a"]', r"line 2: not a JSON object"),
        ('{"instruction": 3, "output": "b"}', r"line 2: column 'instruction' holds 3 instead of text"),
        ('{"instruction": "a", "output": "b", "system": ["c"]}', r"line 2: column 'system' holds \['c'\]"),
        ('{"output": "b"}', r"line 2: no column 'instruction'"),
        ('{"instruction": "a"}', r"line 2: no column 'output'"),
        ('{"messages": "a"}', r"line 2: column 'messages' is not a list of turns; correct"),
        ('{"messages": ["a"]}', r"line 2: column 'messages' is not a list of turns"),
        ('{"messages": []}', r"line 2: column 'messages' has turns of nobody, not of user and"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"line 2: column 'messages' has turns of user, not of"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
            r"line 2: column 'messages' has turns of assistant, user, not of",
        ),
        ('{"messages": [{"role": "tool", "content": "a"}]}', r"turn 1: 'tool' speaks, not system, user or assistant"),
        ('{"messages": [{"content": "a"}]}', r"turn 1: None speaks"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', r"turn 1: the content is \['a'\] instead of text"),
        ('{"conversations": [{"from": 3, "value": "a"}]}', r"column 'conversations', turn 1: 3 speaks"),
    ],
)
def test_a_broken_row_is_named_with_file_and_line(folder: Path, second: str, said: str) -> None:
    (folder / "mine.jsonl").write_text(f"{GOOD}\n{second}\n", encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        datasets.examples("mine")
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
        datasets.questions("quiz")


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + GOOD.encode() + b"\n", GOOD.encode() + b"\r\n\r\n"])
def test_rows_that_an_editor_of_windows_saved_are_read(folder: Path, content: bytes) -> None:
    (folder / "mine.jsonl").write_bytes(content)
    assert datasets.examples("mine") == (Example(**ROWS[0]),)


def test_a_truncated_gzip_is_named(folder: Path) -> None:
    path = write(folder / "mine.jsonl.gz", ROWS * 500)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"mine\.jsonl\.gz, after line \d+: unreadable"):
        datasets.examples("mine")


@pytest.mark.parametrize("use", [datasets.examples, datasets.questions, datasets.preferences, datasets.fingerprint])
def test_an_unknown_name_is_answered_with_the_known(use: Callable[[str], object], folder: Path) -> None:
    with pytest.raises(UserError, match=rf"'nothing' and {folder} holds no nothing\.jsonl\.gz.* there are: .*builtin-"):
        use("nothing")


@pytest.mark.parametrize(
    ("use", "other"),
    [
        (datasets.examples, "builtin-choice"),
        (datasets.examples, "arc_easy"),
        (datasets.examples, "hh_rlhf"),
        (datasets.questions, "builtin-short"),
        (datasets.preferences, "builtin-short"),
    ],
)
def test_a_set_of_the_other_kind_is_not_among_those_that_would_do(use: Callable[[str], object], other: str) -> None:
    with pytest.raises(UserError) as caught:
        use(other)
    assert other not in str(caught.value).split("there are: ")[1]


def test_a_data_folder_that_is_none_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDE_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"SANDE_DATA_DIR=.*nowhere is not a folder"):
        datasets.examples("alpaca")


@pytest.mark.parametrize("name", ["../mine", "sub/mine", "/etc/mine"])
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="is not a plain name"):
        datasets.examples(name)


@pytest.mark.parametrize("suffix", datasets.FILES)
def test_a_file_that_the_user_gave_is_a_data_set(tmp_path: Path, suffix: str) -> None:
    path = str(write(tmp_path / f"mine{suffix}", ROWS))
    with pytest.raises(UserError, match="no data set is called"):
        datasets.examples(path)
    assert datasets.examples(datasets.allow_file(path)) == EXAMPLES
    assert datasets.fingerprint(path).startswith("sha256:")


def test_a_file_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^data 'mine\.jsonl': there is no such file; correct the path, or use"):
        datasets.allow_file("mine.jsonl")
    assert datasets.allow_file("alpaca") == "alpaca"


@pytest.mark.parametrize("text", ['{"rows": []}', '["a"]', "3"])
def test_json_that_holds_no_list_of_rows_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=r"mine\.json: not a list of JSON objects, one for each row; correct it"):
        datasets.examples(datasets.allow_file(str(tmp_path / "mine.json")))


# --- Identity -------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_that_of_the_content(folder: Path) -> None:
    path = write(folder / "mine.jsonl", ROWS)
    first = datasets.fingerprint("mine")
    write(folder / "twin.jsonl", ROWS)
    assert datasets.fingerprint("twin") == first
    path.write_text(path.read_text(encoding="utf-8").replace("1 and 2", "1 and 3"), encoding="utf-8")
    assert datasets.fingerprint("mine") != first


def test_a_fingerprint_of_the_hub_is_its_pin_and_needs_no_network() -> None:
    assert datasets.EXAMPLES_ON_HUB["alpaca"].revision in datasets.fingerprint("alpaca")
    easy, challenge = (datasets.fingerprint(name, datasets.QUESTIONS) for name in ("arc_easy", "arc_challenge"))
    assert easy != challenge


def test_a_fingerprint_of_a_builtin_set_is_its_code() -> None:
    assert datasets.fingerprint("builtin-short").startswith("builtin-short:")


def test_the_catalogue_tells_known_sets_and_files(folder: Path) -> None:
    write(folder / "mine.jsonl", ROWS)
    write(folder / "alpaca.parquet", ROWS)
    (folder / "notes.txt").write_text("x", encoding="utf-8")
    catalogue = datasets.catalogue()
    assert set(catalogue) == {*datasets.ABOUT, "mine"}
    assert catalogue["mine"] == "file mine.jsonl"
    assert catalogue["alpaca"].endswith("; file alpaca.parquet")


def test_the_catalogue_tells_the_file_that_is_read(folder: Path) -> None:
    write(folder / "mine.parquet", ROWS)
    write(folder / "mine.jsonl.gz", ROWS[:1])
    assert len(datasets.examples("mine")) == 1
    assert datasets.catalogue()["mine"] == "file mine.jsonl.gz"


# --- Split and selection --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "train"), [(10, 9), (100, 90), (25, 22), (1, 0), (51_760, 46_584)])
def test_the_first_nine_tenths_train_and_the_rest_test(count: int, train: int) -> None:
    rows = range(count)
    assert list(splits.train_split(rows)) == list(range(train))
    assert list(splits.held_out_split(rows)) == list(range(train, count))


def chosen(
    lm: LanguageModel, rows: tuple[Example, ...], count: int | None = None, **limits: int
) -> tuple[Example, ...]:
    return splits.select(rows, lm.tokenizer, Data(**limits), count, "test rows of x")


def test_select_takes_the_first(tiny: LanguageModel) -> None:
    rows = sets.short()
    assert chosen(tiny, rows, 5) == rows[:5]
    assert chosen(tiny, rows[:5]) == rows[:5]
    assert chosen(tiny, rows[:5], 9) == rows[:5]


@pytest.mark.parametrize("limit", ["max_tokens", "max_prompt_tokens"])
def test_select_leaves_out_long_rows(tiny: LanguageModel, limit: str) -> None:
    rows = sets.short()[:1500]  # more than one block of tokenising
    encoded = encode(tiny.tokenizer, rows)
    lengths = [len(row) if limit == "max_tokens" else len(row.prompt) for row in encoded]
    bound = sorted(lengths)[len(rows) // 2]
    short = tuple(row for row, length in zip(rows, lengths, strict=True) if length <= bound)
    assert 0 < len(short) < len(rows)
    assert chosen(tiny, rows, **{limit: bound}) == short
    assert chosen(tiny, rows, 7, **{limit: bound}) == short[:7]


def test_select_heeds_both_limits(tiny: LanguageModel) -> None:
    short, asks_much, answers_much = rows = (
        Example("Say a.", "a"),
        Example("Say a. " * 9, "a"),
        Example("Say a.", "a " * 90),
    )
    encoded = encode(tiny.tokenizer, rows)
    prompt, whole = len(encoded[0].prompt), len(encoded[1])
    assert chosen(tiny, rows, max_prompt_tokens=prompt) == (short, answers_much)
    assert chosen(tiny, rows, max_tokens=whole) == (short, asks_much)
    assert chosen(tiny, rows, max_tokens=whole, max_prompt_tokens=prompt) == (short,)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_tokens": 8}, "max_tokens 8"),
        ({"max_prompt_tokens": 8}, "max_prompt_tokens 8"),
        ({"max_tokens": 9, "max_prompt_tokens": 8}, "max_tokens 9, max_prompt_tokens 8"),
    ],
)
def test_select_of_nothing_is_an_error(tiny: LanguageModel, limits: dict[str, int], said: str) -> None:
    with pytest.raises(
        UserError, match=f"^no test rows of x are left with {said}; raise it or choose a larger data set$"
    ):
        chosen(tiny, EXAMPLES, **limits)


def test_victim_and_defense_have_limits_of_their_own(tiny: LanguageModel) -> None:
    lengths = [len(row.prompt) for row in encode(tiny.tokenizer, sets.short())]
    for settings, rows in (
        (Data(name="builtin-short", max_prompt_tokens=15), splits.training_rows),
        (Data(name="builtin-short", max_prompt_tokens=15, test_rows=None), splits.held_out_rows),
        (Removal(name="builtin-short", max_prompt_tokens=15), splits.removal_rows),
    ):
        found = rows(settings, tiny.tokenizer)
        assert 0 < len(found) < len(lengths)
        assert max(len(row.prompt) for row in encode(tiny.tokenizer, found)) <= 15
