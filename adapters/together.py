"""Waiting for what may fail in the very moment in which the task that waits is cancelled.

asyncio gives the failure then, and the cancellation is gone: a loop that goes on after failures would never end. So
`asyncio.gather` does where one of its calls has failed, and so does what turns a CancelledError of its own into
something else, as aiormq does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """asyncio.gather: the results in order, or the first failure, or CancelledError."""
    with cancellation_first():
        return await asyncio.gather(*calls)


@contextmanager
def cancellation_first() -> Iterator[None]:
    """What fails inside is a CancelledError where the task was cancelled meanwhile."""
    before = _cancellations()
    try:
        yield
    except Exception:
        if _cancellations() > before:
            raise asyncio.CancelledError from None
        raise


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
