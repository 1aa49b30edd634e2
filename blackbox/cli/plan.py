"""`blackbox plan`."""

from __future__ import annotations

from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.train import show_plan, training_options


@click.command("plan", short_help="Say what a training will cost, before it costs it.")
@training_options
def command(
    data: str, params: dict[str, Any], spending: common.SpendingOptions, as_json: bool
) -> None:
    """Say what `blackbox train` with the same arguments will take: passes, tokens, time, money.

    An LM that costs nothing is asked for a few passes, to learn how long they take. Any other is
    not asked at all.
    """
    show_plan(data, params, spending, as_json)
