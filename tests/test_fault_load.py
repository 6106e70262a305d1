"""The visitors of a load, before a server that lies: what it does wrong is in their log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from websockets.asyncio.server import ServerConnection, serve

from tests.faults import visitors
from tests.faults.log import Log
from tests.faults.mails import Mails
from tests.faults.visitors import Lost, Visitor

REFUSED = {"code": "invalid_credentials"}


@asynccontextmanager
async def visitor(path: Path, *answers: bytes | int | None, keyed: bool = False) -> AsyncIterator[Visitor]:
    """A visitor of a server that sends these for what it is asked, in turn: a close code for one, None for nothing.

    `%` in an answer stands for the request's id.
    """
    left = list(answers)

    async def answer(socket: ServerConnection) -> None:
        await socket.send('{"event":"connected","data":{}}')
        async for frame in socket:
            id = orjson.loads(frame)["id"].encode()
            while left:
                now = left.pop(0)
                if isinstance(now, int):
                    await socket.close(now)
                    return
                if now is None:
                    break
                await socket.send(now.replace(b"%", id), text=True)

    async with serve(answer, "127.0.0.1", 0) as server:
        [port] = (listener.getsockname()[1] for listener in server.sockets)
        url, stopping = f"ws://127.0.0.1:{port}/ws", asyncio.Event()
        guest = Visitor(
            "v", 7, Log(), Mails(path), lambda: [url], stopping, keyed=keyed, timeout_ms=100, mail_seconds=0.1
        )
        yield guest
        await guest.close()


def told(event: str, id: str = "%", **data: object) -> bytes:
    return orjson.dumps({"event": event, "id": id, "data": data})


async def test_an_honest_answer_is_logged_and_nothing_else(tmp_path: Path) -> None:
    push = b'{"event":"session_started","data":{}}'
    async with visitor(tmp_path, push, told("queued"), told("login_failure", **REFUSED), push) as guest:
        await guest.guess("a@b.c")
        await asyncio.sleep(0.05)
    [asked] = guest.log.asked
    assert [sending.told for sending in asked.sendings] == ["login_failure invalid_credentials"]
    assert not asked.unknown and not guest.log.strays


@pytest.mark.parametrize(
    "second", [told("login_failure", **REFUSED), told("login_success", "77"), told("queued"), told("error", code="x")]
)
async def test_a_second_and_a_misdirected_answer_are_noted(tmp_path: Path, second: bytes) -> None:
    async with visitor(tmp_path, told("login_failure", **REFUSED), second, told("mail_status")) as guest:
        await guest.guess("a@b.c")
        await asyncio.sleep(0.05)
    assert len(guest.log.strays) == 2 and "for id" in guest.log.strays[0]


async def test_no_answer_by_the_deadline_and_its_slack_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "SLACK_SECONDS", 0.1)
    async with visitor(tmp_path, None) as guest:
        with pytest.raises(Lost):
            await guest.guess("a@b.c")
    [[sending]] = (asked.sendings for asked in guest.log.asked)
    assert sending.missing and sending.unknown and sending.told == "missing"


async def test_a_closed_connection_is_an_unknown_outcome(tmp_path: Path) -> None:
    async with visitor(tmp_path, 1011) as guest:
        with pytest.raises(Lost):
            await guest.guess("a@b.c")
    [asked] = guest.log.asked
    assert asked.sendings[0].closed == 1011 and asked.unknown


async def test_with_a_key_it_is_sent_again_until_it_is_answered(tmp_path: Path) -> None:
    again = told("error", code="unavailable", retryAfterMs=1)
    async with visitor(tmp_path, again, None, 1011, told("login_failure", **REFUSED), keyed=True) as guest:
        await guest.guess("a@b.c")
    [asked] = guest.log.asked
    ends = ["error unavailable", "closed 1011", "login_failure invalid_credentials"]
    assert [sending.told for sending in asked.sendings] == ends
    assert asked.key and not asked.unknown


async def test_a_mail_that_does_not_come_is_a_problem(tmp_path: Path) -> None:
    async with visitor(tmp_path) as guest:
        with pytest.raises(Lost):
            await guest.codes("a@b.c")
    assert guest.log.problems == ["1 mails to a@b.c did not come in 0 s"]
