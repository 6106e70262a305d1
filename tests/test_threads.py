"""The threads that hash: what comes first goes first, and none is lost by what another raises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from app.threads import HashThreads


async def test_what_comes_first_goes_before_what_does_not_and_each_in_its_order() -> None:
    threads, order, gate = HashThreads(1), list[str](), threading.Event()
    busy = asyncio.create_task(threads.run(gate.wait))
    await asyncio.sleep(0.01)

    def work(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    asked = [
        asyncio.ensure_future(threads.run(work(name), first=name.startswith("f")))
        for name in ("s1", "f1", "s2", "f2", "f3")
    ]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(busy, *asked)
    threads.close()
    assert order == ["f1", "f2", "f3", "s1", "s2"]


async def test_what_a_thread_raises_is_raised_to_who_waits_and_the_thread_goes_on() -> None:
    threads = HashThreads(1)

    def fails() -> None:
        raise KeyError("failed")

    answers = await asyncio.gather(threads.run(fails), threads.run(lambda: 1), return_exceptions=True)
    threads.close()
    assert [type(answer) for answer in answers] == [KeyError, int]
