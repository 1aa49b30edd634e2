"""The help of a command: options in groups, the common ones by `--help`, all by `--help-all`.

Every command ends its help with one example.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from blackbox.cli.settings import SETTINGS, addresses_in, defaults_of
from blackbox.errors import MissingColumnError

__all__ = ["GROUPS", "SHOW_ALL", "Command", "Group", "Option", "option"]

F = TypeVar("F", bound=Callable[..., Any])

GROUPS = (
    "Server",
    "Requests",
    "Logs and traces",
    "Data",
    "Language model",
    "Prompts",
    "Learning",
    "Limits and cost",
    "Cluster",
    "Output",
    "Help",
)
"""The groups of options, in their order in the help."""

SHOW_ALL = "blackbox.cli.help"
"""Where a context's `meta` says that advanced options are shown too."""

_NAME_WIDTH = 30  # a longer name stands on a line of its own


class Option(click.Option):
    """An option of one group.

    Parameters
    ----------
    group : str
        One of `GROUPS`.
    advanced : bool
        Whether only `--help-all` shows it.
    """

    def __init__(self, *args: Any, group: str, advanced: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group
        self.advanced = advanced

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the value of the environment variable with the option's long name, if set."""
        name = max(self.opts, key=len).strip("-").replace("-", "_").upper()
        return os.environ.get(f"{ctx.auto_envvar_prefix}_{name}") or None


def option(*names: str, group: str, advanced: bool = False, **settings: Any) -> Callable[[F], F]:
    """Add an option to a command; `settings` are those of `click.option`."""
    return click.option(*names, cls=Option, group=group, advanced=advanced, **settings)


class _WithExample(click.Command):
    """A command whose help ends with an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        with formatter.section("Example"):
            formatter.write_text(f"\b\n{self.example}")  # \b: lines are not wrapped


class Command(_WithExample):
    """A command whose help shows its options by group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        show_all = Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_all_help,
            group="Help",
            hidden=not any(getattr(param, "advanced", False) for param in self.params),
            help="Show this message with all options and exit.",
        )
        self.params = [*self.params, show_all]

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Return the context of a call, whose defaults are the project's settings."""
        path, settings = parent.meta.get(SETTINGS, ("", {})) if parent else ("", {})
        defaults = defaults_of(self, (*_names(parent), str(info_name)), settings)
        ctx = super().make_context(info_name, args, parent, default_map=defaults, **extra)
        taken = [
            max(param.opts, key=len)
            for param in self.params
            if ctx.get_parameter_source(str(param.name)) is ParameterSource.DEFAULT_MAP
        ]
        if taken and not ctx.resilient_parsing:
            named = {max(param.opts, key=len): str(param.name) for param in self.params}
            where = addresses_in({named[one]: defaults[named[one]] for one in taken})
            sent = f" ({', '.join(where)})" if where else ""
            click.echo(f"from {path}: {' '.join(taken)}{sent}", err=True)
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error about a column names the option for it."""
        try:
            return super().invoke(ctx)
        except MissingColumnError as error:
            for name, value in ctx.params.items():
                named = value if isinstance(value, tuple) else (value,)
                if error.column in named and name.endswith(("_column", "_columns", "fill")):
                    option = name.removesuffix("s").replace("_", "-")
                    error.args = (f"{error}; name the right one with --{option}",)
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        shown: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None or isinstance(param, click.Argument):
                continue
            if ctx.meta.get(SHOW_ALL) or not getattr(param, "advanced", False):
                shown[getattr(param, "group", "Help")].append(record)  # click's own --help
        names = [name for records in shown.values() for name, _ in records]
        width = max(len(name) for name in names if len(name) <= _NAME_WIDTH)
        for group, records in shown.items():
            if records:
                with formatter.section(group):
                    # names of one width, so that the texts of all groups are aligned
                    formatter.write_dl([(f"{name:<{width}}", text) for name, text in records])


class Group(_WithExample, click.Group):
    """A command of commands."""

    command_class = Command


def _names(ctx: click.Context | None) -> tuple[str, ...]:
    """Return the names of the groups around a command, without the program's own."""
    if ctx is None or ctx.parent is None:
        return ()
    return (*_names(ctx.parent), str(ctx.info_name))


def _print_all_help(ctx: click.Context, param: click.Parameter, is_asked: bool) -> None:
    if is_asked and not ctx.resilient_parsing:
        ctx.meta[SHOW_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()
