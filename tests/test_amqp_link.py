"""How long the AMQP adapter waits for a confirmation: as long as the broker confirms anything, up to a limit."""

from __future__ import annotations

import asyncio

import pytest

from adapters.amqp_link import SILENT_LOOKS, SILENT_LOOKS_OF_A_GET, Patience, attempt
from app.ports import Unavailable

FOR_EVER = 600.0


class Publishes:
    """Confirmations that are waited for on one line; the test says when there are any, and when it is looked."""

    def __init__(self) -> None:
        self.patience = Patience()

    async def publish(self, looks: int = SILENT_LOOKS) -> tuple[asyncio.Future[None], asyncio.Task[None]]:
        """Its confirmation, and who waits for it."""
        confirmation: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            limit = asyncio.timeout(FOR_EVER)
            with self.patience.lasts(limit, looks):
                await attempt(confirmation, limit)

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)  # it waits
        return confirmation, task

    def look(self, times: int) -> None:
        for _ in range(times):
            self.patience.look()


async def test_a_broker_that_confirms_nothing_is_away_for_all_who_wait_at_once() -> None:
    line = Publishes()
    waiting = [(await line.publish())[1] for _ in range(3)]
    line.look(SILENT_LOOKS - 1)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)

    line.look(1)
    for task in waiting:
        with pytest.raises(Unavailable):
            await task


async def test_a_broker_that_confirms_others_is_slow_and_is_waited_for() -> None:
    line = Publishes()
    confirmation, waiting = await line.publish()
    for _ in range(10):
        other, its = await line.publish()
        line.look(SILENT_LOOKS - 1)
        other.set_result(None)
        await its
    assert not waiting.done()

    confirmation.set_result(None)
    await waiting


async def test_who_comes_after_a_silence_is_waited_for_as_long_as_anybody() -> None:
    line = Publishes()
    _, first = await line.publish()
    line.look(SILENT_LOOKS)
    with pytest.raises(Unavailable):
        await first

    confirmation, second = await line.publish()
    line.look(SILENT_LOOKS - 1)
    await asyncio.sleep(0)
    confirmation.set_result(None)
    await second


async def test_who_comes_while_something_is_fetched_slowly_is_waited_for_as_long_as_anybody() -> None:
    line = Publishes()
    _, fetching = await line.publish(SILENT_LOOKS_OF_A_GET)
    line.look(SILENT_LOOKS_OF_A_GET - 1)
    confirmation, publishing = await line.publish()
    line.look(1)
    with pytest.raises(Unavailable):
        await fetching
    line.look(SILENT_LOOKS - 1)
    await asyncio.sleep(0)
    confirmation.set_result(None)
    await publishing
