"""`blackbox plan`."""

from __future__ import annotations

from typing import Any

import click

from blackbox.cli.help import Command
from blackbox.cli.options import SpendingOptions
from blackbox.cli.train import show_plan
from blackbox.cli.training_options import training_options


@click.command("plan", cls=Command, example="blackbox plan messages.csv")
@training_options
def command(data: str, params: dict[str, Any], spending: SpendingOptions, as_json: bool) -> None:
    """Estimate the cost of `blackbox train` on DATA: forward passes, tokens, time, money.

    An LM that is known to be free is probed with a few passes, to measure their time. The time of
    an API is that of the few requests that find out what it gives, as a training sends them too.
    """
    show_plan(data, params, spending, as_json)
