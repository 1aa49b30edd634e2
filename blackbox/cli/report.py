"""`blackbox report`."""

from __future__ import annotations

from pathlib import Path

import click

from blackbox.cli import common
from blackbox.cli.help import Command, option
from blackbox.cli.options import (
    FORMATS,
    LmOptions,
    SpendingOptions,
    column_options,
    encoding_options,
    label_column_option,
    lm_options,
    spending_options,
)
from blackbox.progress import ProgressDisplay


@click.command(
    "report",
    cls=Command,
    example="blackbox report messages.blackbox held-out.csv --out report.html",
)
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("data", required=False)
@option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    group="Output",
    help="File of the report.",
)
@option(
    "--format",
    "kind",
    type=click.Choice(["html", "card"]),
    default="html",
    show_default=True,
    group="Output",
    help="An HTML page, or a model card for Hugging Face.",
)
@option(
    "--include-texts",
    is_flag=True,
    group="Output",
    help="Show the most confident errors, with their texts.",
)
@column_options
@label_column_option
@option(
    "--data-format",
    type=click.Choice(FORMATS),
    group="Data",
    advanced=True,
    help="Format of DATA.  [default: by its file extension]",
)
@encoding_options
@lm_options
@spending_options
def command(
    model_path: Path,
    data: str | None,
    out: Path,
    kind: str,
    include_texts: bool,
    text_column: str,
    text_pair_column: str | None,
    label_column: str,
    data_format: str | None,
    delimiter: str | None,
    encoding: str | None,
    lm: LmOptions,
    spending: SpendingOptions,
) -> None:
    """Write a report about MODEL: its prompts and tokens, and with DATA its evaluation.

    The HTML page is one file that loads nothing from elsewhere. It holds no text of DATA without
    `--include-texts`.
    """
    from blackbox.answers.texts import check_texts
    from blackbox.cli.evaluate import labelled_rows
    from blackbox.model.file import read_model
    from blackbox.report import collect_report_data, measure_model, render_card, render_html

    common.check_folder(out, model_path, data)
    if include_texts and data is None:
        raise click.UsageError("--include-texts requires DATA")
    trained = read_model(model_path)
    measured = None
    if data is not None:  # a model alone needs no LM to be shown
        examples, truth = labelled_rows(
            trained,
            data,
            text_column=text_column,
            text_pair_column=text_pair_column,
            label_column=label_column,
            format=data_format,
            allow_empty=True,
            delimiter=delimiter,
            encoding=encoding,
        )
        client, embedder = spending.clients(
            lambda: lm.connect(trained, model_path),
            lambda: lm.connect_embedder(trained, model_path),
        )
        progress = ProgressDisplay()
        try:
            measured = measure_model(
                trained,
                client,
                Path(common.table_name(data)).name,
                check_texts(examples.texts),
                truth,
                embedder=embedder,
                include_texts=include_texts,
                progress=progress,
            )
        finally:
            progress.close()
    facts = collect_report_data(trained, model_path.name, measured)
    page = render_html(facts) if kind == "html" else render_card(facts)
    _write(out, page.encode("utf-8", "backslashreplace"))
    common.say(f"written to {out}")
    if data is not None:
        common.say_usage(client.usage)


def _write(out: Path, page: bytes) -> None:
    from blackbox.files import write_whole

    if out.is_file() or not out.exists():
        write_whole(out, page, click.UsageError)
        return
    try:  # a device or a pipe
        out.write_bytes(page)
    except OSError as error:
        raise click.UsageError(f"{out} can't be written: {error.strerror}") from error
