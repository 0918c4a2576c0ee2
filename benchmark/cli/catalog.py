"""`list`, `show` and `init`: what there is, its settings, and a grid to start from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.app import echo, one_sentence, print_table, tell
from benchmark.grid import labels, shipped
from benchmark.io.units import format_bytes
from benchmark.records.published import refuse_published
from sande import bounds
from sande.errors import UserError

OTHER_KINDS = ("models", "datasets", "grids")  # next to those of the registry
OWN_LICENCE = "Apache-2.0, as this project"
EMBEDDED_LICENCE = "Apache-2.0, as its wheel says"


@one_sentence
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="attacks, objectives, defenses, metrics, detectors, models, datasets or grids.", metavar="KIND"
        ),
    ],
) -> None:
    """List what there is of a kind."""
    kind = _plural(kind)
    about = _catalogue(kind)
    print_table({_singular(kind): list(about), "about": list(about.values())})
    if kind == "datasets":
        _check_data_folder()


@one_sentence
def show(
    kind: Annotated[
        str,
        typer.Argument(help="attack, objective, defense, metric, detector, model, dataset or grid.", metavar="KIND"),
    ],
    name: Annotated[str, typer.Argument(help="One of 'sande-bench list KIND'.", metavar="NAME")],
) -> None:
    """Show the settings of a method, the file of a grid, or where a model or a data set comes from."""
    from sande import registry
    from sande.config import describe, published

    kind = _plural(kind)
    if kind not in registry.KINDS:
        about = _catalogue(kind)
        if kind == "grids":
            name, file = shipped.of_name(name)
        if name not in about:
            raise UserError(f"no {_singular(kind)} is called '{name}'; there are: {', '.join(about)}")
        echo(f"{name}: {about[name]}")
        if kind == "grids":
            echo(f"file: {file}\n\n{bounds.read(file).decode(errors='replace').rstrip()}")
        else:
            for what, value in (_of_model(name) if kind == "models" else _of_data_set(name)).items():
                echo(f"{what}: {value}")
        return
    entry = registry.entry(kind, name)
    echo(f"{name}: {registry.summary(entry)}")
    if kind == "defenses":
        knows = registry.knowledge(name)
        echo(f"knows: {(knows.__doc__ or '').strip()}")
    fields = list(describe(entry.Config))
    if fields:
        echo()
        print_table(
            {
                "setting": [field.path for field in fields],
                "default": [labels.written(field.default) for field in fields],
                "meaning": [field.meaning for field in fields],
                "source": [field.source for field in fields],
            }
        )
    if fixed := published(entry.Config):
        echo("\nWith 'recipe: published':")
        for path, value in fixed.items():
            echo(f"published: {path} = {labels.written(value)}")


@one_sentence
def init(
    name: Annotated[
        str | None, typer.Argument(help="One of 'sande-bench list grids'; without it, list them.", metavar="[NAME]")
    ] = None,
    folder: Annotated[Path, typer.Argument(help="Folder for the copy.", metavar="[FOLDER]")] = Path(),
) -> None:
    """Copy a grid to start from, with the grids that it includes and the scales. Overwrite nothing."""
    from benchmark.grid import load

    if name is None:
        list_("grids")
        return
    _, source = shipped.of_name(name)
    refuse_published(folder, "FOLDER")
    scales = sorted((source.parent / load.SCALES).glob("*.yaml"))
    for path in shipped.copy(list(dict.fromkeys([*load.files(source), *scales])), folder):
        echo(f"Wrote {path}")
    echo(f"Edit {folder / source.name}, then: sande-bench plan {folder / source.name}")


def _check_data_folder() -> None:
    """Print a sentence where the folder of data files is not there, since the list then lacks its files."""
    from sande.data import datasets

    folder = os.environ.get(datasets.DATA_DIR)
    if folder and not Path(folder).is_dir():
        tell(f"{datasets.DATA_DIR}={folder} is not a folder; set it to the folder that holds the data files")


def _of_model(name: str) -> dict[str, str]:
    """Return what is known of a model without loading it: source, size, licence."""
    from sande.models import catalog

    if name in catalog.HUB_MODELS:
        model = catalog.HUB_MODELS[name]
        return {"source": _on_hub(model.repo, model.revision)}
    if name == catalog.TINY:
        return {"source": "made here", "licence": OWN_LICENCE}
    try:
        found = {
            "source": catalog.identify(name),
            "size": format_bytes(sum(file.stat().st_size for file in catalog.embedded_files(name))),
        }
    except UserError as error:  # its wheel is not installed
        found = {"source": str(error)}
    return found | {"licence": catalog.TERMS.get(name, EMBEDDED_LICENCE)}


def _of_data_set(name: str) -> dict[str, str]:
    """Return what is known of a data set without a download: source, rows, licence."""
    from sande.data import datasets

    folder = os.environ.get(datasets.DATA_DIR, "")
    files = [Path(folder, f"{name}{suffix}") for suffix in datasets.SUFFIXES] if folder else []
    for rows, sources in (
        ("instructions with answers", datasets.EXAMPLES),
        ("four-choice questions", datasets.QUESTIONS),
        ("preference pairs", datasets.PREFERENCES),
    ):
        if name in sources.builtin:
            return {
                "source": "made by this package",
                "rows": f"{len(sources.builtin[name]()):,} {rows}",
                "licence": OWN_LICENCE,
            }
        if name in sources.hub and not any(file.is_file() for file in files):
            hub = sources.hub[name]
            return {"source": f"{_on_hub(hub.repo, hub.revision)}: {', '.join(hub.paths)}", "rows": rows}
    return {"source": next((str(file) for file in files if file.is_file()), folder)}


def _on_hub(repo: str, revision: str) -> str:
    return f"the Hub, {repo} at commit {revision}"


def _kinds() -> tuple[str, ...]:
    from sande import registry

    return *registry.KINDS, *OTHER_KINDS


def _plural(kind: str) -> str:
    """Return the kind as the catalogue names it: `defense` is `defenses`.

    Raises:
        UserError: there is no such kind.
    """
    kinds = _kinds()
    found = {_singular(each): each for each in kinds} | {each: each for each in kinds}
    if kind not in found:
        raise UserError(f"no kind is called '{kind}'; there are: {', '.join(kinds)}")
    return found[kind]


def _singular(kind: str) -> str:
    return kind.removesuffix("s")


def _catalogue(kind: str) -> dict[str, str]:
    """Return the names of a kind, and a sentence on each."""
    from sande import registry

    if kind == "models":
        from sande.models import catalog

        return catalog.ABOUT
    if kind == "datasets":
        from sande.data import datasets

        return datasets.catalogue()
    if kind == "grids":
        from benchmark.grid.load import about

        return {name: about(path) for name, path in shipped.grids().items()}
    return {name: _summary(kind, name) for name in registry.names(kind)}


def _summary(kind: str, name: str) -> str:
    """Return a sentence on an entry; of a plug-in that cannot be used, why."""
    from sande import registry

    try:
        return registry.summary(registry.entry(kind, name))
    except UserError as error:
        return f"cannot be used: {error}"
