"""The threads that hash: Argon2 releases the GIL. What comes first goes before all that has not begun.

Our own over concurrent.futures: two orders, and half of its CPU a call.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

NICENESS = 10  # hashing gives way to the loops of gateway, worker and Redis on the same cores


class Call(NamedTuple):
    work: Callable[[], Any]
    done: asyncio.Future[Any]


class HashThreads:
    """So many threads; whatever waits for them waits here, so that none is ever idle while there is work."""

    def __init__(self, count: int) -> None:
        self._first: deque[Call] = deque()
        self._after: deque[Call] = deque()
        self._choosing = threading.Lock()
        self._there: SimpleQueue[bool] = SimpleQueue()  # True for each call; False ends a thread
        self._threads = [threading.Thread(target=self._serve, name=f"hash-{n}", daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[], T], *, first: bool = True) -> T:
        """What it comes to, or raises. Not `first`: it waits until nothing does that is."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        (self._first if first else self._after).append(Call(work, done))
        self._there.put(True)
        return await done

    def close(self) -> None:
        """What has not begun never will."""
        with self._choosing:
            given_up = [*self._first, *self._after]
            self._first.clear()
            self._after.clear()
        for call in given_up:
            call.done.cancel()
        for _ in self._threads:
            self._there.put(False)

    def _serve(self) -> None:
        _give_way()
        while self._there.get():
            with self._choosing:
                calls = self._first or self._after
                call = calls.popleft() if calls else None  # closed meanwhile
            if call is not None and not call.done.cancelled():
                _evaluate(call)
            del call  # with what it hashes


def _evaluate(call: Call) -> None:
    result = error = None
    try:
        result = call.work()
    except BaseException as raised:
        error = raised
    with suppress(RuntimeError):  # nobody waits any more: the loop is closed
        call.done.get_loop().call_soon_threadsafe(_tell, call.done, result, error)


def _tell(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)


def _give_way() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    except (OSError, AttributeError):
        return  # only Linux has priorities of threads
