"""Plots: accuracy by round, reliability diagram, confusion matrix, token weights (matplotlib).

Each function draws on the given Axes, or on a new one, and returns it. Needs the extra `plot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blackbox.errors import MissingDependencyError
from blackbox.model.display import printable, prompt_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from blackbox.model.model import Model

__all__ = ["plot_confusion", "plot_reliability", "plot_rounds", "plot_tokens", "reliability"]

_BINS = 10


def plot_rounds(accuracies: Sequence[float], ax: Axes | None = None) -> Axes:
    """Plot the accuracy after each round of boosting, from `staged_predict`.

    Parameters
    ----------
    accuracies : sequence of float
        In [0, 1], after the first round, the second and so on.
    ax : Axes, optional
        Where to draw.
    """
    ax = _axes(ax)
    ax.plot(np.arange(1, len(accuracies) + 1), accuracies)
    ax.set(xlabel="rounds", ylabel="accuracy", xlim=(1, max(2, len(accuracies))))
    return ax


def reliability(
    codes: NDArray[np.intp], probabilities: NDArray[np.float64]
) -> list[tuple[float, float, int]]:
    """Return the points of a reliability diagram: confidence, accuracy and rows of each bin.

    Confidence is the mean over the rows of a bin; empty bins are left out.

    Parameters
    ----------
    codes, probabilities
        As for `plot_reliability`.
    """
    answered = ~np.isnan(probabilities).any(axis=1)
    if not answered.any():
        return []
    given, truth = probabilities[answered], codes[answered]
    confidence, right = given.max(axis=1), given.argmax(axis=1) == truth
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    return [
        (float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum()))
        for rows in (bins == number for number in np.unique(bins))
    ]


def plot_reliability(
    codes: NDArray[np.intp], probabilities: NDArray[np.float64], ax: Axes | None = None
) -> Axes:
    """Plot a reliability diagram: accuracy by confidence; dot size is the number of rows.

    Parameters
    ----------
    codes : int array of shape (n,)
        True classes, as columns of `probabilities`.
    probabilities : float array of shape (n, n_classes)
        As from `predict_proba`; rows without an answer (NaN) are left out.
    ax : Axes, optional
        Where to draw.
    """
    ax = _axes(ax)
    ax.plot([0, 1], [0, 1], linestyle="--", linewidth=1)
    points = reliability(codes, probabilities)
    total = sum(n for _, _, n in points)
    for confidence, accuracy, n in points:
        ax.scatter(
            confidence, accuracy, s=20 + 400 * n / total, color="C0", alpha=0.7, clip_on=False
        )
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    ax.set_aspect("equal")
    return ax


def plot_confusion(
    confusion: Sequence[Sequence[int]], classes: Sequence[Any], ax: Axes | None = None
) -> Axes:
    """Plot a confusion matrix: true classes by row, predicted ones by column, shaded by row share.

    Parameters
    ----------
    confusion : sequence of sequence of int
        As in `blackbox.metrics.Evaluation`.
    classes : sequence
        The labels of rows and columns.
    ax : Axes, optional
        Where to draw.
    """
    ax = _axes(ax)
    counts = np.asarray(confusion, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_plain(name) for name in classes]
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="prediction", ylabel="truth")
    if len(names) <= 20:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            ax.text(
                column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour
            )
    return ax


def plot_tokens(model: Model, prompt: int = 0, n: int = 8, ax: Axes | None = None) -> Axes:
    """Plot the tokens of one prompt with the largest weights for and against each class.

    Parameters
    ----------
    model : Model
        A trained model, such as `PromptBoostingClassifier.model_`.
    prompt : int, default=0
        Index of the prompt.
    n : int, default=8
        Tokens per class.
    ax : Axes, optional
        Where to draw.
    """
    ax = _axes(ax)
    names, weights = [], []
    for label, tokens in prompt_tokens(model, prompt).items():
        for token, weight in tokens[:n]:
            names.append(f"{_plain(label)}: {_plain(token)}")
            weights.append(weight)
    places = np.arange(len(names))[::-1]
    ax.barh(places, weights, color=["C0" if weight > 0 else "C3" for weight in weights])
    ax.set_yticks(places, names)
    ax.axvline(0, linewidth=0.8)
    ax.set(xlabel="weight", title=_plain(model.prompts[prompt].template))
    return ax


def _plain(text: Any) -> str:
    """Return text for matplotlib, with dollar signs escaped: they would begin a formula."""
    return printable(str(text)).replace("$", r"\$")


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "plots need matplotlib: pip install 'promptboosting[plot]'"
        ) from error
    return pyplot.subplots()[1]
