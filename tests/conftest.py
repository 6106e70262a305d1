"""Fixtures: real servers, and async tests without a plugin."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from adapters.embedded_redis import EmbeddedRedis, find_server
from tests.deployment import Deployment


def pytest_report_header() -> str:
    given = os.environ.get("FIN_TEST_REDIS_URL")
    return f"redis: {'from FIN_TEST_REDIS_URL' if given else find_server()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks for everybody's secrets comes last."""
    items.sort(key=lambda item: item.path.name == "test_secrecy.py")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A coroutine function is a test too, in an event loop of its own, with two minutes to end unless it is marked."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    marked = pyfuncitem.get_closest_marker("seconds")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(pyfuncitem.obj(**arguments), marked.args[0] if marked else 120))
    return True


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server, as durable as a deployment's: given by FIN_TEST_REDIS_URL, or started here."""
    if url := os.environ.get("FIN_TEST_REDIS_URL"):
        yield url
        return
    with asyncio.Runner() as runner:
        server = EmbeddedRedis(tmp_path_factory.mktemp("redis"))
        runner.run(server.start())
        yield server.url
        runner.run(server.stop())


@pytest.fixture(scope="session")
def deployment(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two gateways, two workers and a mailer that most end-to-end tests share; limits off, hashing cheap.

    It has database 1 of the server to itself.
    """
    with Deployment.start(
        tmp_path_factory.mktemp("deployment"), _database(redis_server, 1), gateways=2, workers=2
    ) as running:
        yield running


@pytest.fixture(params=["ws", "rest"])
def either(request: pytest.FixtureRequest, deployment: Deployment) -> Deployment:
    """The shared deployment over each transport: one body proves both."""
    return deployment.over(request.param)


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """Database 2, empty at the start of each test."""
    url = _database(redis_server, 2)
    _flush(url)
    yield url


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def _database(url: str, number: int) -> str:
    return f"{url.rpartition('/')[0]}/{number}"


def _flush(url: str) -> None:
    from redis import Redis

    with Redis.from_url(url) as client:
        client.flushdb()
