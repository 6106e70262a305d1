"""What works once works once, however many try at the same moment."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.client import Answer
from app.messages import MAX_IN_FLIGHT
from tests.accounts import (
    NEW_PASSWORD,
    Authenticator,
    challenged,
    detected,
    enrolled,
    pushed,
    reset_code,
    sign_in,
    user_key,
)
from tests.deployment import PASSWORD, Account, Databases, Deployment, new_address

TRIES = 50
Told = Counter[tuple[str, str | None]]


@pytest.fixture(scope="module")
def by_default(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Its limits are the defaults, but those of one address for all who test; devices are verified."""
    settings = {
        "FIN_FAILURES_PER_ACCOUNT": "",
        "FIN_MAILS_PER_ACCOUNT": "",
        "FIN_FAILURES_PER_IP": "1000",
        "FIN_DEVICE_VERIFICATION": "on",
    }
    folder = tmp_path_factory.mktemp("by_default")
    with databases() as url, Deployment.start(folder, url, gateways=2, workers=2, settings=settings) as running:
        yield running


@pytest.fixture(params=["without limits", "with the default limits"])
def deployment(request: pytest.FixtureRequest) -> Deployment:
    """Without, it is the race alone that decides; with them, those who failed are in each other's way too."""
    name = "guarded" if request.param == "without limits" else "by_default"
    found: Deployment = request.getfixturevalue(name)
    return found


async def at_once(asked: Sequence[Awaitable[Answer]]) -> tuple[Told, list[Answer]]:
    answers = await asyncio.gather(*asked)
    return Counter((answer.event, answer.code) for answer in answers), answers


def only(told: Told, event: str, refused: str, *codes: str) -> None:
    """One success, and of the others nothing but these refusals."""
    assert told[event, None] == 1, told
    assert set(told) <= {(event, None), *((refused, code) for code in codes)}, told
    assert sum(told.values()) > 1


class Crowd:
    """Connections to both gateways."""

    def __init__(self, deployment: Deployment, stack: AsyncExitStack) -> None:
        self.deployment, self._stack = deployment, stack

    async def clients(self, count: int, transport: str = "ws") -> list[Any]:
        over = self.deployment.over(transport)
        return [await self._stack.enter_async_context(over.client(n)) for n in range(count)]


Play = Callable[[Crowd, Account], Awaitable[None]]


async def played(deployment: Deployment, play: Play) -> None:
    async with AsyncExitStack() as stack:
        crowd = Crowd(deployment, stack)
        [client] = await crowd.clients(1)
        await play(crowd, await deployment.sign_up(client))


# --- codes of the second factor -----------------------------------------------------------------------------------

FACTOR = ("login_success", "2fa_verification_failed", "invalid_code", "challenge_expired", "too_many_attempts")


async def test_a_step_of_the_second_factor_lets_one_login_of_fifty_in(deployment: Deployment) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        clients = await crowd.clients(TRIES)
        await sign_in(clients[0], account)
        app, _ = await enrolled(clients[0], account)
        challenges = await asyncio.gather(*(challenged(client, account) for client in clients))
        code = await app.code()
        told, _ = await at_once(
            [
                client.ask("verify_2fa", challenge=challenge, code=code)
                for client, challenge in zip(clients, challenges, strict=True)
            ]
        )
        only(told, *FACTOR)

    await played(deployment, play)


async def test_a_challenge_of_the_second_factor_lets_one_of_fifty_in(deployment: Deployment) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        callers = await crowd.clients(TRIES, "rest")
        await sign_in(callers[0], account)
        app, recovery = await enrolled(callers[0], account)
        challenge, code = await challenged(callers[0], account), await app.code()
        proofs: list[dict[str, str]] = [{"code": code}, *({"recoveryCode": each} for each in recovery)]
        told, _ = await at_once(
            [
                caller.ask("verify_2fa", challenge=challenge, **proofs[n % len(proofs)])
                for n, caller in enumerate(callers)
            ]
        )
        only(told, *FACTOR)

    await played(deployment, play)


async def test_a_recovery_code_lets_one_login_of_fifty_in(deployment: Deployment) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        clients = await crowd.clients(TRIES)
        login = await sign_in(clients[0], account)
        _, recovery = await enrolled(clients[0], account)
        challenges = await asyncio.gather(*(challenged(client, account) for client in clients))
        told, _ = await at_once(
            [
                client.ask("verify_2fa", challenge=challenge, recoveryCode=recovery[0])
                for client, challenge in zip(clients, challenges, strict=True)
            ]
        )
        only(told, *FACTOR)
        [owner] = await crowd.clients(1)
        await owner.ask("authenticate", accessToken=login.data["accessToken"])
        assert (await owner.ask("account")).data["recoveryCodesLeft"] == 9

    await played(deployment, play)


async def test_a_code_turns_one_second_factor_on_however_often_it_is_sent(deployment: Deployment) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        [client] = await crowd.clients(1)
        await sign_in(client, account)
        app = Authenticator((await client.ask("enroll_2fa", password=PASSWORD)).data["secret"])
        code = await app.code()
        told, answers = await at_once([client.ask("confirm_2fa", code=code) for _ in range(MAX_IN_FLIGHT)])
        only(told, "2fa_enabled", "2fa_verification_failed", "challenge_expired", "invalid_code")

        [codes] = [answer.data["recoveryCodes"] for answer in answers if answer.event == "2fa_enabled"]
        used = await client.ask("disable_2fa", password=PASSWORD, recoveryCode=codes[0])
        assert used.event == "2fa_disabled"

    await played(deployment, play)


async def test_one_step_renews_the_recovery_codes_once(deployment: Deployment) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        [client] = await crowd.clients(1)
        await sign_in(client, account)
        app, _ = await enrolled(client, account)
        code = await app.code()
        told, answers = await at_once(
            [client.ask("new_recovery_codes", password=PASSWORD, code=code) for _ in range(MAX_IN_FLIGHT)]
        )
        only(told, "recovery_codes", "2fa_verification_failed", "invalid_code", "too_many_attempts")

        [codes] = [answer.data["recoveryCodes"] for answer in answers if answer.event == "recovery_codes"]
        challenge = await challenged(client, account)
        login = await client.ask("verify_2fa", challenge=challenge, recoveryCode=codes[0])
        assert login.event == "login_success" or login.code == "too_many_attempts"

    await played(deployment, play)


# --- codes that are mailed ----------------------------------------------------------------------------------------

DEVICE = ("login_success", "device_verification_failed", "challenge_expired", "invalid_code")


@pytest.mark.parametrize(("transport", "tries"), [("ws", MAX_IN_FLIGHT), ("rest", TRIES)])
async def test_a_device_code_lets_one_device_in(deployment: Deployment, transport: str, tries: int) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        callers = await crowd.clients(1 if transport == "ws" else tries, transport)
        challenge = (await detected(callers[0], account))["challenge"]
        code = await deployment.mailed_code(account.email, 2)
        told, answers = await at_once(
            [callers[n % len(callers)].ask("verify_device", challenge=challenge, code=code) for n in range(tries)]
        )
        only(told, *DEVICE)

        [login] = [answer for answer in answers if answer.event == "login_success"]
        [owner] = await crowd.clients(1)
        await owner.ask("authenticate", accessToken=login.data["accessToken"])
        assert len((await owner.ask("sessions")).data["sessions"]) == 1
        assert len((await owner.ask("account")).data["devices"]) == 2

    await played(deployment, play)


async def test_a_reset_code_sets_one_password_of_fifty(deployment: Deployment) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        clients = await crowd.clients(TRIES)
        await clients[0].ask("request_password_reset", email=account.email)
        code = await reset_code(deployment, account.email)
        passwords = [f"{NEW_PASSWORD} {n}" for n in range(TRIES)]
        told, answers = await at_once(
            [
                client.ask("reset_password", email=account.email, code=code, newPassword=password)
                for client, password in zip(clients, passwords, strict=True)
            ]
        )
        only(told, "password_reset", "password_reset_failed", "invalid_code")

        [winner] = [n for n, answer in enumerate(answers) if answer.event == "password_reset"]
        await sign_in(clients[0], Account(account.email, passwords[winner], account.device_token))

    await played(deployment, play)


async def test_an_address_is_confirmed_once_with_its_code(deployment: Deployment) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        clients, address = await crowd.clients(TRIES), new_address()
        challenge = (await clients[0].ask("register", email=address, password=PASSWORD)).data["challenge"]
        code = await deployment.mailed_code(address)
        told, _ = await at_once([client.ask("confirm_email", challenge=challenge, code=code) for client in clients])
        only(told, "email_confirmed", "email_confirmation_failed", "challenge_expired")

    await played(deployment, play)


# --- approval -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdicts", [(True,), (False,), (True, False)], ids=["yes", "no", "yes and no"])
async def test_a_login_is_decided_once_by_fifty_answers(deployment: Deployment, verdicts: tuple[bool, ...]) -> None:
    async def play(crowd: Crowd, account: Account) -> None:
        owners = await crowd.clients(-(-TRIES // MAX_IN_FLIGHT))
        for owner in owners:
            await sign_in(owner, account)
        [phone] = await crowd.clients(1)
        waits = await detected(phone, account)
        attempt = (await pushed(owners[0], "login_attempt"))["loginId"]
        told, answers = await at_once(
            [
                owners[n % len(owners)].ask(
                    "approve_login",
                    loginId=attempt,
                    approve=verdicts[n % len(verdicts)],
                    matchNumber=waits["matchNumber"],
                )
                for n in range(TRIES)
            ]
        )
        only(told, "login_decided", "approval_failed", "not_found")

        [decided] = [answer.data["approved"] for answer in answers if answer.event == "login_decided"]
        assert await pushed(phone, "login_decided") == {"approved": decided}
        told, _ = await at_once(
            [phone.ask("verify_device", challenge=waits["challenge"]) for _ in range(MAX_IN_FLIGHT)]
        )
        if decided:
            only(told, *DEVICE)
        else:
            assert set(told) == {("device_verification_failed", "challenge_expired")}

    await played(deployment, play)


# --- a stronger hash ----------------------------------------------------------------------------------------------


@contextmanager
def commands_on(redis_url: str, beginning: str) -> Iterator[list[str]]:
    """The commands with this beginning that the server runs meanwhile, those of scripts too."""
    found: list[str] = []
    end = f"end of {threading.get_ident()}"
    with Redis.from_url(redis_url) as watcher, Redis.from_url(redis_url) as other, watcher.monitor() as monitor:

        def watch() -> None:
            for said in monitor.listen():
                if said["command"] == f"ECHO {end}":
                    return
                if said["command"].startswith(beginning):
                    found.append(said["command"])

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield found
        finally:
            other.echo(end)
            thread.join()


async def test_twenty_logins_after_the_cost_was_raised_write_one_stronger_hash(redis_url: str, tmp_path: Path) -> None:
    settings = {"FIN_ARGON2": "m=64,t=1,p=1"}
    with Deployment.start(tmp_path, redis_url, workers=2, settings=settings) as running:
        async with AsyncExitStack() as stack:
            clients = await Crowd(running, stack).clients(20)
            account = await running.sign_up(clients[0])
            running.environ["FIN_ARGON2"] = "m=1024,t=2,p=1"
            await asyncio.to_thread(running.replace, "worker")
            with Redis.from_url(redis_url) as redis:
                key = user_key(redis, account.email)
            with commands_on(redis_url, f"HSET {key} password ") as written:
                await asyncio.gather(*(account.login(client) for client in clients))
                await account.login(clients[0])

    assert len(written) == 1 and "m=1024,t=2" in written[0]
