"""Languages of texts, by a detector that runs offline (py3langid, Naive Bayes over n-grams)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["count_languages"]

_MOST = 200  # texts that are looked at
_LEAST_LETTERS = 12  # a shorter text may be of many languages
_LEAST_CONFIDENCE = 0.5


def count_languages(texts: Sequence[str]) -> Counter[str] | None:
    """Return how many of some texts are in each language; None where no detector is installed.

    At most 200 texts, evenly spaced, are looked at. Short texts, and those whose language isn't
    clear, aren't counted.

    Parameters
    ----------
    texts : sequence of str
        The texts.

    Returns
    -------
    Counter of str, or None
        By ISO 639 codes, such as ``"de"``.
    """
    detector = _detector()
    if detector is None:
        return None
    found: Counter[str] = Counter()
    for text in texts[:: -(-len(texts) // _MOST) or 1]:
        if sum(map(str.isalpha, text)) >= _LEAST_LETTERS or not text.isascii():
            language, confidence = detector.classify(text)
            if confidence >= _LEAST_CONFIDENCE:
                found[language] += 1
    return found


@functools.cache  # it takes about a second to load
def _detector() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
