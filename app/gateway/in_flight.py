"""The requests in flight at one node: each gets exactly one terminal event, by its deadline at the latest."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from app import frames
from app.entries import OpenedReply
from app.gateway.connections import Pending
from app.gateway.waiting import Waiting
from app.messages import Code, Lane, refusal
from app.operator.metrics import Metrics
from app.rules import beyond_share

log = logging.getLogger("finthenticate")

DEADLINE_SLACK_SECONDS = 0.1  # the gateway's own timer fires this much after the deadline, when no reply came
JOINED_SLACK_MS = 50  # the request that was joined has had its deadline for sure
LATE_SECONDS = 5.0  # a reply can come this much after its deadline: settled just in time, and held up on its way


class Shares:
    """What hashes of the requests in flight, by network, and which lane it gets; of a network without any nothing is
    kept. What does not hash is in the fast lane, and passed over.
    """

    def __init__(self) -> None:
        self._by_network: dict[str, int] = {}
        self._total = self._slow = 0

    def __len__(self) -> int:
        return len(self._by_network)

    def enter(self, pending: Pending) -> None:
        """Its lane is decided by what is here already: who comes later changes nothing for it."""
        if pending.lane is Lane.FAST:
            return
        network = pending.origin.network
        mine = self._by_network[network] = self._by_network.get(network, 0) + 1
        self._total += 1
        beyond = beyond_share(mine, self._slow, self._total, len(self._by_network))
        self._slow += beyond
        pending.lane = Lane.SLOW if beyond else Lane.HASH

    def leave(self, pending: Pending) -> None:
        if pending.lane is Lane.FAST:
            return
        network = pending.origin.network
        self._by_network[network] -= 1
        if not self._by_network[network]:
            del self._by_network[network]
        self._total -= 1
        self._slow -= pending.lane is Lane.SLOW


class InFlight:
    """By request id. `expired` is told of each that its own timer ends, before it does."""

    def __init__(self, waiting: Waiting, expired: Callable[[Pending], None], metrics: Metrics) -> None:
        self._waiting, self._expired, self._metrics = waiting, expired, metrics
        self._all: dict[str, Pending] = {}
        self._late: dict[str, Pending] = {}
        self._shares = Shares()

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, pending: Pending) -> bool:
        return pending.rid in self._all

    def get(self, rid: str) -> Pending | None:
        return self._all.get(rid)

    def late(self, rid: str) -> Pending | None:
        """One that was given up, for a reply that came after; once."""
        return self._late.pop(rid, None)

    def anybody_waits(self) -> bool:
        return any(pending.caller for pending in self._all.values())

    def add(self, pending: Pending) -> None:
        if pending.caller is not None:
            pending.caller.in_flight[pending.frame.id] = pending
        self._all[pending.rid] = pending
        self._shares.enter(pending)
        seconds = pending.frame.timeout_ms / 1000 + DEADLINE_SLACK_SECONDS
        pending.timer = asyncio.get_running_loop().call_later(seconds, self._expire, pending)

    def rename(self, pending: Pending, rid: str) -> None:
        """It is asked anew, goes by another id from here on, and perhaps in another lane."""
        pending.cancel_again()
        del self._all[pending.rid]
        pending.rid = rid
        self._all[rid] = pending
        self._shares.leave(pending)
        self._shares.enter(pending)

    def ask_again(self, pending: Pending, left_ms: int, how: Callable[[Pending], None]) -> None:
        """What it joined has so long: without a word by then that has come to nothing, and its work is this one's."""
        if pending in self:
            seconds = (left_ms + JOINED_SLACK_MS) / 1000
            pending.again = asyncio.get_running_loop().call_later(seconds, how, pending)

    def fail(self, pending: Pending, code: Code, retry_after_ms: int | None = None) -> None:
        self.end(pending, OpenedReply("error", frames.encode_data(refusal(code, retry_after_ms=retry_after_ms)), code))

    def end(self, pending: Pending, reply: OpenedReply) -> None:
        """The one terminal event of a request, after what came before it; a second one finds nothing to end."""
        if self._all.pop(pending.rid, None) is None:
            return
        self._shares.leave(pending)
        self._waiting.discard(pending)
        pending.cancel_again()
        if pending.timer is not None:
            pending.timer.cancel()
        caller = pending.caller
        if caller is not None:
            caller.in_flight.pop(pending.frame.id, None)
            for event, data in reply.progress:
                caller.progress(event, pending.frame.id, data)
            caller.end(reply.event, pending.frame.id, reply.data)
        seconds, kind = time.monotonic() - pending.started, pending.frame.kind
        self._metrics.ended(kind.event, reply.event, reply.code, pending.lane, seconds)
        fields = {"request": pending.rid, "event": kind.event, "code": reply.code, "ms": round(seconds * 1000, 1)}
        log.info("answered" if caller else "nobody to answer", extra={"fields": fields})

    def give_up(self, pending: Pending, code: Code, retry_after_ms: int | None = None) -> None:
        """It ends, and a reply may still come."""
        self.fail(pending, code, retry_after_ms)
        self._late[pending.rid] = pending
        asyncio.get_running_loop().call_later(LATE_SECONDS, self._late.pop, pending.rid, None)

    def _expire(self, pending: Pending) -> None:
        self._expired(pending)
        self.give_up(pending, Code.DEADLINE_EXCEEDED)
