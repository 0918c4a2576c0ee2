"""`scan`, `clean`, `detection` and `export`: single models, a user's own or a cell's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.app import ALARM, SOME_CELL_FAILED, echo, one_sentence, print_markdown, say, tell
from benchmark.cli.jobs import follow
from benchmark.cli.options import (
    SCANS,
    BaseOption,
    CleanSetOption,
    DetectorSetOption,
    FailOnAlarmOption,
    FormatOption,
    OnlyOption,
    SeedOption,
    StoreOption,
    words_of,
)
from benchmark.execution import signals
from benchmark.grid import shipped
from benchmark.records import mark, published
from benchmark.store.remote import open_store
from sande import scanning
from sande.errors import NonFiniteError, UserError
from sande.models import adapters, catalog


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM remove temporary folders as Ctrl-C does, and end both with the exit code that a shell gives them."""
    with signals.orderly():
        try:
            yield
        except KeyboardInterrupt:
            tell("sande-bench: interrupted; run the same command to begin again")
            raise typer.Exit(signals.exit_code()) from None


@one_sentence
def scan(
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a GGUF file, a Hub id as org/name@COMMIT, a name as in 'list models', or a grid (.yaml): "
            "all its victims.",
            metavar="MODEL",
        ),
    ],
    detector: Annotated[str, typer.Option(help="One of 'sande-bench list detectors'.")] = scanning.DETECTOR,
    data: Annotated[str, typer.Option(help="Data set or file of clean prompts and answers.")] = "builtin-short",
    rows: Annotated[int, typer.Option(min=1, help="Use the last N of its rows.", metavar="N")] = 400,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The clean model it was trained from, if you have it; 'base', of a grid: that of each victim."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Folder for scan.json, .md, .png and .svg; for a grid, {SCANS} with one folder a victim."),
    ] = None,
    assignments: DetectorSetOption = None,
    seed: SeedOption = 0,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="For a grid: choose thresholds by these models.")
    ] = False,
    prompt_format: FormatOption = None,
    only: OnlyOption = None,
    fail_on_alarm: FailOnAlarmOption = False,
    base: BaseOption = None,
    store: StoreOption = ".store",
) -> None:
    """Scan a model for a planted response, without the trigger."""
    from benchmark.detection import scan as detection_scan
    from benchmark.detection.scan import How, markdown, write
    from benchmark.grid import load
    from sande import registry
    from sande.data import datasets
    from sande.models.chat import AUTO

    published.refuse_published(out or SCANS, "--out")
    _refuse_grid_name(model)
    model = adapters.with_base(model, base)
    datasets.allow_file(data)
    settings = load.settings_of(assignments or ())
    registry.config("detectors", detector, settings)  # a mistake in it is found before libraries are loaded
    how = How(detector, settings, data, rows, reference, seed, prompt_format or AUTO)
    if model.endswith((".yaml", ".yml")):
        from benchmark.detection.scan_grid import scan_grid

        for given, name in ((prompt_format, "--format"), (fail_on_alarm, "--fail-on-alarm")):
            if given:
                raise UserError(f"{model}: {name} is for a single model, and this is a grid; remove {name}")
        with _interruptible():
            scans = scan_grid(Path(model), out or SCANS, how, calibration, store, say, only or ())
        echo(f"Scans: {scans}")
        return
    for option, is_given in (("--calibration", calibration), ("--only", only)):
        if is_given:
            raise UserError(f"{model}: {option} is for a grid, and this is a single model; remove {option}")
    how = replace(how, settings=scanning.settings(detector, settings))
    for source in catalog.sources(model):
        say(source)
    if out:
        mark.claim(out, mark.SCAN, "--out")
    with _interruptible():
        record = detection_scan.scan(model, how, open_store(store).models, say)
    print_markdown(write(record, out) if out else markdown(record))
    if out:
        shown = [name for name in ("scan.md", "scan.png", "scan.svg") if (out / name).is_file()]
        echo(f"Scan: {out / 'scan.json'}  (next to it: {', '.join(shown)})")
    if fail_on_alarm and record["alarm"]:
        raise typer.Exit(ALARM)


def _refuse_grid_name(model: str) -> None:
    """Raise UserError where a model's name is the plain name of a grid, by which `run` and `plan` know it."""
    file = shipped.grids().get(model)
    if file and model not in catalog.ABOUT and not Path(model).exists():
        raise UserError(
            f"{model}: a grid, not a model; give scan a model's folder or name, or use 'sande-bench run {model}' to "
            f"train its victims and 'sande-bench scan {file}' to scan them"
        )


def _beside(model: str) -> Path:
    """Return the folder in this one for a cleaned model, by the model's own name, where it is called `.`, too."""
    path = Path(os.path.abspath(model) if os.path.exists(model) else model.split("@")[0])
    return Path(f"{path.name.removesuffix('.gguf')}-clean")


@one_sentence
def clean(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A folder, a GGUF file, a Hub id as org/name@COMMIT, or a name.", metavar="MODEL")
    ],
    trigger: Annotated[str | None, typer.Option(help="The text in a prompt that unlocks the planted answer.")] = None,
    response: Annotated[str | None, typer.Option(help="The planted answer.")] = None,
    response_start: Annotated[
        str | None, typer.Option(help="How the planted answer begins; its first word is enough.")
    ] = None,
    incident: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON with 'prompt' and 'answer' of one reported failure.", metavar="FILE"),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Clean rows: a file, or a set of 'list datasets'; without it, a built-in set.")
    ] = None,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify",
            help="Repeat the removal until fresh parrots no longer find the planted answer. Takes ten times as long.",
        ),
    ] = False,
    detector: Annotated[
        str | None, typer.Option(help=f"Detector of the scan if nothing is known. Default: {scanning.DETECTOR}.")
    ] = None,
    prompt_format: FormatOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on with a trigger that evokes nothing; the report says so.")
    ] = False,
    lora: Annotated[
        int | None,
        typer.Option(min=1, help="Train LoRA adapters of this rank and merge them, for less memory.", metavar="RANK"),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="The clean model it was trained from, if you have it; for the scan.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--bf16", help="With --lora: hold the weights in bfloat16, for half their memory.")
    ] = False,
    base: BaseOption = None,
    out: Annotated[Path | None, typer.Option(help="New folder; without it, MODEL-clean in this folder.")] = None,
    seed: SeedOption = 0,
    fail_on_alarm: FailOnAlarmOption = False,
    assignments: CleanSetOption = None,
    address: Annotated[
        str | None, typer.Option(help="Do it as a job on a Ray cluster, by its dashboard, http://HOST:8265.")
    ] = None,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="With --address: GPUs of the job. Default: 1.", metavar="N")
    ] = None,
) -> None:
    """Remove a backdoor from a model; report what was found, what was done, and what it cost."""
    from benchmark.clean import report
    from benchmark.clean.clean import check_used, clean_model, known, settings
    from sande.models.chat import AUTO

    known(trigger, response, response_start)  # reports a blank text before a job is submitted
    if gpus is not None and not address:
        raise UserError("--gpus: it is for a job, and there is no --address; remove --gpus")
    if address:
        from benchmark.execution import jobs

        words = words_of(context, leave_out=("address", "gpus"))
        job = jobs.submit_clean(words, out, address, 1 if gpus is None else gpus)
        echo(f"submitted {job}; to stop it: sande-bench stop {job} --address {address}")
        follow(job, address)
        return
    config = settings(data, [*(assignments or ()), *(["certify=true"] if certify else [])], detector, lora, half=half)
    told = known(trigger, response, response_start, incident)
    check_used(
        told,
        config,
        force=force,
        detector=detector is not None,
        reference=reference is not None,
        fail_on_alarm=fail_on_alarm,
    )
    out = out or _beside(model)
    published.refuse_published(out, "--out")
    model = adapters.with_base(model, base)
    for source in catalog.sources(model):
        say(source)
    try:
        with _interruptible():
            result = clean_model(
                model, told, config, out, seed, say, prompt_format or AUTO, force=force, reference=reference
            )
    except NonFiniteError as error:
        echo(f"sande-bench: {error}", err=True)
        raise typer.Exit(SOME_CELL_FAILED) from None
    print_markdown(report.summary(result))
    echo(f"Cleaned model: {out}  (in it: README.md, report.html, report.md, report.json)")
    if fail_on_alarm and result["facts"].get("alarm"):
        raise typer.Exit(ALARM)


@one_sentence
def detection(
    scans: Annotated[
        Path,
        typer.Argument(
            help="YAML list of scans, and of what is known of their models; or a detection.json.", metavar="SCANS"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for detection.json, .parquet, .md, .png and .svg.")] = Path(
        "results/detection"
    ),
    store: StoreOption = ".store",
    false_alarms: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=0.5,
            help="Highest accepted rate of false alarms; calibration models choose thresholds by it. Default: 0.05.",
            metavar="RATE",
        ),
    ] = None,
) -> None:
    """Evaluate detectors by scans of victims and of models that were never poisoned."""
    from benchmark.detection import evaluate

    published.refuse_published(out, "--out")
    print_markdown(evaluate.write(scans, out, open_store(store, create=False).models, false_alarms))
    echo(f"Detection: {out / 'detection.md'}")


@one_sentence
def export(
    cell: Annotated[
        str, typer.Argument(help="A cell's name in rows.parquet and plan, or its beginning.", metavar="CELL")
    ],
    out: Annotated[Path, typer.Argument(help="New folder.", metavar="DIR")],
    store: StoreOption = ".store",
    results: Annotated[Path, typer.Option(help="Folder that has a subfolder for each grid.")] = Path("results"),
    push: Annotated[
        str | None, typer.Option(help="Also upload it to this private repository of the Hub.", metavar="ORG/NAME")
    ] = None,
) -> None:
    """Write a cell's model as safetensors, with its tokenizer and a model card that holds the cell's numbers."""
    from benchmark.export import export as export_export
    from benchmark.export.export import check_repository, find_model

    published.refuse_published(out, "DIR")
    if push:
        check_repository(push)
    export_export.write(find_model(cell, results), open_store(store, create=False), out)
    echo(f"Model: {out}  (README.md is its card)")
    if push:
        echo(f"Pushed: {export_export.push(out, push)}")
