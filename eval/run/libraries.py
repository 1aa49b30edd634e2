"""Libraries: models of the other data sets, made once for each LM and pool of prompts."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from blackbox import PromptBoostingClassifier
from blackbox.backend import BaseBackend
from blackbox.library.folder import Library
from blackbox.store.file import open_store
from blackbox.store.stored_backend import StoredBackend
from eval.run.jobs import Job, load_data, load_lm, read_pool, sources_of
from eval.run.results import SCHEMA

__all__ = ["library_of"]

_SOURCE_SHOTS = 16  # labels per class of a source, or as many as there are
_SOURCE_SEED = 0


def library_of(job: Job) -> Path | None:
    """Return the folder of the models of the other data sets, trained where they are missing.

    None for a method that reads no library. A source is trained on the pool's prompts with the LM
    alone; its passes go into the store, and are charged to no cell: a user has it from before.
    """
    names = sources_of(job.cell)
    if not names:
        return None
    lm = StoredBackend(load_lm(job.cell.lm), open_store(job.store))
    models = [_model_of(name, job, lm) for name in names]
    digest = hashlib.sha256(json.dumps([path.stem for path in models]).encode()).hexdigest()
    folder = job.out / "libraries" / digest[:16]
    for path in models:
        library = Library.open(folder)
        if path.stem not in library.entries:
            library.add(path)
    return folder


def _model_of(name: str, job: Job, lm: BaseBackend) -> Path:
    """Return the file of a data set's model, trained where it is missing."""
    data, pool = load_data(name, job.data_dir), read_pool(job.cell)
    assert pool is not None
    fewest = min(data.train.labels.count(label) for label in data.classes)
    described = [
        SCHEMA,
        _SOURCE_SHOTS,
        _SOURCE_SEED,
        name,
        data.digest(),
        lm.identity.digest(),
        [prompt.template for prompt in pool],
    ]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    called = re.sub(r"[^A-Za-z0-9]+", "-", name)[:40]
    path = job.out / "libraries" / f"{called}-{digest[:16]}.blackbox"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        rows = data.draw(min(_SOURCE_SHOTS, fewest), _SOURCE_SEED)
        classifier = PromptBoostingClassifier(
            lm, prompts=pool, embeddings=None, store=False, random_state=_SOURCE_SEED
        )
        classifier.fit(rows.texts, rows.labels).save(path)
    return path
