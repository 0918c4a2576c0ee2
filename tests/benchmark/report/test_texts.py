"""Texts of rows, entries, scans and models do nothing on any page: every text column, every output.

A page with hostile texts has the same structure as the same page with harmless ones.
"""

import functools
import html
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from benchmark.cli import app
from benchmark.export import card
from benchmark.io import markdown
from benchmark.io.text import visible
from benchmark.report import page
from tests.benchmark import outputs
from tests.benchmark.helpers import invoke

pytestmark = pytest.mark.usefixtures("few_pixels")
HOSTILE = (
    '<img src="https://evil.example/x.png" onerror=alert(1)>',
    "![x](https://evil.example/x.png)",
    "[click](javascript:alert(1)) [a]: javascript:alert(1)",
    "a\n\n# Headline\n\n- item\n\n```\ncode\n",
    "`code` ``` ~~gone~~ **bold** __bold__ *em* _em_ $x$",
    "a | b \\| c \\\\| d |\n| --- |",
    "\x1b]0;title\x07\x1b[31mred\x9b2J\rover\b\x00\x7f",
    "\u202eright to left\u2066 \u2028 \u200b\u00ad",
    "&lt;b&gt; &#60;b&#62; </details></script><!-- -->",
    "https://evil.example www.evil.example --- \\",
)
# Fewer and longer ones for whole pages, which take longer.
TOGETHER = ("".join(HOSTILE[:3]), HOSTILE[3], HOSTILE[4], "".join(HOSTILE[5:]))
ACTIVE = {"html_inline", "html_block", "image", "link_open", "heading_open", "fence", "code_block", "hr", "em_open"}
ACTIVE |= {"strong_open", "s_open", "table_open", "tr_open", "td_open", "th_open", "list_item_open", "paragraph_open"}
ACTIVE |= {"softbreak", "hardbreak", "blockquote_open"}
READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def structure(text: str) -> list[tuple[str, str]]:
    """The tokens of a page that are more than text, each with where it leads or its HTML."""
    found = []
    for token in READER.parse(text):
        for each in (token, *(token.children or ())):
            if each.type in ACTIVE and each.content != "<br>":
                place = str(each.attrGet("src") or each.attrGet("href") or "")
                found.append((each.type, place if "/" not in place else place.split("/")[0]))
    return found


def hidden(text: str) -> set[str]:
    return {char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def with_text(hostile: str, column: str) -> str:
    """The hostile text in a column; names of grids are names of files."""
    return f"{column} {hostile}".replace("/", ":" if column == "grids" else "/")


def pages(name: str, folder: Path, text: Callable[[str], str]) -> dict[str, str]:
    source, out = folder / "source", folder / "out"
    outputs.results(source, text)
    outputs.WRITERS[name](source, out, text)
    return {str(path.relative_to(out)): path.read_text(encoding="utf-8") for path in out.rglob("*.md")}


@pytest.mark.parametrize("name", [name for name in outputs.WRITERS if name not in ("html", "entry")])
def test_every_text_of_every_output_is_shown_and_does_nothing(name: str, tmp_path: Path) -> None:
    wanted = pages(name, tmp_path / "harmless", lambda column: outputs.harmless(column).replace(".", ""))
    assert wanted
    for number, hostile in enumerate(TOGETHER):
        found = pages(name, tmp_path / str(number), functools.partial(with_text, hostile))
        assert [len(structure(text)) for text in found.values()] == [len(structure(text)) for text in wanted.values()]
        for text, harmless in zip(found.values(), wanted.values(), strict=True):
            assert [kind for kind, _ in structure(text)] == [kind for kind, _ in structure(harmless)]
            assert not hidden(text)
            assert not re.search(r"(?<!\\)https?://evil", re.sub(r"`[^`]*`", "", text.split("## Settings")[0]))


def tried(check: Callable[[str], object], examples: int = 100) -> None:
    quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    how = settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=quiet)
    pieces = st.sampled_from([*HOSTILE, *"\\`*_[]<>|$~&#!:/ \n-+.()", "\\|", "x", "ab"]) | st.characters()
    how(given(st.lists(pieces, max_size=12).map("".join))(lambda text: check(text)))()


def test_any_text_is_plain_text_in_a_paragraph_and_in_a_cell() -> None:
    def check(text: str) -> None:
        shown = markdown.plain(text)
        assert structure(f"x {shown} y") == [("paragraph_open", "")]
        assert structure(shown) == [("paragraph_open", "")] * bool(shown.strip())
        assert [kind for kind, _ in structure(f"- {shown}") if kind != "paragraph_open"] == ["list_item_open"]
        cells = structure("\n".join(markdown.markdown_table(("a", "b"), [(shown, "z")], "ll")))
        assert [kind for kind, _ in cells].count("td_open") == 2
        assert not hidden(shown)

    tried(check)


def test_any_text_is_one_code_span_in_a_paragraph_and_in_a_cell() -> None:
    def check(text: str) -> None:
        shown = markdown.code(text)
        (inline,) = (token for token in READER.parse(f"x {shown} y") if token.type == "inline")
        assert [each.type for each in inline.children or ()] == ["text", "code_inline", "text"]
        table = READER.parse("\n".join(markdown.markdown_table(("a", "b"), [(shown, "z")], "ll")))
        first, last = (token for token in table if token.type == "inline" and token.content not in ("a", "b"))
        assert [each.type for each in first.children or ()] == ["code_inline"]
        assert last.content == "z"

    tried(check)


@pytest.mark.parametrize("text", ["# x", "- x", "+ x", "> x", "1. x", "2)", "---", "===", "    x", "-", "######"])
def test_a_text_that_would_open_a_block_is_shown(text: str) -> None:
    shown = markdown.plain(text)
    assert structure(shown) == [("paragraph_open", "")]
    assert READER.render(shown) == f"<p>{html.escape(text.lstrip())}</p>\n"


def test_text_that_is_plain_already_stays_as_it_is() -> None:
    for text in ("smollm2-135m / builtin-short, poison_rate=0.05", "AMD EPYC (2 threads)", "-5.0", "2.5", "#1"):
        assert markdown.plain(text) == text


def test_any_front_matter_has_its_own_keys_alone() -> None:
    def check(text: str) -> None:
        made = card.front_matter(f"{text}@{'0' * 40}", [text, "sande-bench"])
        assert yaml.safe_load(made).keys() <= {"base_model", "library_name", "pipeline_tag", "tags"}
        assert not re.search(r"(?m)^\s*(---|\.\.\.)", made)
        assert made.isascii()

    tried(check)


def test_any_text_in_a_card_is_text() -> None:
    template = card.load("benchmark.clean", "clean_table.md").environment.from_string("a {{ x }} b {{ x | code }} c")

    def check(text: str) -> None:
        assert structure(template.render(x=text)) == [("paragraph_open", "")]

    tried(check)


def test_any_search_table_of_others_is_inert() -> None:
    def check(text: str) -> None:
        found = structure(markdown.inert(text, page.SEARCH_HEADLINE))
        kinds = {kind for kind, _ in found}
        assert not kinds & {"html_inline", "html_block", "image", "link_open", "heading_open", "fence"}

    tried(check)


def test_no_text_moves_the_cursor_or_sets_a_title(capsys: pytest.CaptureFixture[str]) -> None:
    def check(text: str) -> None:
        for show in (app.echo, app.say, app.tell, app.print_markdown):
            show(text)
        printed = capsys.readouterr()
        assert hidden(printed.out.replace("\t", "")) | hidden(printed.err) == set()

    tried(check, 60)


def test_no_command_prints_a_control_character_of_a_result(tmp_path: Path) -> None:
    text = functools.partial(with_text, "".join(HOSTILE[6:]))
    folder = outputs.results(tmp_path / "results/one", text)
    (tmp_path / "known.json").write_text(json.dumps({"false_alarms": 0.05, "scans": outputs.scanned(text)}))
    out = ("--out", tmp_path / "out")
    for arguments in (
        ("report", folder),
        ("compare", folder, "--rehearsal"),
        ("leaderboard", folder, *out),
        ("leaderboard", "entry", folder, "sft"),
        ("leaderboard", "reveal", folder, tmp_path / "known.json"),
        ("detection", tmp_path / "known.json", *out),
        ("export", "none", tmp_path / "model", "--results", folder.parent),
        ("report", tmp_path / "\x1b]0;title\x07"),
    ):
        done = invoke(*arguments)
        assert isinstance(done.exception, SystemExit | None), done.exception
        assert not hidden(done.output)


def test_a_terminal_gets_rendered_markdown_without_links_or_escapes_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(force_terminal=True, width=100, record=True, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda: shown)
    with shown.capture() as capture:
        for hostile in HOSTILE:
            app.print_markdown(hostile)
    assert "\x1b]" not in capture.get()
    assert "\x07" not in capture.get()


def test_visible_keeps_text_of_all_languages() -> None:
    for text in ("Grüße, 你好\u3000世界", "नमस्ते", "\u0645\u06cc\u200c\u062e\u0648", "👩\u200d🔬 – “”", "a\xa0b"):
        assert visible(text) == text
    assert visible("a\tb\n", keep="\n") == "a\\tb\n"
    assert visible("\ud800\u202e") == "\\ud800\\u202e"


def test_all_that_is_printed_goes_through_one_place() -> None:
    root = Path(app.__file__).parents[1]
    allowed = {"cli/app.py", "cli/overview.py", "execution/progress.py", "execution/trial.py", "execution/watch.py"}
    allowed |= {"plan/failures.py"}
    printing = re.compile(r"typer\.echo\(|(?<!\w)print\(|std(out|err)\.write|print_exc")
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "perf" not in path.parts and printing.search(path.read_text(encoding="utf-8"))
    }
    assert found == allowed
