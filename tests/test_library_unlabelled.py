"""Tests of sources for tasks without labels."""

import numpy as np
import pytest

from backends.deterministic import DeterministicBackend
from blackbox import PromptPool
from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.boosting.label_words import texts_of_names
from blackbox.library.sources import Sources, probabilities_of
from blackbox.library.unlabelled import read_without_labels
from tests.test_experts import TOPICS, texts_of
from tests.test_library import PROMPTS, classifier

NAMES = ["league", "market", "soup"]  # of sport, money and food


@pytest.fixture(scope="module")
def task():
    """The sources, the answers to texts and names, and the classes of the texts."""
    texts, labels = texts_of(150, 1)
    noise = np.random.default_rng(0).permutation(["yes", "no"] * 30).tolist()
    models = {
        "topics": classifier().fit(texts, labels).model_,
        "noise": classifier(cv=None).fit(texts_of(60, 2)[0], noise).model_,
    }
    unlabelled, truth = texts_of(120, 3)
    lm, pool = DeterministicBackend(), PromptPool(PROMPTS)
    answers = next_tokens(lm, pool, check_texts(unlabelled), 50)
    names = next_tokens(lm, pool, texts_of_names(NAMES, pair=False), 50)
    y = np.array([list(TOPICS).index(label) for label in truth])
    return Sources(models), pool, answers, names, y


def weak_votes(y, signal=1.5):
    """Votes of variance 1 that are right to some degree."""
    votes = signal * np.eye(3)[y] + np.random.default_rng(4).normal(size=(len(y), 3))
    votes -= votes.mean(axis=0)
    votes -= votes.mean(axis=1, keepdims=True)
    return votes / np.sqrt((votes**2).mean())


def test_a_source_that_agrees_with_the_names_is_read_by_them(task):
    sources, pool, answers, names, y = task
    votes = weak_votes(y)
    readout, best = read_without_labels(sources, pool, answers, names, votes)
    assert [one.source.name for one in best] == ["topics"]
    scores = readout.scores(best[0].probabilities[:, None])
    alone, both = ((one.argmax(axis=1) == y).mean() for one in (votes, votes + scores))
    assert both > alone + 0.02
    # food, money, sport in alphabetical order, and each means the class that it takes the name for
    assert readout.tables[0].argmax(axis=1).tolist() == [2, 1, 0]


def test_sources_that_contradict_the_names_are_left_out(task):
    sources, pool, answers, names, y = task
    assert read_without_labels(sources, pool, answers, names, -weak_votes(y, 3.0)) == (None, [])


def test_names_without_answers_say_nothing_of_the_classes(task):
    sources, pool, answers, _, y = task
    assert read_without_labels(sources, pool, answers, None, weak_votes(y)) == (None, [])


def test_names_that_are_no_words_are_no_texts():
    assert texts_of_names(["card_arrival", "2 late"], pair=False) == [
        ("card arrival", None),
        ("2 late", None),
    ]
    assert texts_of_names(["yes", "1"], pair=False) == []
    assert texts_of_names(["yes", "no"], pair=True) == []


def test_the_sources_read_the_names_as_they_read_texts(task):
    sources, pool, answers, names, _ = task
    [topics, _] = sources.read(pool, answers, np.ones(120), names)
    texts = [name for name, _ in texts_of_names(NAMES, pair=False)]
    again = next_tokens(DeterministicBackend(), pool, check_texts(texts), 50)
    floors = [float(min(row.min() for row in values)) for values in answers.log_probs]
    assert topics.names.shape == (3, 3)
    assert topics.names == pytest.approx(probabilities_of(topics.source, again, floors), abs=0.05)
