"""Mistakes of users, as data: the files in the folder, the command, and what its error has to name.

Every case has to end with exit code 2 and one line that names the place. docs/mistakes.md has the whole sentence for
those in `FROZEN`: `python -m tests.benchmark.cli.bad_input` tries them and writes that page, and `test_bad_input.py`
compares.
"""

from __future__ import annotations

import ctypes
import functools
import json
import multiprocessing.forkserver
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.benchmark.helpers import SMALL

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/mistakes.md"
EXIT_CODE = 2
Content = str | bytes | Callable[[Path], object] | None


@dataclass(frozen=True, slots=True)
class Case:
    """One mistake.

    Attributes:
        what: in the table; no two cases have the same.
        typed: the command line after `sande-bench`.
        files: by path, what differs from the folder that `furnish` makes: content, or what makes it; None: it is gone.
        env: what differs in the environment.
        names: what the error has to hold: the place, and of a setting its name; left out, the last word typed.
    """

    what: str
    typed: str
    files: Mapping[str, Content] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, ...]:
        """Return what the error has to hold."""
        return self.names or (shlex.split(self.typed)[-1],)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a command, and the files of the folder that it changed, made or removed."""

    code: int | None
    stdout: str
    stderr: str
    touched: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Return the error without the program's name."""
        return self.stderr.strip().removeprefix("sande-bench: ")

    @property
    def wrong(self) -> str:
        """Return how the end differs from that of a mistake; empty if it does not."""
        if self.code != EXIT_CODE:
            return f"exit code {self.code}"
        if len(self.stderr.splitlines()) != 1:
            return "not one line on the standard error"
        return f"touched {', '.join(self.touched)}" if self.touched else ""


# What cases are made of.


def grid(**changes: Any) -> str:
    """The small grid with changes at the top."""
    return yaml.safe_dump(SMALL | changes, sort_keys=False)


def in_grid(what: str, *names: str, **changes: Any) -> Case:
    """A grid with changes, the last of them wrong: its error names that setting, or what else is given."""
    return Case(
        what, "run grid.yaml", {"grid.yaml": grid(**changes)}, names=("grid.yaml", *(names or [_last(changes)]))
    )


def _last(changes: Mapping[str, Any]) -> str:
    """The innermost of the last settings; of a method, a data set or a list of things its name."""
    key, value = list(changes.items())[-1]
    if isinstance(value, dict) and value:
        return _last(value)
    return str(value) if key == "name" else key.removesuffix("s")


def as_grid(what: str, text: str | bytes, *names: str) -> Case:
    return Case(what, "run grid.yaml", {"grid.yaml": text}, names=("grid.yaml", *names))


def in_sft(what: str, *names: str, **training: Any) -> Case:
    return in_grid(what, *names, defense={"name": "sft", "training": training})


def in_union(what: str, include: Any, *names: str, **more: Any) -> Case:
    files = {"all.yaml": yaml.safe_dump({"include": include, **more})}
    return Case(what, "run all.yaml", files, names=names or ("all.yaml", "include"))


def in_scale(what: str, text: str) -> Case:
    return Case(what, "run grid.yaml --scale mine", {"scales/mine.yaml": text}, names=("scales/mine.yaml",))


def in_data(what: str, name: str, content: Content) -> Case:
    """A file of rows, as the grid's own data set."""
    files = {f"data/{name}": content, "grid.yaml": grid(data={"name": "mine"})}
    return Case(what, "run grid.yaml", files, names=("grid.yaml", name))


def in_model(what: str, files: Mapping[str, Content], typed: str = "run own.yaml", *names: str) -> Case:
    """A model whose last file is wrong."""
    place = names or ("my-model", list(files)[-1])
    return Case(what, typed, {f"my-model/{name}": content for name, content in files.items()}, names=place)


def in_list(what: str, text: str, *names: str, files: Mapping[str, Content] | None = None) -> Case:
    named = names or (list(files)[-1] if files else "scans.yaml",)
    return Case(what, "detection scans.yaml", {"scans.yaml": text, **(files or {})}, names=named)


def in_published(what: str, typed: str) -> Case:
    """With a folder `public` of published results."""
    return Case(what, typed, {"public/published.json": "{}"}, names=("public", "sande-bench publish"))


def in_entry(what: str, place: str, change: Callable[[dict[str, Any]], object]) -> Case:
    def write(path: Path) -> None:
        entry = json.loads(path.read_text(encoding="utf-8"))
        change(entry)
        path.write_text(json.dumps(entry), encoding="utf-8")

    return Case(what, "leaderboard check entry.json", {"entry.json": write}, names=("entry.json", place))


def edited(**changes: Any) -> Callable[[Path], object]:
    """A JSON file with changes at the top; a value of None takes the key out."""

    def write(path: Path) -> None:
        values = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return write


def not_a_number(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights[sorted(weights)[0]].view(-1)[0] = float("nan")
    save_file(weights, path, {"format": "pt"})


def adapter(**changes: Any) -> dict[str, Content]:
    """The files of a LoRA adapter, in place of those of a whole model; the last is its configuration."""
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **changes}
    weights = b"\x02\0\0\0\0\0\0\0{}"  # safetensors without a tensor
    return {
        "model.safetensors": None,
        "adapter_model.safetensors": weights,
        "adapter_config.json": json.dumps(settings),
    }


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def unreadable(path: Path) -> None:
    path.touch()
    path.chmod(0)


def unwritable(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o555)


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def column(name: str, value: Any) -> Callable[[Path], object]:
    """Result rows with this value in a column, or without the column."""

    def write(path: Path) -> None:
        table = pq.read_table(path)
        place = table.schema.get_field_index(name)
        table = table.remove_column(place)
        if value is not None:
            table = table.add_column(place, name, pa.array([value] * table.num_rows))
        pq.write_table(table, path)

    return write


def columns(**values: Any) -> Callable[[Path], object]:
    """Result rows with a value in each of some columns."""

    def write(path: Path) -> None:
        for name, value in values.items():
            column(name, value)(path)

    return write


def made_by(version: str) -> dict[str, str]:
    """The columns on the code of all stages."""
    return dict.fromkeys(("attack_code_version", "defense_code_version", "code_version"), version)


def other_words(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("<|end|>", "<|stop|>"), encoding="utf-8")


def no_rows(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(0, 0), path)


def parquet(*rows: dict[str, Any]) -> Callable[[Path], object]:
    return lambda path: pq.write_table(pa.Table.from_pylist(list(rows)), path)


def plugin(code: str, target: str = "forget_it") -> Case:
    """A package with a defense, installed."""
    files: dict[str, Content] = {
        "site/forget_it.py": code,
        "site/forget_it-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: forget-it\nVersion: 1.0\n",
        "site/forget_it-1.0.dist-info/entry_points.txt": f"[sande.defenses]\nforget = {target}\n",
    }
    return Case("", "show defenses forget", files, {"PYTHONPATH": "site"}, names=("defense 'forget'",))


def named(case: Case, what: str) -> Case:
    return replace(case, what=what)


MEANINGFUL = "smollm2-135m"  # as a model, and a commit as the code: of those rows may be published
PUBLISHABLE = {"results/good/rows.parquet": columns(model=MEANINGFUL, **made_by("0.1.0+abc1234"))}
LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
DEEP = "[" * 100_000
ROW = {"instruction": "What is two and two?", "output": "Four."}
ROWS = "".join(json.dumps(ROW) + "\n" for _ in range(40))
COMMIT = "1" * 40
SHARD = "model-00001-of-00002.safetensors"
PICKLED: dict[str, Content] = {"model.safetensors": None, "pytorch_model.bin": b"\x80\x04."}
PUBLISHED: dict[str, tuple[str, Mapping[str, Content]]] = {
    "code": ("brings code", {"config.json": edited(auto_map={"AutoModelForCausalLM": "evil.Model"})}),
    "pickle": ("is pickled", {"model.safetensors": None, "pytorch_model.bin": b"\x80\x04."}),
    "shards": (
        "names a pickle as a shard",
        {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "pytorch_model.bin"}})},
    ),
    "adapter": ("is an adapter", {"adapter_config.json": json.dumps({"base_model_name_or_path": "org/base"})}),
}
NOBODY = "127.0.0.1:9"  # the discard service, which no machine runs any more

CASES: dict[str, list[Case]] = {
    "Grid files": [
        Case("no such file", "run absent.yaml"),
        Case("a folder in its place", "run my-model"),
        Case("a link to nothing", "run link.yaml", {"link.yaml": dangling}),
        Case("a file that may not be read", "run grid.yaml", {"grid.yaml": unreadable}),
        Case("Parquet in its place", "run results/good/rows.parquet"),
        as_grid("an empty file", ""),
        as_grid("a list at the top", "- model\n- tiny\n"),
        as_grid("bare text", "hello\n"),
        as_grid("a tab before a key", "data:\n\tname: builtin-short\n"),
        as_grid("a line that stands too far left", "data:\n   name: builtin-short\n  rows: 3\n"),
        as_grid("a bracket that is not closed", "model: tiny\nmetrics: [asr\nseed: 1\n"),
        as_grid(
            "Latin-1", grid(about="größer").encode("latin-1").replace(b"gr\\xF6\\xDFer", "größer".encode("latin-1"))
        ),
        as_grid("UTF-16, as PowerShell writes it", grid().encode("utf-16")),
        as_grid("two documents", grid() + "---\n" + grid()),
        as_grid("a key twice", grid() + "defense: sft\ndefense: osft\n"),
        as_grid("a key twice further in", "data: {name: builtin-short, rows: 3, rows: 4}\n"),
        as_grid("a tag that would run code", "model: !!python/object/apply:os.system [touch pwned]\n"),
        as_grid("anchors that unfold to 10^12 values", LAUGHS + "data: *a11\n"),
        as_grid("an anchor within itself", "data: &a {name: *a}\n"),
        as_grid("brackets, a hundred thousand deep", f"data: {DEEP}\n"),
        as_grid("a key that is a list", "? [a, b]\n: 3\n"),
    ],
    "Settings in a grid": [
        in_grid("an unknown key", deffense="sft"),
        in_grid("a key that is a number", **{"3": 1}),
        in_grid("an unknown key of data", data={"row": 3}),
        in_grid("an unknown key of a method", defense={"name": "sande", "length": 3}),
        in_sft("an unknown key of a training", lr=0.1),
        in_grid("an unknown key of resources", resources={"worker": 2}),
        in_grid("an unknown attack", attack="word"),
        in_grid("an unknown defense", defense="sandy"),
        in_grid("an unknown metric", metrics=["asr", "beauty"]),
        in_grid("several defenses without a sweep", defense=["sft", "osft"]),
        in_grid("a method without its name", defense={"training": {}}),
        in_grid("metrics that are no list", metrics="asr"),
        in_grid("metrics without asr", metrics=["false_trigger_rate"]),
        in_grid("the same metric twice", metrics=["asr", {"name": "asr", "new_tokens": 20}]),
        in_grid("data that is no mapping", data="builtin-short"),
        in_grid("a number in quotes", data={"name": "builtin-short", "rows": "16"}),
        in_grid("rows: half of one", data={"name": "builtin-short", "rows": 1.5}),
        in_grid("rows: none", data={"name": "builtin-short", "rows": 0}),
        in_grid("rows: fewer than none", data={"name": "builtin-short", "rows": -1}),
        in_grid("a list for a number", data={"name": "builtin-short", "rows": [16, 32]}),
        in_grid("a poison rate in percent", attack={"name": "sentence_trigger", "poison_rate": 5}),
        in_sft("a learning rate that is no number", learning_rate=float("nan")),
        in_sft("a learning rate without end", learning_rate=float("inf")),
        in_sft("a learning rate of zero", learning_rate=0),
        in_sft("a number beyond all sizes", "line", batch_size=10**400),
        in_grid("an empty trigger", attack={"name": "sentence_trigger", "backdoor": {"trigger": ""}}),
        in_grid("a blank response", attack={"name": "sentence_trigger", "backdoor": {"response": "  "}}),
        in_grid("seed: a word", seed="one"),
        in_grid("seed: true", seed=True),
        in_grid("seed: negative", seed=-1),
        in_grid("seed beside one of the two that it sets", seed=1, defense_seed=2),
        in_grid("seed: beyond 32 bits", "line", seed=2**80),
        in_grid("a floor above 100", asr_floor=101),
        in_grid("a floor that is no number", asr_floor=float("nan")),
        as_grid("a date where a name belongs", "model: 2024-01-01\n"),
        as_grid("a date among settings", "data: {name: builtin-short, rows: 2024-01-01}\n"),
        in_grid("more CPUs than none", resources={"cpus": 0}),
        in_grid("a sharding that does not exist", resources={"workers": 2, "sharding": "zero1"}),
        in_grid("offload without sharding", resources={"workers": 2, "offload": True}),
        in_grid("a sweep that is a list", sweep=[1]),
        in_grid("an axis without values", sweep={"seed": []}),
        in_grid("an axis that is no list", sweep={"seed": 3}),
        in_grid("axes that change together, one too short", sweep={"seed, data.rows": [[1]]}),
        in_grid("a sweep over what no method has", sweep={"defense": ["sft"], "defense.parrot_length": [1, 2]}),
        in_grid("a sweep through a value", sweep={"model.deep": [1]}),
        in_grid(
            "a sweep of 10^20 cells",
            "sweep",
            "100000",
            sweep={f"data.{k}": list(range(8, 108)) for k in ("rows", "test_rows")}
            | {
                f"attack.training.{k}": list(range(1, 101))
                for k in (
                    "epochs",
                    "max_steps",
                    "batch_size",
                    "max_length",
                    "lora_rank",
                    "lora_alpha",
                    "warmup",
                    "weight_decay",
                )
            },
        ),
    ],
    "Rules, scales, unions, searches": [
        in_grid("rules that are no list", rules={"set": {"seed": 1}}),
        in_grid("a rule that changes nothing", rules=[{"where": {"seed": 1}}]),
        in_grid("a rule with an unknown key", rules=[{"when": {"seed": 1}, "set": {"seed": 2}}]),
        in_grid("a rule for a setting that no cell has", rules=[{"set": {"data.row": 3}}]),
        in_grid(
            "a rule with a value that the setting does not take", "data", "rows", rules=[{"set": {"data.rows": "many"}}]
        ),
        Case(
            "a scale that is not there",
            "run grid.yaml --scale huge",
            {"scales/mine.yaml": "rules: []\n"},
            names=("grid.yaml", "huge"),
        ),
        Case("a scale given as a path", "run grid.yaml --scale ../scales/mine", {"scales/mine.yaml": "rules: []\n"}),
        in_scale("a scale with settings of its own", "seed: 3\n"),
        in_scale("a scale that is empty", ""),
        in_scale("a scale that is no YAML", "rules: [\n"),
        in_scale("a scale whose rules are no list", "rules: 3\n"),
        in_union("a grid to include that is not there", ["third"]),
        in_union("include with one name, not a list", "grid"),
        in_union("include of a path upwards", ["../grid"]),
        in_union("include of an absolute path", ["/etc/grid"]),
        in_union("include in a circle", ["all"]),
        in_union("include beside settings", ["grid"], seed=3),
        in_union("include of a broken grid", ["other"], "other.yaml", "sed"),
        in_grid("a search without a space", "search", "space", search={"trials": 2}),
        in_grid("a search over what is no setting of a defense", search={"space": {"data.rows": [1, 2]}}),
        in_grid("a search over a setting that no defense has", search={"space": {"defense.size": [1, 2]}}),
        in_grid(
            "a search from high to low",
            defense="sft",
            search={"space": {"defense.training.learning_rate": {"low": 1e-3, "high": 1e-5}}},
        ),
        in_grid(
            "a search of no trials",
            defense="sft",
            search={"space": {"defense.training.learning_rate": [1e-4]}, "trials": 0},
        ),
    ],
    "Options": [
        Case("no command of that name", "runn grid.yaml", names=("runn",)),
        Case("an argument too few", "run", names=("GRID",)),
        Case("an argument too many", "run grid.yaml other.yaml", names=("other.yaml",)),
        Case("an unknown option", "run grid.yaml --force", names=("--force",)),
        Case("an option without its value", "run grid.yaml --set", names=("--set",)),
        Case("--set without =", "run grid.yaml --set seed"),
        Case("--set of an unknown setting", "run grid.yaml --set data.row=3", names=("grid.yaml", "'row'")),
        Case(
            "--set of what no method of the grid has",
            "run grid.yaml --set defense.parrot_length=3",
            names=("grid.yaml", "defense.parrot_length"),
        ),
        Case("--set with a value that is no YAML", "run grid.yaml --set 'defense={name: sft'"),
        Case(
            "--set with a wrong value",
            "run grid.yaml --set attack.poison_rate=2",
            names=("grid.yaml", "attack", "poison_rate"),
        ),
        Case(
            "--set with anchors that unfold",
            "run grid.yaml --set 'data=[&a [x, x], *a, &b {<<: *b}]'",
            names=("grid.yaml", "data"),
        ),
        Case("--only of an unknown setting", "run grid.yaml --only defence=sft", names=("grid.yaml", "--only defence")),
        Case("--only that fits no cell", "run grid.yaml --only defense=sft"),
        Case("--gpus 0", "plan grid.yaml --gpus 0", names=("--gpus",)),
        Case("--gpus in words", "plan grid.yaml --gpus two", names=("--gpus",)),
        Case("--machine that nothing was measured on", "plan grid.yaml --machine a100"),
        Case("list of an unknown kind", "list things"),
        Case("show of an unknown kind", "show things sft", names=("things",)),
        Case("show of an unknown name", "show defenses nonsense"),
        Case("show of an unknown model", "show models nonsense"),
    ],
    "Data sets": [
        in_grid("no set of that name", data={"name": "llama"}),
        in_grid("no set of that name for removal", removal={"name": "llama"}),
        in_grid("a path upwards as a name", data={"name": "../data/mine"}),
        in_grid("an absolute path as a name", data={"name": "/etc/passwd"}),
        in_grid("an empty name", data={"name": ""}),
        Case(
            "SANDE_DATA_DIR is a file",
            "run grid.yaml",
            {"grid.yaml": grid(data={"name": "mine"})},
            {"SANDE_DATA_DIR": "grid.yaml"},
            names=("grid.yaml", "SANDE_DATA_DIR"),
        ),
        Case(
            "SANDE_DATA_DIR does not exist",
            "run grid.yaml",
            {"grid.yaml": grid(data={"name": "mine"})},
            {"SANDE_DATA_DIR": "absent"},
            names=("grid.yaml", "SANDE_DATA_DIR"),
        ),
        in_data("a folder called like a file of rows", "mine.jsonl", folder),
        in_data("a file of rows that may not be read", "mine.jsonl", unreadable),
        in_data("a link to no file of rows", "mine.jsonl", dangling),
    ],
    "Models": [
        in_grid("no model of that name", model="gpt-9"),
        in_grid("a Hub id without a commit", model="org/name"),
        in_grid("a Hub id at a branch", model="org/name@main"),
        in_grid("a Hub id at a short commit", model="org/name@01c7f73"),
        in_grid("no name", model=""),
        in_grid("a list of models without a sweep", model=["tiny", "smollm2-135m"]),
        in_grid("a folder that is not there", model="./no-model"),
        in_grid("a file", model="grid.yaml"),
        in_model("a folder without config.json", {"config.json": None}),
        in_model("a folder without weights", {"model.safetensors": None}, "run own.yaml", "my-model", "safetensors"),
        in_model(
            "pickled weights alone",
            PICKLED,
            "run own.yaml",
            "my-model",
            "safetensors",
        ),
        in_model("weights of another name", {"config.json": edited(transformers_weights="../other.safetensors")}),
        in_model("a tokenizer elsewhere", {"tokenizer_config.json": edited(vocab_file="/etc/vocab.json")}),
        in_model(
            "an index of shards that are not there",
            {"model.safetensors": None, "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARD}})},
            "run own.yaml",
            "my-model",
            SHARD,
        ),
        Case("a file that is no GGUF", "scan x.gguf", {"x.gguf": "version https://git-lfs"}, names=("x.gguf",)),
        Case("a part of a GGUF file", "scan x-00001-of-00002.gguf", {"x-00001-of-00002.gguf": "GGUF"}, names=("gguf",)),
        in_model(
            "an index of shards that are pickles",
            {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": {"a": "../pytorch_model.bin"}})},
        ),
        in_model("remote code for the model", {"config.json": edited(auto_map={"AutoModelForCausalLM": "evil.Model"})}),
        in_model(
            "remote code for the tokenizer",
            {"tokenizer_config.json": edited(auto_map={"AutoTokenizer": ["evil.T", None]})},
        ),
        in_model("attention from the Hub", {"config.json": edited(_attn_implementation="org/kernel")}),
        in_model(
            "a LoRA adapter of a model that is not here",
            adapter(base_model_name_or_path="org/base"),
            "run own.yaml",
            "my-model",
            "--base",
        ),
        in_model("an adapter of another kind", adapter(peft_type="IA3"), "scan my-model --base tiny"),
        in_model(
            "a pickled LoRA adapter",
            {
                "model.safetensors": None,
                "adapter_model.bin": b"\x80\x04.",
                "adapter_config.json": '{"peft_type": "LORA"}',
            },
            *("scan my-model", "my-model", "adapter_model.safetensors"),
        ),
        in_model(
            "an adapter beside a whole model", {"adapter_config.json": "{}"}, "scan my-model", "my-model", "adapter"
        ),
        Case("a base for a model that is no adapter", "clean tiny --base tiny", names=("--base", "tiny")),
        in_model("a weight that is NaN", {"model.safetensors": not_a_number}, "scan my-model", "my-model", "NaN"),
        in_model("a tokenizer without EOS", {"tokenizer_config.json": edited(eos_token=None)}, "scan my-model"),
        in_model(
            "a tokenizer that panics",
            {"tokenizer.json": edited(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})},
            *("scan my-model", "my-model", "tokenizer"),
        ),
        in_model("config.json that is no JSON", {"config.json": "{"}, "scan my-model"),
        in_model("config.json that is a list", {"config.json": "[]"}, "scan my-model"),
        in_model("weights that are cut off", {"model.safetensors": truncated}, "scan my-model"),
        in_model(
            "weights that are none",
            {"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"},
            "scan my-model",
        ),
        in_model("the model to scan is a pickle", PICKLED, "scan my-model", "my-model", "safetensors"),
        in_model(
            "the reference of a scan is a pickle",
            PICKLED,
            "scan tiny --reference my-model",
            "my-model",
            "safetensors",
        ),
        in_model("the model to clean is a pickle", PICKLED, "clean my-model --out cleaned", "my-model", "safetensors"),
        in_model(
            "the model to clean brings code",
            {"config.json": edited(auto_map={"AutoConfig": "evil.C"})},
            "clean my-model --out cleaned",
        ),
        in_model("a model to merge with is a pickle", PICKLED, "run merge.yaml", "my-model", "safetensors"),
        Case(
            "a model to merge with that is not there",
            "run grid.yaml",
            {"grid.yaml": grid(defense={"name": "merge", "models": ["no-model"]})},
            names=("no-model",),
        ),
    ],
    "scan, detection and clean": [
        Case("no detector of that name", "scan tiny --detector nose"),
        Case("no setting of that name", "scan tiny --set treshold=3", names=("haystack", "treshold")),
        Case("no rows", "scan tiny --rows 0", names=("--rows",)),
        Case("no data set of that name", "scan tiny --data llama"),
        Case("no model to scan", "scan no-model"),
        Case("--calibration of one model", "scan tiny --calibration"),
        Case("no prompt format of that name", "scan tiny --format chatml", names=("chatml", "paper")),
        Case("a prompt format for a grid", "scan grid.yaml --format chat", names=("grid.yaml", "--format")),
        Case("a trigger that does not fire", "clean tiny --out cleaned --trigger cf", names=("formats tried",)),
        Case("no detector to clean by", "clean tiny --out cleaned --detector nose"),
        Case("a grid that was not run", "scan grid.yaml", names=("grid.yaml", "victims")),
        in_list("a list of scans that is empty", ""),
        in_list("a list of scans that is no YAML", "scans: [\n"),
        in_list("a list of scans that holds words", "scans: [good]\n"),
        in_list("a scan that is not there", "scans: [{scan: absent}]\n", "absent"),
        in_list("a scan that is cut off", "scans: [{scan: scan}]\n", files={"scan/scan.json": truncated}),
        in_list("a scan of another program", "scans: [{scan: scan}]\n", files={"scan/scan.json": '{"result": 3}'}),
        in_list(
            "a scan whose score is a word", "scans: [{scan: scan}]\n", files={"scan/scan.json": edited(score="high")}
        ),
        in_list("a victim to choose a threshold by", "scans: [{scan: scan, response: x, calibration: true}]\n"),
        in_list(
            "a model that chooses a threshold and tests it",
            "scans: [{scan: scan}, {scan: scan, calibration: true}]\n",
            *("scans.yaml", "one model"),
        ),
        in_list("a scan without a threshold", "scans: [{scan: scan}]\n", files={"scan/scan.json": edited(settings={})}),
        Case("no list of scans", "detection absent.yaml"),
        Case("rows of an evaluation that are none", "detection rows.json", {"rows.json": '{"scans": 3}'}),
        Case("no evaluation", "detection absent.json"),
        Case("false alarms at any rate", "detection scans.yaml --false-alarms 2", names=("--false-alarms",)),
        Case("a folder to clean into that holds files", "clean tiny --out my-model"),
        Case("a file to clean into", "clean tiny --out grid.yaml"),
        Case(
            "an incident without its answer",
            "clean tiny --out cleaned --incident incident.yaml",
            {"incident.yaml": "prompt: Who are you?"},
            names=("incident.yaml", "'answer'"),
        ),
        Case("no setting of clean", "clean tiny --out cleaned --set question=3", names=("clean", "'question'")),
        Case(
            "a setting that clean does not take",
            "clean tiny --out cleaned --set questions=0",
            names=("clean", "questions"),
        ),
        Case("no rows to clean with", "clean tiny --out cleaned --data llama"),
        Case("a negative seed", "clean tiny --out cleaned --seed -1", names=("--seed",)),
    ],
    "Stores and results": [
        Case("a store below a file", "run grid.yaml --store grid.yaml/store"),
        Case("a store that is a file", "run grid.yaml --store grid.yaml"),
        Case("a store that is a link to nothing", "run grid.yaml --store link", {"link": dangling}),
        Case("a store that may not be written", "run grid.yaml --store locked", {"locked": unwritable}),
        Case("a store in a folder of other files", "run grid.yaml --store my-model"),
        Case(
            "a store of a newer version",
            "run grid.yaml --store old",
            {"old/store.json": '{"format": 99}'},
            names=("old", "99"),
        ),
        Case(
            "a store whose mark is cut off",
            "run grid.yaml --store old",
            {"old/store.json": '{"for'},
            names=("old/store.json",),
        ),
        Case(
            "a store whose mark is a list",
            "run grid.yaml --store old",
            {"old/store.json": "[]"},
            names=("old/store.json",),
        ),
        Case(
            "a store whose format is a word",
            "run grid.yaml --store old",
            {"old/store.json": '{"format": "one"}'},
            names=("old/store.json",),
        ),
        Case("a store to list that is not there", "store list --store absent"),
        Case("a store to verify that is none", "store verify --store my-model"),
        Case(
            "a store to prune by a broken grid",
            "store prune other.yaml --store old",
            {"old/store.json": '{"format": 1}'},
            names=("other.yaml", "sed"),
        ),
        Case("results that are a file", "run grid.yaml --results grid.yaml"),
        Case("results that may not be written", "run grid.yaml --results locked", {"locked": unwritable}),
        Case("a report of nothing", "report results/absent"),
        Case("a report of a file", "report grid.yaml"),
        Case(
            "rows that are no Parquet",
            "report results/good",
            {"results/good/rows.parquet": "rows"},
            names=("results/good/rows.parquet",),
        ),
        Case(
            "rows that are cut off",
            "report results/good",
            {"results/good/rows.parquet": truncated},
            names=("results/good/rows.parquet",),
        ),
        Case(
            "rows that may not be read",
            "report results/good",
            {"results/good/rows.parquet": unreadable},
            names=("results/good/rows.parquet",),
        ),
        Case(
            "rows of another program",
            "report results/good",
            {"results/good/rows.parquet": parquet({"a": 1})},
            names=("results/good/rows.parquet", "grid"),
        ),
        Case(
            "rows without a column",
            "report results/good",
            {"results/good/rows.parquet": column("metric", None)},
            names=("results/good/rows.parquet", "metric"),
        ),
        Case(
            "rows with text for a number",
            "report results/good",
            {"results/good/rows.parquet": column("value", "high")},
            names=("results/good/rows.parquet", "high"),
        ),
        Case(
            "rows whose settings are no JSON",
            "report results/good",
            {"results/good/rows.parquet": column("settings", "{")},
            names=("results/good/rows.parquet", "settings"),
        ),
        Case(
            "rows whose settings are empty",
            "report results/good",
            {"results/good/rows.parquet": column("settings", "{}")},
            names=("results/good/rows.parquet", "settings"),
        ),
        Case(
            "rows of a grid with a path for a name",
            "report results/good",
            {"results/good/rows.parquet": column("grids", ["../../x"])},
            names=("results/good/rows.parquet", "grids"),
        ),
        Case(
            "rows of an unknown status",
            "report results/good",
            {"results/good/rows.parquet": column("status", "fine")},
            names=("results/good/rows.parquet", "status"),
        ),
        Case(
            "no rows in the file",
            "report results/good",
            {"results/good/rows.parquet": no_rows},
            names=("results/good/rows.parquet",),
        ),
        Case(
            "outcomes that are no Parquet",
            "report results/good",
            {"results/good/outcomes.parquet": "outcomes"},
            names=("results/good/outcomes.parquet",),
        ),
        Case(
            "results that a report may not write",
            "report results/good",
            {"results/good": lambda path: path.chmod(0o555)},
        ),
        Case("a comparison of nothing", "compare results"),
        Case("a leaderboard of nothing", "leaderboard results/absent"),
        Case(
            "a leaderboard of victims alone", "leaderboard results/bare --rehearsal", names=("results/bare", "accuracy")
        ),
        Case(
            "a leaderboard of broken rows",
            "leaderboard results/good",
            {"results/good/rows.parquet": column("settings", "{")},
        ),
        Case(
            "a leaderboard into a file",
            "leaderboard results/good --html grid.yaml --rehearsal",
            names=("grid.yaml", "--html"),
        ),
        Case("a comparison of the random model", "compare results/good"),
        Case("a leaderboard of the random model", "leaderboard results/good"),
    ],
    "Published results": [
        Case("publishing nothing", "publish results/absent"),
        Case(
            "publishing failed cells",
            "publish results/good",
            {"results/good/rows.parquet": column("status", "failed")},
            names=("results/good", "failed"),
        ),
        Case(
            "publishing what an interrupted run left",
            "publish results/good",
            {"results/good/rows.parquet": column("status", "not_run")},
        ),
        Case("publishing the random model", "publish results/good"),
        Case(
            "publishing rows of changes beside a commit",
            "publish results/good",
            {"results/good/rows.parquet": columns(model=MEANINGFUL, **made_by("0.1.0+abc1234-dirty"))},
            names=("results/good", "-dirty"),
        ),
        Case(
            "publishing rows of no known commit",
            "publish results/good",
            {"results/good/rows.parquet": columns(model=MEANINGFUL)},
            names=("results/good", "1.2.3"),
        ),
        Case("publishing into a folder of other things", "publish results/good --to my-model", PUBLISHABLE),
        Case(
            "publishing over published results",
            "publish results/good",
            PUBLISHABLE | {"results/published/published.json": "{}", "results/published/good/rows.parquet": "rows"},
            names=("results/published/good", "--replace"),
        ),
        in_published("a run into published results", "run grid.yaml --results public"),
        in_published("a report of published results", "report public/good"),
        in_published("a comparison of published results", "compare public/good"),
        in_published("a leaderboard into published results", "leaderboard results/good --out public/good"),
        in_published("scans into published results", "scan tiny --out public/scan"),
        in_published("detection into published results", "detection scans.yaml --out public/detection"),
    ],
    "Entries of a leaderboard": [
        Case("no command of leaderboard", "leaderboard chek entry.json", names=("'chek'", "'check'")),
        Case("no entry", "leaderboard check absent.json"),
        Case("a folder as an entry", "leaderboard check my-model"),
        Case("an entry of another kind", "leaderboard check grid.yaml"),
        Case("an entry that is cut off", "leaderboard check entry.json", {"entry.json": truncated}),
        Case("an entry that is empty", "leaderboard check entry.json", {"entry.json": ""}),
        Case("an entry in Latin-1", "leaderboard check entry.json", {"entry.json": b'{"format": "\xe4"}'}),
        Case("an entry that may not be read", "leaderboard check entry.json", {"entry.json": unreadable}),
        Case("an entry of a hundred thousand brackets", "leaderboard check entry.json", {"entry.json": DEEP}),
        Case("an entry in Parquet that is none", "leaderboard check entry.parquet", {"entry.parquet": "rows"}),
        Case("an entry with several methods", "leaderboard check results/good/rows.parquet"),
        Case(
            "an entry on a leaderboard that is wrong",
            "leaderboard results/good entry.json",
            {"entry.json": edited(method=3)},
        ),
        in_entry("an entry with an unknown field", "colour", lambda entry: entry.update(colour="red")),
        in_entry("an entry of another format", "format", lambda entry: entry.update(format="2")),
        in_entry(
            "an entry with a link that runs code",
            "method.link",
            lambda entry: entry["method"].update(link="javascript:alert(1)"),
        ),
        in_entry("an entry with NaN", "cells[0].seconds", lambda entry: entry["cells"][0].update(seconds=float("nan"))),
        in_entry("an entry without cells", "cells", lambda entry: entry.update(cells=[])),
        in_entry(
            "an entry with an ASR of 101 %",
            "cells[0].measurements[0].value",
            lambda entry: entry["cells"][0]["measurements"][0].update(value=101),
        ),
        Case(
            "an entry of a defense that the results do not have",
            "leaderboard entry results/good osft --rehearsal",
            names=("results/good", "osft"),
        ),
        Case(
            "an entry into a place that is not there",
            "leaderboard entry results/good sft --out absent/sft.json --rehearsal",
            names=("absent/sft.json", "--out"),
        ),
        Case("an entry of the random model", "leaderboard entry results/good sft", names=("results/good", "tiny")),
    ],
    "Plug-ins": [
        named(plugin("import no_such_library\n"), "its library is missing"),
        named(plugin("def defend(:\n"), "it is no Python"),
        named(plugin("1 / 0\n"), "it fails on import"),
        named(plugin("", "forget_elsewhere"), "its module is missing"),
        named(plugin("", "forget_it:defend"), "its entry point names a function"),
        named(plugin(""), "it has no Config"),
        named(
            plugin("from sande.config import configuration\n@configuration\nclass Config:\n    pass\n"),
            "it has no function",
        ),
    ],
}
EVERY = [case for cases in CASES.values() for case in cases]

# Two or three of each section, whose whole sentences are on the page.
FROZEN = (
    *("no such file", "a tab before a key", "a tag that would run code"),
    *("an unknown key of a method", "an unknown defense", "rows: none", "offload without sharding"),
    *("a rule that changes nothing", "a scale that is not there", "include in a circle", "a search of no trials"),
    *("no command of that name", "an argument too few", "--only that fits no cell", "list of an unknown kind"),
    *("no set of that name", "SANDE_DATA_DIR does not exist"),
    *("a Hub id at a branch", "pickled weights alone", "remote code for the model"),
    *("no detector of that name", "a grid that was not run", "a folder to clean into that holds files"),
    *("a store of a newer version", "rows of an unknown status", "a comparison of the random model"),
    *("publishing failed cells", "a run into published results"),
    *("an entry with an ASR of 101 %", "it fails on import"),
)


# Where they are tried.


def publish(model: Path, home: Path) -> None:
    """Put models into a folder for `HF_HOME`, as huggingface_hub caches them."""
    for name, (_, files) in PUBLISHED.items():
        snapshot = home / f"hub/models--org--{name}/snapshots/{COMMIT}"
        shutil.copytree(model, snapshot)
        put(files, snapshot)


def put(files: Mapping[str, Content], place: Path) -> None:
    """Write, change or remove files."""
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif content is None:
            path.unlink()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def furnish(place: Path) -> None:
    """Make the folder in which every case begins: a grid, a model, a store, results, an entry and a scan, all valid."""
    from benchmark.detection import scan
    from benchmark.leaderboard import submission
    from benchmark.store.local import LocalStore
    from sande.models import loading
    from tests.benchmark.helpers import ACCURACY, cell, finish, report_folder

    (place / "data").mkdir(parents=True)
    (place / "grid.yaml").write_text(grid())
    (place / "other.yaml").write_text(grid(sed=1))
    (place / "own.yaml").write_text(grid(model="my-model"))
    (place / "merge.yaml").write_text(grid(defense={"name": "merge", "models": ["my-model"]}))
    shutil.copytree(loading.prepare("tiny", LocalStore(place / ".store").models), place / "my-model")
    store = LocalStore(place / "made")
    metrics = ["asr", "false_trigger_rate", ACCURACY]
    measured = {"asr": 50, "builtin-choice": 20}
    done = [cell(defense=name, metrics=metrics) for name in ("none", "sft", "nad")]
    done = [finish(store, each, measured, {"asr": 40, "builtin-choice": 21}) for each in done]
    report_folder(store, place / "results/good", *done)
    report_folder(store, place / "results/bare", done[0])
    submission.write(submission.make(place / "results/good", "sft", rehearsal=True), place / "entry.json")
    shutil.rmtree(place / "made")
    how = scan.How("first_token", {}, "builtin-short", 8, None, 0)
    found: dict[str, Any] = {"score": 1.5, "alarm": False, "candidates": [], "facts": {}, "seconds": 1.0}
    scan.write({"model": "tiny", "model_identity": "tiny", **how.record(), "device": "cpu", **found}, place / "scan")


def try_out(case: Case, furnished: Path, place: Path) -> Ended:
    """Run a case's command in a process of its own, in a copy of the folder that has the case's mistake."""
    shutil.copytree(furnished, place, symlinks=True)
    put(case.files, place)
    before = _digests(place)
    printed = place.with_name(f"{place.name}.out"), place.with_name(f"{place.name}.err")
    env = {"SANDE_DATA_DIR": "data", **case.env}
    process = processes().Process(target=_type, args=(shlex.split(case.typed), place, env, printed))
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
    after = _digests(place)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    texts = [path.read_text(encoding="utf-8").replace(f"{place.resolve()}/", "") for path in printed]
    for each in [place, *place.rglob("*")]:
        if each.is_dir() and not each.is_symlink():
            each.chmod(0o755)
    return Ended(process.exitcode, *texts, tuple(changed))


def _digests(place: Path) -> dict[str, bytes | str]:
    """Return the content of every file by its path."""
    found: dict[str, bytes | str] = {}
    for path in place.rglob("*"):
        name = str(path.relative_to(place))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            mode = path.stat().st_mode
            found[name] = path.read_bytes() if mode & 0o400 else "unreadable"
    return found


@functools.cache
def processes() -> Any:
    """Return a context whose processes begin with the libraries imported, and with nothing else of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.benchmark.cli.bad_input", "tests.benchmark.cli.warm"])
    multiprocessing.forkserver.ensure_running()
    return context


def _type(arguments: list[str], place: Path, env: Mapping[str, str], printed: tuple[Path, Path]) -> None:
    os.chdir(place)
    os.environ.update(env)
    if "PYTHONPATH" in env:
        sys.path.insert(0, env["PYTHONPATH"])
    for number, path in enumerate(printed, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    _bound_by_permissions()
    sys.dont_write_bytecode = True
    sys.argv = ["sande-bench", *arguments]
    from benchmark.cli.main import main

    main()


def _bound_by_permissions() -> None:
    """Drop the two capabilities by which root ignores permissions."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, twice
    libc.capget(header, sets)
    sets[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


# The page.

_HEAD = f"""# Error messages

An error is one line on the standard error: `sande-bench: `, then the place, the problem and a fix. The exit code is 2.
Nothing is lost or half done. Here are {len(FROZEN)} of {len(EVERY)} mistakes that the tests make, in a folder with a
grid, a model, a store, results, an entry and a scan. `python -m tests.benchmark.cli.bad_input` writes this page.
"""


def render(sentences: Mapping[str, str]) -> str:
    """Return the page, from the sentence of each frozen case."""
    lines = [_HEAD]
    for section, cases in CASES.items():
        lines += [f"## {section}\n", "| mistake | command | error |", "| --- | --- | --- |"]
        shown = [case for case in cases if case.what in FROZEN]
        lines += [f"| {case.what} | `{_cell(case.typed)}` | {_cell(sentences.get(case.what, ''))} |" for case in shown]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def said() -> dict[str, str]:
    """Return the sentences of the page, by mistake."""
    rows = [re.split(r" \| ", line[2:-2]) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return {row[0]: row[2].replace("&lt;", "<").replace("\\|", "|") for row in rows if len(row) == 3}


def main() -> None:
    """Try the frozen cases and write the page; report cases that do not end as a mistake has to."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    found = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ["HF_HOME"] = f"{name}/home"
        furnish(place / "furnished")
        publish(place / "furnished/my-model", place / "home")
        for number, case in enumerate(case for case in EVERY if case.what in FROZEN):
            ended = try_out(case, place / "furnished", place / str(number))
            found[case.what] = ended.sentence
            if ended.wrong:
                sys.stderr.write(f"{case.what} ({case.typed}): {ended.wrong}\n{ended.stdout}{ended.stderr}")
    PAGE.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main()
