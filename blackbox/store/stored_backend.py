"""The forward-pass store: no pass is ever paid for twice.

`StoredBackend` wraps a backend and is one itself. What was answered before, to this or any other
process, comes out of a `StoreFile`; the rest is asked for and written down as it comes. The key of
an answer is a digest of the LM's identity, the rendered prompt and the kind of call. Texts are not
kept, only digests, distributions, embedding vectors, and what an LM wrote, which may repeat a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.backend import BaseBackend, WrappedBackend
from blackbox.errors import UnservedPromptError
from blackbox.protocol import (
    NO_TOKEN,
    AnswerParts,
    Draws,
    EmbeddingParts,
    Limits,
    RenderedPrompt,
    TokenLogProbs,
    TokenScores,
    Usage,
    distinct_tokens,
    request_hasher,
)
from blackbox.spending import Account
from blackbox.store.claims import SignsOfLife
from blackbox.store.encoding import (
    MAX_TOKENS,
    decode,
    decode_block,
    decode_text,
    encode,
    encode_block,
    encode_text,
    is_text,
    is_vector,
)
from blackbox.store.file import StoreFile, open_store
from blackbox.store.recent import MAX_BYTES
from blackbox.store.sharing import answer_once
from blackbox.store.stored_embeddings import StoredEmbeddings

__all__ = ["StoredBackend", "merge_values"]

_COMPLETE = 0.999  # of the probability: what is missing is rounding
_SLICE = 1024  # passes that one process claims at a time
_CALL = 64  # prompts whose scores or draws are asked for, and kept, together


class StoredBackend(WrappedBackend):
    """A backend whose answers are kept in a store.

    Parameters
    ----------
    backend : BaseBackend
        The LM.
    store : StoreFile
        Where its answers are kept.
    account : Account, optional
        Whose seconds it takes to wait for answers that another process is asking for.
    """

    def __init__(
        self, backend: BaseBackend, store: StoreFile, account: Account | None = None
    ) -> None:
        super().__init__(backend)
        self.store = store
        self._account = account
        self._usage = Usage()
        # an LM that answers in batches gets all requests at a time
        self._slice = backend.limits.requests_at_a_time or _SLICE
        self._digest = backend.identity.digest()
        self._data = backend.identity.canonical()
        self._token_bytes: dict[int, bytes] = {}
        self._embeddings = StoredEmbeddings(
            backend,
            store,
            self._slice,
            self._get,
            lambda values, owner: self._put(values, merge_values, owner=owner),
            account,
        )

    @cached_property
    def limits(self) -> Limits:  # type: ignore[override]
        """The LM's, within what the store keeps of an answer; the same prompt is paid for once."""
        own = self.backend.limits
        return replace(
            own,
            deduplicates=True,
            max_top_k=min(own.max_top_k, MAX_TOKENS),
            max_score_ids=min(own.max_score_ids, MAX_TOKENS),
        )

    @property
    def usage(self) -> Usage:
        """The usage of the LM so far, and how many answers came out of the store."""
        return self._usage

    def caches_answers(self) -> bool:
        """Return whether the store keeps answers; they wait in memory where it can't."""
        return self.store.trouble is None

    def iter_next_token(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """Yield answers in parts: those in the store at once, the others as they come.

        Where all of them were in the store, the same requests are answered from memory next time.
        """
        _check_size(top_k)
        requests = self._digest, top_k, tuple(prompts)
        known = self.store.recall(requests)
        if known is not None:
            self.store.compare_engines(self._digest, self.identity.engine)
            for where, part in known:
                self._usage += part.usage
                yield where, part
            return
        read: list[tuple[list[int], TokenLogProbs]] = []
        n_bytes = 0
        for where, part in self._stored_or_asked(prompts, top_k):
            if part.usage.passes_from_store == len(where) and n_bytes <= MAX_BYTES:
                read.append((where, part))
                n_bytes += part.token_ids.nbytes + part.log_probs.nbytes
            yield where, part
        if sum(len(where) for where, _ in read) == len(prompts):
            self.store.remember(requests, read, n_bytes + sum(one.n_bytes for one in prompts))

    def _stored_or_asked(self, prompts: Sequence[RenderedPrompt], top_k: int) -> AnswerParts:
        """See `blackbox.store.sharing.answer_once`."""
        rows = self._rows_of(prompts, "next_token")
        ask = partial(self._ask, {key: prompts[where[0]] for key, where in rows.items()}, rows)
        yield from answer_once(
            self.store,
            list(rows),
            self._slice,
            partial(self._recall_part, rows, top_k),
            partial(ask, top_k),
            self._account,
        )

    def iter_embed(self, texts: Sequence[str]) -> EmbeddingParts:
        """Yield vectors in parts: those in the store at once, the others as they come."""
        for where, part in self._embeddings.iter_embed(texts):
            self._usage += part.usage
            yield where, part

    def known_embeddings(self, texts: Sequence[str]) -> list[int]:
        """Return the rows whose vectors are in the store."""
        return self._embeddings.known(texts)

    def known_rows(self, prompts: Sequence[RenderedPrompt], top_k: int) -> list[int]:
        """Return the rows whose answers are in the store."""
        rows = self._rows_of(prompts, "next_token")
        known, _ = self._recall(list(rows), top_k)
        return sorted(row for key in known for row in rows[key])

    def known_draws(self, prompts: Sequence[RenderedPrompt], n: int, **asked: Any) -> list[int]:
        """Return the rows whose first `n` draws are in the store; `asked` as for `generate`."""
        keys = [
            [self._key(prompt, "generate", **asked, number=number) for number in range(n)]
            for prompt in prompts
        ]
        held = self.store.get(self._digest, [key for some in keys for key in some])
        return [row for row, some in enumerate(keys) if all(key in held for key in some)]

    def _ask(
        self,
        prompts: dict[bytes, RenderedPrompt],
        rows: dict[bytes, list[int]],
        top_k: int,
        keys: list[bytes],
        owner: str,
        life: SignsOfLife,
    ) -> Iterator[tuple[list[bytes], tuple[list[int], TokenLogProbs]]]:
        """Answers of the LM itself, written down as they come, as long as the claims hold.

        A process that was stopped for long finds its claims gone: others make the rest.
        """
        parts = self.backend.iter_next_token([prompts[key] for key in keys], top_k)
        while life.holds and (part := life.waiting_for(parts)) is not None:
            where, answers = part
            asked = _asked(answers, top_k)
            given = [place for place in range(len(where)) if place not in answers.row_errors]
            encoded = encode_block(
                answers.token_ids[given],
                answers.log_probs[given],
                [asked[place] for place in given],
            )
            places = zip(given, encoded, strict=True)
            values = {keys[where[place]]: value for place, value in places}
            names = answers.token_bytes
            life.holds = self._put(values, partial(_merge_asked, top_k=top_k), names, owner)
            self._token_bytes.update(names)
            answered = [keys[number] for number in where]
            yield answered, self._spread([rows[key] for key in answered], answers)

    def _spread(
        self, places: list[list[int]], part: TokenLogProbs
    ) -> tuple[list[int], TokenLogProbs]:
        """A part in which each answer stands once for every row that asked for it."""
        rows = [row for wanted in places for row in wanted]
        repeats = len(rows) - len(places)
        usage = part.usage + Usage(passes_from_store=repeats)
        self._usage += usage
        if not repeats:
            return rows, part.with_usage(usage)
        source = [place for place, wanted in enumerate(places) for _ in wanted]
        errors = {
            new: part.row_errors[old] for new, old in enumerate(source) if old in part.row_errors
        }
        spread = TokenLogProbs.of_checked(
            part.token_ids[source], part.log_probs[source], part.token_bytes, errors, usage
        )
        return rows, spread

    def _recall_part(
        self, rows: dict[bytes, list[int]], top_k: int, keys: list[bytes]
    ) -> tuple[list[bytes], tuple[list[int], TokenLogProbs] | None]:
        known, answers = self._recall(keys, top_k)
        return known, self._spread([rows[key] for key in known], answers) if known else None

    def _recall(self, keys: list[bytes], top_k: int) -> tuple[list[bytes], TokenLogProbs]:
        """The keys whose answers are in the store, with `top_k` tokens and their bytes.

        They were checked when they were written, and the digest of each holds.
        """
        held = self._get(keys)
        places, ids, values = decode_block(list(held.values()), top_k)
        in_order = list(held)
        known = [in_order[place] for place in places]
        tokens = distinct_tokens(ids)
        if not all(token in self._token_bytes for token in tokens):
            self._token_bytes |= self.store.token_bytes(self._digest)
        nameless = [token for token in tokens if token not in self._token_bytes]
        if nameless:
            named = np.flatnonzero(~np.isin(ids, nameless).any(axis=1))
            known, ids, values = [known[place] for place in named], ids[named], values[named]
            tokens = distinct_tokens(ids)
        names = {token: self._token_bytes[token] for token in tokens}
        usage = Usage(passes_from_store=len(known))
        return known, TokenLogProbs.of_checked(ids, values, names, {}, usage)

    def score(self, prompts: Sequence[RenderedPrompt], token_ids: Sequence[int]) -> TokenScores:
        """Return scores from the store, where a top k or an earlier call holds all the tokens."""
        _check_size(len(token_ids))
        wanted = np.array(token_ids, np.int32)
        order = np.argsort(wanted, kind="stable")
        scores = np.full((len(prompts), len(wanted)), np.nan, np.float32)
        rows = self._rows_of(prompts, "score")
        tops = {key: self._key(prompts[where[0]], "next_token") for key, where in rows.items()}
        errors: dict[int, str] = {}

        def recall(keys: list[bytes]) -> tuple[list[bytes], Usage | None]:
            held = self._get([*keys, *(tops[key] for key in keys)])
            known, n_rows = [], 0
            for key in keys:
                values = _pick(held.get(key), wanted)
                if values is None:
                    values = _pick(held.get(tops[key]), wanted)
                if values is not None:
                    known.append(key)
                    scores[rows[key]] = values
                    n_rows += len(rows[key])
            return known, Usage(passes_from_store=n_rows) if known else None

        def ask(
            keys: list[bytes], owner: str, life: SignsOfLife
        ) -> Iterator[tuple[list[bytes], Usage]]:
            calls = [keys[start : start + _CALL] for start in range(0, len(keys), _CALL)]
            requests = ([prompts[rows[key][0]] for key in some] for some in calls)
            answers = (self.backend.score(some, wanted.tolist()) for some in requests)
            for some in calls:
                answer = life.waiting_for(answers) if life.holds else None
                if answer is None:
                    return
                values = {}
                for place, key in enumerate(some):
                    if place in answer.row_errors:
                        errors.update(dict.fromkeys(rows[key], answer.row_errors[place]))
                        continue
                    scores[rows[key]] = answer.log_probs[place]
                    values[key] = encode(wanted[order], answer.log_probs[place][order], 0)
                life.holds = self._put(values, merge_values, owner=owner)
                repeats = sum(len(rows[key]) - 1 for key in some)
                yield some, answer.usage + Usage(passes_from_store=repeats)

        usage = Usage()
        for part in answer_once(self.store, list(rows), self._slice, recall, ask, self._account):
            usage += part
            self._usage += part
        return TokenScores(scores, errors, usage)

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
        """Return draws from the store, by their numbers; those that it lacks are added to it."""
        asked: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        keys = [
            [
                self._key(prompt, "generate", **asked, number=number)
                for number in range(first, first + n)
            ]
            for prompt in prompts
        ]
        # of the same prompt twice, the first stands for both
        place_of: dict[bytes, tuple[int, int]] = {}
        for row, some in enumerate(keys):
            for number, key in enumerate(some, first):
                place_of.setdefault(key, (row, number))
        texts: dict[bytes, str] = {}
        refused: dict[bytes, str] = {}

        def recall(keys: list[bytes]) -> tuple[list[bytes], Usage | None]:
            known = {key: decode_text(value) for key, value in self._get(keys).items()}
            texts.update(known)
            return list(known), Usage(passes_from_store=len(known)) if known else None

        def ask(
            keys: list[bytes], owner: str, life: SignsOfLife
        ) -> Iterator[tuple[list[bytes], Usage]]:
            parts = (
                ([list(drawn.values())[place] for place in where], answer)
                for numbers, drawn in _draws_by_call([(*place_of[key], key) for key in keys])
                for where, answer in self.backend.iter_generate(
                    [prompts[row] for row in drawn], len(numbers), first=numbers[0], **asked
                )
            )
            while life.holds and (part := life.waiting_for(parts)) is not None:
                answered, answer = part
                new: dict[bytes, str] = {}
                done: list[bytes] = []
                for place, of_row in enumerate(answered):
                    some = dict(zip(of_row, answer.texts[place], strict=False))
                    new |= some
                    done += of_row if place in answer.row_errors else some
                    if place in answer.row_errors:
                        without = [key for key in of_row if key not in some]
                        refused.update(dict.fromkeys(without, answer.row_errors[place]))
                values = {key: encode_text(text) for key, text in new.items()}
                life.holds = self._put(values, lambda old, _: old, owner=owner)
                texts.update(new)
                yield done, answer.usage

        usage = Usage()
        claimed = max(self._slice // max(n, 1), 1) * n  # all draws of a prompt are asked together
        for part in answer_once(self.store, list(place_of), claimed, recall, ask, self._account):
            usage += part
            self._usage += part
        drawn = [[texts[key] for key in some if key in texts] for some in keys]
        errors = {
            row: next(refused[key] for key in some if key in refused)
            for row, some in enumerate(keys)
            if not refused.keys().isdisjoint(some)
        }
        return Draws(drawn, errors, usage)

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        found = self.store.get(self._digest, keys)
        if found:
            self.store.compare_engines(self._digest, self.identity.engine)
        return found

    def _put(
        self,
        values: dict[bytes, bytes],
        merge: Callable[[bytes, bytes], bytes],
        names: Mapping[int, bytes] | None = None,
        owner: str | None = None,
    ) -> bool:
        self.store.note_engines(self._digest, [self.identity.engine])
        return self.store.put(self._digest, self._data, values, names or {}, merge, owner)

    def _rows_of(self, prompts: Sequence[RenderedPrompt], call: str) -> dict[bytes, list[int]]:
        """The rows that ask for each answer; the same prompt twice is one answer."""
        key_of = request_hasher(self.identity, {"call": call})
        rows: dict[bytes, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(key_of(prompt), []).append(row)
        return rows

    def _key(self, prompt: RenderedPrompt, call: str, **asked: Any) -> bytes:
        return request_hasher(self.identity, {"call": call, **asked})(prompt)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restore, (self.backend, self.store.path, self.store.max_bytes)


def _restore(backend: BaseBackend, path: Path, max_bytes: int) -> StoredBackend:
    return StoredBackend(backend, open_store(path, max_bytes=max_bytes))


def _draws_by_call(
    draws: list[tuple[int, int, bytes]],
) -> Iterator[tuple[range, dict[int, list[bytes]]]]:
    """Yield calls of `generate`: numbers of draws, and the keys of these by the rows to draw for.

    Rows that lack the same draws are asked for them together.
    """
    together: dict[range, dict[int, list[bytes]]] = {}
    for row, of_row in groupby(sorted(draws), key=itemgetter(0)):
        # numbers that follow each other keep their distance to their positions
        for _, run in groupby(enumerate(of_row), key=lambda item: item[1][1] - item[0]):
            some = [draw for _, draw in run]
            numbers = range(some[0][1], some[-1][1] + 1)
            together.setdefault(numbers, {})[row] = [key for _, _, key in some]
    for numbers, rows in together.items():
        items = list(rows.items())
        for start in range(0, len(items), _CALL):
            yield numbers, dict(items[start : start + _CALL])


def _check_size(n_tokens: int) -> None:
    """Raise if an answer of so many tokens can't be kept, before it is paid for."""
    if n_tokens > MAX_TOKENS:
        raise UnservedPromptError(
            f"{n_tokens} tokens per answer, and a store keeps {MAX_TOKENS}; ask for fewer"
        )


def _asked(answers: TokenLogProbs, top_k: int) -> list[int]:
    """Return how many tokens each answer counts as: fewer where the LM gave all rows fewer.

    One short row among full ones is that provider's way, and a distribution that is complete has
    no more tokens.
    """
    lengths = (answers.token_ids != NO_TOKEN).sum(axis=1)
    longest = int(lengths.max(initial=0))
    if longest >= top_k:
        return [top_k] * len(lengths)
    complete = np.exp(answers.log_probs.astype(np.float64)).sum(axis=1) > _COMPLETE
    return [top_k if whole or not longest else longest for whole in complete]


def _merge_asked(old: bytes, new: bytes, top_k: int) -> bytes:
    """Return the longer answer; an LM that gave no more when asked again is not asked a third time.

    `top_k` is what it was asked for.
    """
    merged = merge_values(old, new)
    ids, values, asked = decode(merged)
    given = decode(new)[0]
    return encode(ids, values, top_k) if 0 < asked < top_k and len(given) <= len(ids) else merged


def merge_values(old: bytes, new: bytes) -> bytes:
    """One value out of two: the longer top k, or all tokens that were ever scored.

    Where these are more than the store keeps, those that were scored now.
    """
    if any(is_text(value) or is_vector(value) for value in (old, new)):
        return old
    old_ids, old_values, old_asked = decode(old)
    new_ids, new_values, new_asked = decode(new)
    if new_asked or old_asked:
        return new if new_asked > old_asked else old
    ids, first = np.unique(np.concatenate([new_ids, old_ids]), return_index=True)
    if len(ids) > MAX_TOKENS:
        return new
    values = np.concatenate([new_values, old_values])[first]
    return encode(ids.astype(np.int32), values, 0)


def _pick(value: bytes | None, wanted: NDArray[np.int32]) -> NDArray[np.float32] | None:
    """The log-probabilities of some tokens out of a stored answer, if it holds them all."""
    if value is None:
        return None
    ids, values, _ = decode(value)
    order = np.argsort(ids, kind="stable")
    places = np.searchsorted(ids, wanted, sorter=order)
    if not len(ids) or (places == len(ids)).any():
        return values[:0] if not len(wanted) else None
    found = order[places]
    return values[found] if (ids[found] == wanted).all() else None
