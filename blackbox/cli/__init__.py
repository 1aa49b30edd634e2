"""The `blackbox` command. Errors become words here and nowhere else in the library.

Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 an error in
one clear line, 2 wrong usage, 3 a budget is used up.
"""

from __future__ import annotations

import importlib
import io
import logging
import shlex
import sys
import warnings
from typing import Any

import click

from blackbox.errors import BlackboxError, BudgetError

__all__ = ["main"]

EXIT_BUDGET = 3
"""The exit code of a command that a budget stopped."""

_COMMANDS = {
    "quickstart": "Train on bundled sample data and show what comes out.",
    "train": "Train a classifier on a table of labelled texts.",
    "plan": "Say what a training will cost, before it costs it.",
    "predict": "Label the texts of a table.",
    "evaluate": "Measure a model on a table of labelled texts.",
    "inspect": "Show a model in words, or explain one prediction.",
    "report": "Write a model down as a page, or as a model card.",
    "serve": "Answer over HTTP.",
    "prompts": "Make, show and merge pools of prompts.",
    "probe": "Show what a language model's endpoint really gives.",
    "models": "List and fetch the language models of the catalogue.",
    "store": "Look after the answers that were paid for.",
}


class _Commands(click.Group):
    """Imports a command when it is run, so that `--help` is quick; errors become one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"blackbox.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BudgetError as error:
            again = shlex.join(["blackbox", *sys.argv[1:]])
            click.echo(
                f"blackbox: {error}; what was answered is in the store. To go on, raise the budget "
                f"in: {again}",
                err=True,
            )
            sys.exit(EXIT_BUDGET)
        except (BlackboxError, ValueError, TypeError) as error:
            # ours, or bad arguments of the library; all else is a defect and keeps its traceback
            if ctx.params.get("debug"):
                raise
            self._stop(str(error))
        except BrokenPipeError:
            # the reader of our output has gone, as `head` does
            sys.stderr.close()
            sys.exit(0)

    @staticmethod
    def _stop(message: str) -> None:
        from blackbox.model.display import printable

        one_line = " ".join(printable(line) for line in message.splitlines())
        click.echo(f"blackbox: {one_line}", err=True)
        sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Log details, and show where an error comes from.")
@click.version_option(package_name="promptboosting", prog_name="blackbox")
def main(debug: bool) -> None:
    """Text classifiers out of a language model that can only be called."""
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="blackbox: %(message)s")
    logging.captureWarnings(True)
    if not debug:
        setattr(warnings, "formatwarning", _only_message)  # noqa: B010
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal can't show is escaped


def _only_message(message: Warning | str, *_: object, **__: object) -> str:
    return str(message)
