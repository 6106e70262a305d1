"""Under the limits of a deployment as it comes: who guesses runs into the delay, the owner gets in, and none of it
tells whether there is an account.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from redis import Redis

from adapters import names
from app import rules
from app.client import Answer
from app.settings import Limits
from tests.accounts import NEW_PASSWORD, ask_login, challenged, detected, enrolled, reset_code, sign_in
from tests.deployment import OFF, PASSWORD, Account, Databases, Deployment, event_of, new_address
from tests.states import NONE, WRONG

MOST = Limits().failures_per_account or 0
MAILS = Limits().mails_per_account or 0
TOO_MANY = ("login_failure", "too_many_attempts")
WRONG_PASSWORD = ("login_failure", "invalid_credentials")
ADDRESSES = (f"198.51.{high}.{low}" for high, low in itertools.product(range(256), range(1, 255)))


class Place:
    """An address on the internet that nobody else has."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment, self._address = deployment, next(ADDRESSES)

    def client(self, gateway: int = 0) -> AbstractAsyncContextManager[Any]:
        return self._deployment.client(gateway, additional_headers={"X-Forwarded-For": self._address})


@pytest.fixture(scope="module")
def defended(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The limits of failures, mails and registrations as by default, devices verified, a believed proxy before it."""
    settings = {**dict.fromkeys(OFF, ""), "FIN_TRUSTED_PROXIES": "127.0.0.1", "FIN_DEVICE_VERIFICATION": "on"}
    settings["FIN_MESSAGES_PER_SECOND"] = "off"  # nobody types that fast
    folder = tmp_path_factory.mktemp("defended")
    with databases() as url, Deployment.start(folder, url, gateways=2, workers=2, settings=settings) as running:
        yield running


@pytest.fixture(params=["ws", "rest"])
def either(request: pytest.FixtureRequest, defended: Deployment) -> Deployment:
    return defended.over(request.param)


async def signed_up(deployment: Deployment) -> Account:
    async with Place(deployment).client() as client:
        return await deployment.sign_up(client)


async def guesses(client: Any, address: str, count: int) -> list[Answer]:
    return [await client.ask("login", email=address, password=f"a guess {n}") for n in range(count)]


def alike(answers: list[Answer]) -> list[tuple[str, dict[str, Any]]]:
    """What does not have to differ: neither ids nor how long is still to be waited."""
    ids = {"challenge": "an id", "retryAfterMs": "a time"}
    return [(each.event, {name: ids.get(name, value) for name, value in each.data.items()}) for each in answers]


# --- passwords ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_after_five_wrong_passwords_the_address_has_to_wait_there_known_or_not(
    either: Deployment, known: bool
) -> None:
    address = (await signed_up(either)).email if known else new_address()
    async with Place(either).client() as attacker:
        answers = await guesses(attacker, address, MOST + 3)
        right = await attacker.ask("login", email=address, password=PASSWORD)

    assert [event_of(answer) for answer in answers] == [WRONG_PASSWORD] * MOST + [TOO_MANY] * 3
    assert event_of(right) == TOO_MANY, "who guessed right now would not learn it"
    for refused in (*answers[MOST:], right):
        assert refused.data["retryable"] and 0 < refused.data["retryAfterMs"] <= rules.FIRST_DELAY_MS


async def test_the_owner_gets_in_at_once_where_an_attacker_has_to_wait(either: Deployment) -> None:
    account, shared = await signed_up(either), Place(either)
    async with shared.client() as attacker, shared.client(1) as owner, Place(either).client() as elsewhere:
        await guesses(attacker, account.email, MOST)
        [refused] = await guesses(attacker, account.email, 1)
        stranger = await ask_login(attacker, account, deviceToken="0none.AAAAAAAAAAAAAAAAAAAA")
        await sign_in(owner, account)
        away = await ask_login(elsewhere, account)
        [still] = await guesses(attacker, account.email, 1)

    assert event_of(refused) == event_of(stranger) == event_of(still) == TOO_MANY
    assert away.event == "new_device_detected"


async def test_guesses_from_everywhere_delay_the_account_and_not_its_trusted_device(either: Deployment) -> None:
    account = await signed_up(either)

    async def attack(gateway: int) -> None:
        async with Place(either).client(gateway) as attacker:
            answers = await guesses(attacker, account.email, MOST)
            assert {event_of(answer) for answer in answers} == {WRONG_PASSWORD}

    await asyncio.gather(*map(attack, range(rules.ANYWHERE)))
    async with Place(either).client() as attacker, Place(either).client(1) as owner:
        [refused] = await guesses(attacker, account.email, 1)
        new_device = await ask_login(attacker, account)
        await sign_in(owner, account)
        [still] = await guesses(attacker, account.email, 1)

    assert event_of(refused) == event_of(new_device) == event_of(still) == TOO_MANY
    assert 0 < refused.data["retryAfterMs"] <= rules.FIRST_DELAY_MS


async def test_a_trusted_device_that_guesses_has_to_wait_too_and_the_others_have_not(either: Deployment) -> None:
    account, home = await signed_up(either), Place(either)
    async with home.client() as stolen, home.client() as other:
        wrong = {"email": account.email, "password": "a guess", "deviceToken": account.device_token}
        answers = [await stolen.ask("login", **wrong) for _ in range(MOST + 1)]
        right = await ask_login(stolen, account, deviceToken=account.device_token)
        without = await ask_login(other, account)

    assert [event_of(answer) for answer in answers] == [WRONG_PASSWORD] * MOST + [TOO_MANY]
    assert event_of(right) == TOO_MANY
    assert without.event == "new_device_detected"


async def test_the_delay_doubles_with_each_further_failure_and_a_success_ends_it(defended: Deployment) -> None:
    account, place = await signed_up(defended), Place(defended)
    waits = []
    async with place.client() as attacker:
        await guesses(attacker, account.email, MOST)
        with Redis.from_url(defended.redis_url) as redis:
            [limit] = redis.scan_iter(f"{names.limit('account', account.email)}|*")
            for _ in range(7):
                [refused] = await guesses(attacker, account.email, 1)
                assert event_of(refused) == TOO_MANY
                waits.append(refused.data["retryAfterMs"])
                redis.hset(limit, "closed", 1)  # the delay is over
                [wrong] = await guesses(attacker, account.email, 1)
                assert event_of(wrong) == WRONG_PASSWORD
            redis.hset(limit, "closed", 1)
        await detected(attacker, account)
        answers = await guesses(attacker, account.email, MOST)

    expected = [min(rules.FIRST_DELAY_MS * 2**n, rules.LONGEST_DELAY_MS) for n in range(7)]
    assert all(least * 0.8 < found <= least for found, least in zip(waits, expected, strict=True)), waits
    assert {event_of(answer) for answer in answers} == {WRONG_PASSWORD}


async def test_forwarding_headers_of_who_is_no_trusted_proxy_change_nothing(limited: Deployment) -> None:
    answers = []
    address = new_address()
    for _ in range(MOST + 1):
        async with Place(limited).client() as attacker:
            answers += await guesses(attacker, address, 1)

    assert [event_of(answer) for answer in answers] == [WRONG_PASSWORD] * MOST + [TOO_MANY]


@pytest.fixture
def limited(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """No proxy is believed."""
    settings = {"FIN_FAILURES_PER_ACCOUNT": ""}
    with Deployment.start(tmp_path_factory.mktemp("limited"), redis_url, mailers=0, settings=settings) as running:
        yield running


# --- codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trust", [False, True])
async def test_neither_new_challenges_nor_a_right_password_give_new_tries_of_the_second_factor(
    either: Deployment, trust: bool
) -> None:
    """Of somebody who has the password and the mailbox. The owner's trusted device is not kept out by it."""
    account = await signed_up(either)
    mails = itertools.count(2)  # the first was its confirmation
    async with Place(either).client() as owner, Place(either).client(1) as attacker:
        await sign_in(owner, account)
        app, recovery = await enrolled(owner, account)

        async def challenge_for(account: Account) -> str:
            device = (await detected(attacker, account))["challenge"]
            code = await either.mailed_code(account.email, next(mails))
            asked = await attacker.ask("verify_device", challenge=device, code=code, trust=trust)
            assert asked.event == "2fa_required"
            challenge: str = asked.data["challenge"]
            return challenge

        async def guess(challenge: str, tries: int) -> list[Answer]:
            return [await attacker.ask("verify_2fa", challenge=challenge, code="000000") for _ in range(tries)]

        answers = await guess(await challenge_for(account), MOST - 1)
        changed = await owner.ask("change_password", currentPassword=PASSWORD, newPassword=NEW_PASSWORD)
        assert changed.event == "password_changed"
        account = Account(account.email, NEW_PASSWORD, account.device_token)
        answers += await guess(await challenge_for(account), 1)
        challenge = await challenge_for(account)
        right = await attacker.ask("verify_2fa", challenge=challenge, recoveryCode=recovery[0])
        off = await owner.ask("disable_2fa", password=NEW_PASSWORD, recoveryCode=recovery[0])
        login = await owner.ask("verify_2fa", challenge=await challenged(owner, account), code=await app.code())

    assert {event_of(answer) for answer in answers} == {("2fa_verification_failed", "invalid_code")}
    for refused in (right, off):
        assert event_of(refused) == ("2fa_verification_failed", "too_many_attempts")
        assert 0 < refused.data["retryAfterMs"] <= rules.FIRST_DELAY_MS
    assert login.event == "login_success"


async def test_five_wrong_codes_end_a_device_challenge_and_after_five_mails_there_are_no_codes(
    either: Deployment,
) -> None:
    account, place = await signed_up(either), Place(either)
    async with place.client() as attacker:
        for number in range(MAILS):
            challenge = (await detected(attacker, account))["challenge"]
            code = await either.mailed_code(account.email, number + 2)  # the first was its confirmation's
            told = [await attacker.ask("verify_device", challenge=challenge, code=WRONG) for _ in range(5)]
            late = await attacker.ask("verify_device", challenge=challenge, code=code)
            assert {answer.code for answer in told} == {"invalid_code"} and late.code == "challenge_expired"
        again = await detected(attacker, account)
        told = [await attacker.ask("verify_device", challenge=again["challenge"], code=WRONG) for _ in range(6)]
    await signed_up(either)  # whose mail is sent after all of those

    assert [each.code for each in told] == ["invalid_code"] * 5 + ["challenge_expired"]
    assert len(either.mails(account.email)) == 1 + MAILS


async def test_mails_that_strangers_cause_keep_no_code_from_the_owner_on_a_new_device(either: Deployment) -> None:
    account = await signed_up(either)
    async with Place(either).client() as stranger, Place(either).client(1) as owner:
        for _ in range(2 * MAILS):
            await stranger.ask("request_password_reset", email=account.email)
        challenge = (await detected(owner, account))["challenge"]
        code = await either.mailed_code(account.email, 2)
        login = await owner.ask("verify_device", challenge=challenge, code=code)

    assert login.event == "login_success"


@pytest.mark.parametrize("request_", ["confirm_email", "verify_device", "verify_2fa"])
async def test_a_challenge_of_nothing_is_answered_the_same_however_often_it_is_tried(
    either: Deployment, request_: str
) -> None:
    async with Place(either).client() as client:
        answers = [await client.ask(request_, challenge=NONE, code=WRONG) for _ in range(10)]

    assert {answer.code for answer in answers} == {"challenge_expired"}


# --- nothing tells whether there is an account --------------------------------------------------------------------


async def test_a_known_and_an_unknown_address_are_answered_alike_past_every_limit(either: Deployment) -> None:
    account = await signed_up(either)

    async def told(address: str) -> list[tuple[str, dict[str, Any]]]:
        answers = []
        async with Place(either).client() as client:
            answers += await guesses(client, address, MOST + 2)
            answers += [await client.ask("request_password_reset", email=address) for _ in range(MAILS + 2)]
            wrong = {"email": address, "code": f"{NONE}.x", "newPassword": NEW_PASSWORD}
            answers += [await client.ask("reset_password", **wrong) for _ in range(MOST + 2)]
        for _ in range(2):
            async with Place(either).client() as client:
                again = [await client.ask("register", email=address, password=PASSWORD) for _ in range(5)]
                challenge = again[-1].data["challenge"]
                answers += again
                answers += [await client.ask("resend_confirmation", challenge=challenge) for _ in range(MAILS + 2)]
                answers += [await client.ask("confirm_email", challenge=challenge, code=WRONG) for _ in range(6)]
        return alike(answers)

    assert await told(account.email) == await told(new_address())


# --- mails --------------------------------------------------------------------------------------------------------


async def test_past_five_mails_an_hour_nothing_is_mailed_and_the_answer_is_the_same(either: Deployment) -> None:
    account = await signed_up(either)  # its confirmation was the first mail
    answers = []
    for n in range(10):
        async with Place(either).client(n) as stranger:
            answers.append(await stranger.ask("request_password_reset", email=account.email))
    await signed_up(either)  # whose mail is sent after all of those
    assert {(answer.event, repr(answer.data)) for answer in answers} == {("password_reset_requested", "{}")}
    assert len(either.mails(account.email)) == MAILS

    last = await reset_code(either, account.email, MAILS - 1)
    async with Place(either).client() as owner:
        change = {"email": account.email, "code": last, "newPassword": NEW_PASSWORD}
        done = await owner.ask("reset_password", **change)
    await signed_up(either)
    assert done.event == "password_reset", "a mail that was not sent voids none that was"
    assert len(either.mails(account.email)) == MAILS + 1, "what its owner has done is told in any case"
