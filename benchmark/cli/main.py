"""`sande-bench` and `python -m benchmark`: all commands, in the groups and the order of the help."""

from __future__ import annotations

from collections.abc import Callable

from benchmark.cli import catalog, jobs, models, report, run
from benchmark.cli.app import application
from benchmark.cli.leaderboard import boards
from benchmark.cli.store import stores

GRIDS = "Grids of experiments"
RESULTS = "Results"
MODELS = "Single models"
CLUSTER = "Jobs on a Ray cluster"

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    GRIDS: {"list": catalog.list_, "show": catalog.show, "init": catalog.init, "plan": run.plan, "run": run.run},
    RESULTS: {
        "report": report.report,
        "compare": report.compare,
        "join": report.join,
        "publish": report.publish,
        "repeat": report.repeat,
    },
    MODELS: {"scan": models.scan, "clean": models.clean, "export": models.export, "detection": models.detection},
    CLUSTER: {"submit": jobs.submit, "logs": jobs.logs, "status": jobs.status, "stop": jobs.stop},
}

app = application(
    "Backdoors in generative language models and their removal: run grids of experiments, report, compare."
)
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(boards, name="leaderboard", rich_help_panel=RESULTS)
app.add_typer(stores, name="store", rich_help_panel=GRIDS)


def main() -> None:
    """Run the command line."""
    app(prog_name="sande-bench")
