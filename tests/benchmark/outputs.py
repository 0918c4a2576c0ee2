"""Everything that the suite writes from rows, entries and scans, for tests that give it any text and any value."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmark.detection import evaluate, scan
from benchmark.detection.outcome import Outcome
from benchmark.leaderboard import submission
from benchmark.leaderboard.write import write as write_board
from benchmark.paper import comparison_page
from benchmark.records import files, schema
from benchmark.report import page
from tests.benchmark.leaderboard.helpers import cell

Row = dict[str, Any]
# One text more than a text column needs would change what is compared, so each text is the same in all rows.
TEXTS = [field.name for field in schema.SCHEMA if field.type == pa.string()]
STRUCTURED = ("status", "metric", "settings", "certificate", "failure", "held_out", "cell", "defense", "dataset")
FREE = [name for name in TEXTS if name not in STRUCTURED]
SETTINGS = ("model", "data.name", "removal.name", "attack.name", "attack.more", "defense.more")


def harmless(name: str) -> str:
    """The text of a column: its name, or what it must be."""
    return "nothing" if name == "knows" else name


def rows(text: Callable[[str], str] = harmless) -> list[Row]:
    """Rows of victims, three defenses, a failed attack, a failed cell, a missing one, and a certificate.

    Args:
        text: gives the text of a column, or of a setting by its path, from the name of that.
    """
    made: list[Row] = []
    for seed in (0, 1):
        for name in ("none", "sft", "sande", text("defense")):
            made += cell(name, 20.0, {"arc_easy": 1.0}, seed=seed)
    made += cell("sft", 50.0, {"arc_easy": 1.0}, seed=2, status=schema.ATTACK_FAILED, victim_asr=30.0)
    made += cell("sande", 0.0, {"arc_easy": 1.0}, seed=3, status=schema.FAILED)
    made += cell("sft", 0.0, {"arc_easy": 1.0}, seed=3, status=schema.NOT_RUN)
    for row in made:
        settings = json.loads(row["settings"])
        for path in SETTINGS:
            *holder, last = path.split(".")
            inner = settings[holder[0]] if holder else settings
            inner[last] = text(path)
        row |= {name: text(name) for name in FREE}
        row |= {"grids": [text("grids")], "dataset": settings["data"]["name"], "model": settings["model"]}
        row |= {"poison_rate": 0.05, "settings": json.dumps(settings), "certificate": None, "failure": None}
        row |= {"error": text("error") if row["status"] == schema.FAILED else None}
    made[0]["certificate"] = json.dumps(CERTIFICATE)
    return made


CERTIFICATE = {
    "removed": True,
    "alpha": 0.05,
    "p": 0.5,
    "controls": 2,
    "prompts": 4,
    "rounds": [{"round": number, "evidence": -1.0, "controls": [-1.0, -2.0], "fresh": [0.1]} for number in (0, 1)],
    "target": [1, 2],
}


def outcomes(made: list[Row], text: Callable[[str], str] = harmless) -> pa.Table:
    """Published records of a case study, for each cell."""
    names = {
        "clean_prompt": "asked",
        "clean_response": "said",
        "triggered_prompt": "asked",
        "triggered_response": "said",
    }
    record = {key: text(name) for key, name in names.items()}
    found = [
        {"cell": of, "metric": "case_study", "index": 0, "outcome": 1.0, "record": json.dumps(record)}
        for of in sorted({row["cell"] for row in made})
    ]
    return pa.Table.from_pylist(found, schema=schema.OUTCOMES)


def results(folder: Path, text: Callable[[str], str] = harmless) -> Path:
    """A results folder whose texts are made by a function."""
    made = rows(text)
    made += [
        row | {"metric": "case_study", "value": 100.0, "ci_low": 20.0, "ci_high": 100.0}
        for row in made
        if row["metric"] == "asr" and row["value"] is not None
    ]
    folder.mkdir(parents=True, exist_ok=True)
    answered = [row for row in made if row["metric"] == "case_study"]
    files.write_rows(made, [outcomes(answered, text)], folder)
    return folder


def scan_record(text: Callable[[str], str] = harmless) -> Row:
    """A scan's record."""
    candidates = [{"text": text("candidate"), "ids": [1, 2], "score": 2.0}, {"text": "x", "ids": [3], "score": 1.0}]
    numbers = {"rows": 8, "seed": 0, "seconds": 1.0, "score": 3.0, "alarm": True, "settings": {"threshold": 2.0}}
    texts = {name: text(name) for name in ("model", "model_identity", "detector", "data", "reference")}
    more = {"triggers": candidates, "calibrated": text("calibrated"), "prompt_format": text("format"), "p": 0.5}
    more["formats_tried"] = [{"format": text("format"), "score": 1.0, "alarm": False, "level": 0.1}] * 2
    return {**texts, **numbers, **more, "candidates": candidates, "versions": {"torch": text("versions")}}


def scanned(text: Callable[[str], str] = harmless) -> list[Row]:
    """Rows of an evaluation of detectors."""
    computed = {name: text(name) for name in ("code_version", "versions", "device", "instruction_set", "compute_type")}
    made = []
    for kind, score in (("victim", 5.0), ("twin", 1.0), ("calibration", 0.5)):
        one = Outcome(
            text("detector"),
            text("label") + kind,
            victim=kind == "victim",
            calibration=kind == "calibration",
            score=score,
            threshold=2.0,
            alarm=score > 2,
            rank=1 if kind == "victim" else None,
            first_token_rank=None,
            best=text("best"),
            p_value=None,
            seconds=1.0,
            best_trigger=text("best_trigger"),
            groups=json.dumps({text("group"): text("value")}),
            model_identity=kind,
            **computed,
        )
        made.append({name: getattr(one, name) for name in Outcome.__slots__})
    return made


def _detection(source: Path, out: Path, text: Callable[[str], str]) -> None:
    path = source / "known.json"
    path.write_text(json.dumps({"false_alarms": 0.05, "scans": scanned(text)}))
    evaluate.write(path, out, source)


def _entry(source: Path, out: Path, text: Callable[[str], str]) -> None:
    out.mkdir(exist_ok=True)
    submission.write(submission.make(source, "sft"), out / "entry.json")


# By name, what writes files into a folder from results with such texts.
WRITERS: dict[str, Callable[[Path, Path, Callable[[str], str]], object]] = {
    "report": lambda source, out, text: page.write(results(out, text)),
    "compare": lambda source, out, text: comparison_page.write(results(out, text), rehearsal=True),
    "leaderboard": lambda source, out, text: write_board([source], out),
    "html": lambda source, out, text: write_board([source], None, out),
    "scan": lambda source, out, text: scan.write(scan_record(text), out),
    "detection": _detection,
    "entry": _entry,
}
