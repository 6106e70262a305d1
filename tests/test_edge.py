"""The edge under rude clients: floods, silence, slowness. Others do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sanic import HTTPResponse, Sanic, empty
from sanic.request import Request
from websockets.asyncio.client import connect as raw_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from app.gateway.connections import Bucket
from app.gateway.socket import Protocol
from tests.deployment import Databases, Deployment, event_of, http, new_address


@pytest.fixture(scope="module")
def strict(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Small limits, all of them on; a proxy at 127.0.0.0/8 is believed."""
    settings = {
        "FIN_CONNECTIONS_PER_IP": "3",
        "FIN_MESSAGES_PER_SECOND": "10",
        "FIN_FAILURES_PER_IP": "6",
        "FIN_REGISTRATIONS_PER_IP": "4",
        "FIN_MAILS_PER_ACCOUNT": "2",
        "FIN_TRUSTED_PROXIES": "127.0.0.0/8",
    }
    with databases() as url, Deployment.start(tmp_path_factory.mktemp("strict"), url, settings=settings) as running:
        yield running


def _from(ip: str) -> dict[str, Any]:
    return {"additional_headers": {"X-Forwarded-For": ip}}


async def test_a_fourth_connection_of_one_address_is_refused_and_one_of_another_is_not(strict: Deployment) -> None:
    one = _from("192.0.2.1")
    async with strict.client(**one), strict.client(**one), strict.client(**one) as last:
        with pytest.raises(InvalidStatus) as refused:
            async with strict.client(**one):
                pass
        async with strict.client(**_from("192.0.2.2")):
            pass
        assert event_of(await last.ask("logout"))[1] == "not_authenticated"

    assert refused.value.response.status_code == 429


async def test_who_sends_too_fast_is_told_to_wait_and_who_goes_on_is_cut(strict: Deployment) -> None:
    async with strict.client(**_from("192.0.2.3")) as client:
        for n in range(60):
            await client.send(json.dumps({"event": "logout", "id": str(n)}).encode())
        code = await asyncio.wait_for(client.close_code, 5)
        frames = [client.pushes.get_nowait() for _ in range(client.pushes.qsize())]

    codes = [frame["data"]["code"] for frame in frames]
    assert code == 4429
    assert codes.count("not_authenticated") in range(9, 13)
    limited = [frame["data"] for frame in frames if frame["data"]["code"] == "rate_limited"]
    assert len(limited) >= 15 and all(0 < data["retryAfterMs"] <= 2100 for data in limited)


async def test_failures_of_one_network_are_limited_over_all_addresses(strict: Deployment) -> None:
    async with strict.client(**_from("2001:db8::1")) as client, strict.client(**_from("2001:db8::2")) as neighbour:
        codes = [(await client.ask("login", email=new_address(), password="x")).code for _ in range(6)]
        refused = await neighbour.ask("login", email=new_address(), password="x")
        async with strict.client(**_from("2001:db8:0:1::1")) as other:
            elsewhere = await other.ask("login", email=new_address(), password="x")

    assert codes == ["invalid_credentials"] * 6
    assert event_of(refused) == ("error", "rate_limited") and 0 < refused.data["retryAfterMs"] <= 60_000
    assert elsewhere.code == "invalid_credentials"


async def test_registrations_of_one_network_are_limited(strict: Deployment) -> None:
    async with strict.client(**_from("192.0.2.4")) as client:
        answers = [
            await client.ask("register", email=new_address(), password="a password long enough") for _ in range(5)
        ]

    assert [answer.event for answer in answers[:4]] == ["register_accepted"] * 4
    assert event_of(answers[4]) == ("error", "rate_limited")
    assert 0 < answers[4].data["retryAfterMs"] <= 3_600_000


async def test_past_the_mail_limit_nothing_is_mailed_and_the_answer_is_the_same(strict: Deployment) -> None:
    address = new_address()
    async with strict.client(**_from("192.0.2.5")) as client:
        accepted = await client.ask("register", email=address, password="a password long enough")
        challenge = accepted.data["challenge"]
        answers = [await client.ask("resend_confirmation", challenge=challenge) for _ in range(4)]
        await strict.mailed_codes(address, 2)
        marker = new_address()
        await client.ask("register", email=marker, password="a password long enough")
        await strict.mailed_code(marker)

    assert len(strict.mails(address)) == 2
    assert all(answer == answers[0] for answer in answers)


async def test_a_client_that_does_not_read_is_cut_and_the_others_do_not_wait(strict: Deployment) -> None:
    rude = socket.create_connection(("127.0.0.1", strict.of("gateway")[0].port))
    rude.settimeout(15)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    rude.sendall(
        f"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"X-Forwarded-For: 192.0.2.6\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b"101" in rude.recv(64)
    # a ping is answered with its own bytes and costs no token: 125 bytes each, never read
    ping = b"\x89\xfd" + bytes(4) + b"x" * 125
    cut = False
    until = time.monotonic() + 20
    async with strict.client(**_from("192.0.2.7")) as polite:
        while not cut and time.monotonic() < until:
            try:
                await asyncio.to_thread(rude.sendall, ping * 500)
            except TimeoutError:
                break  # it stopped reading, but did not cut
            except ConnectionError:
                cut = True
        began = time.monotonic()
        assert event_of(await polite.ask("logout"))[1] == "not_authenticated"
        assert time.monotonic() - began < 1
    rude.close()

    assert cut


async def test_who_floods_with_pings_is_cut_and_the_others_do_not_wait(strict: Deployment) -> None:
    options = _from("192.0.2.8") | {"compression": None, "proxy": None, "ping_interval": None}
    async with raw_connect(strict.url(), **options) as rude, strict.client(**_from("192.0.2.9")) as polite:
        await rude.recv()
        with contextlib.suppress(ConnectionClosed):
            for _ in range(5000):
                await rude.ping()
        await asyncio.wait_for(rude.wait_closed(), 10)
        began = time.monotonic()
        assert event_of(await polite.ask("logout"))[1] == "not_authenticated"

    assert rude.close_code == 4429
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//", "http:login.test"])
async def test_an_origin_that_is_no_url_is_refused(deployment: Deployment, origin: str) -> None:
    for path in ("/ws", "/v1/claim"):
        method = "GET" if path == "/ws" else "POST"
        status, _, _ = http(method, deployment.url(0, "http", path), b"{}", headers={"Origin": origin})
        assert status == 403


def test_the_socket_has_one_path_only(deployment: Deployment) -> None:
    for path in ("/ws/", "//ws", "/ws/x"):
        assert http("GET", deployment.url(0, "http", path), headers={"Origin": "https://evil.example"})[0] == 404


@pytest.mark.all
async def test_a_node_that_counted_as_dead_sends_its_signed_in_clients_elsewhere(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What ended while it was away was not told to it."""
    with Deployment.start(tmp_path_factory.mktemp("lapsed"), redis_url, gateways=2) as running:
        away = running.of("gateway")[0]
        async with running.client(1) as other:
            account = await running.sign_up(other)
            async with running.client(0, ping_interval=None) as client, running.client(0) as nobody:
                token = (await account.login(client)).data["accessToken"]
                await other.ask("authenticate", accessToken=token)
                away.pause()
                with Redis.from_url(redis_url) as redis:

                    async def dead() -> None:
                        while len(list(redis.scan_iter("*node:*"))) > 1:
                            await asyncio.sleep(0.1)

                    await asyncio.wait_for(dead(), 20)
                await other.ask("logout")
                away.go_on()
                assert await asyncio.wait_for(client.close_code, 10) == 1012
                assert event_of(await nobody.ask("logout"))[1] == "not_authenticated"


async def test_half_a_handshake_is_cut_in_time(deployment: Deployment) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", deployment.of("gateway")[0].port)
    writer.write(b"GET /ws HTTP/1.1\r\nHost: x\r\n")
    answer = await asyncio.wait_for(reader.read(), 25)
    writer.close()

    assert b"408" in answer.split(b"\r\n")[0] or answer == b""


@pytest.mark.parametrize("more", [b"", b"Upgrade: websocket\r\n"], ids=["plain", "asks for an upgrade"])
async def test_half_a_request_is_cut_in_time(more: bytes) -> None:
    app: Sanic[Any, Any] = Sanic(f"half-{len(more)}", configure_logging=False)
    app.config.update({"MOTD": False, "TOUCHUP": False, "RESPONSE_TIMEOUT": 0.2})

    @app.post("/v1/login")
    async def login(request: Request) -> HTTPResponse:
        return empty()

    listener = socket.create_server(("127.0.0.1", 0))
    server = await app.create_server(sock=listener, protocol=Protocol, return_asyncio_server=True)
    assert server is not None
    await server.startup()  # type: ignore[no-untyped-call]
    await server.start_serving()  # type: ignore[no-untyped-call]
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(b"POST /v1/login HTTP/1.1\r\nHost: x\r\n" + more + b"Content-Length: 10\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    server.close()  # type: ignore[no-untyped-call]

    assert b"503" in answer.split(b"\r\n")[0] or answer == b""


def test_a_bucket_that_was_flooded_has_a_message_left_again_after_a_few_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("app.gateway.connections.time.monotonic", lambda: now)
    bucket = Bucket(10)
    lefts = [bucket.take() for _ in range(1000)]
    now += 3.2

    assert min(lefts) < -20, "a WebSocket would not be cut"
    assert bucket.take() >= 0


async def test_a_gateway_may_open_as_many_files_as_the_system_allows(redis_url: str, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard - 1, 1000), hard))
    try:
        with Deployment.start(tmp_path, redis_url, workers=0, mailers=0) as running:
            gateway = running.of("gateway")[0]
            await asyncio.to_thread(running.wait_listening, gateway)
            assert resource.prlimit(gateway.popen.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_gateway_told_to_stop_says_so_and_closes_with_going_away(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Deployment.start(tmp_path_factory.mktemp("away"), redis_url, gateways=2) as running:
        async with running.client(0) as client, running.client(1) as other:
            running.of("gateway")[0].terminate()
            push = await asyncio.wait_for(client.pushes.get(), 5)
            code = await asyncio.wait_for(client.close_code, 5)
            assert event_of(await other.ask("logout"))[1] == "not_authenticated"

    assert push["event"] == "draining" and push["data"]["reconnectInMs"] > 0
    assert code == 1001


async def test_fragments_are_put_together_and_too_many_of_them_are_too_big(deployment: Deployment) -> None:
    async def pieces(size: int) -> list[str]:
        text = json.dumps({"event": "logout", "id": "1", "pad": "x" * size})
        return [text[n : n + 1000] for n in range(0, len(text), 1000)]

    async with raw_connect(deployment.url(), compression=None, proxy=None) as client:
        await client.recv()
        await client.send(await pieces(5000))
        assert json.loads(await client.recv())["data"] == {
            "code": "bad_request",
            "message": "The request does not fit its type.",
            "retryable": False,
            "field": "pad",
        }
        with pytest.raises(ConnectionClosed):
            await client.send(await pieces(20_000))
            await client.recv()
    assert client.close_code == 1009


async def test_a_proxy_that_is_not_trusted_is_said_once_by_its_address(redis_url: str, tmp_path: Path) -> None:
    with Deployment.start(tmp_path, redis_url, workers=0, mailers=0) as running:
        gateway = running.of("gateway")[0]
        await asyncio.to_thread(running.wait_listening, gateway)
        for n in range(50):
            headers = {"X-Forwarded-For": f"192.0.2.{n}"}
            await asyncio.to_thread(http, "POST", running.url(0, "http", "/v1/logout"), b"{}", headers=headers)
    [warning] = [
        line for line in map(json.loads, gateway.log.read_text().splitlines()) if "one address" in line["message"]
    ]
    assert (warning["level"], warning["address"]) == ("warning", "127.0.0.1")
