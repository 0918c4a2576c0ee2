"""What every command shares: mistakes as one sentence, orderly interrupts, and how lines, tables and pages print."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

from benchmark.cli import surroundings
from benchmark.execution import signals, watch
from benchmark.io.text import visible
from sande import __version__
from sande.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

GO_ON = "interrupted; finished work is kept, run the same command to continue"
SOME_CELL_FAILED = 1
USERS_MISTAKE = 2
ALARM = 3
LONGEST = 1000  # characters of a sentence; longer ones lose their middle, which holds values from outside
_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
UsageError: Any = typer.BadParameter.__base__  # newer Typers bring a Click of their own, and hide it


class _OneSentence(TyperGroup):
    """A group that reports a mistake in the command line itself as one sentence, too."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command; in standalone mode, end the process with its exit code."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        code = USERS_MISTAKE
        try:
            surroundings.prepare()
            code = run()
        except UsageError as error:
            typed = error.ctx.command_path if error.ctx else "sande-bench"
            tell(f"sande-bench: {error.format_message().rstrip('.')}; see '{typed} --help'")
        except UserError as error:
            tell(f"sande-bench: {error}")
        except OSError as error:
            if not surroundings.is_full(error):
                raise
            surroundings.give_up_output()
            tell(f"sande-bench: {surroundings.sentence(error)}")
        if watch.started_again:  # Ray may crash such a process at its end, when all is written
            surroundings.leave(code or 0)
        sys.exit(code)


def group(about: str, cls: type[TyperGroup] = TyperGroup) -> typer.Typer:
    """Return a group of commands that prints its help, and no error, when it is called without one."""
    made = typer.Typer(cls=cls, help=about, pretty_exceptions_enable=False, context_settings=_HELP_OPTIONS)
    made.callback(invoke_without_command=True)(_help_without_command)
    return made


def application(about: str) -> typer.Typer:
    """Return the outermost group, which also has `--version` and installs completion for a shell."""

    def callback(
        context: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None:
        _help_without_command(context)

    made = group(about, _OneSentence)
    made.callback(invoke_without_command=True)(callback)
    return made


def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        if text := context.get_help():  # empty where Typer has printed it, in colors
            echo(text)
        raise typer.Exit(USERS_MISTAKE)


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"sande-bench {__version__}")
        raise typer.Exit


def one_sentence(command: Callable[P, R]) -> Callable[P, R]:
    """End a user's mistake with its sentence and exit code 2, without a traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            tell(f"sande-bench: {error}")
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.filename is None:
                raise
            tell(f"sande-bench: {surroundings.sentence(error)}")
        raise typer.Exit(USERS_MISTAKE) from None

    return wrapped


def interruptible(command: Callable[P, None]) -> Callable[P, None]:
    """End Ctrl-C and SIGTERM with a sentence and the exit code that a shell gives them, without a traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        with signals.orderly():
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt:
                echo(GO_ON, err=True)
                raise typer.Exit(signals.exit_code()) from None

    return wrapped


def tell(sentence: str) -> None:
    """Print one line on the standard error, whatever names and values from outside it holds."""
    line = visible(sentence)
    echo(line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} … {line[-300:]}", err=True)


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text; control characters in it, which may come from models and files, are shown and do nothing.

    All that the program prints goes through here, but for rich's own tables.
    """
    lines = str(text).replace("\r\n", "\n").replace("\r", "\n")
    typer.echo(visible(lines, keep="\n\t"), err=err, nl=nl)


def say(line: str) -> None:
    """Print a line with the time of day."""
    echo(f"{time.strftime('%H:%M:%S')} {line}")


def print_markdown(text: str) -> None:
    """Print Markdown, rendered where the standard output is a terminal."""
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import Markdown, TableElement

    class Folded(TableElement):
        """A table that folds a long word, where rich's own would cut it."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for table in super().__rich_console__(console, options):
                for column in getattr(table, "columns", ()):
                    column.overflow = "fold"
                yield table

    class Rendered(Markdown):
        elements = Markdown.elements | {"table_open": Folded}

    console = Console()
    if console.is_terminal:
        console.print(Rendered(visible(text, keep="\n"), hyperlinks=False))
    else:
        echo(text)


def print_table(columns: Mapping[str, Sequence[str]]) -> None:
    """Print a table with a head: folded to the width of a terminal; in a pipe or file one line a row.

    Args:
        columns: by head, equally many values.
    """
    from benchmark.cli import overview

    for line in overview.fitted(overview.shown(columns), overview.room()):
        echo(line)
