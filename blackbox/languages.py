"""Languages of texts, by a detector that runs offline (py3langid, Naive Bayes over n-grams)."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["LANGUAGES", "common_languages", "count_languages", "share_of_english"]

LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "pt", "sw", "zh")
"""Languages that there are built-in prompts in, by their ISO 639 codes."""

_MOST = 200  # texts that are looked at
_LEAST_LETTERS = 12  # a shorter text may be of many languages
_LEAST_CONFIDENCE = 0.5
_LEAST_SHARE = 0.2  # of the texts, for a language that is common among them

# frequent in English, and rare in other languages in Latin letters
_ENGLISH = re.compile(
    r"\b(?:about|and|been|could|does|from|have|how|just|not|should|that|the|their|there|they|this"
    r"|were|what|when|where|which|who|why|with|would|you|your)\b",
    re.IGNORECASE,
)


def share_of_english(texts: Sequence[str]) -> float:
    """Return the share of texts with a word that is frequent in English alone, without a detector.

    Of the texts that `count_languages` looks at; 0 where it would look at none. Of English news,
    questions and reviews it is 0.8 to 1, of tweets 0.7 to 0.9, and of seven other languages up to
    0.02.
    """
    found = [bool(_ENGLISH.search(text)) for text in _looked_at(texts)]
    return sum(found) / max(len(found), 1)


def common_languages(texts: Sequence[str]) -> dict[str, float]:
    """Return the languages of at least a fifth of some texts with their shares, largest first.

    By ISO 639 codes; empty where no detector is installed, or no text is long enough.
    """
    # most texts of most tasks are in English, and a detector takes a second to load
    if share_of_english(texts) > 1 - _LEAST_SHARE:
        return {"en": 1.0}
    counts = count_languages(texts) or Counter()
    total = counts.total()
    return {
        language: count / total
        for language, count in counts.most_common()
        if count >= _LEAST_SHARE * total
    }


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
    for text in _looked_at(texts):
        language, confidence = detector.classify(text)
        if confidence >= _LEAST_CONFIDENCE:
            found[language] += 1
    return found


def _looked_at(texts: Sequence[str]) -> list[str]:
    """Return some texts, evenly spaced, that are long enough to be of one language."""
    return [
        text
        for text in texts[:: -(-len(texts) // _MOST) or 1]
        if sum(map(str.isalpha, text)) >= _LEAST_LETTERS or not text.isascii()
    ]


@functools.cache  # it takes about a second to load
def _detector() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
