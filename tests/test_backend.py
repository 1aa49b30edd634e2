"""Base classes of backends: defaults, wrappers, and the adapter of duck-typed backends."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
from fakes import PlainBackend
from sklearn.base import clone

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.backend import BaseBackend, WrappedBackend, as_backend
from blackbox.errors import BackendError, UnservedPromptError
from blackbox.protocol import Draws, RenderedPrompt, Usage

PROMPTS = [RenderedPrompt(text=f"text number {number} is") for number in range(150)]
TEXTS = [f"text {number} is {'lovely' if number % 2 else 'dull'}" for number in range(24)]
LABELS = [number % 2 for number in range(24)]


class DuckTyped(PlainBackend):
    """All optional methods, of a class that inherits none of them."""

    def __init__(self, **limits):
        super().__init__(**{"max_score_ids": 20, **limits})
        self.sizes, self.closed = [], False

    def iter_next_token(self, prompts, top_k):
        return iter([(list(range(len(prompts))), self.next_token(prompts, top_k))])

    def next_token(self, prompts, top_k):
        self.sizes.append(len(prompts))
        return super().next_token(prompts, top_k)

    def score(self, prompts, token_ids):
        return self._engine.score(prompts, token_ids)

    def generate(self, prompts, n=1, **asked):
        return self._engine.generate(prompts, n, **asked)

    def embed(self, texts):
        return self._engine.embed(texts)

    def count_tokens(self, prompts):
        return self._engine.count_tokens(prompts)

    def show(self, prompt):
        return f"<{prompt.text}>", [1, 2]

    def describe(self):
        return {"endpoint": "quack"}

    def check(self):
        raise BackendError("it is gone")

    def finish(self):
        return True

    def close(self):
        self.closed = True


class Remembering(DuckTyped):
    """A duck-typed cache: it knows every other answer, and all draws."""

    def known_rows(self, prompts, top_k):
        return list(range(0, len(prompts), 2))

    def known_draws(self, prompts, n, **asked):
        return list(range(len(prompts)))


def test_an_adapter_has_the_optional_methods_of_its_backend():
    own = DuckTyped()
    lm, engine = as_backend(own), DeterministicBackend()
    assert lm.identity == own.identity
    assert lm.limits == replace(own.limits, generates=True, counts_tokens=True, max_score_ids=20)
    where, part = next(lm.iter_next_token(PROMPTS, 5))
    assert where == list(range(150))
    assert part.token_ids.tolist() == engine.next_token(PROMPTS, 5).token_ids.tolist()
    assert own.sizes == [150]
    some = PROMPTS[:2]
    assert lm.score(some, [3]).log_probs.tolist() == engine.score(some, [3]).log_probs.tolist()
    drawn = lm.generate(some, 2, max_tokens=3, seed=4)
    assert drawn.texts == engine.generate(some, 2, max_tokens=3, seed=4).texts
    texts = [prompt.text for prompt in some]
    assert lm.embed(texts).vectors.tolist() == engine.embed(texts).vectors.tolist()
    assert lm.count_tokens(some) == engine.count_tokens(some)
    assert lm.show(some[0]) == ("<text number 0 is>", [1, 2])
    assert lm.describe() == {"endpoint": "quack"}
    assert lm.finish()
    with pytest.raises(BackendError, match="it is gone"):
        lm.check()
    lm.close()
    assert own.closed
    assert as_backend(Remembering()).known_rows(some, 5) == [0]
    assert as_backend(Remembering()).known_draws(some, 1) == [0, 1]


def test_an_adapter_of_a_backend_without_optional_methods_has_defaults():
    lm = as_backend(PlainBackend(max_score_ids=9))
    limits = lm.limits
    assert (limits.generates, limits.counts_tokens, limits.max_score_ids) == (False, False, 0)
    assert limits.embedding_size == 0
    assert [len(where) for where, _ in lm.iter_next_token(PROMPTS, 5)] == [64, 64, 22]
    assert lm.show(PROMPTS[0]) == ("text number 0 is", None)
    assert lm.describe() == {}
    assert lm.usage == Usage()
    assert lm.known_rows(PROMPTS, 5) == lm.known_draws(PROMPTS, 2, max_tokens=3) == []
    assert lm.known_embeddings(["a text"]) == []
    assert not lm.check()
    assert not lm.finish()
    lm.close()
    calls = (
        lambda: lm.score(PROMPTS, [1]),
        lambda: lm.generate(PROMPTS),
        lambda: lm.count_tokens(PROMPTS),
    )
    for call in calls:
        with pytest.raises(UnservedPromptError):
            call()


def test_an_adapter_is_shared_by_copies_and_found_again_by_a_pickle():
    own = PlainBackend()
    lm = as_backend(own)
    assert as_backend(lm) is lm
    assert copy.copy(lm) is copy.deepcopy(lm) is clone(lm) is lm
    assert repr(lm) == repr(own)
    again = pickle.loads(pickle.dumps(lm))
    assert again.identity == lm.identity
    assert isinstance(again.backend, PlainBackend)


@pytest.mark.parametrize("wrong", [object(), None, PlainBackend, DeterministicBackend])
def test_what_is_no_backend_gets_no_adapter(wrong):
    with pytest.raises(TypeError, match="identity, limits and next_token"):
        as_backend(wrong)


def test_a_classifier_trains_and_predicts_the_same_on_a_duck_typed_backend():
    prompts = ["{text} It was {mask}", "{text} A {mask}"]
    given = [
        PromptBoostingClassifier(lm, prompts=prompts, random_state=0, store=False)
        .fit(TEXTS, LABELS)
        .predict_proba(TEXTS)
        .tolist()
        for lm in (DuckTyped(), DeterministicBackend())
    ]
    assert given[0] == given[1]


def test_a_base_backend_needs_next_token_or_a_stream():
    class Neither(BaseBackend):
        pass

    class Stream(BaseBackend):
        def iter_next_token(self, prompts, top_k):
            engine = DeterministicBackend()
            for row in reversed(range(len(prompts))):
                yield [row], engine.next_token([prompts[row]], top_k)

    with pytest.raises(NotImplementedError, match="Neither must implement next_token"):
        Neither().next_token(PROMPTS, 5)
    truth = DeterministicBackend().next_token(PROMPTS, 5)
    assert Stream().next_token(PROMPTS, 5).token_ids.tolist() == truth.token_ids.tolist()


def test_a_wrapper_hands_on_all_that_it_does_not_change():
    class Loud(WrappedBackend):
        def generate(self, prompts, n=1, **asked):
            draws = super().generate(prompts, n, **asked)
            return Draws([[text.upper() for text in some] for some in draws.texts])

    own = Remembering()
    inner = as_backend(own)
    lm = Loud(inner)
    assert (lm.identity, lm.limits) == (inner.identity, inner.limits)
    assert lm.next_token(PROMPTS, 5).token_ids.tolist() == (
        inner.next_token(PROMPTS, 5).token_ids.tolist()
    )
    some = PROMPTS[:3]
    assert lm.score(some, [3]).log_probs.tolist() == inner.score(some, [3]).log_probs.tolist()
    assert lm.count_tokens(some) == inner.count_tokens(some)
    assert lm.show(some[0]) == inner.show(some[0])
    assert lm.describe() == inner.describe()
    assert lm.known_rows(some, 5) == [0, 2]
    assert lm.known_draws(some, 1, max_tokens=2) == [0, 1, 2]
    assert lm.finish()
    assert lm.usage == Usage()
    with pytest.raises(BackendError, match="it is gone"):
        lm.check()
    lm.close()
    assert own.closed
    assert lm.generate(some, max_tokens=2).texts[0][0].isupper()
