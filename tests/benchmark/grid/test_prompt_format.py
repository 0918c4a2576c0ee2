"""The prompt format of a cell: names and template files, keys, plans, rows, labels."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmark.cli import overview
from benchmark.execution import stages
from benchmark.grid import load, prompt_format
from benchmark.grid.cell import Cell
from benchmark.grid.labels import labels
from benchmark.grid.load import load_grid
from benchmark.leaderboard import victims
from benchmark.plan import preflight
from benchmark.plan.plan import make_plan
from benchmark.records import aggregate, files, recovery
from benchmark.records.schema import SCHEMA
from benchmark.store.local import LocalStore
from sande import formats
from sande.errors import UserError
from sande.models import loading
from tests.benchmark.helpers import SMALL, GridFile, cell, finish, report_folder, rows_of, stage

INST = "<s>[INST] [[{system} | ]]{user} [/INST] {assistant}<|end|>"
TEMPLATE = {"name": "inst", "template": INST}


def formats_of(path: Path, **options: Any) -> list[Any]:
    return [one.prompt_format for one in load_grid(path, **options).cells]


def test_paper_is_left_out_of_settings_ids_and_keys() -> None:
    explicit = cell(prompt_format="paper")
    assert explicit == cell()
    assert "prompt_format" not in explicit.settings()
    assert (explicit.id, explicit.attack_key) == (cell().id, cell().attack_key)


@pytest.mark.parametrize("chosen", ["alpaca", "chat", TEMPLATE])
def test_another_format_is_in_settings_id_and_every_key(chosen: Any) -> None:
    made = cell(prompt_format=chosen, defense="sft")
    assert made.settings()["prompt_format"] == chosen
    assert Cell.parse(json.loads(json.dumps(made.settings()))) == made
    paper = cell(defense="sft")
    assert made.id != paper.id
    assert made.attack_key != paper.attack_key
    assert made.defense_key != paper.defense_key
    assert not {*made.evaluation_keys} & {*paper.evaluation_keys}


@pytest.mark.parametrize("wrong", ["chatml", "auto", 3, "", {"name": "x"}, {"name": "x", "template": 3}, None])
def test_an_unknown_format_is_one_sentence_with_those_that_there_are(grid_file: GridFile, wrong: Any) -> None:
    with pytest.raises(UserError, match=r"prompt_format is .*; use paper, alpaca, chat, or a template file") as caught:
        load_grid(grid_file(prompt_format=wrong))
    assert "\n" not in str(caught.value)


def test_a_template_file_beside_the_grid_is_a_part_of_the_settings(grid_file: GridFile, tmp_path: Path) -> None:
    (tmp_path / "inst.txt").write_text(f"{INST}\n")
    (tmp_path / "copy.txt").write_text(INST)
    path = grid_file(sweep={"prompt_format": ["inst.txt", "copy.txt", str(tmp_path / "inst.txt")]})
    same, copied = load_grid(path).cells
    assert same.settings()["prompt_format"] == TEMPLATE
    assert same.id != copied.id
    assert same.attack_key == copied.attack_key, "equal texts make equal victims"
    assert prompt_format.to_load(same.prompt_format) == formats.from_file(tmp_path / "inst.txt")
    (tmp_path / "inst.txt").write_text(INST.replace("INST", "USER"))
    assert load_grid(path).cells[0].attack_key != same.attack_key
    assert load.files(path) == [path, tmp_path / "copy.txt", tmp_path / "inst.txt"]


def test_settings_from_elsewhere_name_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inst.txt").write_text(INST)
    monkeypatch.chdir(tmp_path)
    for name in ("inst.txt", str(tmp_path / "inst.txt")):
        with pytest.raises(UserError, match=r"prompt_format is '.*inst\.txt'; use paper"):
            cell(prompt_format=name)


def test_a_relative_path_does_not_leave_the_folder_of_the_grid(tmp_path: Path, grid_file: GridFile) -> None:
    (tmp_path / "inst.txt").write_text(INST)
    (tmp_path / "sub").mkdir()
    path = grid_file(prompt_format="../inst.txt").rename(tmp_path / "sub" / "grid.yaml")
    with pytest.raises(UserError, match=r"prompt_format is '\.\./inst\.txt'; use paper"):
        load_grid(path)


def test_a_file_that_is_no_template_is_one_sentence(tmp_path: Path, grid_file: GridFile) -> None:
    (tmp_path / "inst.txt").write_text("Answer: {user}")
    with pytest.raises(UserError, match=r"inst\.txt: not a template; use \[\["):
        load_grid(grid_file(prompt_format="inst.txt"))


def test_a_sweep_a_rule_an_override_and_a_filter_take_it(grid_file: GridFile) -> None:
    path = grid_file(sweep={"prompt_format": ["paper", "chat"]})
    assert formats_of(path) == ["paper", "chat"]
    assert formats_of(path, only=["prompt_format=paper"]) == ["paper"]
    assert formats_of(path, overrides=["prompt_format=alpaca"]) == ["alpaca"]
    rule = {"where": {"prompt_format": "chat"}, "set": {"prompt_format": "alpaca"}}
    assert formats_of(grid_file(sweep={"prompt_format": ["paper", "chat"]}, rules=[rule])) == ["paper", "alpaca"]


def test_labels_and_the_table_of_a_plan_tell_formats_apart(store: LocalStore) -> None:
    cells = [cell(), cell(prompt_format="chat"), cell(prompt_format=TEMPLATE)]
    victim = "tiny / builtin-short, prompt_format="
    assert labels([one.settings() for one in cells]) == [("none", victim + one) for one in ("paper", "chat", "inst")]
    plan = make_plan(cells, store)
    assert overview.table(plan, {}).columns["differs in"] == [
        f"prompt_format={one}" for one in ("paper", "chat", "inst")
    ]
    assert sum(one.kind == "attack" for one in plan.stages.values()) == 3
    assert [label for _, label in labels([one.settings() for one in cells[1:2]])] == ["tiny / builtin-short"]


def test_rows_have_a_column_and_those_of_older_versions_are_paper(store: LocalStore, tmp_path: Path) -> None:
    cells = [finish(store, cell(prompt_format=chosen), {"asr": 50}) for chosen in ("paper", TEMPLATE)]
    table = files.read_rows(report_folder(store, tmp_path / "results", *cells))
    assert set(zip(table["cell"].to_pylist(), table["prompt_format"].to_pylist(), strict=True)) == {
        (cells[0].id, "paper"),
        (cells[1].id, "inst"),
    }
    rows = rows_of(store, cells[0])
    older = pa.Table.from_pylist(rows, schema=SCHEMA).drop_columns(["prompt_format"])
    pq.write_table(older, tmp_path / "rows.parquet")
    assert files.read_rows(tmp_path).to_pylist() == pa.Table.from_pylist(rows, schema=SCHEMA).to_pylist()


def test_a_model_in_another_format_is_another_victim(store: LocalStore) -> None:
    cells = [finish(store, cell(prompt_format=chosen), {"asr": 50}) for chosen in ("paper", "chat")]
    rows = pa.Table.from_pylist(rows_of(store, *cells), schema=SCHEMA)
    of_asr = [entry for entry in aggregate.Results(rows).entries() if entry.metric == "asr"]
    assert len({recovery.twin_key(entry) for entry in of_asr}) == 2
    assert len(victims.known(rows.to_pylist())) == 2


@pytest.mark.parametrize("model", ["tiny", "folder"])
def test_a_model_without_chat_template_is_told_before_anything_trains(
    store: LocalStore, tmp_path: Path, model: str
) -> None:
    if model == "folder":
        loading.save(loading.load("tiny", store.models), tmp_path / model)
        model = str(tmp_path / model)
    with pytest.raises(
        UserError, match=rf"^model {model}: prompt format chat: the tokenizer has no chat template; use"
    ):
        preflight.check([cell(), cell(model=model, prompt_format="chat")], store)


def test_a_victim_keeps_the_format_for_all_that_is_made_of_it(store: LocalStore) -> None:
    one_step = {"max_steps": 1, "batch_size": 2}
    of = Cell.parse(
        SMALL
        | {
            "prompt_format": TEMPLATE | {"template": INST.replace("<s>", "")},
            "attack": {"name": "sentence_trigger", "training": one_step},
            "defense": {"name": "sft", "training": one_step},
            "metrics": [{"name": "asr", "prompts": 2}],
        }
    )
    for kind in ("attack", "defend"):
        stages.train(stage(of, kind), store, lambda trainer: trainer, lambda line: None, 0, interval=600)
    for kind, key in (("attack", of.attack_key), ("defend", of.defense_key)):
        made = loading.load_folder(store.read(kind, key), torch.float32)
        assert formats.of(made.tokenizer) == prompt_format.to_load(of.prompt_format)
