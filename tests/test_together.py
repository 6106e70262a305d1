"""A task that is cancelled in the moment in which what it waits for fails ends as cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
from aio_pika.exceptions import AMQPError

from adapters.amqp_link import attempt
from adapters.together import together
from app.ports import Unavailable


async def ended_while_it_fails(waiting: Awaitable[object], failing: asyncio.Future[None]) -> asyncio.Task[object]:
    async def wait() -> object:
        return await waiting

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)  # it waits
    failing.set_exception(Unavailable("away"))
    task.cancel()
    await asyncio.wait([task])
    return task


async def test_what_failed_among_several_calls_does_not_hide_a_cancellation() -> None:
    failing, pending = (asyncio.get_running_loop().create_future() for _ in range(2))
    task = await ended_while_it_fails(together(failing, pending), failing)

    assert task.cancelled()
    assert pending.cancelled(), "nothing goes on by itself"


async def test_a_client_library_that_makes_something_else_of_a_cancellation_does_not_hide_it() -> None:
    failing = asyncio.get_running_loop().create_future()

    async def call() -> None:
        try:
            await failing
        except asyncio.CancelledError:
            raise AMQPError("closed") from None

    task = await ended_while_it_fails(attempt(call(), 10), failing)

    assert task.cancelled()


async def test_a_failure_alone_is_a_failure_also_in_a_task_that_was_cancelled_before() -> None:
    """As when it closes what it had open."""
    seen: list[str] = []

    async def close() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            failing = asyncio.get_running_loop().create_future()
            failing.set_exception(Unavailable("away"))
            with pytest.raises(Unavailable):
                await together(failing)
            seen.append("closed")

    task = asyncio.create_task(close())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled() and seen == ["closed"]


async def test_several_calls_give_their_results_in_order_or_the_first_failure() -> None:
    async def give(value: int) -> int:
        return value

    async def fail() -> int:
        raise Unavailable("away")

    assert await together(*(give(n) for n in range(3))) == [0, 1, 2]
    with pytest.raises(Unavailable):
        await together(give(1), fail())
