"""The first steps of every training: state the task over rows and an LM, and gather answers.

`fit`, `generate_prompts` and `blackbox.planning.plan` share it; a plan goes through the same steps
over a stand-in for the LM.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.gatherer import Gatherer
from blackbox.answers.passes import Answers
from blackbox.answers.texts import raise_row_errors
from blackbox.backend import BaseBackend
from blackbox.errors import BackendError
from blackbox.experts.examples import KeptExamples
from blackbox.experts.vectors import Vectors
from blackbox.fitting.evidence import (
    can_weigh_experts,
    names_for_experts,
    shows_nearest,
)
from blackbox.fitting.inputs import TrainingRows
from blackbox.fitting.options import FitOptions
from blackbox.generation import (
    Task,
    generator_of,
    named_prompts,
    show_nearest_rows,
)
from blackbox.generation.choose import Choice, choose, choose_by_names
from blackbox.library.folder import Library
from blackbox.library.sources import (
    Sources,
)
from blackbox.lm.prices import price_of, rate_of
from blackbox.model.model import Model, Progress
from blackbox.prompts.inputs import input_kind
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import require_images

__all__ = ["FitResult", "Run", "usable_top_k"]

_log = logging.getLogger(__name__)

_DEFAULT_TOP_K = 200


def usable_top_k(lm: BaseBackend, top_k: int) -> int:
    """Return how many tokens of each answer can be read; logs where they are fewer than asked.

    Raises
    ------
    BackendError
        If the LM gives no log-probabilities.
    """
    most = lm.limits.max_top_k
    if most < 1:
        raise BackendError(f"{lm!r} gives no log-probabilities (max_top_k={most})")
    if top_k > most:
        _warn_of_lowered(top_k, most)
    return min(top_k, most)


@functools.cache  # once, and not for each fit of a cross-validation
def _warn_of_lowered(top_k: int, most: int) -> None:
    # nobody asked for the default, and most APIs give fewer
    level = logging.INFO if top_k == _DEFAULT_TOP_K else logging.WARNING
    _log.log(level, "top_k=%d lowered to %d: the backend gives no more", top_k, most)


class Run:
    """The first steps of `fit`, `plan` and `generate_prompts`: state the task over rows and an LM.

    Parameters
    ----------
    rows : TrainingRows
        The rows.
    lm : BaseBackend
        The LM, behind its store and its budget, or a stand-in.
    top_k : int
        Next tokens to read of each answer.
    options : FitOptions
        How to train.
    writer : BaseBackend, optional
        The LM that writes prompts, where it is another.
    progress : callable, optional
        Called with (stage, done, total).
    """

    def __init__(
        self,
        rows: TrainingRows,
        lm: BaseBackend,
        top_k: int,
        options: FitOptions,
        writer: BaseBackend | None = None,
        progress: Progress | None = None,
    ) -> None:
        if input_kind(rows.texts[0][1]) == "image":
            require_images(lm.limits)
        self.rows, self.options = rows, options
        self.prompts = options.prompts
        self.prefix_price = _prefix_price(lm)
        self.sources = self._sources(lm)
        self.gatherer = Gatherer(lm, rows.texts, top_k, progress, writer, self._raise_refused)
        self.names = Gatherer(lm, names_for_experts(rows, options), top_k)
        self.names.are_candidates = True  # a refused name is no reason to stop
        self.unlabelled = Gatherer(lm, rows.unlabelled, top_k, progress)
        self.unlabelled.are_candidates = True  # nor is a text that isn't trained on
        self.outside = Gatherer(lm, rows.outside, top_k, progress)
        self.outside.are_candidates = True
        self.task = Task(
            rows.texts,
            rows.codes,
            options.balanced(rows.codes, rows.weights),
            options.names(rows.classes),
            options.task,
            lm.limits,
            lm.count_tokens if lm.limits.counts_tokens else None,
            rows.groups,
            self.sources.prompts(),
            options.prompt_languages(rows.texts, lm.limits.languages),
        )

    @property
    def chooses_prompts(self) -> bool:
        """Whether prompts are chosen among built-in or generated ones, and not named."""
        return self.options.prompts is None or generator_of(self.options.prompts) is not None

    def _sources(self, lm: BaseBackend) -> Sources:
        """Return the models of other tasks to start from."""
        folder = self.options.library
        if folder is None:
            return Sources()
        boosting = self.options.boosting(self.rows.classes)
        if not boosting.algorithm.uses_experts:
            raise ValueError(
                f"a library has nothing for {boosting.algorithm.name}, which weighs no experts: "
                "train with logit"
            )
        sources = Sources.of(Library.read(folder), lm.identity, self.rows.texts)
        for name, why in sources.refused.items():
            _log.warning("%s: the source %r is not used: %s", folder, name, why)
        if self.rows.is_labelled and not can_weigh_experts(self.rows, self.options):
            _log.warning(
                "%s: no source is used: there are too few labels, to weigh them by",
                folder,
            )
            return Sources(refused=sources.refused)
        return sources

    def name_answers(self, pool: PromptPool) -> Answers | None:
        """Return the answers to the names of the classes, under the prompts that sources read.

        None where there is no source, names aren't used, or one was refused.
        """
        shared = self.sources.shared(pool)
        if shared is None or not self.names.texts:
            return None
        answers = self.names.answers(shared)
        return None if answers.row_errors else answers

    def unlabelled_answers(self, pool: PromptPool) -> Answers | None:
        """Return the answers to texts without labels; None where there are none."""
        if not self.rows.unlabelled:
            return None
        answers = self.unlabelled.answers(pool, stage="texts without labels")
        kept = [row for row in range(len(self.rows.unlabelled)) if row not in answers.row_errors]
        return answers.take_rows(np.array(kept, int)) if kept else None

    def outside_answers(self, pool: PromptPool) -> Answers | None:
        """Return the answers to texts of none of the classes; None where there are none."""
        if not self.rows.outside:
            return None
        return self.outside.answers(pool, stage="texts of none of the classes")

    def kept_rows(
        self, answers: Answers, vectors: Vectors | None
    ) -> tuple[NDArray[np.bool_], dict[int, str]]:
        """Return which rows got all their answers, and the reasons of the others.

        Raises
        ------
        RowError
            On rows that the LM or the embedding model refuses, under ``on_row_error="raise"``, or
            if a class has none left.
        """
        rows = self.rows
        unanswered = answers.row_errors | (vectors.row_errors if vectors else {})
        refused = {int(rows.positions[place]): why for place, why in unanswered.items()}
        raise_row_errors(refused, self.options.on_row_error)
        row_errors = rows.row_errors | refused
        kept = np.array([place not in unanswered for place in range(len(rows.texts))], bool)
        rows.check_classes(kept, row_errors)
        return kept, row_errors

    def with_library_prompts(self, pool: PromptPool) -> PromptPool:
        """Return a pool with further prompts, of the sources that fit the task best."""
        if not self.options.library_prompts or not self.sources.models:
            return pool
        answers, names = self.gatherer.answers(pool), self.name_answers(pool)
        kept = np.array(
            [n for n in range(len(self.rows.texts)) if n not in answers.row_errors], int
        )
        codes, weights = self.rows.codes[kept], self.rows.weights[kept]
        ranked = self.sources.rank(
            pool,
            answers.take_rows(kept),
            codes,
            self.options.balanced(codes, weights),
            len(self.task.names),
            names,
        )
        further = [
            prompt
            for prompt in self.sources.further_prompts(ranked, pool)
            if self.task.serves(prompt) and self.task.fits(prompt)
        ]
        return PromptPool([*pool, *further[: self.options.library_prompts]])

    def _raise_refused(self, refused: Mapping[int, str]) -> None:
        given = {int(self.rows.positions[place]): why for place, why in refused.items()}
        raise_row_errors(given, self.options.on_row_error)

    def show_nearest(
        self, vectors: Vectors | None, rng: np.random.Generator
    ) -> KeptExamples | None:
        """Fill the slots `{nearest: K}` of the prompts; return the rows that new texts are shown.

        None if no prompt has the slot.

        Raises
        ------
        ValueError
            If one has it, and there are no embeddings or too few rows of a class.
        """
        if not shows_nearest(self.options):
            return None
        if vectors is None:
            raise ValueError(
                "prompts with {nearest: K} find texts by sentence embeddings, and there are none: "
                "name an embedding model (embeddings=, --embeddings)"
            )
        pool = named_prompts(self.options.prompts)
        assert pool is not None
        self.prompts, kept = show_nearest_rows(pool, self.task, vectors.values, rng)
        return kept

    def choose(self, rng: np.random.Generator) -> Choice:
        """Choose the prompts to train on; see `blackbox.generation.choose.choose`."""
        few = self.rows.has_few_labels
        if not self.rows.is_labelled or (few and generator_of(self.prompts) is None):
            return choose_by_names(
                self.prompts,
                self.unlabelled if self.rows.unlabelled else self.gatherer,
                self.task,
                self.options.boosting(self.rows.classes).label_words,
                self.options.max_prompts or self.options.n_prompts,
                self.options.n_screening_rows,
            )
        return choose(
            self.prompts,
            self.gatherer,
            self.task,
            self.options.n_prompts,
            self.options.n_screening_rows,
            rng,
            prefix_price=self.prefix_price,
        )


def _prefix_price(lm: BaseBackend) -> float:
    """Return the price of a token of a cached prefix, as a share of that of any other."""
    if lm.limits.shares_prefixes:
        return 0.0
    price = price_of(rate_of(lm.identity, lm.limits))
    return 1.0 if price is None else price.cached_share


@dataclass(frozen=True)
class FitResult:
    """A trained model, and what happened to the rows.

    Parameters
    ----------
    model : Model
        What was trained.
    row_errors : dict of int to str
        Rows that were left out, with the reasons.
    truncated_rows : set of int
        Rows whose text was truncated to fit the LM's context.
    """

    model: Model
    row_errors: dict[int, str]
    truncated_rows: set[int]
