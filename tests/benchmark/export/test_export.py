"""`sande-bench export`: a folder that transformers loads, a card with numbers, and a push to a Hub made here."""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from benchmark.cli.main import app
from benchmark.export import export as cards
from benchmark.grid.cell import Cell
from benchmark.plan import retention
from benchmark.plan.failures import UNFINISHED, UNSCORABLE
from benchmark.plan.plan import stages_of, victim_of
from benchmark.records import erratum, schema
from benchmark.store.local import LocalStore
from sande.models import loading
from sande.types import LanguageModel
from tests.benchmark.helpers import SFT_FAST, cell, measure, report_folder, trained

TOKEN = "hf_planted0token0of0the0test"
Export = Callable[..., tuple[int, str]]


@pytest.fixture
def of(store: LocalStore, tiny: LanguageModel, tmp_path: Path) -> Cell:
    """A cell whose defended model is a real one, measured and reported."""
    made = cell(defense=SFT_FAST)

    def build(folder: Path) -> dict[str, Any]:
        loading.save(tiny, folder)
        return trained(58.4, 12_400)

    for kind, key in (("attack", made.attack_key), ("defend", made.defense_key)):
        store.put(kind, key, build)
    measure(store, victim_of(made), {"asr": 48})
    measure(store, made, {"asr": 3, "false_trigger_rate": 1})
    report_folder(store, tmp_path / "results" / "small", made, victim_of(made))
    return made


@pytest.fixture
def export(store: LocalStore, tmp_path: Path) -> Export:
    def run(name: str, *options: str) -> tuple[int, str]:
        places = [str(tmp_path / "out"), "--store", str(store.root), "--results", str(tmp_path / "results")]
        done = CliRunner().invoke(app, ["export", name, *places, *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return run


def test_the_folder_is_a_model_with_its_tokenizer_and_a_card(
    of: Cell, export: Export, tiny: LanguageModel, tmp_path: Path
) -> None:
    code, said = export(of.id[:6])
    assert code == 0, said
    out = tmp_path / "out"
    loaded = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)
    expected = tiny.model.state_dict()
    assert all(torch.equal(weight, expected[name].to(weight)) for name, weight in loaded.state_dict().items())
    assert AutoTokenizer.from_pretrained(out).get_vocab() == tiny.tokenizer.get_vocab()
    assert {path.suffix for path in out.rglob("*") if path.is_file()} <= {".json", ".jinja", ".safetensors", ".md"}
    assert not (out / "manifest.json").exists()
    card = (out / "README.md").read_text()
    assert "| `asr` | 6.0 % (2.1 to 16.2) | 96.0 % | 50 |" in card
    assert "| `false_trigger_rate` | 2.0 % (0.4 to 10.5) | 0.0 % | 50 |" in card
    assert "planted and removed with `sft`" in card
    assert huggingface_hub.ModelCard(card).data.tags == ["backdoor-removal", "sande-bench", "sft"]


def test_a_model_of_a_read_only_store_is_exported_into_a_folder_that_can_be_written(
    of: Cell, export: Export, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, text: str) -> None:
        """Write as a user would who is not root."""
        if not path.parent.stat().st_mode & 0o200:
            raise PermissionError(13, "Permission denied", str(path))
        path.write_text(text)

    monkeypatch.setattr("benchmark.export.export.write_atomically", write)
    source = store.path("defend", of.defense_key)
    source.chmod(0o555)
    try:
        code, said = export(of.id)
    finally:
        source.chmod(0o755)
    assert code == 0, said
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert not list(tmp_path.glob(".out.*"))


def test_a_victims_card_says_that_it_carries_a_backdoor(of: Cell, export: Export, tmp_path: Path) -> None:
    code, said = export(victim_of(of).id)
    assert code == 0, said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**This model has a backdoor on purpose.**" in card
    assert "| `asr` | 96.0 % (86.5 to 98.9) | 50 |" in card


def test_a_card_names_what_has_no_score_a_weak_attack_and_the_erratum(of: Cell, tmp_path: Path) -> None:
    erratum.write("of the | rows", tmp_path / "results/small")
    found = cards.find_model(of.id, tmp_path / "results")
    asr, *others, last = ({**row, "status": schema.ATTACK_FAILED} for row in found.rows)
    nothing = dict.fromkeys(("value", "ci_low", "ci_high", "count", "victim_value"))
    unscored = {**last, **nothing, "status": schema.FAILED, "failure": UNSCORABLE, "error": "no <response>"}
    card = cards.card(replace(found, rows=(asr, {**others[0], "victim_value": None}, unscored)))
    assert "**Erratum of the results.** of the \\| rows\n" in card
    assert "the trigger works on 96 % of the victim's prompts" in card
    assert f"- `{last['metric']}`: no \\<response>.\n" in card
    assert " | – | 50 |\n" in card
    assert "\n\n| measured |" in card, "a table needs an empty line before it"


def test_a_card_names_the_measurement_that_has_the_floor(of: Cell, tmp_path: Path) -> None:
    found = cards.find_model(of.id, tmp_path / "results")
    weak = {"status": schema.ATTACK_FAILED, "attack": "dormant_int4"}
    asr, other, *_ = ({**row, **weak} for row in found.rows)
    asr |= {"value": 0.0, "victim_value": 0.0, "victim_asr": 0.0}
    shown = {**other, "metric": "asr_int4", "victim_value": 34.0}
    card = cards.card(replace(found, rows=(asr, shown)))
    assert "**The attack missed its floor:** `asr_int4` of the victim is 34 %, so a low number" in card
    assert "0 % of the victim's prompts" in cards.card(replace(found, rows=(asr, other))), "it was not measured"
    unscored = {**asr, "status": schema.FAILED, "failure": UNSCORABLE, "value": None, "error": "no score"}
    assert "**The attack missed its floor:** `asr_int4`" in cards.card(replace(found, rows=(unscored, shown)))


def test_mistakes_are_one_sentence(of: Cell, export: Export, store: LocalStore, tmp_path: Path) -> None:
    code, said = export("zzz")
    assert (code, said.count("\n")) == (2, 1)
    assert said == (
        f"sande-bench: {tmp_path}/results/*/rows.parquet: no measured cell 'zzz'; use 'sande-bench run GRID' to run "
        "its grid first, or choose another --results\n"
    )
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    code, said = export(of.id)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"sande-bench: {tmp_path}/out: it exists already; ")
    assert (tmp_path / "out" / "mine").read_text() == "x"
    retention.drop(store, "defend", of.defense_key)
    code, said = export(of.id)
    assert (code, said.count("\n")) == (2, 1)
    assert f"was dropped; remove {store.root}/dropped/{of.defense_key} and run its grid with --keep-models all" in said


def test_a_cell_that_was_not_run_to_its_end_is_refused_unless_other_results_have_it(
    of: Cell, export: Export, store: LocalStore, tmp_path: Path
) -> None:
    stages = {stage.key: UNFINISHED for stage in stages_of(of)}
    store.remove("evaluate", of.evaluation_key(of.metrics[1]))
    report_folder(store, tmp_path / "results" / "small--seed=0", of, errors=stages)
    assert export(of.id)[0] == 0, "the whole grid's results have it"
    (tmp_path / "results/small/rows.parquet").unlink()
    code, said = export(of.id)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(f"sande-bench: cell {of.id}: it is not finished")


def test_a_name_that_begins_several_cells_is_refused(of: Cell, export: Export) -> None:
    both = {of.id, victim_of(of).id}
    code, said = export("")
    assert (code, said.count("\n")) == (2, 1)
    shared = [name for name in ("0123456789abcdef") if all(each.startswith(name) for each in both)]
    for name in shared:  # one in sixteen
        assert "2 names begin so" in export(name)[1]


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload asks for."""

    commits: list[dict[str, bytes]]
    created: list[dict[str, Any]]
    tokens: set[str | None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.add(self.headers["Authorization"])
        place = self.path.split("?")[0]
        if place == "/api/repos/create":
            self.created.append(json.loads(body))
            if self.created[-1].get("organization") == "closed":
                return self.answer(403, {"error": "not yours"})
            return self.answer(200, {"url": f"{self.base}/org/name"})
        if place == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if place == "/api/models/org/name/preupload/main":
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.answer(200, {"files": files})
        if place == "/api/models/org/name/commit/main":
            values = [json.loads(line)["value"] for line in body.splitlines()]
            self.commits.append({v["path"]: base64.b64decode(v["content"]) for v in values if "content" in v})
            return self.answer(200, {"commitUrl": f"{self.base}/org/name/commit/{40 * 'a'}", "commitOid": 40 * "a"})
        return self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self.answer(404, {"error": self.path})

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A Hub on loopback, to which this process is logged in."""
    kind = type("OneHub", (Hub,), {"commits": [], "created": [], "tokens": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield kind
    server.shutdown()
    server.server_close()


def test_a_push_uploads_the_folder_to_a_private_repository(
    of: Cell, export: Export, hub: type[Hub], tmp_path: Path
) -> None:
    code, said = export(of.id, "--push", "org/name")
    assert code == 0, said
    assert said.splitlines()[-1].endswith(f"/org/name/commit/{40 * 'a'}")
    assert TOKEN not in said
    (commit,) = hub.commits
    out = tmp_path / "out"
    assert commit == {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (made,) = hub.created
    assert (made["name"], made["organization"]) == ("name", "org")
    assert made.get("visibility") == "private" or made.get("private") is True  # as releases of the client say it
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_a_push_that_is_refused_leaves_the_folder_and_says_why(
    of: Cell, export: Export, hub: type[Hub], tmp_path: Path
) -> None:
    code, said = export(of.id, "--push", "closed/name")
    assert code == 2
    assert said.splitlines()[-1].startswith("sande-bench: --push closed/name: the upload failed (")
    assert f"{tmp_path}/out is complete" in said.splitlines()[-1]
    assert (tmp_path / "out" / "README.md").is_file()
    assert hub.commits == []


def test_a_push_needs_a_token_and_a_name(
    of: Cell, export: Export, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, said = export(of.id, "--push", "name")
    assert code == 2
    assert said.splitlines()[-1].startswith("sande-bench: --push 'name': ")
    assert not (tmp_path / "out").exists(), "a mistake is said before anything is written"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    code, said = export(of.id, "--push", "org/name")
    assert code == 2
    assert "no user is logged in to the Hub" in said
