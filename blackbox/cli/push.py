"""`blackbox push`."""

from __future__ import annotations

from pathlib import Path

import click

from blackbox.cli import common
from blackbox.cli.help import Command, option
from blackbox.cli.options import json_option

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("push", cls=Command, example="blackbox push messages.blackbox owner/messages")
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("name", metavar="OWNER/NAME")
@option(
    "--card",
    type=_FILE,
    metavar="FILE",
    group="Output",
    help="Model card, such as blackbox report wrote with an evaluation.  [default: one without]",
)
@option("--public", is_flag=True, group="Output", help="Anyone may see a new repository.")
@option(
    "--include-texts",
    is_flag=True,
    group="Output",
    help="Push a model that holds training texts.",
)
@option(
    "--message",
    default="Model of promptboosting",
    metavar="TEXT",
    group="Output",
    advanced=True,
    help="Message of the commit.",
)
@json_option
def command(
    model_path: Path,
    name: str,
    card: Path | None,
    public: bool,
    include_texts: bool,
    message: str,
    as_json: bool,
) -> None:
    """Push MODEL to the Hugging Face hub, with its model card: hf:OWNER/NAME.

    It is a private repository where none is there yet. To log in: `hf auth login`, or HF_TOKEN in
    the environment. `OWNER/NAME@BRANCH` is another branch.
    """
    from blackbox.cli.report import hub_metadata
    from blackbox.errors import HubError
    from blackbox.hub import push_file
    from blackbox.model.file import model_file
    from blackbox.report import collect_report_data, render_card

    trained = common.read_trained(model_path)
    if trained.held_texts and not include_texts:
        raise HubError(
            f"{model_path} holds {trained.held_texts}, which whoever may read the repository would "
            "read: --include-texts pushes them, or train a model without them"
        )
    called = "hf:" + name.removeprefix("hf:").partition("@")[0]
    if card is None:
        facts = collect_report_data(trained, called, hub=hub_metadata(trained))
        page = render_card(facts)
    else:
        page = card.read_text("utf-8", "replace")
    file = model_file(model_path)
    address, commit = push_file(file, name, page, private=not public, message=message)
    pinned = f"{called}@{commit}"
    if as_json:
        common.echo_json({"address": address, "commit": commit, "model": pinned})
        return
    common.say(f"pushed: {address}; next: blackbox predict {pinned} DATA")
