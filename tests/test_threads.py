"""The threads that hash: what comes first goes first, and none is lost by what another raises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from app.threads import HashThreads


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Open at the end, whatever happened: a thread that waits for it would keep the process."""
    event = threading.Event()
    yield event
    event.set()


async def test_what_comes_first_goes_before_what_does_not_and_each_in_its_order(gate: threading.Event) -> None:
    threads, order = HashThreads(1), list[str]()
    busy = asyncio.create_task(threads.run(gate.wait))
    await asyncio.sleep(0)  # it is the first of what comes first, if it was not begun yet

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


async def test_what_nobody_waits_for_any_more_is_not_begun(gate: threading.Event) -> None:
    threads, begun = HashThreads(1), list[int]()
    busy = asyncio.create_task(threads.run(gate.wait))
    left, stays = (asyncio.create_task(threads.run(partial(begun.append, n))) for n in (1, 2))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(busy, stays)
    threads.close()
    assert begun == [2]


async def test_what_has_not_begun_when_they_are_closed_never_will_and_what_has_is_ended(gate: threading.Event) -> None:
    threads, begun = HashThreads(1), threading.Event()

    def works() -> str:
        begun.set()
        gate.wait()
        return "ended"

    busy = asyncio.create_task(threads.run(works))
    waits = [asyncio.create_task(threads.run(lambda: None, first=first)) for first in (True, False)]
    await asyncio.to_thread(begun.wait)
    threads.close()
    gate.set()
    ended, *given_up = await asyncio.gather(busy, *waits, return_exceptions=True)
    assert ended == "ended"
    assert [type(each) for each in given_up] == [asyncio.CancelledError] * 2
