"""The batch endpoint: all requests in one file, answers within a day, at a lower price.

A job is identified by the digest of its requests in the batch's metadata on the server, and its
requests by theirs in a small file here. So work that is begun again after any crash, with whatever
else there is to ask by then, and a submission whose answer was lost find the batch that runs
already, and nothing is submitted twice. A batch that failed, or that expired without answers, is
not used again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backends.api.credentials import scrubbed
from backends.api.error_bodies import codes_of, words_of
from backends.api.retries import RetryLaterError
from backends.api.sending import Sender
from blackbox.errors import BackendError, BudgetError, ModelNotFoundError
from blackbox.plurals import counted
from blackbox.spending import current_account

__all__ = ["BatchAnswer", "Batches", "Request", "Requests"]

_log = logging.getLogger(__name__)

_METADATA = "promptboosting"
_NOTED = 20  # hex digits of a request's digest in a note
_MAX_REQUESTS, _MAX_BYTES = 50_000, 150_000_000  # of one file, below the providers' limits
_LISTED = 10_000  # recent batches among which one is looked for, a hundred per request
_NOT_IMPLEMENTED = 501
_SUBMISSIONS = 3  # tries to submit a batch
_ENDED = ("completed", "expired", "failed", "cancelled")
_USELESS = ("failed", "cancelled", "cancelling")


@dataclass(frozen=True)
class Request:
    """A request of a batch: the endpoint's path, and what makes the body when it is written.

    Bodies aren't kept: each may hold an image.
    """

    path: str
    body: Callable[[], dict[str, Any]]


Requests = Mapping[str, Request]
"""Requests by their digests."""


@dataclass(frozen=True)
class BatchAnswer:
    """The answer to one request: a status and the JSON of the answer or of the error."""

    status: int
    body: dict[str, Any]


_NEVER_SENT = {"batch_expired", "batch_cancelled"}
"""Codes of requests that nobody has worked on."""

_UNREADABLE = BatchAnswer(500, {"error": {"message": "no line of it can be read"}})


@dataclass(frozen=True)
class _Job:
    """A batch, the requests of it that are wanted now, its note, and whether these are all."""

    batch: str
    part: Requests
    note: Path
    is_whole: bool = True


class _FailedBatchError(BackendError):
    """A batch failed as a whole."""


class Batches:
    """Submits requests as batches, waits for them, and reads what came back.

    Parameters
    ----------
    server : Sender
        Reaches the server.
    folder : Path
        Where it is written down which batches run. No texts are kept in it.
    poll_seconds : float
        Time between two looks at a batch, at first; it grows to a minute.
    """

    def __init__(self, server: Sender, folder: Path, poll_seconds: float) -> None:
        self._server = server
        self._folder = folder
        self._call = server.ask
        self._secrets = server.secrets
        self._poll_seconds = poll_seconds
        self._read_before: set[str] = set()

    def run(self, requests: Requests, stop: threading.Event) -> Iterator[dict[str, BatchAnswer]]:
        """Yield answers by digest, one batch after the other; what expired is not among them.

        Stopped, or interrupted, it leaves the batches to run; the same requests find them again.

        Raises
        ------
        BackendError
            If a batch failed; the answers of the others were handed over.
        BudgetError
            If the time of the account in force is up; the batches go on.
        """
        jobs = list(self._running(requests))
        running = {digest for job in jobs for digest in job.part}
        rest = {digest: request for digest, request in requests.items() if digest not in running}
        jobs += [self._submitted(path, part) for path, part in _parts(rest)]
        failure: BackendError | None = None
        for job in jobs:
            batch, part = job.batch, job.part
            try:
                done = self._wait(batch, len(part), stop)
            except _FailedBatchError as error:
                failure = failure or error
                job.note.unlink(missing_ok=True)
                continue
            if done is None:
                return
            answers = {
                digest: answer
                for digest, answer in self._read(done)
                if digest in part  # whatever else a server sends is not ours
            }
            if done.status == "completed":  # what has no line that can be read was worked on
                answers = dict.fromkeys(part, _UNREADABLE) | answers
            yield answers
            self._read_before.add(batch)
            if job.is_whole:
                job.note.unlink(missing_ok=True)
        if failure is not None:
            raise failure

    def _running(self, requests: Requests) -> Iterator[_Job]:
        """Yield the batches of the notes that have some of these requests, and will answer them."""
        left = {digest[:_NOTED]: digest for digest in requests}
        for note in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else ():
            try:
                noted = json.loads(note.read_text("utf-8"))
                batch, digests = str(noted["batch"]), [str(one) for one in noted["requests"]]
                wanted = [left[one] for one in digests if one in left]
                if not wanted:
                    continue
                if not self._is_usable(self._retrieve(batch)):
                    raise ModelNotFoundError("of no use")
            except (OSError, ValueError, KeyError, TypeError):
                continue
            except ModelNotFoundError:
                note.unlink(missing_ok=True)
                continue
            part = {digest: requests[digest] for digest in wanted}
            yield _Job(batch, part, note, is_whole=len(part) == len(digests))
            left = {short: digest for short, digest in left.items() if digest not in part}

    def _submitted(self, path: str, part: Requests) -> _Job:
        """The batch with these requests: one that runs already, or a new one."""
        job = _job(part)
        note = self._folder / f"{job[:32]}.json"
        found = self._find(job)
        if found is None:
            found = self._submit(path, part, job)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            noted = {"batch": found, "requests": [digest[:_NOTED] for digest in part]}
            note.write_text(json.dumps(noted), "utf-8")
        except OSError as error:
            # it is paid for, and is found again by its metadata
            _log.warning("%s: the batch %s can't be noted there: %s", note, found, error.strerror)
        return _Job(found, part, note)

    def _is_usable(self, batch: Any) -> bool:
        """Whether a batch has answers, or will have, that were not read yet."""
        if batch.status in _USELESS or str(batch.id) in self._read_before:
            return False
        return batch.status != "expired" or bool(batch.output_file_id)

    def _submit(self, path: str, part: Requests, job: str) -> str:
        """Submit a batch, once: where the answer is lost, it is looked for by its metadata."""
        uploaded = self._upload(path, part)

        def create() -> Any:
            return self._server.client.batches.create(
                input_file_id=uploaded.id,
                endpoint="/v1" + path,
                completion_window="24h",
                metadata={_METADATA: job},
            )

        failure: BackendError | None = None
        for _ in range(_SUBMISSIONS):
            try:
                batch = str(self._call(create, tries=1).id)
            except BackendError as error:
                if not isinstance(error.__cause__, RetryLaterError):
                    raise
                failure = error
                found = self._find(job, lost=error)
                if found is None:
                    continue
                batch = found
            _log.warning(
                "batch %s submitted with %s; stopped, this command goes on with it when "
                "it is run again",
                batch,
                counted(len(part), "request"),
            )
            return batch
        raise BackendError(
            f"a batch of {counted(len(part), 'request')} can't be submitted: {failure}"
        )

    def _upload(self, path: str, part: Requests) -> Any:
        # texts stand in this file: it has no name, so that nothing of it outlives the process
        with tempfile.TemporaryFile() as lines:
            for digest, request in part.items():
                line = {
                    "custom_id": digest,
                    "method": "POST",
                    "url": "/v1" + path,
                    "body": request.body(),
                }
                data = json.dumps(line, ensure_ascii=False) + "\n"
                lines.write(data.encode("utf-8", "replace"))

            def upload() -> Any:
                lines.seek(0)
                return self._server.client.files.create(
                    file=("batch.jsonl", lines), purpose="batch"
                )

            return self._call(upload, file=True)

    def _find(self, job: str, lost: BackendError | None = None) -> str | None:
        """A batch of this job, also where its id was lost.

        Raises
        ------
        BackendError
            If batches can't be listed for now, or not at all after a lost answer to a submission:
            another one might be paid for twice.
        """

        def look() -> str | None:
            recent = self._server.client.batches.list(limit=100)
            try:
                for batch in itertools.islice(recent, _LISTED):
                    if (batch.metadata or {}).get(_METADATA) == job and self._is_usable(batch):
                        return str(batch.id)
            except (AttributeError, TypeError) as error:
                raise BackendError("the list of batches can't be read") from error
            return None

        try:
            found: str | None = self._call(look)
        except BackendError as error:
            later = error.__cause__
            if lost is None and isinstance(later, RetryLaterError):
                if getattr(later, "status", None) != _NOT_IMPLEMENTED:
                    raise BackendError(
                        f"{error}; whether these requests run as a batch already is unknown, as "
                        "batches can't be listed: run this again later"
                    ) from error
                return None
            if lost is None:
                return None  # not every server lists batches
            raise BackendError(
                f"{lost}; whether the batch runs is unknown, as batches can't be listed ({error}): "
                "look for it before you run this again"
            ) from error
        return found

    def _retrieve(self, batch: str) -> Any:
        return self._call(lambda: self._server.client.batches.retrieve(batch))

    def _wait(self, batch: str, n_requests: int, stop: threading.Event) -> Any | None:
        """The batch when it has ended; None when the work was stopped before."""
        pause, account = self._poll_seconds, current_account()
        while True:
            found = self._retrieve(batch)
            if found.status in _ENDED:
                break
            if account is not None and account.seconds_left() <= 0:
                raise BudgetError(
                    f"the budget of seconds is used up; batch {batch} goes on, and the same "
                    "command finds it again"
                )
            counts = getattr(found, "request_counts", None)
            _log.info("batch %s: %s, %s", batch, found.status, counts)
            left = float("inf") if account is None else max(account.seconds_left(), 0.0)
            if stop.wait(min(pause, left)):
                return None
            pause = min(pause * 1.5, 60.0)
        if found.status == "failed":
            said = scrubbed(_words_of(found.errors), self._secrets) or "no explanation"
            raise _FailedBatchError(
                f"batch {batch} of {counted(n_requests, 'request')} failed: {said}"
            )
        return found

    def _read(self, batch: Any) -> Iterator[tuple[str, BatchAnswer]]:
        """Digests and answers, in whatever order they came."""
        for file in (batch.output_file_id, batch.error_file_id):
            if not file:
                continue
            try:
                content = self._call(partial(self._content, file), file=True)
            except ModelNotFoundError:
                _log.warning("batch %s: file %s is gone", batch.id, file)
                continue
            for line in content.split(b"\n"):  # a text may have other ends of lines in it
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    entry = json.loads(line)
                    response = entry.get("response") or {}
                    if not response and codes_of(entry.get("error")) & _NEVER_SENT:
                        continue
                    body = response.get("body") or {"error": entry.get("error") or {}}
                    status = int(response.get("status_code") or 500)
                    if not isinstance(body, dict):
                        status, body = 500, {}
                    yield str(entry["custom_id"]), BatchAnswer(status, body)

    def _content(self, file: str) -> bytes:
        data: bytes = self._server.client.files.content(file).content
        return data


def _words_of(errors: Any) -> str:
    """The words of a failed batch, whatever the shape of its errors."""
    reasons = getattr(errors, "data", errors)
    some = reasons if isinstance(reasons, list) else [reasons]
    words = (words_of(getattr(one, "message", one)) for one in some)
    return "; ".join(word for word in words if word)


def _job(part: Requests) -> str:
    return hashlib.sha256("\n".join(sorted(part)).encode()).hexdigest()


def _parts(requests: Requests) -> Iterator[tuple[str, Requests]]:
    """Requests by endpoint, in files that are not too large, the same for the same requests."""
    for path in sorted({request.path for request in requests.values()}):
        part: dict[str, Request] = {}
        size = 0
        for digest in sorted(requests):
            if requests[digest].path != path:
                continue
            length = len(json.dumps(requests[digest].body())) + 200
            if part and (len(part) == _MAX_REQUESTS or size + length > _MAX_BYTES):
                yield path, part
                part, size = {}, 0
            part[digest] = requests[digest]
            size += length
        if part:
            yield path, part
