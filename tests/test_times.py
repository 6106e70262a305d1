"""What the time of an answer tells: nothing. Interleaved, so that a drift of the machine meets both alike."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.client import Answer
from tests.deployment import PASSWORD, Databases, Deployment, new_address

PAIRS = 1000  # by chance alone, twice 1,000 samples are outside 0.45 to 0.55 once in ten thousand runs
AT_ONCE = 16
OLDER, NEWER = "m=4096,t=1,p=1", "m=19456,t=2,p=1"


def auc(first: list[float], second: list[float]) -> float:
    """The chance that one of `first` took longer than one of `second` (Mann and Whitney): 0.5 tells nothing."""
    ranked = sorted([(value, 0) for value in first] + [(value, 1) for value in second])
    ranks: dict[int, float] = {0: 0.0, 1: 0.0}
    position = 0
    for _, group in itertools.groupby(ranked, key=lambda item: item[0]):
        members = list(group)
        middle = position + (len(members) + 1) / 2
        for _, which in members:
            ranks[which] += middle
        position += len(members)
    return (ranks[0] - len(first) * (len(first) + 1) / 2) / (len(first) * len(second))


Ask = Callable[[Any, int], Awaitable[Answer]]


async def interleaved(deployment: Deployment, ask_known: Ask, ask_unknown: Ask) -> tuple[float, set[str]]:
    """How well times tell one from the other, each asked PAIRS times; and all the answers there were, but for ids."""
    known: list[float] = []
    unknown: list[float] = []
    answers: set[str] = set()

    async def timed(ask: Ask, client: Any, n: int, times: list[float]) -> None:
        began = time.perf_counter()
        answer = await ask(client, n)
        times.append((time.perf_counter() - began) * 1000)
        answers.add(repr((answer.event, {**answer.data, "challenge": len(answer.data.get("challenge", ""))})))

    async def pairs(number: int) -> None:
        async with deployment.client() as client:
            if number % 2:  # else all would ask for the known at one moment, for the unknown at the next
                await ask_unknown(client, number)
            for n in range(number, PAIRS, AT_ONCE):
                await timed(ask_known, client, n, known)
                await timed(ask_unknown, client, n, unknown)

    await asyncio.gather(*(pairs(number) for number in range(AT_ONCE)))
    area = auc(known, unknown)
    print(f"rank-AUC of {PAIRS} pairs: {area:.3f}; medians {statistics.median(known):.1f} and ", end="")
    print(f"{statistics.median(unknown):.1f} ms")
    return area, answers


@pytest.fixture
def running(redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """Limits off; accounts are made with the older cost."""
    settings = {"FIN_ARGON2": OLDER, "FIN_EMAIL_CONFIRMATION": "off"}
    with Deployment.start(tmp_path, redis_url, mailers=0, settings=settings) as deployment:
        yield deployment


@pytest.mark.all
@pytest.mark.parametrize("cost", [OLDER, NEWER], ids=["one cost", "after the cost was raised"])
async def test_neither_answer_nor_time_tells_whether_an_address_is_known(running: Deployment, cost: str) -> None:
    addresses = [new_address() for _ in range(20)]
    async with running.client() as client:
        for address in addresses:
            await client.ask("register", email=address, password="a password long enough")
    if cost != OLDER:
        running.environ["FIN_ARGON2"] = cost
        await asyncio.to_thread(running.replace, "worker")

    async def known(client: Any, n: int) -> Answer:
        return await guess(client, addresses[n % len(addresses)])

    async def unknown(client: Any, n: int) -> Answer:
        return await guess(client, new_address())

    async def guess(client: Any, address: str) -> Answer:
        answer: Answer = await client.ask("login", email=address, password="wrong password")
        return answer

    area, answers = await interleaved(running, known, unknown)
    assert len(answers) == 1
    assert 0.45 <= area <= 0.55


# --- what is mailed -----------------------------------------------------------------------------------------------

ADDRESSES = 100


@dataclass(frozen=True)
class Group:
    """Addresses that are all known or all not, and a registration that is pending for each."""

    addresses: list[str]
    challenges: list[str]

    def of(self, n: int) -> tuple[str, str]:
        return self.addresses[n % ADDRESSES], self.challenges[n % ADDRESSES]


Mailing = tuple[Deployment, Group, Group]


@pytest.fixture(scope="module")
def mailing(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mailing]:
    """Limits off, and all that is mailed is really mailed. With known and unknown addresses, made before the first
    test: after that the mailer has more to do than a code's way to an account could wait for.
    """
    with databases() as url, Deployment.start(tmp_path_factory.mktemp("mailing"), url) as deployment:
        known, unknown = [asyncio.run(grouped(deployment, known=known)) for known in (True, False)]
        yield deployment, known, unknown


async def grouped(deployment: Deployment, *, known: bool) -> Group:
    async def one(client: Any) -> tuple[str, str]:
        address = (await deployment.sign_up(client)).email if known else new_address()
        registered = await client.ask("register", email=address, password=PASSWORD)
        return address, registered.data["challenge"]

    async with deployment.client() as client:
        found = [await asyncio.gather(*(one(client) for _ in range(5))) for _ in range(ADDRESSES // 5)]
    addresses, challenges = zip(*itertools.chain(*found), strict=True)
    return Group(list(addresses), list(challenges))


def register(address: str, challenge: str) -> dict[str, str]:
    return {"email": address, "password": PASSWORD}


def request_password_reset(address: str, challenge: str) -> dict[str, str]:
    return {"email": address}


def resend_confirmation(address: str, challenge: str) -> dict[str, str]:
    return {"challenge": challenge}


def reset_password(address: str, challenge: str) -> dict[str, str]:
    return {"email": address, "code": "0none-AAAAAAAAAAAAAAAAAAAAAA.nothing", "newPassword": PASSWORD}


@pytest.mark.all
@pytest.mark.parametrize("data", [register, request_password_reset, resend_confirmation, reset_password])
async def test_neither_answer_nor_time_tells_for_whom_there_is_something_to_mail(
    mailing: Mailing, data: Callable[[str, str], dict[str, str]]
) -> None:
    deployment, known, unknown = mailing

    def ask_of(group: Group) -> Ask:
        async def ask(client: Any, n: int) -> Answer:
            answer: Answer = await client.ask(data.__name__, **data(*group.of(n)))
            return answer

        return ask

    area, answers = await interleaved(deployment, ask_of(known), ask_of(unknown))

    assert len(answers) == 1
    assert 0.45 <= area <= 0.55


def test_the_measure_itself_tells_what_differs() -> None:
    same = [1.0, 2.0, 3.0, 4.0]

    assert auc(same, same) == 0.5
    assert auc([5.0, 6.0], [1.0, 2.0]) == 1.0
    assert auc([1.0, 2.0], [5.0, 6.0]) == 0.0
