"""Plans: what a run will take, from the counts of its dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from blackbox.answers.requests import render_requests
from blackbox.backend import BaseBackend
from blackbox.fitting.evidence import read_training_vectors, reads_embeddings
from blackbox.fitting.inputs import TrainingRows
from blackbox.fitting.options import FitOptions
from blackbox.fitting.run import Run, usable_top_k
from blackbox.generation import candidates
from blackbox.planning.dry_run import DryRunBackend
from blackbox.planning.seconds import (
    estimated_seconds,
    probe_seconds,
    seconds_of_training,
    seconds_of_vectors,
)
from blackbox.prompts.inputs import Example
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import TimeEstimate

__all__ = ["Plan", "make_plan", "plan"]

_SAMPLE = 200  # texts whose tokens are counted where prompts are still to be chosen
_ESTIMATE_ERROR = 0.15  # share by which `estimate_tokens` may be off, in Latin letters
_SECONDS_ERROR = 1.5  # factor by which the time of an API's requests may be off
_PROBE = "a short probe"

_Three = tuple[float, float, float]


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a run; triples are the low, the expected and the worst case.

    A text that an embedding model reads is one forward pass.

    Parameters
    ----------
    passes : int
        Forward passes of the run.
    passes_from_store : int
        Those whose answers are in the store.
    passes_to_make : int
        Those that will be made.
    tokens : tuple of int
        Tokens of the prompts that will be sent. An estimate has 15% on either side, which other
        scripts than Latin may exceed.
    tokens_cached : int
        Those of them that the API is likely to bill as read from its prefix cache.
    tokens_counted : bool
        Whether the LM's own tokenizer counted them; else they are an estimate.
    seconds : tuple of float or None
        Time to load the LM and the embedding model, inside them, and of the training itself; None
        where the time inside the LM is unknown.
    seconds_source : str
        What the time inside the LM is from; or why it is unknown.
    cost : tuple of float or None
        US dollars; None where the price is unknown.
    price_source : str or None
        Where that price is from.
    example : str
        One prompt as it is sent.
    example_token_ids : list of int or None
        Its token ids; None where the backend doesn't report them.
    at_most : bool
        Whether `passes` is an upper bound, as prompts are still to be generated.
    """

    passes: int
    passes_from_store: int
    passes_to_make: int
    tokens: tuple[int, int, int]
    tokens_cached: int
    tokens_counted: bool
    seconds: tuple[float, float, float] | None
    seconds_source: str
    cost: tuple[float, float, float] | None
    price_source: str | None
    example: str
    example_token_ids: list[int] | None
    at_most: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON data."""
        return asdict(self)


def plan(
    rows: TrainingRows,
    lm: BaseBackend,
    options: FitOptions,
    rng: np.random.Generator,
    *,
    writer: BaseBackend | None = None,
    embedder: BaseBackend | None = None,
    probe: BaseBackend,
    embedder_probe: BaseBackend | None = None,
    seconds_loading: float = 0.0,
) -> Plan:
    """Return the estimated cost of `fit`, by a dry run.

    Parameters
    ----------
    rows, lm, options, rng, writer, embedder
        As for `fit`.
    probe : BaseBackend
        The LM itself, for a few forward passes where they are free.
    embedder_probe : BaseBackend, optional
        The embedding model itself, for a few vectors in the same way.
    seconds_loading : float, default=0.0
        Time that it took to load them.
    """
    top_k = usable_top_k(lm, options.top_k)
    dry_run = DryRunBackend(lm)
    dry_writer = None if writer is None else DryRunBackend(writer)
    others = [] if dry_writer is None else [dry_writer]
    vectors = None
    if embedder is not None and reads_embeddings(rows, options):
        others.append(DryRunBackend(embedder))
        vectors = read_training_vectors(others[-1], rows, options).rows
    run = Run(rows, dry_run, top_k, options, dry_writer)
    run.show_nearest(vectors, rng)
    tries = candidates(run.prompts, run.task)
    chosen = run.choose(rng)
    pool, choice = chosen.pool, chosen.summary
    guessed = dry_run.needs_unknown_answers or (
        dry_writer is not None and dry_writer.needs_unknown_answers
    )
    is_open = choice["n_prompts_tried"] > len(pool) and guessed
    run.gatherer.answers(pool)
    further = 0
    if run.sources.models:
        n_names = len(run.names.texts) * (len(pool) + options.library_prompts)
        further = options.library_prompts * len(rows.texts) + n_names
    max_passes = None
    if is_open and "generation" in choice:
        max_passes = choice["generation"]["budget"] + further
    elif is_open and further:
        # the prompts that are chosen decide which ones of the library are still to be asked
        max_passes = sum(dry_run.asked) + dry_run.known + further
    pool = run.with_library_prompts(pool)
    run.gatherer.answers(pool)
    run.name_answers(pool)
    run.unlabelled_answers(pool)
    run.outside_answers(pool)
    seconds_per_pass: float | None = 0.0
    if sum(dry_run.asked):
        seconds_per_pass = probe_seconds(probe, tries, rows.texts, top_k)
    seconds_beside = seconds_loading + rows.n_models * seconds_of_training(len(rows.texts))
    if embedder_probe is not None and others and not others[-1].limits.max_top_k:
        seconds_beside += seconds_of_vectors(others[-1], embedder_probe, rows.texts)
    if dry_writer is not None:
        seconds_beside += estimated_seconds(dry_writer).seconds or 0.0
    return make_plan(
        dry_run,
        tries if is_open else pool,
        len(pool),
        rows.texts,
        seconds_per_pass,
        seconds_beside=seconds_beside,
        max_passes=max_passes,
        others=others,
    )


def make_plan(
    dry_run: DryRunBackend,
    pool: PromptPool,
    n_prompts: int,
    texts: Sequence[Example],
    seconds_per_pass: float | None,
    *,
    seconds_beside: float = 0.0,
    max_passes: int | None = None,
    others: Sequence[DryRunBackend] = (),
) -> Plan:
    """Return the plan of a finished dry run.

    Parameters
    ----------
    dry_run : DryRunBackend
        The backend of the dry run.
    pool : PromptPool
        The prompts to use, or the candidates where `n_prompts` are still to be chosen.
    n_prompts : int
        Number of prompts to use.
    texts : sequence of Example
        The texts.
    seconds_per_pass : float or None
        Result of `probe_seconds`.
    seconds_beside : float, default=0.0
        What is not spent inside the LM: loading, vectors, and the training itself.
    max_passes : int, optional
        Upper bound of the forward passes, where their number depends on answers.
    others : sequence of DryRunBackend
        The dry runs of another LM, which generates prompts, and of an embedding model.
    """
    limits = dry_run.limits
    tokens = _tokens_of(dry_run, pool, n_prompts, texts)
    made, known = sum(dry_run.asked), dry_run.known
    spare = 0
    if max_passes is not None:
        # what generates prompts shares their limit, and no embedding model does
        sharing = [other for other in others if other.limits.max_top_k]
        limited = made + known + sum(sum(other.asked) + other.known for other in sharing)
        spare = max(0, max_passes - limited)
    tokens = (*tokens[:2], tokens[2] + round(spare * tokens[2] / max(made, 1)))
    made += spare
    if seconds_per_pass is not None:
        source = _PROBE if made else "all answers are in the store"
        time_in_lm = TimeEstimate(seconds_per_pass * made, source)
        shares = [some / max(tokens[1], 1) for some in tokens]
    else:
        time_in_lm = estimated_seconds(dry_run)
        growth = made / max(made - spare, 1)
        shares = [1 / _SECONDS_ERROR, 1.0, _SECONDS_ERROR * growth]
    seconds = None
    if time_in_lm.seconds is not None:
        least, usual, most = (time_in_lm.seconds * share + seconds_beside for share in shares)
        seconds = (least, usual, most)
    cost = _cost_of(dry_run, tokens, made * limits.tokens_written)
    for other in others:
        more, written = sum(other.tokens), sum(other.asked)
        own = _cost_of(other, (more,) * 3, written if other.limits.max_top_k else 0)
        tokens = (tokens[0] + more, tokens[1] + more, tokens[2] + more)
        cost = _sums(cost, own)
        made += written
        known += other.known
    text, token_ids = "", None
    if dry_run.first:
        text, token_ids = dry_run.backend.show(dry_run.first)
    return Plan(
        passes=made + known,
        passes_from_store=known,
        passes_to_make=made,
        tokens=tokens,
        tokens_cached=dry_run.cached,
        tokens_counted=limits.counts_tokens,
        seconds=seconds,
        seconds_source=time_in_lm.source,
        cost=cost,
        price_source=None if dry_run.price is None else dry_run.price.source,
        example=text,
        example_token_ids=token_ids,
        at_most=max_passes is not None,
    )


def _tokens_of(
    dry_run: DryRunBackend, pool: PromptPool, n_prompts: int, texts: Sequence[Example]
) -> tuple[int, int, int]:
    """Return the fewest, the expected and the most tokens of what was asked in a dry run."""
    first, last = dry_run.tokens
    limits = dry_run.limits
    low, expected, worst = (first + last,) * 3
    if len(pool) > n_prompts:
        step = max(1, len(texts) // _SAMPLE)
        sample = list(texts)[::step]
        rendered = render_requests(dry_run, pool, sample).requests
        counts = np.array(dry_run.tokens_of(rendered)).reshape(len(sample), len(pool))
        means = np.sort(counts.mean(axis=0))
        each = means[:n_prompts].mean(), means.mean(), means[-n_prompts:].mean()
        later = dry_run.asked[1] / limits.passes_per_prompt * dry_run.times_paid
        low, expected, worst = (first + round(later * mean) for mean in each)
    if not limits.counts_tokens:
        low = round(low * (1 - _ESTIMATE_ERROR))
        worst = round(worst * (1 + _ESTIMATE_ERROR))
    return low, expected, worst


def _cost_of(dry_run: DryRunBackend, tokens: tuple[int, int, int], written: int) -> _Three | None:
    """Return the low, expected and worst cost of tokens read and written; None if it is unknown.

    Long prompts are expected to be read from a prefix cache as far as they begin alike, and to be
    written to it for the rest; at worst they are written in full.
    """
    price = dry_run.price
    if price is None:
        return None
    cached = dry_run.cached
    low = price.of(tokens[0], written, cached)
    expected = price.of(tokens[1], written, cached, dry_run.long - cached)
    worst = max(price.of(tokens[2], written, 0, some) for some in (0, dry_run.long))
    return low, max(low, expected), worst


def _sums(one: _Three | None, other: _Three | None) -> _Three | None:
    if one is None or other is None:
        return None
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
