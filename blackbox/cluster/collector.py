"""The other actor of a job: it collects an LM's answers, for a store that others fill from."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.backend import BaseBackend
from blackbox.cluster.ledger import SharedLedger
from blackbox.cluster.predictor import clients, find_shard, reported, rows_of
from blackbox.cluster.source import ROW_ID
from blackbox.errors import BudgetError
from blackbox.lm.meter import Budget
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import Usage
from blackbox.store.exchange import answer_tables
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import texts_of_rows

__all__ = ["Collector"]


class Collector:
    """Asks an LM the prompts of a pool about the texts of blocks, and returns its answers.

    Each block has a store of its own, a shard, whose export is the result: `blackbox store import`
    takes it. A row per text with its id alone says that the text is done.

    Parameters
    ----------
    pool : PromptPool
        The prompts.
    top_k : int
        Number of next tokens per answer; fewer where the LM gives fewer.
    text_columns : tuple of str
        The column of texts; of pairs, both; and that of images.
    connect : callable
        Connects the LM.
    image_column : str, optional
        Which of the columns is the one of images.
    table, store, store_max_bytes, budget, ledger, n_cpus, driver_host
        As for `Predictor`.
    """

    def __init__(
        self,
        pool: PromptPool,
        top_k: int,
        text_columns: tuple[str, ...],
        connect: Callable[[], BaseBackend],
        *,
        image_column: str | None = None,
        table: str = "a block",
        store: Path | bool | None = None,
        store_max_bytes: int | None = None,
        budget: Budget | None = None,
        ledger: SharedLedger | None = None,
        n_cpus: int | None = None,
        driver_host: str | None = None,
    ) -> None:
        self._pool, self._texts, self._ledger = pool, text_columns, ledger
        self._table, self._image_column = table, image_column
        self._name = uuid.uuid4().hex
        self._stopped = False
        with reported(ledger):
            [self._lm] = clients(
                [connect],
                budget or Budget(),
                ledger,
                find_shard(store, store_max_bytes, driver_host),
                n_cpus,
            )
        self._top_k = min(top_k, self._lm.limits.max_top_k)

    def __call__(self, table: Any) -> Any:
        """Return the answers about a block of rows.

        Parameters
        ----------
        table : pyarrow.Table
            Rows with their ids.
        """
        import pyarrow as pa

        ids = table.select([ROW_ID])
        if self._stopped:
            return ids.slice(0, 0)
        counts, failure = {"rows": table.num_rows}, ""
        with reported(self._ledger), tempfile.TemporaryDirectory() as folder:
            shard = StoreFile(Path(folder) / "shard.sqlite")
            try:
                errors = self._ask(StoredBackend(self._lm, shard), table)
                counts["abstained"] = len(errors)
                failure = next(iter(errors.values()), "")
                _, answers = answer_tables(shard)
                return pa.concat_tables([*answers, ids], promote_options="default")
            except BudgetError as error:
                if self._ledger is None:
                    raise
                self._ledger.fail(error)
                self._stopped, counts = True, {}
                return ids.slice(0, 0)
            finally:
                shard.close()
                if self._ledger is not None:
                    self._ledger.report(self._name, counts, self._usage(), failure)

    def _ask(self, lm: BaseBackend, table: Any) -> dict[int, str]:
        """Ask about all rows; return the reasons of those that can't be answered, by their ids."""
        rows = rows_of(table, self._table)
        texts, refused = texts_of_rows(
            rows, self._texts, self._table, image_column=self._image_column
        )
        examples = check_texts(texts)
        refused = dict(examples.refused) | refused
        usable = [place for place in range(len(examples)) if place not in refused]
        found = next_tokens(lm, self._pool, [examples[place] for place in usable], self._top_k)
        refused |= {usable[row]: reason for row, reason in found.row_errors.items()}
        at = {place: rows[place].values[ROW_ID] for place in refused}
        return {place: f"{ROW_ID} {at[place]}: {refused[place]}" for place in sorted(refused)}

    def _usage(self) -> Usage:
        usage: Usage = self._lm.usage
        return usage
