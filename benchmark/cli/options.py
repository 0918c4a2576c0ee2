"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

SCANS = Path("results/detection/scans")
_SCHEMES = re.compile(r"(s3|s3a|gs|gcs|hdfs|abfs|az):/?(?!/)", re.IGNORECASE)  # of a URI, with too few slashes


def _place(text: str) -> str:
    """Return a folder or URI as it was given.

    Raises:
        typer.BadParameter: it is blank, or a URI with too few slashes, which would be a folder of that name.
    """
    if not text.strip():
        raise typer.BadParameter("it is blank; set it to a folder, or to a URI such as s3://bucket/folder")
    if found := _SCHEMES.match(text):
        uri = f"{found[1].lower()}://{text[found.end() :]}"
        raise typer.BadParameter(f"'{text}' is no URI, for want of a slash; use {uri}")
    return text


GridArgument = Annotated[
    Path, typer.Argument(help="Name of a grid, as in 'sande-bench list grids', or a grid file.", metavar="GRID")
]
StoreOption = Annotated[
    str,
    typer.Option(help="Folder or URI (s3://…) of trained models and outcomes; all grids share it.", callback=_place),
]
ResultsOption = Annotated[str, typer.Option(help="Folder or URI that gets a subfolder for the grid.", callback=_place)]
AddressOption = Annotated[str | None, typer.Option(help="A running Ray cluster; without it, Ray starts here.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="path.to.field=value, for every cell; can be repeated.", metavar="ASSIGNMENT"),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="path=value: only cells that have it, e.g. defense=sande; can be repeated."),
]
ScaleOption = Annotated[
    str | None, typer.Option(help="Use the settings of scales/NAME.yaml next to the grid, not the grid's own scale.")
]
GpusOption = Annotated[
    int | None,
    typer.Option(min=1, help="Predict the time on N GPUs; with --machine cpu, with N stages at a time.", metavar="N"),
]
MachineOption = Annotated[
    str | None,
    typer.Option(
        help="Predict by times measured on it: cpu (also by shipped times), h100, or any part of a recorded device's "
        "name. Default: with --gpus, all devices of the store.",
    ),
]
KeepOption = Annotated[
    str,
    typer.Option(
        "--keep-models",
        help="all; victims: remove each defended model once it is measured; none: remove victims too, once unneeded.",
        metavar="WHICH",
    ),
]
SecretOption = Annotated[
    Path | None,
    typer.Option(
        "--secret",
        help="Held-out run: triggers, responses and seeds are drawn from this file, and the results do not show them.",
        metavar="FILE",
    ),
]
RehearsalOption = Annotated[
    bool, typer.Option("--rehearsal", help="Accept rows of the random model, too; the page then carries a warning.")
]
DetectorSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="field=value of the detector; can be repeated.", metavar="ASSIGNMENT"),
]
CleanSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="path.to.field=value, e.g. questions=100; can be repeated.", metavar="ASSIGNMENT"),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Prompt format: paper, alpaca, chat, a template file, or auto: the one that the folder names, else its "
        "chat template, else paper, and other formats after it. Default: auto.",
        metavar="NAME|FILE",
    ),
]
FailOnAlarmOption = Annotated[
    bool, typer.Option("--fail-on-alarm", help="End with exit code 3 if the scan gives an alarm.")
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="The model that a LoRA adapter changes: a folder, a name, org/name@COMMIT or a GGUF file."),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]
DashboardOption = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, http://HOST:8265.")
]
JobArgument = Annotated[str, typer.Argument(help="As 'sande-bench submit' printed it.", metavar="ID")]


def words_of(context: typer.Context, leave_out: Sequence[str]) -> list[str]:
    """Return the command line that was given, without the command and some options: arguments first, then options.

    Args:
        context: of the command.
        leave_out: names of parameters.
    """
    arguments, options = list[str](), list[str]()
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        given = value is not None and value is not False and value != parameter.get_default(context)
        if not given or parameter.name in leave_out:
            continue
        if parameter.param_type_name == "argument":
            arguments.append(str(value))
        elif value is True:
            options.append(parameter.opts[0])
        else:
            options += [
                word
                for each in (value if isinstance(value, list | tuple) else [value])
                for word in (parameter.opts[0], str(each))
            ]
    return [*arguments, *options]
