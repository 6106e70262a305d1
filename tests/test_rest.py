"""What is REST's own: statuses, methods, bodies, CORS, the cookie. The requests themselves run over both transports."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from http.cookies import Morsel, SimpleCookie
from typing import Any

import pytest

from tests.deployment import Deployment, http, in_lane, new_address

OWN = {"Origin": "http://login.test"}


def post(
    deployment: Deployment, path: str, data: object, headers: Mapping[str, str] | None = None, **more: Any
) -> tuple[int, Any, dict[str, Any]]:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    status, found, raw = http("POST", deployment.url(0, "http", path), body, headers=headers, **more)
    return status, found, json.loads(raw)


REFUSED = {
    "not JSON": ("/v1/login", b"{", {}, 400, "bad_json", None),
    "a duplicate name": ("/v1/logout", b'{"a":1,"a":1}', {}, 400, "bad_json", None),
    "not an object": ("/v1/login", b"[]", {}, 400, "bad_request", None),
    "no body where there has to be one": ("/v1/login", b"", {}, 400, "bad_request", "email"),
    "an unknown field": ("/v1/logout", b'{"userId":"x"}', {}, 400, "bad_request", "userId"),
    "a wrong type": ("/v1/login", b'{"email":1,"password":"x"}', {}, 400, "bad_request", "email"),
    "another content type": ("/v1/login", b"{}", {"Content-Type": "text/plain"}, 415, "bad_request", "Content-Type"),
    "a body too big": ("/v1/login", b"x" * 16385, {}, 413, "bad_request", None),
    "an unknown request": ("/v1/nothing", b"{}", {}, 404, "unknown_event", None),
    "an unknown path": ("/v2/login", b"{}", {}, 404, "unknown_event", None),
    "no token": ("/v1/account", b"{}", {}, 401, "not_authenticated", None),
    "a token that is none": ("/v1/account", b"{}", {"Authorization": "Bearer x.y.z"}, 401, "not_authenticated", None),
    "another scheme": ("/v1/account", b"{}", {"Authorization": "Basic eDp5"}, 401, "not_authenticated", None),
    "a key too short": ("/v1/logout", b"{}", {"Idempotency-Key": "short"}, 400, "bad_request", "Idempotency-Key"),
    "a claim from nowhere": ("/v1/claim", b'{"refreshToken":"x"}', {}, 403, "bad_request", "Origin"),
    "a claim from elsewhere": (
        "/v1/claim",
        b'{"refreshToken":"x"}',
        {"Origin": "https://evil.example"},
        403,
        "bad_request",
        "Origin",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_request_is_refused_with_its_status(deployment: Deployment, name: str) -> None:
    path, body, headers, expected, code, field = REFUSED[name]
    status, found, answer = post(deployment, path, body, headers)

    assert (status, answer["event"], answer["data"]["code"]) == (expected, "error", code)
    assert answer["data"].get("field") == field
    assert found["Content-Type"] == "application/json"
    assert found["Cache-Control"] == "no-store" and found["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("token", ["\xff\xfe", "é", "x.\xff.z"])
@pytest.mark.parametrize("key", [None, "a-key-that-is-long-enough-for-one"])
def test_a_token_that_is_not_even_ascii_is_like_any_other_that_is_not_ours(
    deployment: Deployment, token: str, key: str | None
) -> None:
    def asked(token: str) -> list[tuple[int, Any]]:
        fresh = f"{key}-{secrets.token_hex(8)}" if key else None
        cookie = {"Cookie": f"fin_refresh={token}"} | OWN
        answers = (
            post(deployment, "/v1/account", {}, {"Authorization": f"Bearer {token}"}, key=fresh),
            post(deployment, "/v1/refresh", {}, cookie, key=fresh and f"{fresh}-r"),
            post(deployment, "/v1/logout", {}, cookie, key=fresh and f"{fresh}-l"),
        )
        return [(status, answer) for status, _, answer in answers]

    answers = asked(token)
    assert (answers[0][0], answers[0][1]["data"]["code"]) == (401, "not_authenticated")
    assert answers == asked("nobodys")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
def test_other_methods_are_not_allowed(deployment: Deployment, method: str) -> None:
    status, found, _ = http(method, deployment.url(0, "http", "/v1/login"))

    assert status == 405
    assert "POST" in found["Allow"]


async def test_an_empty_body_is_an_empty_request(deployment: Deployment) -> None:
    async with deployment.account() as (client, account):
        token = (await account.login(client)).data["accessToken"]
        status, _, answer = post(deployment, "/v1/account", b"", bearer=token)

    assert (status, answer["data"]["email"]) == (200, account.email)


def test_a_browser_of_an_allowed_origin_may_ask_and_another_is_told_nothing(deployment: Deployment) -> None:
    login = {"email": new_address(), "password": "x"}
    _, allowed, _ = post(deployment, "/v1/login", login, OWN)
    _, foreign, _ = post(deployment, "/v1/login", login, {"Origin": "https://evil.example"})
    url = deployment.url(0, "http", "/v1/login")
    status, preflight, _ = http("OPTIONS", url, headers=OWN)
    _, refused, _ = http("OPTIONS", url, headers={"Origin": "null"})

    assert allowed["Access-Control-Allow-Origin"] == "http://login.test" and allowed["Vary"] == "Origin"
    assert "Access-Control-Allow-Origin" not in foreign
    assert status == 204 and preflight["Access-Control-Allow-Origin"] == "http://login.test"
    assert {"authorization", "content-type", "idempotency-key"} == set(
        preflight["Access-Control-Allow-Headers"].split(", ")
    )
    assert "Access-Control-Allow-Origin" not in refused and "Access-Control-Allow-Methods" not in refused
    assert "Access-Control-Allow-Credentials" not in allowed


async def test_a_claimed_token_lives_in_a_cookie_that_no_script_can_read(deployment: Deployment) -> None:
    async with deployment.account() as (client, account):
        login = (await account.login(client)).data

        def walk() -> None:
            status, found, answer = post(deployment, "/v1/claim", {"refreshToken": login["refreshToken"]}, OWN)
            assert (status, answer["event"]) == (200, "claimed")
            assert "Token" not in json.dumps(answer)
            cookie = _cookie(found)
            assert cookie["httponly"] and cookie["samesite"] == "Strict" and cookie["path"] == "/"
            assert cookie.value != login["refreshToken"]

            with_cookie = {"Cookie": f"fin_refresh={cookie.value}"}
            status, _, answer = post(deployment, "/v1/refresh", {}, with_cookie)
            assert (status, answer["data"]["field"]) == (403, "Origin")
            status, found, answer = post(deployment, "/v1/refresh", {}, with_cookie | OWN)
            assert (status, answer["event"]) == (200, "token_refreshed")
            assert answer["data"]["accessToken"] and "refreshToken" not in answer["data"]
            renewed = _cookie(found)
            assert renewed.value not in ("", cookie.value)

            with_cookie = {"Cookie": f"fin_refresh={renewed.value}"} | OWN
            status, found, answer = post(deployment, "/v1/logout", {}, with_cookie)
            assert (status, answer["event"]) == (200, "logged_out")
            assert _cookie(found).value == "" and _cookie(found)["max-age"] == "0"
            status, found, answer = post(deployment, "/v1/refresh", {}, with_cookie)
            assert (status, answer["data"]["code"]) == (401, "token_revoked")

        await asyncio.to_thread(walk)
        assert await asyncio.wait_for(client.close_code, 5) == 4401


def test_over_https_the_cookie_is_bound_to_its_host(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"FIN_PUBLIC_URL": "https://login.test", "FIN_EMAIL_CONFIRMATION": "off"}
    with Deployment.start(tmp_path_factory.mktemp("https"), redis_url, mailers=0, settings=settings) as running:
        account = {"email": new_address(), "password": "a password long enough"}
        post(running, "/v1/register", account)
        _, _, login = post(running, "/v1/login", account)
        origin = {"Origin": "https://login.test"}
        _, found, _ = post(running, "/v1/claim", {"refreshToken": login["data"]["refreshToken"]}, origin)

    [cookie] = SimpleCookie(found["Set-Cookie"]).values()
    assert cookie.key == "__Host-fin_refresh" and cookie["secure"]


async def test_a_caller_that_hangs_up_leaves_nothing_to_be_hashed(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from redis import Redis

    from adapters import names
    from app.messages import Lane

    with Deployment.start(tmp_path_factory.mktemp("hangup"), redis_url, workers=0, mailers=0) as running:
        gateway = running.of("gateway")[0]
        running.wait_listening(gateway)
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = json.dumps({"email": new_address(), "password": "x"}).encode()
        writer.write(
            b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        with Redis.from_url(redis_url) as redis:

            async def until(holds: Any) -> None:
                while not holds():
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(until(lambda: in_lane(redis, Lane.HASH) == 1), 5)
            writer.close()
            await asyncio.wait_for(until(lambda: list(redis.scan_iter("*done:*"))), 5)
            running.add("worker")
            await asyncio.wait_for(until(lambda: in_lane(redis, Lane.HASH) == 0), 10)
            assert redis.xlen(names.EVENTS) == 0


def _cookie(headers: Any) -> Morsel[str]:
    [cookie] = SimpleCookie(headers["Set-Cookie"]).values()
    assert cookie.key == "fin_refresh"
    return cookie
