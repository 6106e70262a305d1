"""Every key is rotated while everybody is at work: nobody notices."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.request import urlopen

import jwt
import pytest
from redis import Redis

from adapters import names
from app.client import Answer, Client
from app.messages import Lane
from tests.deployment import PASSWORD, Databases, Deployment, Process, new_address

RINGS = ("seal", "mail", "token", "edge", "worker", "pepper")
HOLDS = {"gateway": {"seal", "token", "edge"}, "worker": set(RINGS), "mailer": {"mail", "edge"}}
CLIENTS = 8
AFTER = "3"  # the least: roles look every second


@pytest.fixture(scope="module")
def rotating(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two gateways, two workers and two mailers with one `.env`."""
    folder = tmp_path_factory.mktemp("rotating")
    with databases() as url, Deployment.start(folder, url, gateways=2, workers=2, mailers=2, env_file=True) as running:
        yield running


class Load:
    """Clients that register, confirm, log in (each request on both gateways at once), authenticate and refresh."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.answers: Counter[str] = Counter()
        self.failures: list[tuple[str, Any]] = []
        self.rounds = [0] * CLIENTS

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for n in range(CLIENTS):
                client, other = [await stack.enter_async_context(self._deployment.client(n + m)) for m in range(2)]
                group.create_task(self._work(client, other, n, stop))
            yield
            stop.set()

    async def more(self, rounds: int = 2) -> None:
        """Every client begins and ends that many rounds from here on."""
        until = [done + rounds + 1 for done in self.rounds]
        while any(done < least for done, least in zip(self.rounds, until)):
            await asyncio.sleep(0.02)

    async def _work(self, client: Client, other: Client, n: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            address = new_address()
            accepted = await self._ask(client, "register", email=address, password=PASSWORD)
            code = await self._deployment.mailed_code(address)
            challenge = accepted.data.get("challenge")
            confirmed = await self._ask(client, "confirm_email", challenge=challenge, code=code)
            token = confirmed.data.get("deviceToken")
            for _ in range(5):
                about = {"email": address, "password": PASSWORD, "deviceToken": token, "key": secrets.token_urlsafe(18)}
                login, same = await asyncio.gather(*(self._ask(asks, "login", **about) for asks in (client, other)))
                if same.data != login.data:
                    self.failures.append(("one request was evaluated twice", same.data))
                await self._ask(client, "authenticate", accessToken=login.data.get("accessToken"))
                await self._ask(client, "refresh", refreshToken=login.data.get("refreshToken"))
                await self._ask(client, "account")
            self.rounds[n] += 1

    async def _ask(self, client: Client, event: str, **data: Any) -> Answer:
        answer = await client.ask(event, **data)
        self.answers[answer.event] += 1
        if answer.code is not None:
            self.failures.append((event, answer.data))
        return answer


async def inventory(deployment: Deployment) -> dict[str, list[str]]:
    """Ring → key ids with their states, as `keys list` has them."""
    found: dict[str, list[str]] = {}
    for line in (await deployment.command("keys", "list")).splitlines()[1:]:
        ring, kid, state, *_ = line.split()
        found.setdefault(ring, []).append(f"{kid} {state}")
    return found


async def current_keys(deployment: Deployment) -> dict[str, str]:
    return {ring: kid[:4] for ring, kids in (await inventory(deployment)).items() for kid in kids if " current" in kid}


def switched_to(process: Process) -> dict[str, str]:
    """Ring → the key that a role says it uses now; only rings that were rotated."""
    found = {}
    for line in process.log.read_text().splitlines():
        entry = json.loads(line)
        if entry["message"] == "keys changed":
            found[entry["ring"]] = entry["current"]
    return found


@pytest.mark.streams
async def test_every_key_is_rotated_under_load_and_no_request_fails(rotating: Deployment) -> None:
    before = await current_keys(rotating)
    assert set(before) == set(RINGS)
    load = Load(rotating)
    async with rotating.client() as client, rotating.client(1) as other:
        account = await rotating.sign_up(client)
        old = (await account.login(client, deviceToken=account.device_token)).data
        key = secrets.token_urlsafe(18)
        keyed = await account.login(other, key=key)
        waiting = await other.ask("register", email=(address := new_address()), password=PASSWORD)
        code = await rotating.mailed_code(address)
        assert key_ids_of(old) == (before["token"], before["worker"])
        assert pepper_of(rotating, old["userId"]) == before["pepper"]

        async with load.running():
            await load.more()
            await asyncio.gather(*(rotating.command("keys", "rotate", ring, "--after", AFTER) for ring in RINGS))
            after = await wait_until_all_switched(rotating, before)
            await load.more()

        assert load.failures == []
        assert load.answers["login_success"] > 100 and load.answers["email_confirmed"] > 20, load.answers
        states = {ring: [kid[5:] for kid in kids] for ring, kids in (await inventory(rotating)).items()}
        assert states == {ring: ["current", "known"] for ring in RINGS}

        # what was given out under the old keys is still good
        for connection in (client, other):
            assert (await connection.ask("authenticate", accessToken=old["accessToken"])).event == "authenticated"
        assert (await account.login(client, key=key)).data == keyed.data, "the same request, evaluated once"
        refreshed = await client.ask("refresh", refreshToken=old["refreshToken"])
        assert refreshed.event == "token_refreshed"
        confirmed = await other.ask("confirm_email", challenge=waiting.data["challenge"], code=code)
        assert confirmed.event == "email_confirmed"
        login = (await account.login(other, deviceToken=account.device_token, deviceName="the trusted one")).data
        devices = (await other.ask("account")).data["devices"]
        assert [device["deviceName"] for device in devices] == ["the trusted one"]

        # and what is new is under the new ones
        for data in (refreshed.data, login):
            assert key_ids_of(data) == (after["token"], after["worker"])
        assert login["sessionId"].startswith(f"0{after['worker']}-")
        assert pepper_of(rotating, login["userId"]) == after["pepper"], "upgraded by the login"
        assert (await account.login(client)).data["userId"] == login["userId"]
        for gateway in range(2):
            assert jwks_ids(rotating, gateway) == [after["token"], before["token"]]
            published = jwt.PyJWKClient(rotating.url(gateway, "http", "/.well-known/jwks.json"))
            verifying = await asyncio.to_thread(published.get_signing_key_from_jwt, login["accessToken"])
            assert jwt.decode(login["accessToken"], verifying, ["ES256"], audience="finthenticate")["sid"]

        await assert_sealed_with(rotating, client, after)


async def wait_until_all_switched(deployment: Deployment, before: dict[str, str]) -> dict[str, str]:
    """The new current keys, once every role says that it uses them."""

    async def all_switched() -> dict[str, str]:
        while True:
            after = await current_keys(deployment)
            if not set(after.values()) & set(before.values()) and all(
                switched_to(process) == {ring: after[ring] for ring in HOLDS[process.role]}
                for process in deployment.processes
            ):
                return after
            await asyncio.sleep(0.1)

    return await asyncio.wait_for(all_switched(), 20)


async def assert_sealed_with(deployment: Deployment, client: Client, keys: dict[str, str]) -> None:
    """Requests and mails that wait in Redis are sealed under the new keys."""
    head = f"{keys['seal']}.{keys['edge']}.".encode()
    for worker in deployment.of("worker"):
        worker.pause()
    asked = asyncio.create_task(client.ask("login", email=new_address(), password=PASSWORD))
    with Redis.from_url(deployment.redis_url) as redis:
        [(_, entry)] = await entries_of(redis, names.lane(Lane.HASH))
        for mailer in deployment.of("mailer"):
            mailer.pause()
        for worker in deployment.of("worker"):
            worker.go_on()
        assert (await asked).code == "invalid_credentials"
        await client.ask("register", email=new_address(), password=PASSWORD)
        [(_, mail)] = await entries_of(redis, names.MAIL)
    for mailer in deployment.of("mailer"):
        mailer.go_on()
    assert entry[b"w"].startswith(head) and entry[b"r"].startswith(f"0{keys['edge']}-".encode())
    assert unpacked(mail[b"w"]).startswith(f"{keys['mail']}.{keys['edge']}.".encode())


async def entries_of(redis: Redis, stream: str) -> list[Any]:
    async def look() -> list[Any]:
        while not (found := redis.xrange(stream)):
            await asyncio.sleep(0.02)
        return list(found)

    return await asyncio.wait_for(look(), 5)


def unpacked(text: bytes) -> bytes:
    from adapters.redis_store import unpack

    return bytes(unpack(text))


def key_ids_of(data: dict[str, Any]) -> tuple[str, str]:
    """Of the access token and of the refresh token."""
    return jwt.get_unverified_header(data["accessToken"])["kid"], data["refreshToken"].partition(".")[0]


def pepper_of(deployment: Deployment, user_id: str) -> str:
    with Redis.from_url(deployment.redis_url) as redis:
        record = redis.hget(names.USERS + user_id, "password")
        return str(record, "ascii").partition(":")[0]


def jwks_ids(deployment: Deployment, gateway: int) -> list[str]:
    with urlopen(deployment.url(gateway, "http", "/.well-known/jwks.json"), timeout=5) as answer:
        return [key["kid"] for key in json.load(answer)["keys"]]
