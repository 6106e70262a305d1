"""The threads that hash: Argon2 releases the GIL. What comes first goes before all that has not begun."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

NICENESS = 10  # hashing gives way to the loops of gateway, worker and Redis on the same cores


class HashThreads:
    """So many threads; whatever waits for them waits here, so that none is ever idle while there is work."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, "hash", _give_way)
        self._choosing = threading.Lock()
        self._first: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._after: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    async def run(self, work: Callable[[], T], *, first: bool = True) -> T:
        """What it comes to, or raises. Not `first`: it waits until nothing does that is."""
        done: Future[T] = Future()
        with self._choosing:
            (self._first if first else self._after).append((done, work))
        self._pool.submit(self._next)
        return await asyncio.wrap_future(done)

    def _next(self) -> None:
        with self._choosing:
            done, work = (self._first or self._after).popleft()
        if done.set_running_or_notify_cancel():
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

    def close(self) -> None:
        """What has not begun never will."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except (OSError, AttributeError):
        return  # only Linux has priorities of threads
