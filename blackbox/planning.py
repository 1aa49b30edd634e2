"""Cost estimates before a run: forward passes, tokens, time and money, by a dry run of `fit`.

A plan goes through the same steps as the run, over a backend that sends nothing: cached answers
come from the store, and all other requests are only counted. So the number of forward passes is
exact.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.requests import render_requests
from blackbox.backend import BaseBackend
from blackbox.fitting.evidence import read_training_vectors, reads_embeddings
from blackbox.fitting.inputs import TrainingRows
from blackbox.fitting.options import FitOptions
from blackbox.fitting.run import Run, usable_top_k
from blackbox.generation import candidates
from blackbox.generation.prefix_costs import cached_share
from blackbox.lm.prices import price_of, rate_of
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Example
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    Draws,
    EmbeddingParts,
    Embeddings,
    RenderedPrompt,
    TimeEstimate,
    TokenLogProbs,
)
from blackbox.spending import CACHED_FROM

__all__ = ["DryRunBackend", "Plan", "plan", "probe_seconds"]

_PROBED_TEXTS, _PROBED_PROMPTS, _PROBED_VECTORS = 4, 8, 16
_SAMPLE = 200  # texts whose tokens are counted where prompts are still to be chosen
_ESTIMATE_ERROR = 0.15  # share by which `estimate_tokens` may be off, in Latin letters
_SECONDS_ERROR = 1.5  # factor by which the time of an API's requests may be off
# seconds of boosting and calibration with 1,000 rows, and the exponent of their growth with rows
# (docs/performance.md); and of all else that a training does, such as its baseline
_BOOSTING, _GROWTH, _BESIDE = 1.3, 0.6, 1.0
_PROBE = "a short probe"


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


class DryRunBackend(BaseBackend):
    """A backend for dry runs: it answers from the store, and counts all other requests.

    Parameters
    ----------
    backend : BaseBackend
        The backend of the run.

    Attributes
    ----------
    needs_unknown_answers : bool
        Whether an answer was requested that the store doesn't have.
    calls : list of list of RenderedPrompt
        What the LM will be asked in each call; a prompt as often as it is drawn from.
    """

    def __init__(self, backend: BaseBackend) -> None:
        self.backend = backend
        self.identity = backend.identity
        self.limits = replace(backend.limits, max_score_ids=0)
        self.needs_unknown_answers = False
        self.calls: list[list[RenderedPrompt]] = []
        self.known = 0
        # before and after the first made-up answer, as such answers may choose prompts
        self.asked = [0, 0]
        self.tokens = [0, 0]
        # of long prompts: what an API may read from a prefix cache, and all of their tokens
        self.cached = self.long = 0
        self.price = price_of(rate_of(self.identity, self.limits))
        self.first: RenderedPrompt | None = None
        self._seen: set[RenderedPrompt] = set()

    @property
    def times_paid(self) -> int:
        """The times a prompt's tokens are paid for: an LM that is sampled may be paid per draw."""
        return 1 if self.limits.draws_at_once else self.limits.draws_per_prompt

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield all answers in one part, so that one call is one step of the run."""
        yield list(range(len(prompts))), self.next_token(prompts, top_k)

    def count_tokens(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the counts of the LM's own tokenizer."""
        return self.backend.count_tokens(prompts)

    def next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> TokenLogProbs:
        """Return the stored answers, and made-up ones for the rest."""
        chosen_by = int(self.needs_unknown_answers)
        if prompts and self.first is None:
            self.first = prompts[0]
        known = self.backend.known_rows(prompts, top_k)
        ids = np.full((len(prompts), top_k), NO_TOKEN, np.int32)
        values = np.full((len(prompts), top_k), -np.inf, np.float32)
        # no two alike: identical answers would be taken for duplicate prompts
        made_up = [zlib.crc32(repr(prompt).encode("utf-8", "surrogatepass")) for prompt in prompts]
        ids[:, 0], values[:, 0] = np.array(made_up, np.int64) >> 1, 0.0
        names = dict.fromkeys(ids[:, 0].tolist(), b"")
        if known:
            answers = self.backend.next_token([prompts[row] for row in known], top_k)
            ids[known], values[known] = answers.token_ids, answers.log_probs
            names |= answers.token_bytes
        there = set(known)
        missing = self._not_seen([p for row, p in enumerate(prompts) if row not in there])
        self.calls.append(missing)
        self.known += len(prompts) - len(missing)
        self.needs_unknown_answers |= len(there) < len(prompts)
        self.asked[chosen_by] += len(missing) * self.limits.passes_per_prompt
        tokens, times = self.tokens_of(missing), self.times_paid
        self.tokens[chosen_by] += sum(tokens) * times
        if self.price is not None and self.price.cached_share < 1 and not chosen_by:
            shares = zip(tokens, cached_share(missing), strict=True)
            cached = (int(n * share) for n, share in shares)
            self.cached += sum(n for n in cached if n >= CACHED_FROM) * times
            self.long += sum(n for n in tokens if n >= CACHED_FROM) * times
        return TokenLogProbs(ids, values, names)

    def generate(
        self,
        prompts: Sequence[RenderedPrompt],
        n: int = 1,
        *,
        max_tokens: int = 32,
        temperature: float = 1.0,
        seed: int = 0,
        first: int = 0,
    ) -> Draws:
        """Return the stored texts; the others are empty and counted at their maximum length."""
        asked: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        known = self.backend.known_draws(prompts, first + n, **asked)
        texts = [[""] * n for _ in prompts]
        if known:
            some_prompts = [prompts[row] for row in known]
            drawn = self.backend.generate(some_prompts, n, first=first, **asked)
            for row, some in zip(known, drawn.texts, strict=True):
                texts[row] = some
        self.known += len(known) * n
        missing = [prompt for row, prompt in enumerate(prompts) if row not in set(known)]
        self.needs_unknown_answers |= bool(missing)
        self.asked[0] += len(missing) * n * max(max_tokens, self.limits.tokens_written)
        times = 1 if self.limits.draws_at_once else n
        self.calls.append(missing * times)
        self.tokens[0] += sum(self.tokens_of(missing)) * times
        return Draws(texts)

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield the stored vectors, and made-up ones for the rest, in one part."""
        known = self.backend.known_embeddings(texts)
        there = set(known)
        vectors = _made_up_vectors(texts, self.limits.embedding_size)
        if known:
            vectors[known] = self.backend.embed([texts[row] for row in known]).vectors
        prompts = [RenderedPrompt(text) for row, text in enumerate(texts) if row not in there]
        new = self._not_seen(prompts)
        self.known += len(texts) - len(new)
        self.needs_unknown_answers |= bool(prompts)
        self.calls.append(new)
        # vectors choose no prompts
        self.asked[0] += len(new)
        self.tokens[0] += sum(self.tokens_of(new))
        yield list(range(len(texts))), Embeddings(vectors)

    def _not_seen(self, missing: Sequence[RenderedPrompt]) -> list[RenderedPrompt]:
        """Return those that will be paid for: repeated ones once, where the LM sees to that."""
        if not self.limits.deduplicates:
            return list(missing)
        new = [prompt for prompt in dict.fromkeys(missing) if prompt not in self._seen]
        self._seen.update(new)
        return new

    def tokens_of(self, prompts: Sequence[RenderedPrompt]) -> list[int]:
        """Return the number of tokens of each prompt as it is sent: counted, or estimated.

        Of several questions about one text, the first one has the tokens of the text where that is
        sent once for all of them.
        """
        if self.limits.counts_tokens:
            return self.count_tokens(prompts)
        shortened, sent = [], set()
        for prompt in prompts:
            is_known = prompt.question is not None and (prompt.text, prompt.image) in sent
            is_known &= self.limits.shares_prefixes
            shortened.append(replace(prompt, text=None, image=None) if is_known else prompt)
            sent.add((prompt.text, prompt.image))
        return self.backend.estimate_tokens(shortened)


def _made_up_vectors(texts: Sequence[str], size: int) -> NDArray[np.float32]:
    """Return a vector of norm 1 per text, the same one each time, no two alike."""
    seeds = [zlib.crc32(text.encode("utf-8", "surrogatepass")) for text in texts]
    values = [np.random.default_rng(seed).standard_normal(size) for seed in seeds]
    return Embeddings.of(np.array(values).reshape(len(texts), size)).vectors


def probe_seconds(
    lm: BaseBackend, pool: PromptPool, texts: Sequence[Example], top_k: int
) -> float | None:
    """Return the mean seconds of a few forward passes; None where they may cost money."""
    price = price_of(rate_of(lm.identity, lm.limits))
    if price is None or price.input or price.output:
        return None
    some = pool[:_PROBED_PROMPTS]
    usage = lm.next_token(render_requests(lm, some, texts[:_PROBED_TEXTS]).requests, top_k).usage
    return usage.seconds_lm / usage.passes_made if usage.passes_made else None


def _seconds_of_vectors(
    dry_run: DryRunBackend, embedder: BaseBackend, texts: Sequence[Example]
) -> float:
    """Return the time of all vectors: of a few, or by the backend's estimate if they may cost."""
    if not sum(dry_run.asked):
        return 0.0
    price = price_of(rate_of(embedder.identity, embedder.limits))
    if price is None or price.input:
        return _estimated_seconds(dry_run).seconds or 0.0
    some = [text for text, _ in texts[:_PROBED_VECTORS]]
    started = time.perf_counter()
    embedder.embed(some)
    return sum(dry_run.asked) * (time.perf_counter() - started) / len(some)


def _estimated_seconds(dry_run: DryRunBackend) -> TimeEstimate:
    """Return the backend's own estimate for all calls of a dry run."""
    return dry_run.backend.estimate_seconds(dry_run.calls, sum(dry_run.tokens))


def _seconds_of_training(n_rows: int) -> float:
    """Return about how long boosting, calibration and the baseline take."""
    return _BESIDE + _BOOSTING * float((n_rows / 1000) ** _GROWTH)


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
    pool, choice, _ = run.choose(rng)
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
    seconds_beside = seconds_loading + rows.n_models * _seconds_of_training(len(rows.texts))
    if embedder_probe is not None and others and not others[-1].limits.max_top_k:
        seconds_beside += _seconds_of_vectors(others[-1], embedder_probe, rows.texts)
    if dry_writer is not None:
        seconds_beside += _estimated_seconds(dry_writer).seconds or 0.0
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
    first, last = dry_run.tokens
    limits = dry_run.limits
    tokens = (first + last,) * 3
    if len(pool) > n_prompts:
        step = max(1, len(texts) // _SAMPLE)
        sample = list(texts)[::step]
        rendered = render_requests(dry_run, pool, sample).requests
        counts = np.array(dry_run.tokens_of(rendered)).reshape(len(sample), len(pool))
        means = np.sort(counts.mean(axis=0))
        each = means[:n_prompts].mean(), means.mean(), means[-n_prompts:].mean()
        later = dry_run.asked[1] / limits.passes_per_prompt * dry_run.times_paid
        low, expected, worst = (first + round(later * mean) for mean in each)
        tokens = (low, expected, worst)
    made, known = sum(dry_run.asked), dry_run.known
    # what generates prompts shares their limit, and no embedding model does
    limited = (
        made
        + known
        + sum(sum(other.asked) + other.known for other in others if other.limits.max_top_k)
    )
    if not limits.counts_tokens:
        low, expected, worst = tokens
        tokens = (
            round(low * (1 - _ESTIMATE_ERROR)),
            expected,
            round(worst * (1 + _ESTIMATE_ERROR)),
        )
    spare = max(0, max_passes - limited) if max_passes is not None else 0
    tokens = (*tokens[:2], tokens[2] + round(spare * tokens[2] / max(made, 1)))
    made += spare
    time_in_lm = _estimated_seconds(dry_run)
    seconds = None
    if seconds_per_pass is not None:
        source = _PROBE if made else "all answers are in the store"
        time_in_lm = TimeEstimate(seconds_per_pass * made, source)
        shares = [some / max(tokens[1], 1) for some in tokens]
    else:
        growth = made / max(made - spare, 1)
        shares = [1 / _SECONDS_ERROR, 1.0, _SECONDS_ERROR * growth]
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


_Three = tuple[float, float, float]


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
