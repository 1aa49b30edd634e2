"""Collectors: the actors of `blackbox collect`, which keep an LM's answers for a store."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from blackbox.answers.passes import next_tokens
from blackbox.answers.texts import check_texts
from blackbox.backend import BaseBackend
from blackbox.cluster.actor import Actor, rows_of
from blackbox.cluster.source import ROW_ID
from blackbox.prompts.pool import PromptPool
from blackbox.store.exchange import answer_tables
from blackbox.store.file import StoreFile
from blackbox.store.stored_backend import StoredBackend
from blackbox.tables import texts_of_rows

__all__ = ["Collector", "collected"]

T = TypeVar("T")


class Collector(Actor):
    """Asks an LM the prompts of a pool about the texts of blocks, and returns its answers.

    The result of a block is an export, which `blackbox store import` takes. A row per text with its
    id alone says that the text is done.

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
    **settings
        Of `Actor`.
    """

    def __init__(
        self,
        pool: PromptPool,
        top_k: int,
        text_columns: tuple[str, ...],
        connect: Callable[[], BaseBackend],
        *,
        image_column: str | None = None,
        **settings: Any,
    ) -> None:
        self._pool, self._texts, self._image_column = pool, text_columns, image_column
        super().__init__([connect], **settings)
        self._top_k = min(top_k, self._lms[0].limits.max_top_k)

    def _work(self, table: Any) -> tuple[Any, dict[str, int], str]:
        import pyarrow as pa

        answers, errors = collected(self._lms[0], lambda lm: self._ask(lm, table))
        results = pa.concat_tables([answers, table.select([ROW_ID])], promote_options="default")
        counts = {"rows": table.num_rows, "abstained": len(errors)}
        return results, counts, next(iter(errors.values()), "")

    def _nothing(self, table: Any) -> Any:
        return table.select([ROW_ID]).slice(0, 0)

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


def collected(lm: BaseBackend, ask: Callable[[BaseBackend], T]) -> tuple[Any, T]:
    """Return the answers that an LM gives while it is asked, as an export, and what asking returns.

    Parameters
    ----------
    lm : BaseBackend
        The LM.
    ask : callable
        Asks it, behind a store of its own.
    """
    import pyarrow as pa

    with (
        tempfile.TemporaryDirectory() as folder,
        closing(StoreFile(Path(folder) / "shard.sqlite")) as shard,
    ):
        told = ask(StoredBackend(lm, shard))
        _, tables = answer_tables(shard)
        return pa.concat_tables(tables), told
