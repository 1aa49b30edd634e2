"""A backend that keeps every answer on disk, so that an evaluation pays for each pass once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blackbox.protocol import Backend, RenderedPrompt, TokenLogProbs
from blackbox.remember import RememberingBackend

_SAVE_SECONDS = 60.0


class RecordedBackend(RememberingBackend):
    """Remembers across processes.

    Parameters
    ----------
    backend : Backend
        The LM.
    folder : Path
        Where answers lie, one ``.npz`` for each time they were saved. One process at a time.
    """

    def __init__(self, backend: Backend, folder: Path) -> None:
        super().__init__(backend)
        self._folder = folder / backend.identity.digest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._new: list[str] = []
        self._saved = time.monotonic()
        for path in sorted(self._folder.glob("*.npz")):
            with np.load(path) as held:
                names = json.loads(held["token_bytes"].tobytes())
                parts = (held["digests"], held["token_ids"], held["log_probs"])
            for digest, ids, values in zip(*parts, strict=True):
                self._known[bytes(digest).hex()] = (ids, values)
            self._token_bytes.update({int(key): bytes.fromhex(b) for key, b in names.items()})

    def iter_next_token(
        self, prompts: Sequence[RenderedPrompt], top_k: int
    ) -> Iterator[tuple[list[int], TokenLogProbs]]:
        """As `RememberingBackend`, and saved every minute and at the end."""
        try:
            for where, part in super().iter_next_token(prompts, top_k):
                yield where, part
                if time.monotonic() - self._saved > _SAVE_SECONDS:
                    self.save()
        finally:
            self.save()

    def save(self) -> None:
        """Write the answers that are not on disk yet."""
        self._saved = time.monotonic()
        if not self._new:
            return
        packed = b"".join(bytes.fromhex(digest) for digest in self._new)
        name = hashlib.sha256(packed).hexdigest()[:16]
        names = json.dumps({str(key): value.hex() for key, value in self._token_bytes.items()})
        np.savez_compressed(
            self._folder / f"{name}.npz",
            digests=np.frombuffer(packed, np.uint8).reshape(-1, 32),
            token_ids=np.stack([self._known[digest][0] for digest in self._new]),
            log_probs=np.stack([self._known[digest][1] for digest in self._new]),
            token_bytes=np.frombuffer(names.encode(), np.uint8),
        )
        self._new.clear()

    def _keep(self, digest: str, ids: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        super()._keep(digest, ids, values)
        self._new.append(digest)
