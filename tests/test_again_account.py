"""Each request sent again with its key, at the same moment and later on another node: one evaluation, one answer."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest
from redis import Redis

from adapters import names
from app.client import Answer
from app.messages import KINDS
from tests.accounts import NEW_PASSWORD, challenged, enrolled, reset_code, sign_in
from tests.deployment import PASSWORD, Deployment, event_of
from tests.states import WRONG, Person, person_in

# Each request in a state where it is answered with something; `logout`, which ends what it is asked with, apart.
ROWS = (
    ("register", "fresh"),
    ("confirm_email", "pend"),
    ("resend_confirmation", "pend"),
    ("login", "fresh"),
    ("login", "new"),
    ("login", "fact"),
    ("verify_device", "new"),
    ("verify_device", "new+"),
    ("verify_device", "appr"),
    ("verify_2fa", "fact"),
    ("refresh", "trust"),
    ("authenticate", "trust"),
    ("sessions", "trust"),
    ("account", "trust"),
    ("revoke_session", "trust"),
    ("revoke_other_sessions", "trust"),
    ("request_password_reset", "fresh"),
    ("reset_password", "reset"),
    ("change_password", "trust"),
    ("enroll_2fa", "trust"),
    ("confirm_2fa", "enrol"),
    ("disable_2fa", "2fa"),
    ("new_recovery_codes", "2fa"),
    ("forget_device", "trust"),
    ("approve_login", "asked"),
)


def new_key() -> str:
    return secrets.token_urlsafe(18)


def audited(deployment: Deployment) -> int:
    """How many requests were evaluated so far."""
    with Redis.from_url(deployment.redis_url) as redis:
        return int(redis.xlen(names.EVENTS))


def told(answer: Answer) -> tuple[str, dict[str, Any], list[tuple[str, Any]]]:
    """The answer and the steps before it; where somebody waited in a queue is his own."""
    steps = [(step["event"], step["data"]) for step in answer.progress if step["event"] != "queued"]
    return answer.event, answer.data, steps


async def data_of(request: str, person: Person, other: Any) -> dict[str, Any]:
    """As she would make it; but the session that she ends is another one."""
    if request != "revoke_session":
        return person.data(request)
    login = await sign_in(other, person.account)
    return {"sessionId": login.data["sessionId"]}


def test_no_request_is_left_out() -> None:
    assert {request for request, _ in ROWS} == set(KINDS) - {"logout"}


@pytest.mark.parametrize(("request_", "state", "transport"), [
    (request, state, transport)
    for request, state in ROWS
    for transport in ("ws", "rest")
    if transport == "ws" or state != "appr"
])  # fmt: skip
async def test_a_request_sent_three_times_is_evaluated_once(
    guarded: Deployment, request_: str, state: str, transport: str
) -> None:
    over, key = guarded.over(transport), new_key()
    async with person_in(state, over) as person, over.client(0) as elsewhere, over.client(0) as third:
        data = await data_of(request_, person, third)
        if KINDS[request_].needs_session:
            await elsewhere.ask("authenticate", accessToken=person.access)
        before = audited(guarded)
        first, same = await asyncio.gather(*(person.client.ask(request_, key=key, **data) for _ in range(2)))
        again = await elsewhere.ask(request_, key=key, **data)
        evaluations = audited(guarded) - before

        assert first.code is None, first.data
        assert told(first) == told(same) == told(again)
        assert [step["event"] for step in again.progress if step["event"] != "queued"] == [
            step.event for step in KINDS[request_].progress
        ]
        assert evaluations == 1
        if first.event == "login_success":
            assert (await elsewhere.ask("account")).data["userId"] == first.data["userId"]


async def test_a_device_token_that_came_again_on_another_node_is_the_trusted_devices(guarded: Deployment) -> None:
    key = new_key()
    async with person_in("new", guarded) as person, guarded.client(0) as elsewhere, guarded.client(1) as later:
        await person.client.ask("verify_device", key=key, **person.data("verify_device"))
        again = await elsewhere.ask("verify_device", key=key, **person.data("verify_device"))
        [verified] = [step["data"] for step in again.progress if step["event"] == "device_verified"]
        person.device_token = verified["deviceToken"]

        await sign_in(later, person.account)
        assert len((await later.ask("account")).data["devices"]) == 2


async def test_a_wrong_code_sent_again_costs_one_try(guarded: Deployment) -> None:
    key = new_key()
    async with person_in("new", guarded) as person:
        wrong = {**person.data("verify_device"), "code": WRONG}
        answers = [await person.client.ask("verify_device", key=key, **wrong) for _ in range(8)]
        right = await person.client.ask("verify_device", **person.data("verify_device"))

    assert {event_of(answer) for answer in answers} == {("device_verification_failed", "invalid_code")}
    assert right.event == "login_success"


async def test_what_a_session_asked_is_not_told_to_another_of_the_account(guarded: Deployment) -> None:
    key = new_key()
    async with person_in("trust", guarded) as person, guarded.client(0) as other:
        await sign_in(other, person.account)
        app, _ = await enrolled(person.client, person.account)
        data: dict[str, Any] = {"password": PASSWORD, "code": await app.code()}
        hers = await person.client.ask("new_recovery_codes", key=key, **data)
        others = await other.ask("new_recovery_codes", key=key, **data)

    assert hers.event == "recovery_codes"
    assert event_of(others) == ("2fa_verification_failed", "invalid_code")


async def test_after_a_new_password_a_recorded_login_is_told_no_more(guarded: Deployment) -> None:
    key = new_key()
    async with person_in("fresh", guarded) as person, guarded.client(0) as other:
        first = await sign_in(person.client, person.account, key=key)
        await other.ask("request_password_reset", email=person.email)
        code = await reset_code(guarded, person.email)
        await other.ask("reset_password", email=person.email, code=code, newPassword=NEW_PASSWORD)
        again = await other.ask("login", key=key, **person.data("login"))
        refreshed = await other.ask("refresh", refreshToken=first.data["refreshToken"])

    assert event_of(again) == ("login_failure", "invalid_credentials")
    assert event_of(refreshed) == ("refresh_failed", "token_revoked")


async def test_a_second_factor_that_was_asked_for_twice_with_one_key_is_one_challenge(guarded: Deployment) -> None:
    key = new_key()
    async with person_in("2fa", guarded) as person, guarded.client(0) as elsewhere, guarded.client(1) as stranger:
        asked = [await client.ask("login", key=key, **person.data("login")) for client in (person.client, elsewhere)]
        assert asked[0].data == asked[1].data
        proof = {"challenge": asked[0].data["challenge"], "code": person.code}
        stolen = await stranger.ask("verify_2fa", **proof)
        login = await elsewhere.ask("verify_2fa", **proof)
        assert await challenged(stranger, person.account) != asked[0].data["challenge"]

    assert event_of(stolen) == ("2fa_verification_failed", "challenge_expired")
    assert login.event == "login_success"
