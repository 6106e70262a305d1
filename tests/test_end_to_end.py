"""The contract over a real WebSocket, against real processes. Every frame is held against the message types."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import jwt
import pytest
from redis import Redis
from websockets.asyncio.client import connect as raw_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from adapters import names
from tests.deployment import PASSWORD, Deployment, event_of, new_address


async def test_a_person_registers_confirms_logs_in_and_out(either: Deployment) -> None:
    async with either.account() as (client, account):
        login = await account.login(client, deviceToken=account.device_token, deviceName="laptop")

        assert login.data["tokenType"] == "Bearer"
        data = (await client.ask("account")).data
        assert (data["email"], data["userId"]) == (account.email, login.data["userId"])
        assert [device["deviceName"] for device in data["devices"]] == ["laptop"]
        [session] = (await client.ask("sessions")).data["sessions"]
        assert (session["sessionId"], session["online"], session["current"]) == (
            login.data["sessionId"],
            either.transport == "ws",
            True,
        )
        assert session["deviceRef"] == data["devices"][0]["deviceRef"]
        assert event_of(await client.ask("logout")) == ("logged_out", None)
        assert event_of(await client.ask("account")) == ("error", "not_authenticated")
        refused = await client.ask("refresh", refreshToken=login.data["refreshToken"])
        assert event_of(refused) == ("refresh_failed", "token_revoked")
        refused = await client.ask("authenticate", accessToken=login.data["accessToken"])
        assert event_of(refused) == ("authentication_failed", "token_revoked")


async def test_the_access_token_is_verified_with_the_published_keys_alone(either: Deployment) -> None:
    async with either.account() as (client, account):
        token = (await account.login(client)).data["accessToken"]

    keys = jwt.PyJWKClient(either.url(0, "http", "/.well-known/jwks.json"))
    signing_key = await asyncio.to_thread(keys.get_signing_key_from_jwt, token)
    claims = jwt.decode(token, signing_key, ["ES256"], audience="finthenticate", issuer="http://login.test")

    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    assert set(claims) == {"iss", "sub", "aud", "exp", "iat", "nbf", "jti", "sid", "amr", "auth_time"}
    assert claims["amr"] == ["pwd"]


async def test_a_session_works_on_another_node(either: Deployment) -> None:
    async with either.account(gateway=0) as (client, account):
        token = (await account.login(client)).data["accessToken"]
        async with either.client(gateway=1) as other:
            answer = await other.ask("authenticate", accessToken=token)
            assert answer.event == "authenticated" and 590 <= answer.data["expiresIn"] <= 600
            assert (await other.ask("account")).data["email"] == account.email


async def test_logout_closes_the_sessions_other_connections_on_every_node_and_tells_the_accounts(
    deployment: Deployment,
) -> None:
    async with deployment.account() as (client, account), deployment.client(1) as same, deployment.client(1) as another:
        login = await account.login(client)
        await same.ask("authenticate", accessToken=login.data["accessToken"])
        await account.login(another)
        started = await client.pushes.get()

        await client.ask("logout")

        assert started["event"] == "session_started"
        assert await asyncio.wait_for(same.close_code, 5) == 4401
        pushes = [await another.pushes.get() for _ in range(1)]
        assert pushes[0] == {
            "event": "session_ended",
            "data": {"sessionId": login.data["sessionId"], "reason": "logout"},
        }
        assert (await another.ask("account")).data["email"] == account.email
        assert not client.close_code.done()


async def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(either: Deployment) -> None:
    async with either.account() as (client, account):
        wrong = await client.ask("login", email=account.email, password="wrong")
        unknown = await client.ask("login", email=new_address(), password="wrong")

    assert event_of(wrong) == ("login_failure", "invalid_credentials")
    assert wrong == unknown


async def test_a_password_is_compared_after_nfkc_and_exactly(either: Deployment) -> None:
    async with either.client() as client:
        account = await either.sign_up(client, password="ﬁnancial Ångström password")

        same = await client.ask("login", email=account.email.upper(), password="financial Ångström password")
        flipped = await client.ask("login", email=account.email, password="financial ångström password")

    assert same.event == "login_success"
    assert event_of(flipped) == ("login_failure", "invalid_credentials")


async def test_registering_a_taken_address_is_answered_alike_and_its_owner_is_told(either: Deployment) -> None:
    async with either.account() as (client, account):
        again = await client.ask("register", email=account.email, password=PASSWORD)
        fresh = await client.ask("register", email=new_address(), password=PASSWORD)
        guess = await client.ask("confirm_email", challenge=again.data["challenge"], code="00000000")
        same_guess = await client.ask("confirm_email", challenge=fresh.data["challenge"], code="00000000")

        assert event_of(again) == event_of(fresh) and set(again.data) == set(fresh.data)
        assert guess == same_guess and event_of(guess) == ("email_confirmation_failed", "invalid_code")

        async def told() -> None:
            while not any("has an account" in text for text in either.mails(account.email)):
                await asyncio.sleep(0.02)

        await asyncio.wait_for(told(), 5)


async def test_five_wrong_codes_end_a_registration_and_a_new_code_does_not_help(either: Deployment) -> None:
    address = new_address()
    async with either.client() as client:
        challenge = (await client.ask("register", email=address, password=PASSWORD)).data["challenge"]
        code = await either.mailed_code(address)
        wrong = f"{(int(code) + 1) % 10**8:08}"
        answers = [await client.ask("confirm_email", challenge=challenge, code=wrong) for _ in range(4)]
        await client.ask("resend_confirmation", challenge=challenge)
        renewed = await either.mailed_code(address, 2)
        answers.append(await client.ask("confirm_email", challenge=challenge, code=code))
        last = await client.ask("confirm_email", challenge=challenge, code=renewed)

    assert {event_of(answer) for answer in answers} == {("email_confirmation_failed", "invalid_code")}
    assert event_of(last) == ("email_confirmation_failed", "challenge_expired")


async def test_a_code_sent_again_confirms_and_the_older_one_does_not(either: Deployment) -> None:
    address = new_address()
    async with either.client() as client:
        challenge = (await client.ask("register", email=address, password=PASSWORD)).data["challenge"]
        old = await either.mailed_code(address)
        sent = await client.ask("resend_confirmation", challenge=challenge)
        unknown = await client.ask("resend_confirmation", challenge="0aaaa-nothing")
        new = await either.mailed_code(address, 2)

        assert sent == unknown
        assert event_of(await client.ask("confirm_email", challenge=challenge, code=old))[1] == "invalid_code"
        assert (await client.ask("confirm_email", challenge=challenge, code=new)).event == "email_confirmed"


async def test_the_previous_refresh_token_works_for_a_lost_reply_and_an_older_one_ends_the_session(
    either: Deployment,
) -> None:
    async with either.account() as (client, account):
        first = (await account.login(client)).data
        second = (await client.ask("refresh", refreshToken=first["refreshToken"])).data
        lost = (await client.ask("refresh", refreshToken=first["refreshToken"])).data
        third = (await client.ask("refresh", refreshToken=second["refreshToken"])).data

        reused = await client.ask("refresh", refreshToken=first["refreshToken"])
        if either.transport == "ws":
            assert await asyncio.wait_for(client.close_code, 5) == 4401
        async with either.client() as other:
            after = await other.ask("refresh", refreshToken=third["refreshToken"])

        assert lost["refreshToken"] == second["refreshToken"]
        assert event_of(reused) == ("refresh_failed", "token_reused")
        assert event_of(after) == ("refresh_failed", "token_revoked")


async def test_a_later_login_replaces_the_identity_and_the_earlier_session_lives_on(either: Deployment) -> None:
    async with either.account() as (client, first):
        login = await first.login(client)
        second = await either.sign_up(client)
        await second.login(client)
        assert (await client.ask("account")).data["email"] == second.email

        [session] = (await client.ask("sessions")).data["sessions"]
        async with either.client() as other:
            await other.ask("authenticate", accessToken=login.data["accessToken"])
            [earlier] = (await other.ask("sessions")).data["sessions"]

    assert session["online"] is (either.transport == "ws") and earlier["sessionId"] == login.data["sessionId"]


async def test_presence_follows_the_connections(deployment: Deployment) -> None:
    async with deployment.account() as (client, account):
        await account.login(client)
        async with deployment.client(1) as other:
            gone = (await account.login(other)).data["sessionId"]
            assert await _online(client, gone)

        async def offline() -> None:
            while await _online(client, gone):
                await asyncio.sleep(0.02)

        await asyncio.wait_for(offline(), 5)


async def _online(client: Any, session_id: str) -> bool:
    sessions = (await client.ask("sessions")).data["sessions"]
    return next(bool(s["online"]) for s in sessions if s["sessionId"] == session_id)


async def test_two_logins_at_once_on_one_connection_leave_the_first_account_offline(deployment: Deployment) -> None:
    async with deployment.account() as (client, first), deployment.account(1) as (_, second):
        logins = await asyncio.gather(first.login(client), second.login(client))
        users = {login.data["userId"] for login in logins}
        me = (await client.ask("account")).data["userId"]
        with Redis.from_url(deployment.redis_url) as redis:

            async def gone() -> None:
                while redis.hlen(names.ONLINE + (users - {me}).pop()):
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(gone(), 5)
            assert redis.hlen(names.ONLINE + me) == 1


async def test_a_session_that_time_has_ended_closes_its_connection_when_it_is_used(deployment: Deployment) -> None:
    async with deployment.account() as (client, account):
        session_id = (await account.login(client)).data["sessionId"]
        with Redis.from_url(deployment.redis_url) as redis:
            redis.delete(names.SESSIONS + session_id)  # as its expiry does
        answer = await client.ask("account")
        push = await asyncio.wait_for(client.pushes.get(), 5)
        code = await asyncio.wait_for(client.close_code, 5)

    assert event_of(answer) == ("error", "not_authenticated")
    assert (push["event"], push["data"]) == ("session_ended", {"sessionId": session_id, "reason": "expired"})
    assert code == 4401


async def test_a_password_that_nfkc_makes_longer_is_a_password(either: Deployment) -> None:
    async with either.client() as client:
        account = await either.sign_up(client, password="\ufdfa" * 100)
        await account.login(client)
        long = await client.ask("login", email=account.email, password="x" * 1025)

    assert event_of(long) == ("error", "bad_request") and long.data["field"] == "password"


@pytest.mark.parametrize("address", ["=?utf-8?q?a=40b.com=2c?=@e.com", "=?utf-8?b?-.?=@e.com", "a@e.com\nBcc: b@e.com"])
async def test_an_address_that_mail_software_reads_as_another_is_none(either: Deployment, address: str) -> None:
    async with either.client() as client:
        answer = await client.ask("register", email=address, password=PASSWORD)

    assert event_of(answer) == ("error", "bad_request") and answer.data["field"] == "email"


# --- bad input ----------------------------------------------------------------------------------------------------

BAD_FRAMES = {
    "not JSON": (b"{", None, "bad_json"),
    "an array": (b"[]", None, "bad_request"),
    "a duplicate name": (b'{"event":"logout","id":"1","id":"2"}', None, "bad_json"),
    "nine deep": (b"[" * 9 + b"]" * 9, None, "bad_json"),
    "a lone surrogate": (b'{"event":"logout","id":"\\ud800"}', None, "bad_json"),
    "no id": (b'{"event":"logout"}', None, "bad_request"),
    "an unknown event": (b'{"event":"nothing","id":"7"}', "7", "unknown_event"),
    "an unknown field": (b'{"event":"logout","id":"7","data":{"userId":"x"}}', "7", "bad_request"),
    "a wrong type": (b'{"event":"login","id":"7","data":{"email":1,"password":"x"}}', "7", "bad_request"),
    "a missing field": (b'{"event":"login","id":"7","data":{"email":"a@b.c"}}', "7", "bad_request"),
    "a deadline too short": (b'{"event":"logout","id":"7","timeoutMs":99}', "7", "bad_request"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_a_bad_frame_is_answered_and_the_connection_lives(deployment: Deployment, name: str) -> None:
    frame, id, code = BAD_FRAMES[name]
    async with deployment.client() as client:
        await client.send(frame)
        answer = await asyncio.wait_for(client.pushes.get(), 5)
        alive = await client.ask("logout")

    assert (answer["event"], answer["id"], answer["data"]["code"]) == ("error", id, code)
    assert event_of(alive) == ("error", "not_authenticated")


async def test_an_id_in_flight_cannot_be_used_again_and_the_first_is_answered(deployment: Deployment) -> None:
    login = json.dumps({"event": "login", "id": "same", "data": {"email": "a@b.c", "password": "x"}}).encode()
    async with deployment.client() as client:
        await client.send(login)
        await client.send(login)
        answers = [await asyncio.wait_for(client.pushes.get(), 5) for _ in range(2)]

    by_id = {answer["id"]: answer["data"]["code"] for answer in answers}
    assert by_id == {None: "duplicate_id", "same": "invalid_credentials"}


async def test_the_ninth_request_in_flight_is_refused(deployment: Deployment) -> None:
    async with deployment.client() as client:
        asked = [client.ask("login", email=new_address(), password="wrong") for _ in range(9)]
        codes = [answer.code for answer in await asyncio.gather(*asked)]

    assert codes.count("too_many_in_flight") == 1 and codes.count("invalid_credentials") == 8


CLOSING: dict[str, tuple[bytes | str, int]] = {
    "a binary frame": (b"\x00", 1003),
    "bad UTF-8": ("\udcff", 1007),
    "a frame too big": ('{"event":"' + "x" * 16384 + '"}', 1009),
}


@pytest.mark.parametrize("name", CLOSING)
async def test_a_frame_that_breaks_the_protocol_closes_the_connection(deployment: Deployment, name: str) -> None:
    frame, code = CLOSING[name]
    async with raw_connect(deployment.url(), compression=None, proxy=None) as socket:
        await socket.recv()
        if isinstance(frame, str) and not frame.isprintable():
            await socket.send(frame.encode(errors="surrogateescape"), text=True)
        else:
            await socket.send(frame)
        with pytest.raises(ConnectionClosed):
            await socket.recv()

    assert socket.close_code == code


async def test_compression_is_declined(deployment: Deployment) -> None:
    async with raw_connect(deployment.url(), compression="deflate", proxy=None) as socket:
        assert socket.response is not None
        assert "Sec-WebSocket-Extensions" not in socket.response.headers


ORIGINS = {
    "none": (None, True),
    "the public URL's": ("http://login.test", True),
    "another scheme": ("https://login.test", False),
    "another port": ("http://login.test:81", False),
    "a name that begins alike": ("http://login.test.evil.example", False),
    "null": ("null", False),
    "another site": ("https://evil.example", False),
}


@pytest.mark.parametrize("name", ORIGINS)
async def test_only_known_origins_may_connect(deployment: Deployment, name: str) -> None:
    origin, allowed = ORIGINS[name]
    headers = {"Origin": origin} if origin else None
    try:
        async with raw_connect(deployment.url(), additional_headers=headers, proxy=None):
            connected = True
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
        connected = False

    assert connected is allowed


async def test_the_requests_own_host_is_an_allowed_origin(deployment: Deployment) -> None:
    own = deployment.url(0, "http", "")
    async with raw_connect(deployment.url(), origin=own, proxy=None) as socket:  # type: ignore[arg-type]
        assert json.loads(await socket.recv())["event"] == "connected"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/.well-known/jwks.json", "/nothing"])
def test_every_answer_has_the_security_headers(deployment: Deployment, path: str) -> None:
    try:
        with urlopen(deployment.url(0, "http", path)) as answer:
            headers, status = answer.headers, answer.status
    except HTTPError as error:
        headers, status = error.headers, error.code
        error.close()

    assert status == (404 if path == "/nothing" else 200)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == ("public, max-age=300" if "jwks" in path else "no-store")


def test_a_body_too_big_and_a_wrong_method_are_refused(deployment: Deployment) -> None:
    def status(method: str, body: bytes | None) -> int:
        try:
            with urlopen(Request(deployment.url(0, "http", "/healthz"), data=body, method=method)) as answer:
                return int(answer.status)
        except HTTPError as error:
            error.close()
            return error.code

    assert status("POST", b"") == 405
    assert status("POST", b"x" * 20_000) in (405, 413)
