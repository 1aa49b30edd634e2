"""`blackbox merge`."""

from __future__ import annotations

from pathlib import Path

import click

from blackbox.cli import common
from blackbox.cli.help import Command, option
from blackbox.plurals import counted

_model = click.Path(path_type=Path)


@click.command(
    "merge", cls=Command, example="blackbox merge north.blackbox south.blackbox --out both.blackbox"
)
@click.argument("one", type=_model)
@click.argument("other", type=_model)
@option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    group="Output",
    help="File of the merged model.",
)
def command(one: Path, other: Path, out: Path) -> None:
    """Merge two models of the same classes, ONE and OTHER, trained apart, without the LM.

    Scores are the means of theirs, weighted by their training rows. The merged model asks the
    prompts of both, and has no thresholds for --early-stop risk.
    """
    from blackbox.library.merging import merge_models
    from blackbox.model.file import read_model, write_model

    common.check_target(out, one, other)
    merged = merge_models(read_model(one), read_model(other))
    write_model(out, merged)
    common.say(
        f"merged over {counted(merged.summary['n_rows'], 'row')}, "
        f"{counted(len(merged.prompts), 'prompt')}; saved to "
        f"{out}; next: blackbox evaluate {out} DATA"
    )
