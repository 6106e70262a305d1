"""/metrics: what a node and its deployment say of themselves, to machines on the same host alone."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.messages import Lane
from tests.deployment import PASSWORD, Databases, Deployment
from tests.running import free_port
from tests.test_startup import SECRETS, app, ended

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=")
        return str(answer.read().decode())


async def figures(port: int) -> Figures:
    text = await asyncio.to_thread(scrape, port)
    return {
        (sample.name.removeprefix("finthenticate_"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@dataclass
class Watched:
    deployment: Deployment
    port: int

    async def figures(self) -> Figures:
        return await figures(self.port)


def figure(found: Figures, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture(scope="module")
def watched(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder, port = tmp_path_factory.mktemp("watched"), free_port()
    settings = {"FIN_OPS_PORT": str(port), "FIN_MAX_QUEUE": "77"}
    with databases() as url, Deployment.start(folder, url, settings=settings) as deployed:
        yield Watched(deployed, port)


async def test_every_answer_is_counted_by_what_was_told_and_timed_by_its_lane(watched: Watched) -> None:
    async with watched.deployment.client() as client:
        account = await watched.deployment.sign_up(client)
        before = await watched.figures()
        await account.login(client)
        assert (await client.ask("login", email=account.email, password="wrong")).code == "invalid_credentials"
        async with watched.deployment.client() as stranger:
            assert (await stranger.ask("sessions")).code == "not_authenticated"
            assert figure(await watched.figures(), "connections") == 2
        after = await watched.figures()

    def more(name: str, **labels: str) -> float:
        return figure(after, name, **labels) - figure(before, name, **labels)

    assert more("requests_total", request="login", answer="login_success", code="ok") == 1
    assert more("requests_total", request="login", answer="login_failure", code="invalid_credentials") == 1
    assert more("requests_total", request="sessions", answer="error", code="not_authenticated") == 1
    assert more("request_seconds_count", lane="hash") == 2
    assert more("request_seconds_bucket", lane="hash", le="30.0") == 2
    assert figure(after, "requests_in_flight") == 0


async def test_the_queue_is_told_as_the_store_has_it(watched: Watched) -> None:
    found = await watched.figures()
    assert figure(found, "store_up") == 1
    assert figure(found, "workers", state="alive") == 1 and figure(found, "workers", state="silent") == 0
    assert figure(found, "gateways") == 1
    assert figure(found, "lane_requests_limit") == 77
    for lane in ("hash", "slow"):  # by the same threads
        assert figure(found, "lane_capacity_per_second", lane=lane) > 0
    assert {dict(labels)["lane"] for name, labels in found if name == "lane_requests"} == set(Lane)

    worker = watched.deployment.of("worker")[0]
    worker.pause()
    try:
        async with watched.deployment.client() as client:
            waits = [asyncio.create_task(client.ask("login", email="x@y.test", password="x")) for _ in range(5)]
            until = time.monotonic() + 10
            while sum(figure(found, "lane_requests", lane="hash", state=s) for s in ("waiting", "in_hand")) < 5:
                assert time.monotonic() < until, found
                found = await watched.figures()
            assert figure(found, "requests_in_flight") == 5
            worker.go_on()
            await asyncio.gather(*waits)
    finally:
        worker.go_on()


async def test_no_address_and_no_secret_is_in_it(watched: Watched) -> None:
    async with watched.deployment.client() as client:
        account = await watched.deployment.sign_up(client)
        await account.login(client)
    text = await asyncio.to_thread(scrape, watched.port)
    assert account.email not in text and PASSWORD not in text and "@" not in text


def test_it_is_not_on_the_public_port_and_nothing_else_is_on_its_own(watched: Watched) -> None:
    for port, path in ((watched.deployment.ports[0], "/metrics"), (watched.port, "/"), (watched.port, "/v1/login")):
        with pytest.raises(HTTPError) as refused:
            urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
        assert refused.value.code == 404
        refused.value.close()


async def test_while_the_store_is_away_it_says_so_and_goes_on_about_its_node(tmp_path: Path) -> None:
    port, nothing = free_port(), free_port()
    settings = {**SECRETS, "FIN_OPS_PORT": str(port), "FIN_PORT": str(free_port())}
    gateway = app("gateway", tmp_path, FIN_REDIS_URL=f"redis://127.0.0.1:{nothing}/0", **settings)
    try:
        until = time.monotonic() + 20
        found: Figures = {}
        while not found:
            assert gateway.poll() is None and time.monotonic() < until
            try:
                found = await figures(port)
            except OSError:
                await asyncio.sleep(0.05)
        assert ("store_up", frozenset[tuple[str, str]]()) in found and figure(found, "store_up") == 0
        assert ("connections", frozenset[tuple[str, str]]()) in found
        assert not any(name.startswith("lane_") for name, _ in found)
    finally:
        gateway.terminate()
        assert ended(gateway)[0] == 0


def test_a_port_that_was_asked_for_and_is_taken_is_a_fault_and_the_default_one_is_gone_without(tmp_path: Path) -> None:
    with socket.socket() as taken:
        public = free_port()
        number = public + 1
        taken.bind(("127.0.0.1", number))
        taken.listen()
        nowhere = {**SECRETS, "FIN_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
        status, [said] = ended(app("gateway", tmp_path, **nowhere, FIN_PORT=str(free_port()), FIN_OPS_PORT=str(number)))
        assert (status, said.startswith("finthenticate: FIN_OPS_PORT: ")) == (78, True) and str(number) in said
        gateway = app("gateway", tmp_path, **nowhere, FIN_PORT=str(public))
        try:
            assert gateway.stdout is not None
            lines = iter(gateway.stdout.readline, "")
            assert any("no /metrics" in line and str(number) in line for line in lines)
            assert any("listening" in line for line in lines)
        finally:
            gateway.terminate()
            assert ended(gateway)[0] == 0
