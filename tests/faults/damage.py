"""The ground gives way: a torn or altered AOF, a full disk, no memory left, a Redis set up to lose data."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from adapters import names
from app.messages import Lane
from tests.deployment import ANY_DEVICE, CHEAP, OFF, PASSWORD, ROOT, Deployment, secret
from tests.faults import Figures, NotPossible, Run, Scenario
from tests.faults.ground import (
    AT_ONCE,
    DidNotStart,
    Logins,
    embedded,
    entries_of,
    http_status,
    lanes_empty,
    log_in,
    paused,
    redis_on,
    register,
    until,
)
from tests.running import free_port

# --- a torn and an altered AOF ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Last:
    """The transaction that settled a login: its bytes in the AOF, and what it is about."""

    start: int
    end: int
    user: str
    session: str
    rid: str
    node: str
    lane: str
    entry: str

    def effects(self, redis: Redis) -> dict[str, bool]:
        audited = {fields[b"request"] for fields in entries_of(redis, names.EVENTS)}
        replied = {fields.get(b"r") for fields in entries_of(redis, names.REPLIES + self.node)}
        pending = redis.xpending_range(self.lane, names.GROUP, self.entry, self.entry, 1)
        return {
            "session": redis.exists(names.SESSIONS + self.session) == 1,
            "listed": redis.zscore(names.USERS + self.user + names.SESSIONS_OF, self.session) is not None,
            "audited": self.rid.encode() in audited,
            "marked done": redis.exists(names.done(self.rid)) == 1,
            "replied": self.rid.encode() in replied,
            "online": self.session.encode() in redis.hvals(names.ONLINE + self.user),
            "acknowledged": not pending,
            "out of its lane": not redis.xrange(self.lane, self.entry, self.entry),
        }


def commands(aof: bytes) -> Iterator[tuple[int, int, list[bytes]]]:
    """(start, end, words) of every command of an AOF."""
    at = 0

    def number() -> int:
        nonlocal at
        line_end = aof.index(b"\r\n", at)
        found, at = int(aof[at + 1 : line_end]), line_end + 2
        return found

    while at < len(aof):
        start, words = at, []
        for _ in range(number()):
            size = number()
            words.append(aof[at : at + size])
            at += size + 2
        yield start, at, words


def transaction_of(aof: bytes, login: dict[str, Any]) -> Last:
    start, inside = 0, list[list[bytes]]()
    for begin, end, words in commands(aof):
        if words == [b"MULTI"]:
            start, inside = begin, []
        elif words == [b"EXEC"] and any(words[1] == (names.SESSIONS + login["sessionId"]).encode() for words in inside):
            of = {words[0].upper(): [word.decode() for word in words] for words in inside if words[0] != b"XADD"}
            [node] = {words[1].decode() for words in inside if words[1].startswith(names.REPLIES.encode())}
            about = (of[b"SET"][1].removeprefix(names.done("")), node.removeprefix(names.REPLIES))
            return Last(start, end, login["userId"], login["sessionId"], *about, of[b"XACK"][1], of[b"XACK"][3])
        else:
            inside.append(words)
    raise AssertionError("no transaction holds the login")


# Expiry dates in the AOF, which are in milliseconds: positions are tried for longer than a done marker lives.
DATES = re.compile(rb"((?:PXAT|PEXPIREAT\r\n\$\d+\r\n[^\r]+)\r\n\$13\r\n)\d{13}")


async def torn_aof(run: Run) -> Figures:
    """Whatever is missing at the AOF's end, a login is there with all its effects or with none."""
    async with embedded(run.folder / "store") as server:
        with Deployment.start(run.folder, server.url, mailers=0, settings=AT_ONCE) as running:
            async with running.client() as client:
                address = await register(client)
                earlier, last = [await client.ask("login", email=address, password=PASSWORD) for _ in range(2)]
    [incremental] = (run.folder / "store/redis/appendonlydir").glob("*.incr.aof")
    aof = DATES.sub(rb"\g<1>9999999999999", incremental.read_bytes())
    login = transaction_of(aof, last.data)
    two_at_a_time, seen, random = asyncio.Semaphore(2), set[bool](), run.random

    @asynccontextmanager
    async def started_on(name: str, damaged: bytes) -> AsyncIterator[Redis]:
        copy = run.folder / name
        async with two_at_a_time:
            shutil.copytree(incremental.parent, copy / "appendonlydir")
            (copy / "appendonlydir" / incremental.name).write_bytes(damaged)
            async with redis_on(copy) as url:
                with Redis.from_url(url) as redis:
                    yield redis
            shutil.rmtree(copy)

    async def torn_at(length: int) -> bool:
        async with started_on(f"torn-{length}", aof[:length]) as redis:
            effects = login.effects(redis)
            assert len(set(effects.values())) == 1, f"half an effect at byte {length - login.start}: {effects}"
            assert redis.get(names.EMAILS + address) == login.user.encode() and redis.exists(names.USERS + login.user)
            assert redis.exists(names.SESSIONS + earlier.data["sessionId"]), "what was acknowledged before is lost"
        seen.add(effects["session"])
        run.say(f"byte {length - login.start} of {login.end - login.start}")
        return effects["session"]

    async def flipped_at(offset: int) -> None:
        altered = bytearray(aof)
        altered[offset] ^= 1 << random.randrange(8)
        with suppress(DidNotStart):
            async with started_on(f"flipped-{offset}", bytes(altered)):
                raise AssertionError(f"Redis starts with byte {offset} of its AOF altered")
        said = (run.folder / f"flipped-{offset}/redis.log").read_text(errors="replace").lower()
        assert "append only file" in said, said

    lengths = range(login.start + 1, login.end)
    chosen = lengths if run.full else sorted(random.sample(lengths, 25))
    assert [await torn_at(login.start), await torn_at(login.end)] == [False, True]
    await asyncio.gather(*map(torn_at, chosen))
    # Framing alone: an AOF has no checksum, so Redis cannot see that a value was altered.
    framing = [begin for begin, end, _ in commands(aof) if len(aof) / 4 < begin and end < len(aof) * 3 / 4]
    flips = random.sample(framing, run.size(test=3, full=25))
    await asyncio.gather(*map(flipped_at, flips))
    return {"bytes": login.end - login.start, "positions": len(chosen) + 2, "starts": len(chosen) + 2 + len(flips)}


# --- a full disk -----------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own; NotPossible where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotPossible("there is no `mount`") from None
    if mounted.returncode:
        raise NotPossible(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # whoever still ends there does not keep it


def fill(path: Path) -> None:
    """To the last byte that the disk has."""
    with path.open("wb", buffering=0) as filler:
        for size in (65536, 512, 1):
            try:
                while True:
                    filler.write(b"\0" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error


async def disk_full(run: Run) -> Figures:
    """Redis ends rather than acknowledge what it cannot write; clients hear it at once; room brings it back."""
    port, log = free_port(), run.folder / "all.out"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FIN_")}
    environ |= {name: secret() for name in ("FIN_EDGE_SECRET", "FIN_WORKER_SECRET", "FIN_PEPPER")}
    environ |= {**OFF, **CHEAP, **ANY_DEVICE, **AT_ONCE, "FIN_PORT": str(port), "PYTHONPATH": str(ROOT)}
    with small_disk(run.folder / "disk", "8m") as disk, log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "all"),
            cwd=run.folder,
            env=environ | {"FIN_DATA_DIR": str(disk)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            await until(lambda: http_status(port, "/readyz") == 200, "a deployment that starts", 25)
            figures = await _fill_while_clients_log_in(run, f"ws://127.0.0.1:{port}/ws", disk, log)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 20) == 0
        finally:
            if process.returncode is None:
                process.kill()  # its children end with it
                await process.wait()
    return figures


async def _fill_while_clients_log_in(run: Run, url: str, disk: Path, log: Path) -> Figures:
    logins, filler = Logins(url), disk / "filler"
    async with logins.of(4):
        await until(lambda: len(logins.successes()) >= 40, "clients that log in")
        run.say("filling the disk")
        fill(filler)
        await until(lambda: re.search(rb'"role":"redis",.*"exit":1', log.read_bytes()), "a Redis that ends")
        ended = time.monotonic()
        wanted = run.size(test=60, full=400)
        await until(lambda: len(logins.unavailable(ended)) >= wanted, "clients that are told `unavailable`", 30)
        codes = {told.answer.code for told in logins.told if told.asked >= ended}
        assert codes == {"unavailable"}, codes
        filler.unlink()
        freed = time.monotonic()
        await until(lambda: logins.successes(freed), "logins that work again", 12)
        back = time.monotonic() - freed
        await until(lambda: len(logins.successes(freed)) >= 40, "clients that log in")
    with Redis.from_url((disk / "redis/url").read_text().strip()) as redis:
        logins.check(redis)
    slowest = max(told.seconds for told in logins.unavailable())
    acknowledged, refused = len(logins.successes()), len(logins.unavailable())
    return {
        "acknowledged": acknowledged,
        "unavailable": refused,
        "slowest_s": round(slowest, 3),
        "back_s": round(back, 1),
    }


# --- no memory -------------------------------------------------------------------------------------------------------


async def maxmemory(run: Run) -> Figures:
    """A Redis without memory refuses and evicts nothing; with memory again, all goes on."""
    async with embedded(run.folder / "store") as server:
        with Deployment.start(run.folder, server.url, workers=2, mailers=0, settings=AT_ONCE) as running:
            logins, back = Logins(running.url()), []
            with Redis.from_url(server.url) as redis:
                async with logins.of(6):
                    for number in range(run.size(test=2, full=20)):
                        run.say(f"round {number + 1}")
                        back.append(await _without_memory_for_a_while(redis, logins))
                await _settled_without_memory(running, redis)
                await until(lambda: lanes_empty(redis), "lanes that get empty", 15)
                assert redis.info("stats")["evicted_keys"] == 0
                logins.check(redis)
    slowest = max(told.seconds for told in logins.unavailable())
    figures: Figures = {"acknowledged": len(logins.successes()), "unavailable": len(logins.unavailable())}
    return figures | {"slowest_s": round(slowest, 3), "back_s": round(max(back), 3)}


async def _without_memory_for_a_while(redis: Redis, logins: Logins) -> float:
    """Seconds from memory to a login."""
    began = time.monotonic()
    await until(lambda: len(logins.successes(began)) >= 20, "clients that log in")
    redis.config_set("maxmemory", "100kb")  # less than an empty server uses
    full = time.monotonic()
    await until(lambda: len(logins.unavailable(full)) >= 40, "clients that are refused")
    assert not logins.successes(full), "a login without memory"
    redis.config_set("maxmemory", "0")
    freed = time.monotonic()
    await until(lambda: logins.successes(freed), "logins that work again", 2)
    return time.monotonic() - freed


async def _settled_without_memory(running: Deployment, redis: Redis) -> None:
    """What was admitted while there was memory has no effect without, and all of it afterwards."""

    def refused() -> int:
        return int(redis.info("errorstats").get("errorstat_OOM", {"count": 0})["count"])

    async with running.client() as client:
        address = await register(client)
        sessions, audited = set(redis.scan_iter(names.SESSIONS + "*", count=1000)), redis.xlen(names.EVENTS)
        with paused(running):
            asked = [asyncio.create_task(log_in(client, address, timeout_ms=20_000)) for _ in range(4)]
            await until(lambda: redis.xlen(names.lane(Lane.HASH)) == len(asked), "requests that wait")
            redis.config_set("maxmemory", "100kb")
            before = refused()
        await until(lambda: refused() >= before + len(asked), "workers that are refused")
        now = set(redis.scan_iter(names.SESSIONS + "*", count=1000))
        assert now == sessions and redis.xlen(names.EVENTS) == audited, "an effect without memory"
        redis.config_set("maxmemory", "0")
        answers = await asyncio.gather(*asked)
    assert {answer.event for answer in answers} == {"login_success"}, answers


# --- settings that may lose data -------------------------------------------------------------------------------------

UNSAFE = {"appendfsync": "everysec", "maxmemory-policy": "allkeys-lru", "appendonly": "no"}


async def unsafe_config(run: Run) -> Figures:
    """No role starts on a Redis that may lose what it acknowledged, and says why; accepted, it starts."""
    refused = 0
    async with embedded(run.folder / "store") as server:
        with Redis.from_url(server.url) as redis:
            for setting, value in UNSAFE.items():
                before = redis.config_get(setting)[setting]
                redis.config_set(setting, value)
                for role, (status, said) in (await _starts(run.folder, server.url)).items():
                    assert status == 78, (role, setting, status, said)
                    assert f"{setting} is {value}" in said and "FIN_DURABILITY" in said, (role, said)
                    refused += 1
                redis.config_set(setting, before)
            for setting, value in UNSAFE.items():
                redis.config_set(setting, value)
            relaxed = {**AT_ONCE, "FIN_DURABILITY": "relaxed"}
            with Deployment.start(run.folder, server.url, settings=relaxed) as running:
                async with running.client() as client:
                    await register(client)
    return {"settings": len(UNSAFE), "refused": refused}


async def _starts(folder: Path, url: str) -> dict[str, tuple[int | None, str]]:
    """What became of each role: its exit status and its words."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FIN_")}
    environ |= {name: secret() for name in ("FIN_EDGE_SECRET", "FIN_WORKER_SECRET", "FIN_PEPPER")}
    environ |= {"FIN_REDIS_URL": url, "FIN_DATA_DIR": str(folder / "refused"), "PYTHONPATH": str(ROOT)}

    async def start(role: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", role),
            cwd=folder,
            env=environ | {"FIN_PORT": str(free_port())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), 20)
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode, said.decode()

    roles = ("gateway", "worker", "mailer")
    return dict(zip(roles, await asyncio.gather(*map(start, roles)), strict=True))


SCENARIOS: dict[str, Scenario] = {
    "torn_aof": torn_aof,
    "disk_full": disk_full,
    "maxmemory": maxmemory,
    "unsafe_config": unsafe_config,
}
