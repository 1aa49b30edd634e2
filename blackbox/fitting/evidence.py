"""Evidence beside the prompts in a training: embeddings of rows, class names and further texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend
from blackbox.boosting.label_words import texts_of_names
from blackbox.boosting.names_only import nearest_name
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.vectors import Vectors, read_vectors
from blackbox.fitting.inputs import TrainingRows
from blackbox.fitting.options import FitOptions
from blackbox.generation import named_prompts
from blackbox.prompts.inputs import Example, input_kind

__all__ = [
    "TrainingVectors",
    "can_weigh_experts",
    "names_for_experts",
    "read_training_vectors",
    "reads_embeddings",
    "shows_nearest",
]


def reads_embeddings(rows: TrainingRows, options: FitOptions) -> bool:
    """Return whether training reads embeddings of the rows, for prompts or for an expert.

    Images have none, as the embedding models are for texts.
    """
    if input_kind(rows.texts[0][1]) == "image":
        return False
    if not rows.is_labelled:
        return bool(names_for_experts(rows, options))
    return (
        shows_nearest(options)
        or can_weigh_experts(rows, options)
        or bool(rows.reads_names and names_for_experts(rows, options))
    )


@dataclass(frozen=True)
class TrainingVectors:
    """Embeddings of a training.

    Parameters
    ----------
    rows : Vectors
        Of the n rows.
    names : float32 array of shape (n_classes, d), optional
        Of the names of the classes; None where they are not used as label words, have no letters,
        or were refused, and for pairs of texts.
    further : float32 array of shape (m, d), optional
        Of texts without labels, where names are compared with them.
    outside : Vectors
        Of the texts of none of the classes.
    """

    rows: Vectors
    names: NDArray[np.float32] | None
    further: NDArray[np.float32] | None
    outside: Vectors

    def nearest_name(self, kept: NDArray[np.bool_]) -> EmbeddingReadout | None:
        """Return the expert that compares texts with names, where there are texts for that."""
        if self.names is None:
            return None
        texts = [self.rows.values[kept], *([] if self.further is None else [self.further])]
        return nearest_name(np.concatenate(texts), self.names)


def read_training_vectors(
    embedder: BaseBackend, rows: TrainingRows, options: FitOptions
) -> TrainingVectors:
    """Return the embeddings of the rows, of the class names, and of texts of no class."""
    names = names_for_experts(rows, options)
    further = rows.unlabelled if names and not can_weigh_experts(rows, options) else ()
    n, last = len(rows.texts), len(rows.texts) + len(names)
    end = last + len(further)
    made = read_vectors(embedder, [*rows.texts, *names, *further, *rows.outside])
    refused = any(n <= row < last for row in made.row_errors)
    named = made.values[n:last] if names and not refused else None
    rest = made.values[last:end][made.answered[last:end]]
    return TrainingVectors(made.part(0, n), named, rest if len(rest) else None, made.part(end))


def names_for_experts(rows: TrainingRows, options: FitOptions) -> list[Example]:
    """Return the names and descriptions of the classes as texts.

    None where names are not used as label words.
    """
    few = rows.is_labelled and not rows.reads_names and not can_weigh_experts(rows, options)
    if options.label_words is None or few:
        return []
    described = options.described_names(rows.classes)
    return texts_of_names(described, pair=rows.texts[0][1] is not None)


def shows_nearest(options: FitOptions) -> bool:
    """Return whether a prompt shows the training texts that are nearest to a text."""
    named = named_prompts(options.prompts)
    return named is not None and any(prompt.nearest for prompt in named)


def can_weigh_experts(rows: TrainingRows, options: FitOptions) -> bool:
    """Return whether experts can be fitted on the rows, and weighed.

    Not with an algorithm without experts, or with too few labels (`TrainingRows.has_few_labels`);
    where names don't speak for a class, not if a fold can't hold out a row of each.
    """
    boosting = options.boosting(rows.classes)
    if not boosting.algorithm.uses_experts or boosting.cv is None:
        return False
    if rows.reads_names:
        return not rows.has_few_labels
    return rows.fewest_groups >= 2
