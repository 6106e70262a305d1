"""Pipelines: scripts that the server has lost, and what may wait travels in company."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from redis.exceptions import ResponseError

from adapters import lua, names
from adapters.redis_link import MAX_PIPELINE, MOST_WAITING, Batch, Command, Link
from app.messages import Lane
from app.ports import Admitted, Unavailable
from app.records import Facts, Needs
from tests.making import EMAIL
from tests.store.bench import bench, entry, outcome, settlement, taken

# --- NOSCRIPT ---------------------------------------------------------------------------------------------------------


async def test_scripts_that_the_server_has_lost_are_loaded_again_and_each_runs_once(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        await parts.admit(entry("0", deadline))
        for _ in range(2):
            await parts.redis.script_flush()
            found = await asyncio.gather(*(parts.admit(entry(str(n), deadline)) for n in range(20)))
            assert all(isinstance(answer, Admitted) for answer in found)
        assert await parts.length(names.lane(Lane.HASH)) == 41


async def test_answers_after_a_lost_script_go_to_who_asked(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.redis.script_flush()
        before = await parts.now()
        beat = (lua.BEAT, [names.WORKERS, names.CAPACITY], "name", msgspec.msgpack.encode({}), 4000)
        plain, now, again, later = await asyncio.gather(
            parts.batch.command("ECHO", "plain"),
            parts.batch.script(*beat),
            parts.batch.command("ECHO", "again"),
            parts.batch.script(*beat),
        )
        assert (plain, again) == (b"plain", b"again")
        assert before <= now[0] <= later[0] <= await parts.now()


async def test_a_script_that_fails_fails_alone(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        await parts.redis.set(names.SESSIONS + "string", "not a hash")
        broken, whole = await asyncio.gather(
            parts.store.check("1", await parts.soon(), Needs(session_id="string")),
            parts.store.check("2", await parts.soon(), Needs(email=EMAIL)),
            return_exceptions=True,
        )
        assert isinstance(broken, ResponseError)
        assert isinstance(whole, Facts)


# --- patience: what may wait travels in company -----------------------------------------------------------------------


class Counting(Link):
    """A real one that keeps how many commands each of its trips had."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "test-patience")
        self.trips: list[int] = []

    async def pipeline(self, commands: Sequence[Command], **more: Any) -> list[Any]:
        self.trips.append(len(commands))
        return await super().pipeline(commands, **more)


@dataclass
class Patience:
    """A batch whose trips are counted; `beat` asks for a script with some patience in seconds."""

    link: Counting
    batch: Batch

    def beat(self, patience: float) -> asyncio.Future[Any]:
        keys = [names.WORKERS, names.CAPACITY]
        return self.batch.script(lua.BEAT, keys, "name", msgspec.msgpack.encode({}), 4000, patience=patience)


@asynccontextmanager
async def patience(url: str) -> AsyncIterator[Patience]:
    link = Counting(url)
    found = Patience(link, Batch(link))
    await found.beat(0.0)  # the scripts are loaded from here on
    link.trips.clear()
    try:
        yield found
    finally:
        await found.batch.close()


LONG, SHORT = 60.0, 0.05


@pytest.mark.parametrize("hurried", ["a script", "a command"])
async def test_who_is_patient_waits_for_the_first_who_is_not_and_travels_with_him(redis_url: str, hurried: str) -> None:
    async with patience(redis_url) as found:
        patient = [found.beat(LONG) for _ in range(3)]
        done, _ = await asyncio.wait(patient, timeout=SHORT)
        assert (len(done), found.link.trips) == (0, [])
        await (found.beat(0.0) if hurried == "a script" else found.batch.command("PING"))
        assert all(future.done() for future in patient)
        assert found.link.trips == [4]


async def test_who_is_patient_travels_by_himself_with_his_like_when_his_patience_ends(redis_url: str) -> None:
    async with patience(redis_url) as found:
        loop = asyncio.get_running_loop()
        for _ in range(2):  # also a second time
            found.link.trips.clear()
            began = loop.time()
            patient = [found.beat(SHORT)]
            await asyncio.sleep(SHORT / 2)
            patient.append(found.beat(SHORT))  # does not make the first wait longer
            await asyncio.gather(*patient)
            assert SHORT * 0.9 <= loop.time() - began < SHORT * 10
            assert found.link.trips == [2]


async def test_a_hurried_trip_leaves_nothing_of_the_patience_of_those_it_took_along(redis_url: str) -> None:
    async with patience(redis_url) as found:
        first = [found.beat(SHORT), found.beat(SHORT)]
        await found.beat(0.0)
        later = found.beat(LONG)
        done, _ = await asyncio.wait([later], timeout=SHORT * 3)  # past the end of the first ones' patience
        assert all(future.done() for future in first)
        assert (done, found.link.trips) == (set(), [3])


async def test_who_comes_while_a_trip_is_under_way_travels_with_the_next_patient_or_not(redis_url: str) -> None:
    async with patience(redis_url) as found:
        hurried = found.beat(0.0)
        await asyncio.sleep(0)  # it is under way
        await asyncio.gather(hurried, found.beat(LONG), found.beat(0.0))
        assert found.link.trips == [1, 2]


async def test_what_still_waits_is_sent_when_the_batch_closes(redis_url: str) -> None:
    async with patience(redis_url) as found:
        patient = [found.beat(LONG) for _ in range(3)]
        await found.batch.close()
        assert all(future.done() and future.result() for future in patient)
        assert found.link.trips == [3]


async def test_what_nobody_waits_for_any_more_is_not_sent(redis_url: str) -> None:
    async with patience(redis_url) as found:
        given_up, patient = found.beat(LONG), found.beat(LONG)
        given_up.cancel()
        await found.beat(0.0)
        assert patient.done()
        assert found.link.trips == [2]


class Away(Link):
    """A server that does not answer."""

    trips = 0

    async def pipeline(self, commands: Sequence[Command], **more: Any) -> list[Any]:
        self.trips += 1
        await asyncio.sleep(0)
        raise Unavailable("away")


async def test_when_a_trip_fails_all_who_wait_behind_it_are_told_at_once() -> None:
    link = Away("redis://127.0.0.1:1/0", "test")
    batch = Batch(link)
    waiting = [batch.command("PING") for _ in range(3 * MAX_PIPELINE)]
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in told} == {Unavailable}
    assert link.trips == 1
    with pytest.raises(Unavailable):
        await batch.command("PING")  # and whoever comes later tries anew
    assert link.trips == 2


async def test_only_so_much_waits_for_a_server_that_is_slow() -> None:
    batch = Batch(Away("redis://127.0.0.1:1/0", "test"))
    waiting = [batch.command("PING") for _ in range(MOST_WAITING + 5)]
    assert [future.done() for future in waiting] == [False] * MOST_WAITING + [True] * 5
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in told} == {Unavailable}


async def test_admitting_and_settling_wait_for_company_as_long_as_they_are_told(redis_url: str) -> None:
    async with bench(redis_url) as parts:
        deadline = await parts.soon()
        admitting = asyncio.ensure_future(parts.gateway.admit(entry(deadline=deadline), LONG))
        await asyncio.sleep(SHORT)
        assert not admitting.done()
        await parts.admit(entry("hurried", deadline))
        assert isinstance(await admitting, Admitted)
        first, second = await taken(parts)
        settling = asyncio.ensure_future(parts.worker.settle(first, settlement("rid", outcome()), LONG))
        await asyncio.sleep(SHORT)
        assert not settling.done()
        assert await parts.end(second, settlement("hurried", outcome())) == "settled"
        assert await settling == "settled"
