"""Draws new candidate prompts from the sources, within a budget for what the LM writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from blackbox.answers.gatherer import Gatherer
from blackbox.generation.sources import SOURCES
from blackbox.generation.task import SearchState, Task, Writer, no_fitting_prompt
from blackbox.prompts.template import Prompt
from blackbox.protocol import RenderedPrompt

__all__ = ["BudgetedWriter", "Proposer"]

_FALLBACK = "templates"


class BudgetedWriter:
    """An LM that writes within a number of tokens.

    Parameters
    ----------
    gatherer : Gatherer
        Has the LM write.
    max_tokens : int
        Tokens in all; requests beyond them are left out.
    seed : int
        Seed of what is drawn.
    """

    def __init__(self, gatherer: Gatherer, max_tokens: int, seed: int) -> None:
        self.limits = gatherer.writer.limits
        self._gatherer, self._max_tokens, self._seed = gatherer, max_tokens, seed

    def __call__(
        self, requests: Sequence[RenderedPrompt], n: int, max_tokens: int
    ) -> list[list[str]]:
        """Return n texts per request, of the first requests that the budget holds."""
        left = self._max_tokens - self._gatherer.written
        affordable = requests[: left // (n * max_tokens)]
        return self._gatherer.write(affordable, n, max_tokens=max_tokens, seed=self._seed)


class Proposer:
    """Draws candidates from the sources in turn, each prompt once.

    Parameters
    ----------
    task : Task
        The training rows.
    sources : sequence of str
        Names of `blackbox.generation.SOURCES`.
    write : Writer
        The LM that writes.
    rng : numpy Generator
        For all that is drawn.

    Attributes
    ----------
    origins : dict of Prompt to str
        The source of each candidate drawn so far.
    """

    def __init__(
        self, task: Task, sources: Sequence[str], write: Writer, rng: np.random.Generator
    ) -> None:
        self.origins: dict[Prompt, str] = {}
        self._task, self._write, self._rng = task, write, rng
        self._improving = [name for name in sources if SOURCES[name].improves]
        # sources that improve on candidates need some to begin with
        self._initial = [n for n in sources if not SOURCES[n].improves] or [_FALLBACK]

    @property
    def improves(self) -> bool:
        """Whether a source makes variants of the best candidates."""
        return bool(self._improving)

    def initial(self, n: int, n_wanted: int) -> list[Prompt]:
        """Draw n candidates; templates make up for sources that have fewer than are wanted.

        Raises
        ------
        PromptError
            If the LM's context holds no candidate.
        """
        drawn = self._draw(self._initial, SearchState(), n)
        if len(drawn) < n_wanted:
            drawn += self._draw([_FALLBACK], SearchState(), n_wanted - len(drawn))
        if not drawn:
            raise no_fitting_prompt(self._task)
        return drawn

    def variants(self, state: SearchState, n: int) -> list[Prompt]:
        """Draw n candidates that improve on the best so far."""
        return self._draw(self._improving, state, n)

    def counts(self) -> dict[str, int]:
        """Return the number of candidates drawn from each source."""
        return dict(Counter(self.origins.values()))

    def _draw(self, sources: Sequence[str], state: SearchState, n: int) -> list[Prompt]:
        """Draw n new candidates that fit the LM's context, from the sources in turn."""
        streams = {
            name: SOURCES[name].propose(self._task, state, self._write, self._rng)
            for name in sources
        }
        drawn: list[Prompt] = []
        while streams and len(drawn) < n:
            for name in list(streams):
                unseen = (prompt for prompt in streams[name] if prompt not in self.origins)
                prompt = next(filter(self._task.fits, unseen), None)
                if prompt is None:
                    del streams[name]
                elif len(drawn) < n:
                    self.origins[prompt] = name
                    drawn.append(prompt)
        return drawn
