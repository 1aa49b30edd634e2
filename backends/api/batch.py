"""The batch endpoint: all requests in one file, answers within a day, at a lower price.

A job is known by the digest of its requests. It stands in the batch's metadata on the server and in
a small file here, so that the same work, begun again after any crash, finds the batch that runs
already and never submits it twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blackbox.errors import BackendError

__all__ = ["BatchAnswer", "Batches"]

_log = logging.getLogger(__name__)

_METADATA = "promptboosting"
_MAX_REQUESTS, _MAX_BYTES = 50_000, 150_000_000  # of one file, below the providers' limits
_LISTED = 100  # recent batches among which one is looked for
_ENDED = ("completed", "expired", "failed", "cancelled")

Requests = Mapping[str, tuple[str, dict[str, Any]]]
"""For each request's digest, the endpoint's path and the body."""


@dataclass(frozen=True)
class BatchAnswer:
    """What came back for one request: a status and the JSON of the answer or of the error."""

    status: int
    body: dict[str, Any]


class Batches:
    """Submits requests as batches, waits for them, and reads what came back.

    Parameters
    ----------
    client : openai.OpenAI
        Reaches the server.
    folder : Path
        Where it is written down which batches run. No texts are kept in it.
    call : callable
        Runs a function that asks the server, with retries and errors in words.
    poll_seconds : float
        Time between two looks at a batch, at first; it grows to a minute.
    """

    def __init__(
        self,
        client: Any,
        folder: Path,
        call: Callable[[Callable[[], Any]], Any],
        poll_seconds: float,
    ) -> None:
        self._client = client
        self._folder = folder
        self._call = call
        self._poll_seconds = poll_seconds

    def run(self, requests: Requests, stop: threading.Event) -> Iterator[dict[str, BatchAnswer]]:
        """Answers by digest, one batch's after the other's; those that expired are not among them.

        Stopped, or interrupted, it leaves the batches to run; the same requests find them again.
        """
        parts = list(_parts(requests))
        batches = [self._submitted(path, part) for path, part in parts]
        for (_, part), batch in zip(parts, batches, strict=True):
            done = self._wait(batch, len(part), stop)
            if done is None:
                return
            answers = {
                digest: answer
                for digest, answer in self._read(done)
                if digest in part  # whatever else a server sends is not ours
            }
            yield answers
            self._file(_job(part)).unlink(missing_ok=True)

    def _submitted(self, path: str, part: Requests) -> str:
        """The id of the batch with these requests: one that runs already, or a new one."""
        job = _job(part)
        file = self._file(job)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(file.read_text("utf-8"))["batch"]
            if self._status(str(known)) not in ("failed", "cancelled"):
                return str(known)
        found = self._find(job)
        if found is None:
            found = self._submit(path, part, job)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text(json.dumps({"batch": found, "requests": len(part)}), "utf-8")
        return found

    def _submit(self, path: str, part: Requests, job: str) -> str:
        # texts stand in this file: only its owner may read it, and it goes when it is sent
        handle, name = tempfile.mkstemp(suffix=".jsonl")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as lines:
                for digest, (_, body) in part.items():
                    line = {
                        "custom_id": digest,
                        "method": "POST",
                        "url": "/v1" + path,
                        "body": body,
                    }
                    lines.write(json.dumps(line, ensure_ascii=False) + "\n")

            def upload() -> Any:
                with Path(name).open("rb") as data:
                    return self._client.files.create(file=data, purpose="batch")

            uploaded = self._call(upload)
        finally:
            Path(name).unlink()
        # no second try: where the answer is lost, the batch is found by its metadata
        batch = self._call(
            lambda: self._client.batches.create(
                input_file_id=uploaded.id,
                endpoint="/v1" + path,
                completion_window="24h",
                metadata={_METADATA: job},
            )
        )
        _log.warning(
            "batch %s submitted with %d requests; stopped, this command goes on with it when it is "
            "run again",
            batch.id,
            len(part),
        )
        return str(batch.id)

    def _find(self, job: str) -> str | None:
        """A batch of this job that runs already, also where its id was lost."""
        try:
            recent = self._call(lambda: self._client.batches.list(limit=_LISTED).data)
        except BackendError:
            return None  # not every server lists batches
        for batch in recent or []:
            if (batch.metadata or {}).get(_METADATA) == job and batch.status not in (
                "failed",
                "cancelled",
                "cancelling",
            ):
                return str(batch.id)
        return None

    def _status(self, batch: str) -> str:
        return str(self._call(lambda: self._client.batches.retrieve(batch)).status)

    def _wait(self, batch: str, n_requests: int, stop: threading.Event) -> Any | None:
        """The batch when it has ended; None when the work was stopped before."""
        pause = self._poll_seconds
        while True:
            found = self._call(lambda: self._client.batches.retrieve(batch))
            if found.status in _ENDED:
                break
            counts = getattr(found, "request_counts", None)
            _log.info("batch %s: %s, %s", batch, found.status, counts)
            if stop.wait(pause):
                return None
            pause = min(pause * 1.5, 60.0)
        if found.status == "failed":
            reasons = getattr(found.errors, "data", None) or []
            said = "; ".join(str(error.message) for error in reasons)[:300]
            raise BackendError(f"batch {batch} of {n_requests} requests failed: {said}")
        return found

    def _read(self, batch: Any) -> Iterator[tuple[str, BatchAnswer]]:
        """Digests and answers, in whatever order they came."""
        for file in (batch.output_file_id, batch.error_file_id):
            if not file:
                continue
            content = self._call(partial(self._content, file))
            for line in content.decode("utf-8", "replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    entry = json.loads(line)
                    response = entry.get("response") or {}
                    body = response.get("body") or {"error": entry.get("error") or {}}
                    status = int(response.get("status_code") or 500)
                    yield str(entry["custom_id"]), BatchAnswer(status, body)

    def _content(self, file: str) -> bytes:
        data: bytes = self._client.files.content(file).content
        return data

    def _file(self, job: str) -> Path:
        return self._folder / f"{job[:32]}.json"


def _job(part: Requests) -> str:
    return hashlib.sha256("\n".join(sorted(part)).encode()).hexdigest()


def _parts(requests: Requests) -> Iterator[tuple[str, Requests]]:
    """Requests by endpoint, in files that are not too large, the same for the same requests."""
    for path in sorted({path for path, _ in requests.values()}):
        part: dict[str, tuple[str, dict[str, Any]]] = {}
        size = 0
        for digest in sorted(requests):
            if requests[digest][0] != path:
                continue
            length = len(json.dumps(requests[digest][1])) + 200
            if part and (len(part) == _MAX_REQUESTS or size + length > _MAX_BYTES):
                yield path, part
                part, size = {}, 0
            part[digest] = requests[digest]
            size += length
        if part:
            yield path, part
