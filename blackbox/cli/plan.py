"""`blackbox plan`."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.cluster import ClusterOptions, cluster_options
from blackbox.cli.continuing import continue_option
from blackbox.cli.help import Command, option
from blackbox.cli.lm_options import LmOptions
from blackbox.cli.predict import check_kind
from blackbox.cli.spending_options import SpendingOptions
from blackbox.cli.train import describe_range, show_plan
from blackbox.cli.training_options import training_options
from blackbox.plurals import counted
from blackbox.progress import duration

_SAMPLE = 200


@click.command("plan", cls=Command, example="blackbox plan messages.csv")
@option(
    "--predict",
    "model_path",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    group="Data",
    help="Estimate the prediction of DATA by this model, in place of a training.",
)
@cluster_options
@continue_option
@training_options
def command(
    data: str,
    params: dict[str, Any],
    spending: SpendingOptions,
    as_json: bool,
    model_path: Path | None,
    cluster: ClusterOptions | None,
    continued_path: Path | None,
) -> None:
    """Estimate the cost of `blackbox train` on DATA: forward passes, tokens, time, money.

    An LM that is known to be free is probed with a few passes, to measure their time. The time of
    an API is that of the few requests that find out what it gives, as a training sends them too.

    With `--predict MODEL`, what its prediction of DATA takes, a file or a folder; and with `--ray`
    and `--actors`, on a cluster, and from how many rows on that takes less time.
    """
    if model_path is not None:
        _plan_prediction(data, params, model_path, cluster, as_json)
        return
    if cluster is not None:
        raise click.UsageError("--ray is for a prediction: name its model, --predict MODEL")
    show_plan(data, params, continued_path, spending, as_json)


def _plan_prediction(
    data: str,
    params: dict[str, Any],
    model_path: Path,
    cluster: ClusterOptions | None,
    as_json: bool,
) -> None:
    """Print what a prediction would take."""
    from blackbox.cluster.estimate import plan_prediction
    from blackbox.cluster.source import SourceTable
    from blackbox.tables import texts_of_rows
    from blackbox.tables.messages import public

    trained = common.read_trained(model_path, data)
    named = {name: params[name] for name in ("text_column", "text_pair_column", "image_column")}
    check_kind(trained, named["text_pair_column"], named["image_column"])
    columns = tuple(name for name in common.input_columns(**named).values() if name is not None)
    source = SourceTable(data, columns, params["format_"], params["delimiter"], params["encoding"])
    rows = list(islice(source.rows(), _SAMPLE))
    texts, unusable = texts_of_rows(
        rows, columns, source.example, image_column=named["image_column"]
    )
    usable = [
        text
        for place, text in enumerate(texts)
        if place not in unusable and all(text if isinstance(text, tuple) else (text,))
    ]
    if not usable:
        raise click.UsageError(f"{public(data)}: its first {len(rows)} rows have no text")
    lm = _lm_of(params)
    started = time.perf_counter()
    backend, embedder = lm.connect(trained, model_path), lm.connect_embedder(trained, model_path)
    plan = plan_prediction(
        trained,
        backend,
        embedder,
        usable,
        source.count_rows(),
        actors=1 if cluster is None else cluster.n_actors(),
        limit_is_shared=lm.has_rate_limit(),
        seconds_loading=time.perf_counter() - started,
    )
    if as_json:
        common.echo_json(plan.as_dict())
    else:
        _show(plan, on_cluster=cluster is not None)


def _lm_of(params: dict[str, Any]) -> LmOptions:
    embeddings = params["embeddings"]
    return LmOptions(
        params["backend"],
        params["model"],
        params["backend_option"],
        None if embeddings in ("auto", "none") else embeddings,
        params["embeddings_model"],
        params["embeddings_option"],
    )


def _show(plan: Any, *, on_cluster: bool) -> None:
    how = "counted on a sample" if plan.tokens_counted else "an estimate"
    click.echo(f"rows            {plan.rows:,}")
    click.echo(f"forward passes  {plan.passes:,}")
    click.echo(f"tokens          {describe_range(plan.tokens, '{:,}')} ({how})")
    if plan.cost is None:
        click.echo("cost            unknown: there is no price for this LM")
    else:
        cost = describe_range(plan.cost, "${:,.2f}") if plan.cost[2] else "$0"
        click.echo(f"cost            {cost} ({plan.price_source})")
    if plan.seconds_one is None:
        click.echo(f"time            unknown: {plan.seconds_source}")
        return
    click.echo(f"one process     {duration(plan.seconds_one)} ({plan.seconds_source})")
    if not on_cluster:
        return
    actors = counted(plan.actors, "actor")
    click.echo(f"{actors:<15} {duration(plan.seconds_cluster)}, with the start of a cluster")
    if plan.pays_from is None:
        click.echo("a cluster pays  never: one process is as fast (one actor, or one rate limit)")
    else:
        click.echo(
            f"a cluster pays  from about {plan.pays_from:,} rows on, with actors as fast as this "
            "process"
        )
