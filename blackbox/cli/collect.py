"""`blackbox collect`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.cluster import ClusterOptions, cluster_options, run_on_cluster, say_job
from blackbox.cli.help import Command, option
from blackbox.cli.lm_options import LmOptions, lm_options
from blackbox.cli.options import column_options, encoding_options, format_option, json_option
from blackbox.cli.spending_options import SpendingOptions, spending_options


@click.command(
    "collect", cls=Command, example="blackbox collect prompts.txt texts/ --out answers --ray"
)
@click.argument("prompts", type=click.Path(path_type=Path))
@click.argument("data")
@option(
    "--out",
    required=True,
    metavar="FOLDER",
    group="Output",
    help="Folder of the answers, which `blackbox store import` takes.",
)
@column_options
@format_option
@encoding_options
@lm_options
@option(
    "--top-k",
    type=click.IntRange(min=1),
    metavar="K",
    group="Prompts",
    help="Number of next tokens per answer.  [default: that of the model, or 200]",
)
@spending_options
@cluster_options
@json_option
def command(
    prompts: Path,
    data: str,
    out: str,
    text_column: str,
    text_pair_column: str | None,
    image_column: str | None,
    format_: str | None,
    delimiter: str | None,
    encoding: str | None,
    lm: LmOptions,
    top_k: int | None,
    as_json: bool,
    spending: SpendingOptions,
    cluster: ClusterOptions | None,
) -> None:
    """Collect an LM's answers to PROMPTS about the texts in DATA, on a Ray cluster.

    PROMPTS is a file of prompts, or a trained model. A training or an evaluation over the same
    texts and prompts, with a store into which the answers were imported, makes no forward pass
    again. If the run is stopped or killed, the same command goes on.
    """
    from blackbox.cluster.folder import digest_of
    from blackbox.cluster.source import SourceTable
    from blackbox.model.file import model_file

    if cluster is None:
        raise click.UsageError("give --ray: a cluster, or without ADDRESS this machine")
    named = common.input_columns(text_column, text_pair_column, image_column)
    texts = tuple(column for column in named.values() if column is not None)
    prompts = model_file(prompts)
    pool, known_top_k, described, connect = _asked(prompts, lm)
    if pool[0].takes_pair != (text_pair_column is not None):
        needs = "pairs: give" if pool[0].takes_pair else "single texts: drop"
        raise click.UsageError(f"these prompts take {needs} --text-pair-column")
    if pool[0].takes_image != (image_column is not None):
        needs = "images: give" if pool[0].takes_image else "texts: drop"
        raise click.UsageError(f"these prompts take {needs} --image-column")
    k = top_k or known_top_k
    job = {
        "prompts": digest_of(prompts),
        "texts": json.dumps(texts),
        "--top-k": str(k),
    } | described
    source = SourceTable(data, texts, format_, delimiter, encoding)
    common.refuse_taken(["row_id"], source.schema.names[:-1], data, "collect")

    def work(n_actors: int) -> tuple[type, dict[str, Any]]:
        from blackbox.cluster.collector import Collector

        settings = {"pool": pool, "top_k": k, "text_columns": texts, "connect": connect(n_actors)}
        settings["image_column"] = image_column
        return Collector, settings

    finished = run_on_cluster(cluster, job, source, out, spending, work)
    say_job(finished, out, as_json)
    if not as_json:
        common.say(f"next: blackbox store import {out}")


def _asked(prompts: Path, lm: LmOptions) -> tuple[Any, int, dict[str, str], Any]:
    """Return the pool, its top k, what decides the LM, and what connects it in one of n actors."""
    from blackbox.prompts.pool import PromptPool

    if common.is_model(prompts):
        trained = common.read_trained(prompts)
        if trained.shows_examples:
            raise click.UsageError(
                f"{prompts}: its prompts show the nearest training texts, which differ from text "
                "to text: collect has none"
            )
        return (
            trained.prompts,
            trained.top_k,
            lm.described(trained, prompts),
            lambda n: partial(lm.shared_by(n).connect, trained, prompts),
        )
    pool = PromptPool.read(prompts)
    images = pool[0].takes_image
    return (
        pool,
        200,
        lm.described(),
        lambda n: partial(lm.shared_by(n).connect_alone, images=images),
    )
