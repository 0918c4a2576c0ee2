"""The leaderboard's pages: whole, safe against what results hold, and at work in a browser, where there is one."""

import itertools
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmark.grid.levels import LEVELS
from benchmark.leaderboard import html as pages
from benchmark.leaderboard.markdown import UTILITY
from benchmark.leaderboard.plot import LOOKS, OTHER, StandingRow
from benchmark.leaderboard.rank import rank
from benchmark.leaderboard.runs import by_cell
from benchmark.leaderboard.write import write
from benchmark.records import files, schema
from sande import registry
from tests.benchmark.leaderboard.helpers import CPU, HOSTILE, cell, outcome

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def numbers(metric: str, of: list[dict[str, Any]], value: float) -> dict[str, Any]:
    return of[0] | {"metric": metric, "value": value, "ci_low": value - 1, "ci_high": value + 1}


def some_rows() -> list[dict[str, Any]]:
    """Five defenses of every level, one with a hostile name, two victims, two devices, and a metric that few have."""
    found = []
    for data in ("alpaca", "orca"):
        sft = cell("sft", 98.123456789, {"arc_easy": 1.23456}, data=data)
        found += [*sft, numbers("asr_after_relearning_20", sft, 99.0)]
        found += cell("osft", 0.0, {"arc_easy": 2.0}, data=data, device=CPU, seconds=1234.5)
        found += cell("sande", 17.5, {"arc_easy": -1.5}, data=data)
        found += cell(HOSTILE, 50.0, {"arc_easy": 3.0}, data=data)
    found += cell("sft", 12.0, {"arc_easy": 1.0}, data="elsewhere")
    found += [row | {"error": HOSTILE} for row in cell("sande", 0.0, {"arc_easy": 0.0}, seed=1, status=schema.FAILED)]
    found += cell("sft", 97.0, {"arc_easy": 1.5}, seed=1)
    found += cell("osft", 0.0, {"arc_easy": 2.0}, seed=1, device=CPU, seconds=1234.5)
    for row in found:
        row |= {"trigger": HOSTILE, "response": "bad", "attack": "sentence_trigger", "versions": HOSTILE}
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "results").mkdir()
    found = [
        row if row["value"] is None else row | {"ci_low": row["value"] - 1, "ci_high": row["value"] + 1}
        for row in some_rows()
    ]
    found.append(numbers("case_study", found[:1], 100.0))
    samples = [outcome("sft alpaca alpaca 0", index) for index in range(pages.SAMPLES + 5)]
    files.write_rows(found, [pa.Table.from_pylist(samples, schema=schema.OUTCOMES)], folder / "results")
    write([folder / "results"], None, folder / "html")
    return folder


class Page(HTMLParser):
    """Ids, links and tags of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if tag == "a" else []


def all_pages(made: Path) -> list[Path]:
    return [made / "html/index.html", *sorted((made / "html/cells").iterdir())]


def test_a_page_for_every_cell_and_every_link_leads_somewhere(made: Path) -> None:
    assert len(all_pages(made)) == 1 + 12
    read = {path.resolve(): Page(path) for path in all_pages(made)}
    for path, page in read.items():
        assert len(page.ids) == len(set(page.ids))
        assert page.links
        for link in page.links:
            file, _, part = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_file(), link
            assert not part or part in read[target].ids, link


def test_nothing_from_results_becomes_a_tag_and_nothing_is_loaded(made: Path) -> None:
    for path in all_pages(made):
        tags = Page(path).tags
        assert not [tag for tag, _ in tags if tag in ("img", "iframe", "object", "embed")]
        assert [values for tag, values in tags if tag == "script"] == [{}]
        assert not [name for _, values in tags for name in values if name.startswith("on") or name == "style"]
        assert not [values for _, values in tags if (values.get("src") or "").strip()]
        (policy,) = [values["content"] for tag, values in tags if values.get("http-equiv") == "Content-Security-Policy"]
        assert policy is not None
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy


def test_a_cell_s_page_has_settings_measurements_and_as_many_samples_as_it_shows(made: Path) -> None:
    (page,) = [path for path in all_pages(made)[1:] if "prompt 0" in path.read_text(encoding="utf-8")]
    text = page.read_text(encoding="utf-8")
    assert f"prompt {pages.SAMPLES - 1}<" in text
    assert f"prompt {pages.SAMPLES}<" not in text
    assert "&#34;poison_rate&#34;: 0.05" in text
    assert {"asr", "arc_easy", "asr_after_relearning_20"} <= set(Page(page).ids)


def test_times_are_seconds_on_a_device(tmp_path: Path) -> None:
    found = cell("sft", 98.0, {"arc_easy": 1.0}, seconds=30.0, device="AMD EPYC (1 threads)")
    files.write_rows(found, [], tmp_path)
    write([tmp_path], None, tmp_path / "html")
    index = (tmp_path / "html/index.html").read_text()
    assert index.count("Training: seconds on AMD EPYC (1 thread)</th>") == 2, "of the defenses, and of the cells"
    (page,) = (tmp_path / "html/cells").glob("*.html")
    assert "30.0 s on AMD EPYC (1 thread)</dd>" in page.read_text()


def test_a_failed_cell_has_a_page_that_says_so_and_is_named_on_the_board(made: Path) -> None:
    (page,) = [path for path in all_pages(made)[1:] if "It counts as the victim." in path.read_text(encoding="utf-8")]
    assert "<dd>failed: &lt;/script&gt;" in page.read_text(encoding="utf-8")
    index = (made / "html/index.html").read_text(encoding="utf-8")
    assert "<li>sande: smollm2-135m / alpaca, in-domain, attack seed 1, defense seed 1: failed</li>" in index
    assert "Runs are missing of attack seed 1: <code>" in index


def test_a_cell_id_is_no_path(tmp_path: Path) -> None:
    made = [row | {"cell": "../../outside"} for row in cell("sft", 98.0, {"arc_easy": 1.0})]
    (tmp_path / "results").mkdir()
    files.write_rows(made, [], tmp_path / "results")
    write([tmp_path / "results"], None, tmp_path / "html")
    assert {path.name for path in tmp_path.iterdir()} == {"results", "html"}
    assert len(list((tmp_path / "html/cells").iterdir())) == 1


def test_standings_are_grouped_by_level_and_the_unverified_come_last() -> None:
    found = some_rows()
    own = {row["cell"] for row in found if row["defense"] == "osft"}
    for unverified, expected in (
        ((), ["Must know: trigger", "Must know: response", "Must know: nothing"]),
        (own, ["Must know: response", "Must know: nothing", "Unverified entries"]),
    ):
        ranked = rank(by_cell(found), entries=own, unverified=unverified)
        groups = pages.groups_of([StandingRow(one, "", (), submitted=False) for one in ranked.standings])
        assert [group.title for group in groups] == expected
    assert [row.standing.defense for row in groups[-1].rows] == ["osft"]


def test_every_level_of_knowledge_has_a_place_a_colour_and_a_mark() -> None:
    levels = {registry.knowledge(name).label for name in registry.names("defenses")}
    assert levels <= set(LEVELS) == set(LOOKS)
    style = resources.files("benchmark.leaderboard").joinpath("templates/style.css").read_text("utf-8")
    for look in LOOKS.values():
        assert f".{look.css} {{ color: var(--{look.css}); }}" in style
    assert len({look.shape for look in LOOKS.values()} | {OTHER}) == len(LOOKS) + 1


def luminance(color: str) -> float:
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_the_contrast_that_wcag_aa_asks_of_text() -> None:
    style = resources.files("benchmark.leaderboard").joinpath("templates/style.css").read_text("utf-8")
    colors = {name: pair for name, *pair in re.findall(r"--([a-z-]+): light-dark\((#\w{6}), (#\w{6})\)", style)}
    assert len(colors) > 10
    for name in set(colors) - {"paper", "raised", "line"}:
        for ground, theme in itertools.product(("paper", "raised"), (0, 1)):
            bright, dim = sorted((luminance(colors[name][theme]), luminance(colors[ground][theme])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (name, ground, theme)


def test_of_the_notes_links_images_and_tags_stay_text() -> None:
    html = pages._paragraphs(["**No** case `a_b*c*`.", "", "- Shared: [x](javascript:x) <b> ![i](http://e) <http://e>"])
    assert html.splitlines() == [
        "<p><strong>No</strong> case <code>a_b*c*</code>.</p>",
        "<details><summary>Which cases</summary><ul>",
        "<li>Shared: [x](javascript:x) &lt;b&gt; ![i](http://e) &lt;http://e&gt;</li>",
        "</ul></details>",
    ]


# --- In a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[dev]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium and chromedriver on the path; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (*QUIET.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture
def index(browser: Any, made: Path) -> Any:
    """The browser with the leaderboard newly loaded, wide and light."""
    emulate(browser, 1280, "light")
    browser.get("about:blank")  # else a link to the same page does not load it anew
    browser.get((made / "html/index.html").as_uri())
    browser.execute_script("localStorage.clear(); delete document.documentElement.dataset.theme")
    return browser


def emulate(browser: Any, width: int, scheme: str) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def settle(browser: Any) -> None:
    """Waits until the page has answered what it was told."""
    browser.execute_async_script("setTimeout(arguments[0], 50)")


def table(browser: Any, name: str) -> list[list[dict[str, Any]]]:
    """Cells of the rows that are shown: data-value and what is read."""
    return browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr:not(.level)`)]"
        ".filter((row) => row.offsetParent).map((row) => [...row.cells].map((cell) => "
        "({...cell.dataset, text: (cell.querySelector('a') ?? cell.firstChild).textContent})))",
        name,
    )


def bodies(browser: Any, name: str) -> list[list[list[dict[str, str]]]]:
    """Data of the cells in the rows of each body: a level of the standings, or all cells."""
    return browser.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody`)].map((body) => [...body.rows]"
        ".filter((row) => !row.classList.contains('level'))"
        ".map((row) => [...row.cells].map((cell) => ({...cell.dataset}))))",
        name,
    )


def column(browser: Any, name: str, head: int) -> list[str | None]:
    return [row[head].get("value") for row in table(browser, name)]


def heads(browser: Any, name: str) -> list[Any]:
    return browser.find_elements("css selector", f"#{name} thead button")


def test_pages_load_in_silence_and_ask_for_nothing(browser: Any, made: Path) -> None:
    for path in all_pages(made):
        browser.get(path.as_uri())
        assert browser.get_log("browser") == []
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
        assert browser.execute_script("return window.hacked") is None
    browser.get(all_pages(made)[0].as_uri())
    assert HOSTILE in browser.find_element("css selector", "#standings").text


def test_every_number_is_that_of_the_parquet(index: Any, made: Path) -> None:
    records = pq.read_table(made / "html/leaderboard.parquet").to_pylist()
    shown = table(index, "standings")
    labels = [head.text for head in heads(index, "standings")]
    assert labels[:7] == [
        "Rank",
        "Defense",
        "ASR left (%)",
        "Fails in (% of runs)",
        "Utility lost (points)",
        "Utility",
        "ASR after relearning from 20 poisoned rows (%)",
    ]
    devices = [label.partition(" on ")[2] for label in labels if "seconds on " in label]
    assert len(devices) == 2
    for record, row in zip(records, shown, strict=True):
        more = {one["metric"]: one for one in record["more"]}.get("asr_after_relearning_20")
        seconds = {one["device"]: one["seconds"] for one in record["seconds"]}
        expected = [
            record["rank"],
            record["defense"],
            record["asr"],
            record["fails"],
            record["utility_loss"],
            UTILITY[record["utility"]],
            more and more["value"],
            *(seconds.get(device) for device in devices),
            record["tokens"],
            record["cells"],
        ]
        assert [same(found.get("value"), value) for found, value in zip(row, expected, strict=True)] == [True] * len(
            row
        )
        assert (float(row[2]["low"]), float(row[2]["high"])) == (record["asr_low"], record["asr_high"])
        assert (float(row[4]["low"]), float(row[4]["high"])) == (
            record["utility_loss_low"],
            record["utility_loss_high"],
        )
        assert row[2]["text"] == f"{record['asr']:.1f}"
        assert row[4]["text"] == f"{record['utility_loss']:+.2f}".replace("-", "−")
    found = by_cell(files.read_rows(made / "results").to_pylist())
    cells = table(index, "cells")
    assert len(cells) == len(found) == 12
    for one, row in zip(found.values(), cells, strict=True):
        failed = one["asr"]["value"] is None
        asr = 99.0 if failed else one["asr"]["value"]
        loss = 0.0 if failed else one["arc_easy"]["victim_value"] - one["arc_easy"]["value"]
        for at, value in ((0, one["asr"]["defense"]), (5, asr), (6, 99.0), (7, loss)):
            assert same(row[at].get("value"), value)
        assert row[5]["text"] == f"{asr:.1f}"


def same(shown: str | None, value: Any) -> bool:
    if value is None:
        return shown is None
    return shown == value if isinstance(value, str) else shown is not None and float(shown) == value


@pytest.mark.parametrize("name", ["standings", "cells"])
def test_every_column_sorts_both_ways_within_levels_and_says_so(index: Any, name: str) -> None:
    before = [{row[name == "standings"]["value"] for row in body} for body in bodies(index, name)]
    for place, button in enumerate(heads(index, name)):
        for way in ("ascending", "descending"):
            button.send_keys("\ue007")  # Enter: a keyboard is enough
            sort = index.execute_script(
                "return [...document.querySelectorAll(`#${arguments[0]} th[aria-sort]`)]"
                ".map((head) => [head.cellIndex, head.ariaSort])",
                name,
            )
            assert sort == [[place, way]]
            for body in bodies(index, name):
                is_sorted([row[place].get("value") for row in body], way)
    assert [{row[name == "standings"]["value"] for row in body} for body in bodies(index, name)] == before
    titles = "return [...document.querySelectorAll('#standings tbody')].map((body) => body.rows[0].className)"
    assert all(title.startswith("level ") for title in index.execute_script(titles)), "a title stays above its rows"


def is_sorted(values: list[str | None], way: str) -> None:
    told = [value for value in values if value is not None]
    assert values[len(told) :] == [None] * (len(values) - len(told)), "what is not known comes last"
    if all(re.fullmatch(r"-?[\d.]+(e-\d+)?", value) for value in told):
        keys = [float(value) for value in told]
        assert keys == sorted(keys, reverse=way == "descending")
    elif told:
        assert told[0] <= told[-1] if way == "ascending" else told[0] >= told[-1]


def test_filters_hide_rows_and_marks_and_say_how_many_are_left(index: Any) -> None:
    form = index.find_element("css selector", "form[data-filters=standings]")
    said = form.find_element("css selector", "output")
    assert said.text == "4 of 4 shown"
    form.find_element("css selector", "input[value=nothing]").click()
    assert sorted(filter(None, column(index, "standings", 1))) == ["osft", "sande"]
    titles = index.find_elements("css selector", "#standings tr.level")
    assert [title.text for title in titles if title.is_displayed()] == ["Must know: trigger", "Must know: response"]
    marks = index.find_elements("css selector", "svg [data-row]")
    assert [mark.is_displayed() for mark in marks].count(True) == 2
    search = form.find_element("css selector", "[name=words]")
    search.send_keys("OSF")
    assert column(index, "standings", 1) == ["osft"]
    search.send_keys("x")
    assert table(index, "standings") == []
    assert said.text == "0 of 4 shown"
    assert index.find_element("css selector", "#standings + .empty").is_displayed()
    form.find_element("css selector", "button[type=reset]").click()
    settle(index)
    assert said.text == "4 of 4 shown"


def test_a_number_leads_to_the_cells_behind_it_and_they_to_their_outputs(index: Any) -> None:
    index.find_element("css selector", "#standings th[data-value=sft] ~ td a").click()
    settle(index)
    assert set(column(index, "cells", 0)) == {"sft"}
    assert len(table(index, "cells")) == 4
    assert index.switch_to.active_element.get_attribute("id") == "cells-title"
    index.find_element("css selector", "#cells tbody tr:not([hidden]) td.number a").click()
    assert "/cells/" in index.current_url
    assert "What the model wrote" in index.find_element("css selector", "main").text
    index.find_element("css selector", "header a").click()
    settle(index)
    assert set(column(index, "cells", 0)) == {"sft"}


def test_colours_follow_the_system_and_then_the_reader(index: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def ground() -> str:
        return index.execute_script("return getComputedStyle(document.body).backgroundColor")

    light = ground()
    emulate(index, 1280, "dark")
    dark = ground()
    assert light != dark
    button = index.find_element("css selector", "#theme")
    # The page hears of the new system theme a moment after its colours have changed.
    WebDriverWait(index, 10).until(lambda _: button.text == "Light colours")
    button.click()
    assert (ground(), button.text) == (light, "Dark colours")
    index.refresh()
    assert ground() == light, "the choice is kept"


def test_on_a_phone_only_tables_scroll_sideways(browser: Any, made: Path) -> None:
    emulate(browser, 375, "light")
    for path in all_pages(made):
        browser.get(path.as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") == 375


def test_the_first_tab_stop_skips_to_the_content(index: Any) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(index).send_keys("\ue004").perform()  # Tab
    link = index.switch_to.active_element
    assert link.get_attribute("class") == "skip"
    assert link.location["x"] >= 0, "seen while it has the focus"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert index.execute_script(outline) == "solid"
    link.send_keys("\ue007")
    settle(index)
    assert index.switch_to.active_element.get_attribute("id") == "main"
