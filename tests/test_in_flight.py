"""What is in flight at one node: how it is counted by network, which lane that gives it, and what is told of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from app.entries import OpenedReply
from app.frames import typed
from app.gateway.connections import Pending, RestCall
from app.gateway.in_flight import InFlight, Shares
from app.gateway.waiting import Waiting
from app.messages import Code, Lane
from app.operator.metrics import Metrics
from app.ports import LaneDepth, Overview, Unavailable
from app.rules import FREE_SHARE
from app.sealing import Envelope
from tests.making import EDGE
from tests.test_sealing import KEY

ENVELOPE = Envelope.to("key1", KEY.public_key(), EDGE.current, "request")
LOGIN, REFRESH = {"email": "a@b.c", "password": "x"}, {"refreshToken": "x"}
ANSWER = OpenedReply("login_failure", b"{}", "invalid_credentials")


async def nobody() -> Overview:
    raise Unavailable


class Node:
    """Requests in flight, without a gateway around them."""

    def __init__(self) -> None:
        self.metrics = Metrics(nobody, 0)
        self.waiting = Waiting()
        self.in_flight = InFlight(self.waiting, lambda pending: None, self.metrics)
        self.all: list[Pending] = []

    def ask(self, network: str, event: str = "login") -> Pending:
        frame = typed(event, LOGIN if event == "login" else REFRESH, str(len(self.all)))
        caller = RestCall("", network, network)
        pending = Pending(f"rid-{len(self.all)}", frame, caller, caller.origin("node"), ENVELOPE, 0.0, frame.kind.lane)
        self.in_flight.add(pending)
        self.all.append(pending)
        return pending

    @property
    def shares(self) -> Shares:
        return self.in_flight._shares

    def counted_anew(self) -> tuple[dict[str, int], int, int]:
        hashing = [p for p in self.all if p in self.in_flight and p.frame.kind.lane is Lane.HASH]
        slow = sum(pending.lane is Lane.SLOW for pending in hashing)
        return dict(Counter(pending.origin.network for pending in hashing)), len(hashing), slow


def lanes(asked: list[Pending]) -> list[Lane]:
    return [pending.lane for pending in asked]


async def test_a_network_beyond_its_share_waits_in_the_slow_lane_and_nobody_else() -> None:
    node = Node()
    flood = [node.ask("192.0.2.1") for _ in range(FREE_SHARE + 5)]
    assert lanes(flood) == [Lane.HASH] * FREE_SHARE + [Lane.SLOW] * 5
    assert node.ask("192.0.2.2").lane is Lane.HASH
    assert node.ask("192.0.2.1").lane is Lane.SLOW
    assert node.ask("192.0.2.1", "refresh").lane is Lane.FAST


async def test_what_does_not_hash_is_not_counted() -> None:
    node = Node()
    for _ in range(FREE_SHARE + 5):
        node.ask("192.0.2.1", "refresh")
    assert len(node.shares) == 0
    assert node.ask("192.0.2.1").lane is Lane.HASH


async def test_a_request_that_is_admitted_anew_is_decided_anew() -> None:
    node = Node()
    flood = [node.ask("192.0.2.1") for _ in range(FREE_SHARE + 1)]
    last = flood.pop()
    assert lanes([last]) == [Lane.SLOW]
    for pending in flood:
        node.in_flight.end(pending, ANSWER)
    node.in_flight.rename(last, "another")
    assert lanes([last]) == [Lane.HASH]
    assert (node.shares._by_network, node.shares._total, node.shares._slow) == ({"192.0.2.1": 1}, 1, 0)


async def test_one_that_ends_twice_is_counted_once() -> None:
    node = Node()
    pending, _ = node.ask("192.0.2.1"), node.ask("192.0.2.1")
    node.in_flight.end(pending, ANSWER)
    node.in_flight.end(pending, ANSWER)
    assert (node.shares._by_network, node.shares._total, node.shares._slow) == ({"192.0.2.1": 1}, 1, 0)


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_becomes_of_requests_the_count_is_exact_and_nothing_is_kept_of_a_network_without_any(
    seed: int,
) -> None:
    chance, node = random.Random(seed), Node()
    in_flight = node.in_flight
    ways: list[Callable[[Pending], object]] = [
        lambda pending: in_flight.end(pending, ANSWER),
        lambda pending: in_flight.fail(pending, Code.OVERLOADED),
        lambda pending: in_flight.give_up(pending, Code.UNAVAILABLE),
        in_flight._expire,
        lambda pending: in_flight.rename(pending, f"{pending.rid}+") if pending in in_flight else None,
        lambda pending: setattr(pending, "caller", None),  # abandoned: it is in flight until it ends
    ]
    for _ in range(2000):
        if chance.random() < 0.5 or not node.all:
            node.ask(chance.choice(["192.0.2.1"] * 8 + ["192.0.2.2", "192.0.2.3"]), chance.choice(["login", "refresh"]))
        else:
            chance.choice(ways)(chance.choice(node.all[-150:]))
        shares = node.shares
        assert (shares._by_network, shares._total, shares._slow) == node.counted_anew()
    assert any(pending.lane is Lane.SLOW for pending in node.all)
    for pending in node.all:
        in_flight.end(pending, ANSWER)
    assert (len(node.shares), node.shares._total, node.shares._slow) == (0, 0, 0)


async def test_a_request_is_timed_in_the_lane_where_it_was_evaluated() -> None:
    node = Node()
    for pending in [node.ask("192.0.2.1") for _ in range(FREE_SHARE + 3)]:
        node.in_flight.end(pending, ANSWER)
    said = (await node.metrics.scrape()).decode()
    assert f'finthenticate_request_seconds_count{{lane="hash"}} {FREE_SHARE}.0' in said
    assert 'finthenticate_request_seconds_count{lane="slow"} 3.0' in said


# --- who waits ------------------------------------------------------------------------------------------------------


class Told(RestCall):
    """Keeps the positions that it is told."""

    def progress(self, event: str, id: str, data: bytes) -> None:
        self.steps.append((event, data))


def depths(*, ended: int, before: int) -> dict[Lane, LaneDepth]:
    nothing = LaneDepth(0, 2, 10.0)
    return {Lane.FAST: nothing, Lane.HASH: nothing, Lane.SLOW: LaneDepth(ended, 2, 10.0, before)}


async def test_who_waits_in_the_slow_lane_is_told_what_goes_before_and_a_position_that_only_falls() -> None:
    node = Node()
    pending = node.ask("192.0.2.1")
    pending.caller = told = Told("", "192.0.2.1", "192.0.2.1")
    node.waiting.add(pending, Lane.SLOW, place=5, position=13, eta_ms=1500)
    for ended, before in ((0, 9), (0, 30), (3, 9), (4, 0)):
        node.waiting.update(depths(ended=ended, before=before))
    said = [data for _, data in told.steps]
    assert said == [
        b'{"position":13,"etaMs":1500}',
        b'{"position":12,"etaMs":1400}',
        b'{"position":9,"etaMs":1100}',
        b'{"position":1,"etaMs":100}',
    ]
