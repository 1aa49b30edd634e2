"""Cost estimates of a prediction: passes, tokens, money, and time, alone and on a cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from blackbox.answers.texts import check_texts
from blackbox.backend import BaseBackend
from blackbox.model.model import Model
from blackbox.planning import DryRunBackend, make_plan

__all__ = ["START_SECONDS", "PredictionPlan", "plan_prediction", "rows_from_which_it_pays"]

START_SECONDS = 20.0
"""Until the first batch of a job: workers that import, actors that start; 16 and more measured."""

_PROBED = 32  # texts that a free LM labels, to measure its time

_Three = tuple[float, float, float]


@dataclass(frozen=True)
class PredictionPlan:
    """Estimated cost of a prediction; triples are the low, the expected and the worst case.

    Parameters
    ----------
    rows, actors : int
        Rows of the table, and actors on a cluster.
    passes : int
        Forward passes, with the texts that an embedding model reads.
    tokens : tuple of float
        Tokens of the prompts.
    tokens_counted : bool
        Whether the LM's own tokenizer counted those of a sample; else they are an estimate.
    cost : tuple of float or None
        US dollars; None where the price is unknown.
    price_source : str or None
        Where that price is from.
    seconds_one, seconds_cluster : float or None
        Time in one process, and on the cluster with its start; None where it is unknown.
    seconds_source : str
        What they are from, or why they are unknown.
    pays_from : int or None
        The rows from which on the cluster takes less time; None if it never does.
    """

    rows: int
    actors: int
    passes: int
    tokens: _Three
    tokens_counted: bool
    cost: _Three | None
    price_source: str | None
    seconds_one: float | None
    seconds_cluster: float | None
    seconds_source: str
    pays_from: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON data."""
        return asdict(self)


def plan_prediction(
    model: Model,
    lm: BaseBackend,
    embedder: BaseBackend | None,
    texts: Sequence[Any],
    n_rows: int,
    *,
    actors: int,
    limit_is_shared: bool,
    seconds_loading: float = 0.0,
) -> PredictionPlan:
    """Return the estimated cost of a prediction, by a dry run over a sample of its texts.

    Parameters
    ----------
    model, lm, embedder
        As for `Model.predict`; a free LM labels some of the texts.
    texts : sequence of str or of (str, str)
        A sample.
    n_rows : int
        Rows of the table.
    actors : int
        Actors on the cluster, each as fast as this process.
    limit_is_shared : bool
        Whether a rate limit is all that bounds the rate, however many actors there are.
    seconds_loading : float, default=0.0
        Time that it took to load the LM.
    """
    examples = check_texts(texts)
    dry_run = DryRunBackend(lm)
    others = [] if embedder is None else [DryRunBackend(embedder)]
    model.predict(dry_run, examples, embedder=others[0] if others else None)
    is_free = dry_run.price is not None and not (dry_run.price.input or dry_run.price.output)
    plan = make_plan(dry_run, model.prompts, len(model.prompts), examples, None, others=others)
    share = n_rows / len(examples)
    each, source = (plan.seconds and plan.seconds[1] / len(examples)), plan.seconds_source
    if is_free:
        each, source = _seconds_per_row(model, lm, embedder, texts), "a short probe"
    one = on_cluster = pays_from = None
    if each is not None:
        one = seconds_loading + each * n_rows
        at_once = 1 if limit_is_shared else actors
        on_cluster = START_SECONDS + seconds_loading + each * n_rows / at_once
        pays_from = rows_from_which_it_pays(each, at_once)
    low, expected, high = (round(some * share) for some in plan.tokens)
    return PredictionPlan(
        n_rows,
        actors,
        round(plan.passes_to_make * share),
        (low, expected, high),
        plan.tokens_counted,
        None if plan.cost is None else _scaled(plan.cost, share),
        plan.price_source,
        one,
        on_cluster,
        source,
        pays_from,
    )


def rows_from_which_it_pays(seconds_per_row: float, actors: int) -> int | None:
    """Return how many rows take less time on a cluster, with its start, than in one process.

    Parameters
    ----------
    seconds_per_row : float
        In one process, and in each actor.
    actors : int
        That work at the same time.
    """
    saved = seconds_per_row * (1 - 1 / actors)
    return int(START_SECONDS / saved) + 1 if saved > 0 else None


def _seconds_per_row(
    model: Model, lm: BaseBackend, embedder: BaseBackend | None, texts: Sequence[Any]
) -> float:
    some = list(texts[:_PROBED])
    model.predict(lm, some[:4], embedder=embedder)  # what is loaded at the first use
    started = time.perf_counter()
    model.predict(lm, some, embedder=embedder)
    return (time.perf_counter() - started) / len(some)


def _scaled(values: _Three, share: float) -> _Three:
    low, expected, high = values
    return low * share, expected * share, high * share
