"""`blackbox report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.help import Command, option
from blackbox.cli.lm_options import LmOptions, lm_options
from blackbox.cli.options import FORMATS, column_options, encoding_options, labels_options
from blackbox.cli.spending_options import SpendingOptions, spending_options
from blackbox.progress import ProgressDisplay

_ENDINGS = {".html": "html", ".htm": "html", ".md": "card"}


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
    group="Output",
    help="An HTML page, or a model card for Hugging Face.  [default: by the ending of --out: .html "
    "or .md]",
)
@option(
    "--include-texts",
    is_flag=True,
    group="Output",
    help="Show the most confident errors, with their texts.",
)
@option(
    "--license",
    metavar="NAME",
    group="Output",
    advanced=True,
    help="Licence in the model card, such as mit.  [default: that of the embedded LM, if it is "
    "used]",
)
@option(
    "--language",
    "languages",
    multiple=True,
    metavar="CODE",
    group="Output",
    advanced=True,
    help="Language of the texts in the model card, such as de; can be repeated.  [default: as for "
    "--license]",
)
@column_options
@labels_options
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
    kind: str | None,
    include_texts: bool,
    license: str | None,
    languages: tuple[str, ...],
    text_column: str,
    text_pair_column: str | None,
    image_column: str | None,
    label_columns: tuple[str, ...],
    label_separator: str | None,
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
    from blackbox.cli.evaluate import labelled_rows, say_trained_on
    from blackbox.report import (
        collect_report_data,
        measure_labels,
        measure_model,
        render_card,
        render_html,
    )

    common.check_folder(out, model_path, data)
    kind = _kind_of(out, kind)
    if include_texts and data is None:
        raise click.UsageError("--include-texts requires DATA")
    trained = common.read_trained(model_path, data)
    measured = None
    if data is not None:  # a model alone needs no LM to be shown
        examples, truth = labelled_rows(
            trained,
            data,
            **common.input_columns(text_column, text_pair_column, image_column),
            label_column=label_columns,
            label_separator=label_separator,
            format=data_format,
            empty="drop",
            delimiter=delimiter,
            encoding=encoding,
        )
        client, embedder = spending.clients(
            lambda: lm.connect(trained, model_path),
            lambda: lm.connect_embedder(trained, model_path),
        )
        progress = ProgressDisplay()
        try:
            measure: Any = measure_labels if trained.several_labels else measure_model
            measured = measure(
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
    hub = hub_metadata(trained, license, languages)
    facts = collect_report_data(trained, model_path.name, measured, hub=hub)
    page = render_html(facts) if kind == "html" else render_card(facts)
    _write(out, page.encode("utf-8", "backslashreplace"))
    common.say(f"written to {out}")
    if data is not None:
        seen = trained.trained_on(examples.texts, with_sources=True)
        say_trained_on(int(seen.sum()), len(examples.texts))
        common.say_usage(client.usage)


def hub_metadata(trained: Any, licence: str | None = None, languages: tuple[str, ...] = ()) -> Any:
    """Return what the hub wants to know, as given or as the catalogue knows it."""
    import backends
    from backends.catalogue import CATALOGUE, EMBEDDING_MODELS
    from blackbox.report import HubMetadata

    known = [CATALOGUE.get((backends.of_catalogue(trained.identity) or ("", None))[1] or "")]
    if trained.embedder_identity is not None:
        found = backends.embeddings_of_catalogue(trained.embedder_identity)
        known.append(EMBEDDING_MODELS.get((found or ("", None))[1] or ""))
    lm = known[0]
    return HubMetadata(
        licence=licence or (lm.licence.lower() if lm else ""),
        base_models=tuple(model.origin for model in known if model is not None),
        languages=languages or (lm.languages if lm else ()),
    )


def _kind_of(out: Path, given: str | None) -> str:
    """Return the kind of the report, from its file's ending where none is given."""
    by_ending = _ENDINGS.get(out.suffix.lower())
    if by_ending is None and out.suffix and given is None:
        raise click.UsageError(
            f"--out {out}: a report is an HTML page (.html) or a model card (.md); give one of "
            "these endings, or --format"
        )
    if None not in (by_ending, given) and by_ending != given:
        raise click.UsageError(f"--out {out} is not the ending of --format {given}")
    return given or by_ending or "html"


def _write(out: Path, page: bytes) -> None:
    from blackbox.files import write_whole

    if out.is_file() or not out.exists():
        write_whole(out, page, click.UsageError)
        return
    try:  # a device or a pipe
        out.write_bytes(page)
    except OSError as error:
        raise click.UsageError(f"{out} can't be written: {error.strerror}") from error
