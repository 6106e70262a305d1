"""What the time of an answer tells: nothing. Interleaved, so that a drift of the machine meets both alike."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.client import Answer
from tests.deployment import Deployment, new_address

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


async def interleaved(deployment: Deployment, addresses: list[str]) -> tuple[list[float], list[float], set[str]]:
    """Times in ms of wrong passwords on known and on unknown addresses, and all the answers there were."""
    known: list[float] = []
    unknown: list[float] = []
    answers: set[str] = set()

    async def ask(client: Any, address: str, times: list[float]) -> None:
        began = time.perf_counter()
        answer: Answer = await client.ask("login", email=address, password="wrong password")
        times.append((time.perf_counter() - began) * 1000)
        answers.add(repr((answer.event, answer.data)))

    async def pairs(number: int) -> None:
        async with deployment.client() as client:
            if number % 2:  # else all would ask for the known at one moment, for the unknown at the next
                await client.ask("login", email=new_address(), password="wrong password")
            for n in range(number, PAIRS, AT_ONCE):
                await ask(client, addresses[n % len(addresses)], known)
                await ask(client, new_address(), unknown)

    await asyncio.gather(*(pairs(number) for number in range(AT_ONCE)))
    return known, unknown, answers


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

    known, unknown, answers = await interleaved(running, addresses)

    area = auc(known, unknown)
    print(f"rank-AUC of {PAIRS} pairs: {area:.3f}; medians {sorted(known)[PAIRS // 2]:.1f} and ", end="")
    print(f"{sorted(unknown)[PAIRS // 2]:.1f} ms")
    assert len(answers) == 1
    assert 0.45 <= area <= 0.55


async def test_a_login_with_an_older_hash_upgrades_it_once(running: Deployment) -> None:
    from redis import Redis

    address, password = new_address(), "a password long enough"
    async with running.client() as client:
        await client.ask("register", email=address, password=password)
        running.environ["FIN_ARGON2"] = NEWER
        await asyncio.to_thread(running.replace, "worker")
        with Redis.from_url(running.redis_url, decode_responses=True) as redis:
            key = f"fin:{{0}}:user:{redis.get(f'fin:{{0}}:email:{address}')}"
            before = redis.hget(key, "password")
            answers = await asyncio.gather(*(client.ask("login", email=address, password=password) for _ in range(8)))
            after = redis.hget(key, "password")
            await client.ask("login", email=address, password=password)
            later = redis.hget(key, "password")

    assert {answer.event for answer in answers} == {"login_success"}
    assert "m=4096,t=1" in str(before) and "m=19456,t=2" in str(after)
    assert after == later


def test_the_measure_itself_tells_what_differs() -> None:
    same = [1.0, 2.0, 3.0, 4.0]

    assert auc(same, same) == 0.5
    assert auc([5.0, 6.0], [1.0, 2.0]) == 1.0
    assert auc([1.0, 2.0], [5.0, 6.0]) == 0.0
