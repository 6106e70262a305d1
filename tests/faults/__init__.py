"""Faults on purpose: what dies, hangs or lies, and that every promise holds all the same.

A scenario is a coroutine function of a `Run`. It brings its own servers and processes, says how far it has come, raises
AssertionError where a promise is broken, and returns the figures it saw. `scripts/faults` runs them at the size of a
campaign or at that of a test; tests/test_faults.py runs the latter.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

Figures = dict[str, str | int | float]


@dataclass(frozen=True)
class Run:
    """One run of one scenario. The same seed makes the same choices; what the machine adds to them it cannot repeat."""

    seed: int
    full: bool  # the campaign's size, else the test's
    folder: Path  # empty, its own
    say: Callable[[str], None]  # progress: a few words, replaced by the next

    @property
    def random(self) -> random.Random:
        return random.Random(self.seed)

    def size(self, *, test: int, full: int) -> int:
        return full if self.full else test


Scenario = Callable[[Run], Awaitable[Figures]]


class NotPossible(Exception):
    """This machine lacks what a scenario needs; says what. No promise is broken, and none is proven."""
