"""What scenarios stand on: waiting for something, servers of their own, and clients who log in again and again."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from redis import Redis
from redis.exceptions import RedisError

from adapters import names
from adapters.embedded_redis import EmbeddedRedis, find_server
from app.client import Answer, Client, connect
from app.messages import Lane
from app.passwords import Hasher
from app.settings import Argon2, Secret, Secrets
from app.supervisor import end_with_parent
from tests.deployment import PASSWORD, Deployment, new_address

T = TypeVar("T")
LOOK_SECONDS = 0.01
ANSWER_SECONDS = 1.0  # how long `unavailable` may take
AT_ONCE = {"FIN_EMAIL_CONFIRMATION": "off"}  # a registration is an account, and no mail is needed


async def until(holds: Callable[[], T], what: str, seconds: float = 10.0) -> T:
    """What `holds` returns, once that is true; AssertionError that names `what` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(LOOK_SECONDS)
    return found


@asynccontextmanager
async def embedded(folder: Path) -> AsyncIterator[EmbeddedRedis]:
    server = EmbeddedRedis(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class DidNotStart(Exception):
    """A Redis server ended instead of serving; its log."""


@asynccontextmanager
async def redis_on(folder: Path, environ: Mapping[str, str] | None = None) -> AsyncIterator[str]:
    """The URL of the project's server on the append-only files of `folder`; DidNotStart when it refuses them."""
    with TemporaryDirectory(prefix="fin-") as short, (folder / "redis.log").open("ab") as log:
        socket = f"{short}/redis"  # the path of a socket is 107 bytes at most
        options = {"port": "0", "unixsocket": socket, "save": "", "appendonly": "yes", "appendfsync": "always"}
        process = await asyncio.create_subprocess_exec(
            _server(),
            *(word for name, value in options.items() for word in (f"--{name}", value)),
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent(),
        )
        try:
            url = f"unix://{socket}"
            await until(lambda: process.returncode is not None or _answers(url), "a Redis that starts, or refuses")
            if process.returncode is not None:
                raise DidNotStart((folder / "redis.log").read_text(errors="replace"))
            yield url
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@functools.cache
def _server() -> Path:
    return find_server()


def _answers(url: str) -> bool:
    with Redis.from_url(url) as redis, suppress(RedisError):
        return bool(redis.ping())
    return False


@contextmanager
def paused(running: Deployment) -> Iterator[None]:
    """Its workers are stopped meanwhile, as a hanging machine stops them."""
    for worker in running.of("worker"):
        worker.pause()
    try:
        yield
    finally:
        for worker in running.of("worker"):
            worker.go_on()


async def unheard_of(redis: Redis) -> None:
    """Until workers that are stopped or dead count as dead: then no request is refused for how long they would take."""
    await until(lambda: not redis.exists(names.CAPACITY), "workers that count as dead")


def lanes_empty(redis: Redis) -> bool:
    return not any(redis.xlen(names.lane(lane)) for lane in Lane)


def answered_twice(client: Client) -> bool:
    """Whether a request of the client was told a second end: a frame with an id that waits for nothing."""
    frames = [client.pushes.get_nowait() for _ in range(client.pushes.qsize())]
    return any(frame.get("id") is not None for frame in frames)


def hash_seconds(cost: Argon2) -> float:
    """CPU time of one hash."""
    hasher = Hasher(cost, Secrets((Secret("aaaa", bytes(range(32))),)))
    began = time.process_time()
    for _ in range(5):
        hasher.hash("somebody", PASSWORD)
    return (time.process_time() - began) / 5


def http_status(port: int, path: str) -> int:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code
    except (URLError, OSError):
        return 0


def entries_of(redis: Redis, stream: str) -> list[dict[bytes, bytes]]:
    """The fields of every entry, oldest first."""
    found: Any = redis.xrange(stream)
    return [fields for _, fields in found]


async def register(client: Client) -> str:
    """The address of a new account, where FIN_EMAIL_CONFIRMATION is off."""
    accepted = await client.ask("register", email=(address := new_address()), password=PASSWORD)
    assert accepted.event == "register_accepted", accepted
    return address


async def log_in(client: Client, address: str, timeout_ms: int) -> Answer:
    asked = client.ask("login", email=address, password=PASSWORD, timeout_ms=timeout_ms)
    return await asyncio.wait_for(asked, timeout_ms / 1000 + 1)


@dataclass(frozen=True)
class Told:
    asked: float  # time.monotonic()
    seconds: float
    answer: Answer


@dataclass
class Logins:
    """Accounts that log in one time after another, each on its own connection, and what they were told."""

    url: str
    told: list[Told] = field(default_factory=list)

    @asynccontextmanager
    async def of(self, accounts: int) -> AsyncIterator[None]:
        """While it lasts; then each waits for its last answer."""
        stopping = asyncio.Event()
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(self.url)) for _ in range(accounts)]
            addresses = [await register(client) for client in clients]
            tasks = [asyncio.create_task(self._go(*both, stopping)) for both in zip(clients, addresses, strict=True)]
            try:
                yield
            finally:
                stopping.set()
                await asyncio.gather(*tasks)

    async def _go(self, client: Client, address: str, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            began = time.monotonic()
            answer = await log_in(client, address, timeout_ms=2000)
            self.told.append(Told(began, time.monotonic() - began, answer))
            await asyncio.sleep(0.02)  # their pace, not the machine's

    def successes(self, since: float = 0.0) -> list[Answer]:
        return [told.answer for told in self.told if told.asked >= since and told.answer.event == "login_success"]

    def unavailable(self, since: float = 0.0) -> list[Told]:
        """Those asked since then. Whoever is told `unavailable` is told so within a second."""
        found = [told for told in self.told if told.asked >= since and told.answer.code == "unavailable"]
        assert all(told.seconds <= ANSWER_SECONDS for told in found), max(told.seconds for told in found)
        return found

    def check(self, redis: Redis) -> None:
        """Acknowledged sessions are there, each once and whole; nobody was told what is not to be told."""
        codes = {told.answer.code for told in self.told}
        assert codes <= {None, "unavailable", "deadline_exceeded"}, codes
        acknowledged = {answer.data["sessionId"] for answer in self.successes()}
        audited = [fields for fields in entries_of(redis, names.EVENTS) if fields[b"event"] == b"login_success"]
        kept, listed = set[str](), set[str]()
        for key in redis.scan_iter(names.SESSIONS + "*", count=1000):
            assert {b"user", b"counter", b"created", b"amr"} <= set(redis.hgetall(key)), key
            kept.add(key.decode().removeprefix(names.SESSIONS))
        for key in redis.scan_iter(names.USERS + "*" + names.SESSIONS_OF, count=1000):
            ids: Any = redis.zrange(key, 0, -1)
            listed |= {id.decode() for id in ids}
        assert acknowledged <= kept, "an acknowledged session is lost"
        assert kept == listed and len(kept) == len(audited), "half an effect"
