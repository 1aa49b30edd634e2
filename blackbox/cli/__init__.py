"""The `blackbox` command. Errors become messages here and nowhere else in the library.

Data goes to standard output, everything else to standard error. Exit codes: 0 success, 1 an error,
in one line, 2 wrong usage, 3 a budget is used up, 130 interrupted by Ctrl-C, 141 the reader of
standard output is gone.
"""

from __future__ import annotations

import importlib
import io
import logging
import shlex
import sys
import warnings
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from blackbox.cli.help import Group
from blackbox.cli.messages import SignedLines, signed_warning
from blackbox.cli.settings import FILE, SETTINGS, check_settings, read_settings, refuse_code
from blackbox.cli.streams import flush_output, watch_streams
from blackbox.errors import BlackboxError, BudgetError, UnknownPriceError

__all__ = ["main"]

EXIT_BUDGET = 3
"""The exit code of a command that stopped at a budget."""

EXIT_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C stopped, as shells have it."""


_COMMANDS = {
    "quickstart": "Train and evaluate a classifier on bundled sample data.",
    "train": "Train a classifier on a table of labelled texts.",
    "plan": "Estimate the cost of a training: forward passes, tokens, time, money.",
    "predict": "Predict the labels of the texts in a table.",
    "collect": "Collect a language model's answers about a table, on a cluster.",
    "suggest": "Suggest which texts of a table to label next.",
    "evaluate": "Evaluate a model: accuracy, calibration, confusion matrix.",
    "inspect": "Show a model's prompts and weak learners, or explain a prediction.",
    "report": "Write an HTML report or a model card.",
    "serve": "Serve models over HTTP.",
    "push": "Push a model to the Hugging Face hub.",
    "prompts": "Generate, show and merge pools of prompts.",
    "probe": "Probe a language model: log-probabilities, limits, price, speed.",
    "merge": "Merge two models of the same classes, without the language model.",
    "library": "Keep models of earlier tasks, from which the training of others starts.",
    "models": "List and download language models.",
    "store": "Manage the store, which caches a language model's answers.",
}


class _Commands(Group):
    """A group that imports a command on use, so that `--help` is fast; errors become one line."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watch_streams()
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            if not end.code:
                flush_output()
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = get_close_matches(args[0], _COMMANDS, 1)
        if near and near[0] != args[0]:  # click knows only commands that were imported
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

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
            again = _command_line(["blackbox", *sys.argv[1:]])
            kept = "no answer was stored. To start anew"
            if (where := _kept_in(ctx)) is not None:
                kept = f"{where}. To continue"
            click.echo(f"blackbox: {error}; {kept}, raise the budget in: {again}", err=True)
            sys.exit(EXIT_BUDGET)
        except UnknownPriceError as error:
            raise click.UsageError(str(error)) from error
        except (BlackboxError, ValueError, TypeError) as error:
            # our own, or wrong arguments; anything else is a bug and keeps its traceback
            if ctx.params.get("debug"):
                raise
            self._stop(str(error))
        except BrokenPipeError as error:
            # click would end without a word; standard output is the matter of `watch_streams`
            logging.getLogger(__name__).debug("broken pipe", exc_info=True)
            self._stop(
                f"another process or a server closed its end while this command wrote to it "
                f"({error}); run it again, or see with --debug where it was"
            )
        except KeyboardInterrupt:
            click.echo(f"blackbox: interrupted{_what_is_kept(ctx)}", err=True)
            sys.exit(EXIT_INTERRUPTED)

    @staticmethod
    def _stop(message: str) -> None:
        from blackbox.model.display import printable

        one_line = " ".join(printable(line) for line in message.splitlines())
        click.echo(f"blackbox: {one_line}", err=True)
        sys.exit(1)


@click.group(
    cls=_Commands,
    example="blackbox train messages.csv --out messages.blackbox",
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "BLACKBOX"},
)
@click.option("--debug", is_flag=True, help="Log details, and show the traceback of an error.")
@click.option(
    "--settings",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help=f"File of default options.  [default: {FILE}, if the current folder has one]",
)
@click.version_option(package_name="promptboosting", prog_name="blackbox")
@click.pass_context
def main(ctx: click.Context, debug: bool, settings: Path | None) -> None:
    """Train text classifiers from a few labelled texts and a black-box language model.

    An option can also be set by an environment variable, such as BLACKBOX_SERVE_PORT for the
    --port of serve, or in a file of settings.
    """
    level = logging.DEBUG if debug else logging.WARNING
    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(SignedLines())
    logging.basicConfig(level=level, handlers=[shown])
    logging.captureWarnings(True)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    if not debug:
        setattr(warnings, "formatwarning", signed_warning)  # noqa: B010
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals without UTF-8
    if settings is not None or Path(FILE).is_file():
        path = settings or Path(FILE)
        found = read_settings(path)
        check_settings(path, found, _all_commands(ctx))
        if settings is None:
            refuse_code(path, found)
        ctx.meta[SETTINGS] = (path, found)


def _all_commands(ctx: click.Context) -> dict[str, click.Command]:
    """Return every command by its name, those of a group as ``"store prune"``."""
    found: dict[str, click.Command] = {}
    for name in _COMMANDS:
        command = ctx.command.get_command(ctx, name)  # type: ignore[attr-defined]
        inner = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {one}": inner[one] for one in inner} or {name: command}
    return found


def _command_line(words: list[str]) -> str:
    """Return words as the user's shell takes them."""
    if sys.platform == "win32":
        import subprocess

        return subprocess.list2cmdline(words)
    return shlex.join(words)


def _what_is_kept(ctx: click.Context) -> str:
    """Return what an interrupted command leaves, for its message."""
    from blackbox.cli.options import STORE

    if STORE not in ctx.meta:
        return ""
    if (where := _kept_in(ctx)) is None:
        return "; no answer was stored"
    return f"; {where}, and the same command goes on from there"


def _kept_in(ctx: click.Context) -> str | None:
    """Return what a command that ends early leaves to go on from; None if there is nothing."""
    from blackbox.cli.options import JOB_FOLDER, STORE
    from blackbox.lm.client import find_store

    if JOB_FOLDER in ctx.meta:
        return f"the rows that are done are in {ctx.meta[JOB_FOLDER]}"
    if find_store(ctx.meta.get(STORE, False)) is None:
        return None
    return "the answers so far are in the store"
