"""One connection to Redis, and the coalescing of scripts into pipelines.

redis-py does the protocol; pools, retries and background pings are left out on purpose. Its default of retrying a
write can apply it twice (redis/redis#12953), and a call cancelled half-way leaves its answer to the next caller
(redis/redis-py#2624): here nothing is ever sent again, and a connection that failed is closed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, RedisError, ResponseError

from adapters import names
from adapters.lua import SCRIPTS, Script
from app.ports import Unavailable
from app.settings import Fault

log = logging.getLogger("finthenticate")
Command = tuple[Any, ...]

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 2.0  # a healthy server answers in milliseconds; past this the caller is told `unavailable`
MOST_WAITING = 20_000  # commands that wait for a server that is slow: some 20 MB
MAX_PIPELINE = 256  # commands a pipeline: bounds how long one trip holds the server (about 10 ms of scripts)

LEAST_VERSION = (7, 0)
LOOK_AGAIN_SECONDS = 0.5
# What `strict` asks of a server: that what it acknowledged survives the death of anything.
DURABLE = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
_WAY_OUT = "mend that, or set FIN_DURABILITY=relaxed to accept it."


class Refused(Unavailable):
    """The server does not accept our name or password."""


class Link:
    """One connection, one pipeline at a time. Opened at first use, and again after a failure."""

    def __init__(self, url: str, name: str) -> None:
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            client_name=f"finthenticate-{name}",
            socket_timeout=None,
            socket_connect_timeout=CONNECT_SECONDS,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
        )
        self._connection: AbstractConnection | None = None
        self._lock = asyncio.Lock()

    async def call(self, *command: Any, seconds: float = ANSWER_SECONDS) -> Any:
        """One command. Raises Unavailable, or ResponseError for what Redis refuses."""
        [answer] = await self.pipeline([command], seconds=seconds)
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    async def pipeline(self, commands: Sequence[Command], *, seconds: float = ANSWER_SECONDS) -> list[Any]:
        """All answers in order, a refusal as a ResponseError value. Unavailable: what was executed is unknown."""
        packed = b"".join(map(pack_command, commands))
        async with self._lock:
            try:
                async with asyncio.timeout(seconds):
                    connection = await self._connected()
                    await connection.send_packed_command(packed, check_health=False)
                    return [await self._answer(connection) for _ in commands]
            except (RedisError, OSError, TimeoutError, RuntimeError) as error:
                await self._drop()
                kind = Refused if isinstance(error, AuthenticationError) else Unavailable
                raise kind(f"Redis: {type(error).__name__}: {error}") from None
            except BaseException:
                await self._drop()  # an answer may still be on its way: nobody else must read it
                raise

    async def close(self) -> None:
        async with self._lock:
            await self._drop()

    async def _connected(self) -> AbstractConnection:
        if self._connection is None:
            connection = self._pool.make_connection()
            await connection.connect()
            self._connection = connection
        return self._connection

    @staticmethod
    async def _answer(connection: AbstractConnection) -> Any:
        try:
            return await connection.read_response(timeout=math.inf, disconnect_on_error=False)
        except ResponseError as refused:
            return refused

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)


class Batch:
    """Scripts asked for at the same moment travel in one pipeline; the next gathers while it is under way.

    `patience`, in seconds, is how long one may wait for company: with durable writes every trip costs the server an
    fsync. Whoever has none takes the others along at once.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._waiting: list[tuple[Command, Script | None, asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._hurry: asyncio.TimerHandle | None = None

    def script(self, script: Script, keys: Sequence[str], *args: Any, patience: float = 0.0) -> asyncio.Future[Any]:
        """The script's answer. Unavailable when it may or may not have run."""
        return self._submit(("EVALSHA", script.sha, len(keys) + 1, *keys, names.CLOCK, *args), script, patience)

    def command(self, *command: Any) -> asyncio.Future[Any]:
        return self._submit(command, None, 0.0)

    async def close(self) -> None:
        """What is waiting is still sent."""
        self._send_now()
        if self._sender is not None:
            await self._sender
        await self._link.close()

    def _submit(self, command: Command, script: Script | None, patience: float) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if len(self._waiting) >= MOST_WAITING:
            future.set_exception(Unavailable("Redis: too much waits for it"))
            return future
        self._waiting.append((command, script, future))
        if self._sender is None:
            if patience <= 0:
                self._send_now()
            elif self._hurry is None:
                self._hurry = loop.call_later(patience, self._send_now)
        return future

    def _send_now(self) -> None:
        if self._hurry is not None:
            self._hurry.cancel()
            self._hurry = None
        if self._sender is None and self._waiting:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_PIPELINE], self._waiting[MAX_PIPELINE:]
                batch = [item for item in batch if not item[2].cancelled()]
                try:
                    await self._exchange(batch)
                except Exception as error:
                    if not isinstance(error, Unavailable):
                        log.exception("a trip failed")  # a fault of ours: nobody may wait for ever because of it
                    # what waited behind it would wait as long, and in vain: let everybody know now
                    batch, self._waiting = batch + self._waiting, []
                    for _, _, future in batch:
                        _settle(future, lambda f, e=error: f.set_exception(Unavailable(str(e))))  # type: ignore[misc]
        finally:
            self._sender = None

    async def _exchange(self, batch: Sequence[tuple[Command, Script | None, asyncio.Future[Any]]]) -> None:
        answers = await self._link.pipeline([command for command, _, _ in batch])
        unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            # A restarted server has lost its scripts: NOSCRIPT means that nothing of that one was executed.
            again: list[Command] = [("SCRIPT", "LOAD", script.text) for script in SCRIPTS]
            again += [batch[n][0] for n in unknown]
            for n, answer in zip(unknown, (await self._link.pipeline(again))[len(SCRIPTS) :], strict=True):
                answers[n] = answer
        for (_, _, future), answer in zip(batch, answers, strict=True):
            if isinstance(answer, ResponseError):
                _settle(future, lambda f, a=answer: f.set_exception(refusal(a)))  # type: ignore[misc]
            else:
                _settle(future, lambda f, a=answer: f.set_result(a))  # type: ignore[misc]


def refusal(error: ResponseError) -> Exception:
    """A server that is loading, full or read-only is unavailable; anything else is a fault of ours."""
    text = str(error)
    passing = ("LOADING", "OOM", "MISCONF", "READONLY", "BUSY ", "MASTERDOWN", "NOREPLICAS", "background saving")
    if any(word in text for word in passing) or type(error).__name__ in ("BusyLoadingError", "OutOfMemoryError"):
        return Unavailable(f"Redis: {text}")
    if "NOGROUP" not in text and "no such key" not in text:  # a group that is not there yet is nobody's fault
        log.error("refused by Redis", extra={"fields": {"reason": text[:300]}})
    return error


def _settle(future: asyncio.Future[Any], how: Callable[[asyncio.Future[Any]], None]) -> None:
    if not future.done():
        how(future)


async def check_durability(link: Link, *, strict: bool) -> None:
    """Wait for the server, then Fault if it is too old, or may lose what it acknowledged where that is not allowed."""
    try:
        while True:
            try:
                await _check_durability(link, strict)
                return
            except Unavailable:
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
    finally:
        await link.close()


async def _check_durability(link: Link, strict: bool) -> None:
    try:
        about = (await link.call("INFO", "server")).decode()
        version = re.search(r"(?:valkey|redis)_version:(\d+)\.(\d+)", about)
        if version is None or tuple(map(int, version.groups())) < LEAST_VERSION:
            raise Fault("FIN_REDIS_URL: the server is older than Redis 7.0.")
        if not strict:
            return
        answer = await link.call("CONFIG", "GET", *DURABLE)
    except (Refused, NoPermissionError) as error:
        raise Fault(f"FIN_REDIS_URL: the server refuses us: {error}.") from None
    except ResponseError as error:
        if isinstance(refusal(error), Unavailable):
            raise Unavailable(str(error)) from None
        raise Fault(
            f"FIN_REDIS_URL: whether the server keeps what it acknowledges cannot be read ({error}); {_WAY_OUT}"
        ) from None
    found = {name.decode(): value.decode() for name, value in zip(answer[::2], answer[1::2], strict=True)}
    wrong = [f"{name} is {found.get(name)}, not {value}" for name, value in DURABLE.items() if found.get(name) != value]
    if wrong:
        raise Fault(f"FIN_REDIS_URL: the server may lose what it acknowledged ({', '.join(wrong)}); {_WAY_OUT}")
