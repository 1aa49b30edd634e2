"""Assessment of a training: held-out quality beside baselines without an LM, and warnings.

It takes no forward pass: the held-out rows are those of the folds that calibration fits anyway, and
the baselines read the texts and the labels alone.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.training import HeldOutPredictions
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.images import Image
from blackbox.languages import common_languages
from blackbox.metrics import wilson_interval
from blackbox.model.ordered import mean_absolute_error, median_codes
from blackbox.prompts.inputs import Example, input_kind, texts_of
from blackbox.store.encoding import check_of

__all__ = [
    "LEAST_GAIN",
    "NOISE",
    "assess",
    "mean_and_error",
    "name_of_baseline",
    "tfidf_features",
    "tfidf_probabilities",
    "warnings_of",
]

NOISE = 2.0
"""Standard errors of a difference that is more than noise."""

LEAST_GAIN = 0.03
"""Share of the log-loss of the class shares below which a gain is none."""

_LEAST_FOREIGN = 0.2  # share of the texts in a language
_TEXTS_READ = 5000  # by TF-IDF for each fold, so that it takes seconds
_FEATURES = 20_000  # of each kind
_FEW_TEXTS = 1000  # for which a square matrix is smaller than their features
_C = 10.0  # inverse of the penalty, for few rows
_TINY = 1e-15
_MAX_KNOWN = 16  # baselines that are remembered: those of the folds of a cross-validation
_SHOWN = 5
_PIXELS = 12  # of each side of the small copy of an image

# probabilities by a digest of texts, labels and folds: the points of a grid search have the same
_known_tfidf: dict[bytes, NDArray[np.float64]] = {}


def assess(
    held_out: HeldOutPredictions,
    texts: Sequence[Example],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    groups: NDArray[np.intp],
    order: NDArray[np.intp] | None = None,
) -> dict[str, Any]:
    """Return how good a model is on held-out rows, beside two baselines, as JSON data.

    All figures are weighted as the training rows are. The interval is Wilson's for the effective
    number of groups. *Most frequent* predicts the most frequent class, with the class shares as
    probabilities. *TF-IDF* is a logistic regression over TF-IDF of words, word pairs and groups of
    two to five letters, fitted in the same folds; where there are images, over the pixels of small
    copies too.

    Parameters
    ----------
    held_out : HeldOutPredictions
        Predictions for rows that were not boosted on.
    texts : sequence of Example
        The n inputs that were trained on.
    y : int array of shape (n,)
        Their classes.
    sample_weight : float64 array of shape (n,)
        Their weights.
    groups : int array of shape (n,)
        Their groups.
    order : int array of shape (n_classes,), optional
        The order of the classes, where they have one: medians are predicted then.

    Returns
    -------
    dict
        `n_rows`, `accuracy`, `accuracy_low`, `accuracy_high`, `log_loss`, `most_frequent_accuracy`,
        `most_frequent_log_loss`, `tfidf_accuracy`, `tfidf_log_loss`; and `at_chance` and
        `below_tfidf`, whether the difference to these baselines is none, or more than noise. For
        images also `baseline`, ``"pixels"``; for classes with an order `mean_absolute_error`,
        `middle_class_error` (always the median class) and `tfidf_error`, in steps.
    """
    rows = held_out.rows
    labels, weight, group = y[rows], sample_weight[rows], groups[rows]
    weight = weight / weight.sum()
    by_group = np.bincount(group, weight)
    size = 1 / float((by_group**2).sum())
    right, losses = _results(held_out.probabilities, labels, order)
    accuracy = float(right @ weight)
    low, high = wilson_interval(accuracy * size, size)
    shares = np.bincount(labels, weight, minlength=held_out.probabilities.shape[1])
    share_losses = -np.log(shares[labels])
    tfidf = _tfidf_once(held_out, texts, y, sample_weight)
    tfidf_right, tfidf_losses = _results(tfidf, labels, order)
    gain, error = mean_and_error(share_losses - losses, weight, group)
    lead, noise = mean_and_error(right - tfidf_right, weight, group)
    base = float(share_losses @ weight)
    at_chance = low <= shares.max() and gain <= max(LEAST_GAIN * base, NOISE * error)
    return {
        "n_rows": len(rows),
        "accuracy": round(accuracy, 4),
        "accuracy_low": round(low, 4),
        "accuracy_high": round(high, 4),
        "log_loss": round(float(losses @ weight), 4),
        "most_frequent_accuracy": round(float(shares.max()), 4),
        "most_frequent_log_loss": round(base, 4),
        "tfidf_accuracy": round(float(tfidf_right @ weight), 4),
        "tfidf_log_loss": round(float(tfidf_losses @ weight), 4),
        "at_chance": bool(at_chance),
        "below_tfidf": bool(lead < -NOISE * noise),
        **_errors_in_steps(held_out.probabilities, tfidf, shares, labels, weight, order),
    } | name_of_baseline(texts)


def name_of_baseline(texts: Sequence[Example]) -> dict[str, str]:
    """Return what a summary calls the baseline where it isn't TF-IDF."""
    return {"baseline": "pixels"} if input_kind(texts[0][1]) == "image" else {}


def warnings_of(
    held_out: dict[str, Any] | None,
    texts: Sequence[Example],
    unspelled: Sequence[Any],
    known_languages: Sequence[str],
) -> list[str]:
    """Return what a user should know about a training, one line each.

    Parameters
    ----------
    held_out : dict or None
        The result of `assess`.
    texts : sequence of Example
        The inputs that were trained on.
    unspelled : sequence
        Labels whose name no token spells, and for which no label word was given.
    known_languages : sequence of str
        The languages that the LM knows, by their ISO 639 codes; empty where that isn't known.
    """
    lines = []
    found = common_languages([text for text, _ in texts]) if known_languages else {}
    foreign = {language: found[language] for language in found if language not in known_languages}
    other = "another LM" if not foreign else "an LM that knows the language"
    advice = f"prompts generated for the task (prompts auto), more labels, {other}"
    if not texts or input_kind(texts[0][1]) != "image":
        advice += ", or embeddings"
    if held_out and held_out["at_chance"]:
        lines.append(
            f"on held-out rows this model can't be told from chance (accuracy "
            f"{held_out['accuracy']:.1%}, always the most frequent class "
            f"{held_out['most_frequent_accuracy']:.1%}); check the labels, and try {advice}"
        )
    if held_out and held_out["below_tfidf"]:
        words = held_out.get("baseline", "TF-IDF")
        lines.append(
            f"on held-out rows this model (accuracy {held_out['accuracy']:.1%}) is clearly worse "
            f"than {words} with a logistic regression ({held_out['tfidf_accuracy']:.1%}), which "
            f"needs no LM; try {advice}, or use that"
        )
    for language, share in foreign.items():
        lines.append(
            f"{share:.0%} of the texts are in the language {language!r}, which this LM hardly "
            f"knows (it knows {', '.join(map(repr, known_languages))}); try a multilingual LM and "
            "multilingual embeddings"
        )
    if len(unspelled):
        some = ", ".join(map(reprlib.repr, unspelled[:_SHOWN]))
        more = f" and {len(unspelled) - _SHOWN} more" if len(unspelled) > _SHOWN else ""
        lines.append(
            f"no token that was read spells {some}{more}, so the name of the class is no evidence; "
            "give a usual word for it (--label-word LABEL=WORD, label_words)"
        )
    return lines


def _errors_in_steps(
    probabilities: NDArray[np.float64],
    tfidf: NDArray[np.float64],
    shares: NDArray[Any],
    labels: NDArray[np.intp],
    weight: NDArray[np.float64],
    order: NDArray[np.intp] | None,
) -> dict[str, float]:
    """Return the mean absolute errors of a model and of baselines, of classes with an order."""
    if order is None:
        return {}
    middle = np.tile(np.asarray(shares, np.float64), (len(labels), 1))
    given = {
        "mean_absolute_error": probabilities,
        "middle_class_error": middle,
        "tfidf_error": tfidf,
    }
    return {
        name: round(mean_absolute_error(labels, median_codes(one, order), order, weight), 4)
        for name, one in given.items()
    }


def _results(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.intp],
    order: NDArray[np.intp] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each row whether the prediction is right, and its log-loss."""
    found = probabilities.argmax(axis=1) if order is None else median_codes(probabilities, order)
    right = (found == labels).astype(np.float64)
    given = probabilities[np.arange(len(labels)), labels]
    return right, -np.log(np.maximum(given, _TINY))


def mean_and_error(
    values: NDArray[np.float64], weight: NDArray[np.float64], groups: NDArray[np.intp]
) -> tuple[float, float]:
    """Return the mean of rows under weights that sum to 1, and its standard error over groups."""
    mean = float(values @ weight)
    deviations = np.bincount(groups, (values - mean) * weight)
    return mean, float(np.sqrt((deviations**2).sum()))


def _tfidf_once(
    held_out: HeldOutPredictions,
    texts: Sequence[Example],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return what `_tfidf` does, remembered within a process."""
    folds = [rows for fold in held_out.folds for rows in fold]
    sizes = held_out.probabilities.shape[1], [len(rows) for rows in folds]
    arrays = (y, sample_weight, held_out.rows, *folds)
    form = repr((sizes, list(texts))).encode("utf-8", "surrogatepass")
    key = check_of(form, *(array.tobytes() for array in arrays))
    found = _known_tfidf.get(key)
    if found is None:
        found = _known_tfidf[key] = _tfidf(held_out, texts, y, sample_weight)
        for old in list(_known_tfidf)[:-_MAX_KNOWN]:  # threads may fit side by side
            _known_tfidf.pop(old, None)
    return found


def _tfidf(
    held_out: HeldOutPredictions,
    texts: Sequence[Example],
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the probabilities of TF-IDF with a logistic regression, of shape (n, n_classes)."""
    rng = np.random.default_rng(0)
    n_classes = held_out.probabilities.shape[1]
    features = tfidf_features(texts, rng)
    if len(texts) <= _FEW_TEXTS and n_classes > 2:  # two classes are quick
        with one_blas_thread():
            features = _rotated(features)
    found = tfidf_probabilities(features, y, sample_weight, n_classes, held_out.folds, rng)
    return found[held_out.rows]


def tfidf_probabilities(
    features: Any,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    folds: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return the probabilities of a logistic regression in folds, 0 elsewhere: (n, n_classes)."""
    from sklearn.linear_model import LogisticRegression

    probabilities = np.zeros((len(y), n_classes))
    with one_blas_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of many classes, or too few steps: a baseline's own
        for train, test in folds:
            seen = train if len(train) <= _TEXTS_READ else rng.choice(train, _TEXTS_READ, False)
            model = LogisticRegression(C=_C, max_iter=1000, tol=1e-3)
            model.fit(features[seen], y[seen], sample_weight[seen])
            found = model.predict_proba(features[test])
            probabilities[np.ix_(test, model.classes_)] = found
    return probabilities


def tfidf_features(texts: Sequence[Example], rng: np.random.Generator) -> Any:
    """Return sparse features of inputs: TF-IDF of their texts, and the pixels of their images."""
    from scipy.sparse import csr_array, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    joined: NDArray[Any] = np.array(["\n".join(texts_of(one)) for one in texts], object)
    made = []
    if any(joined):
        # any run of letters is a word, so that no text is without one
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", **_SAME)
        letters = TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", **_SAME)
        drawn = joined if len(joined) <= _TEXTS_READ else rng.choice(joined, _TEXTS_READ, False)
        # of all folds at once, to be quick: the features know no label
        words.fit(drawn)
        letters.fit(drawn)
        made += [words.transform(joined), letters.transform(joined)]
    images = [second for _, second in texts if isinstance(second, Image)]
    if images:
        made.append(csr_array(np.stack([_pixels(image) for image in images])))
    return hstack(made).tocsr()


def _pixels(image: Image) -> NDArray[np.float64]:
    """Return the pixels of a small copy of an image, of mean 0 and norm 1 as a row of TF-IDF is."""
    small = np.asarray(image.pixels().resize((_PIXELS, _PIXELS)), np.float64).ravel()
    small -= small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), _TINY))


def _rotated(features: Any) -> NDArray[np.float64]:
    """Return sparse features (n, V) on n axes, with the same products of any two rows: (n, n).

    A regression with an L2 penalty is the same on both, as it sees nothing but these products.
    """
    values, vectors = np.linalg.eigh((features @ features.T).toarray())
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


_SAME: dict[str, Any] = {"sublinear_tf": True, "max_features": _FEATURES}
