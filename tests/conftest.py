"""Fixtures: real servers, and async tests without a plugin."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.deployment import BROKER, Databases, Deployment
from tests.servers import Kind, Misconfigured, OwnServer, Server, locate, report, server_of

SERVERS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[SERVERS] = report(os.environ)
    except Misconfigured as wrong:
        raise pytest.UsageError(str(wrong)) from None


def pytest_report_header(config: pytest.Config) -> list[str]:
    return config.stash[SERVERS]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--broker", choices=("redis", "amqp"), default="redis", help="what deployments queue with")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What looks for everybody's secrets comes last. With another broker: what deploys, and is not about streams."""
    if config.getoption("--broker") != "redis":
        items[:] = [item for item in items if _deploys(item)]
        about_streams = pytest.mark.skip(
            reason="about Redis's streams, or what only they promise: ARCHITECTURE.md, Another broker"
        )
        for item in items:
            if item.get_closest_marker("streams"):
                item.add_marker(about_streams)
    items.sort(key=lambda item: item.path.name == "test_secrecy.py")


def _deploys(item: pytest.Item) -> bool:
    return "databases" in getattr(item, "fixturenames", ()) and item.path.parent.name != "store"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A coroutine function is a test too, in an event loop of its own, with two minutes to end unless it is marked.

    A fixture's value that is an asynchronous context manager is entered around it.
    """
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    marked = pyfuncitem.get_closest_marker("seconds")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(_play(pyfuncitem.obj, arguments), marked.args[0] if marked else 120))
    return True


async def _play(test: Callable[..., Coroutine[Any, Any, None]], arguments: dict[str, Any]) -> None:
    async with AsyncExitStack() as stack:
        for value in arguments.values():
            if isinstance(value, AbstractAsyncContextManager):
                await stack.enter_async_context(value)
        await test(**arguments)


@pytest.fixture(scope="session", autouse=True)
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What deployments queue their requests with: Redis, or with `--broker amqp` a RabbitMQ that they share."""
    if request.config.getoption("--broker") == "redis":
        yield
        return
    source = locate(Kind.RABBITMQ, os.environ)
    if isinstance(source, str):
        pytest.fail(source)
    server = server_of(source, tmp_path_factory.mktemp("rabbitmq"))
    asyncio.run(server.start())
    BROKER["FIN_BROKER_URL"] = server.parts.geturl()
    yield
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server, as durable as a deployment's (tests/servers.py); Valkey where there is no Redis."""
    sources = [locate(kind, os.environ) for kind in (Kind.REDIS, Kind.VALKEY)]
    source = next((source for source in sources if not isinstance(source, str)), None)
    if source is None:
        pytest.fail("; ".join(map(str, sources)))
    server = server_of(source, tmp_path_factory.mktemp("redis"))
    asyncio.run(server.start())
    yield server.parts.geturl()
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def own_server() -> OwnServer:
    """A server for a few tests alone, which may kill it or fill it. Where there is none they are skipped; not in CI."""

    @contextmanager
    def started(kind: Kind, folder: Path) -> Iterator[Server]:
        source = locate(kind, os.environ)
        if isinstance(source, str):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(source)
        assert not isinstance(source, str)
        server = server_of(source, folder)
        asyncio.run(server.start())
        try:
            yield server
        finally:
            asyncio.run(server.stop())

    return started


@pytest.fixture(scope="session")
def databases(redis_server: str) -> Databases:
    free = list(range(1, 16))

    @contextmanager
    def one() -> Iterator[str]:
        number = free.pop()
        url = f"{redis_server.rpartition('/')[0]}/{number}"
        _flush(url)
        try:
            yield url
        finally:
            free.append(number)

    return one


@pytest.fixture(scope="session")
def deployment(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two gateways, two workers and a mailer that most end-to-end tests share; limits off, hashing cheap."""
    folder = tmp_path_factory.mktemp("deployment")
    with databases() as url, Deployment.start(folder, url, gateways=2, workers=2) as running:
        yield running


@pytest.fixture(scope="session")
def guarded(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The same, where a device has to be verified."""
    folder, settings = tmp_path_factory.mktemp("guarded"), {"FIN_DEVICE_VERIFICATION": "on"}
    with databases() as url, Deployment.start(folder, url, gateways=2, workers=2, settings=settings) as running:
        yield running


@pytest.fixture
def browser() -> AbstractAsyncContextManager[Any]:
    """A Chromium for the test, entered around it: tests.browser.Browser."""
    from tests.browser import Browser

    return Browser()


@pytest.fixture(params=["ws", "rest"])
def either(request: pytest.FixtureRequest, deployment: Deployment) -> Deployment:
    """The shared deployment over each transport: one body proves both."""
    return deployment.over(request.param)


@pytest.fixture
def redis_url(databases: Databases) -> Iterator[str]:
    """Empty at the start of each test."""
    with databases() as url:
        yield url


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def _flush(url: str) -> None:
    from redis import Redis

    with Redis.from_url(url) as client:
        client.flushdb()
