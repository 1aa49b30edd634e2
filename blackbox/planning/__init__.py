"""Cost estimates before a run: forward passes, tokens, time and money, by a dry run of `fit`.

A plan goes through the same steps as the run, over a backend that sends nothing: cached answers
come from the store, and all other requests are only counted. So the number of forward passes is
exact.
"""

from __future__ import annotations

from blackbox.planning.dry_run import DryRunBackend
from blackbox.planning.plan import Plan, make_plan, plan

__all__ = ["DryRunBackend", "Plan", "make_plan", "plan"]
