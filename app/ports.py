"""The ports: what the core asks of the world. Each docstring is the contract an adapter has to keep."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from app.messages import Lane
from app.records import Facts, Identity, Limit, Mail, Needs, Notice, Outcome, Recorded


class Unavailable(Exception):
    """The broker or the store did not answer. What was asked may or may not have happened."""


# --- values that cross the broker --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A request on its way to a worker. Everything but `box` is plain, and bound to the box by its seal."""

    rid: str  # request id, unique for ever
    node: str  # the gateway's boot: where the reply goes
    event: str
    lane: Lane
    deadline: int  # ms of the store's clock
    wrapped: bytes = field(repr=False)  # sealing.Envelope.wrapped
    box: bytes = field(repr=False)
    same: str = ""  # what identifies it among requests sent with a key: entries.sameness
    replay: bool = False  # asks for what became of the request that `same` names
    formerly: tuple[str, ...] = ()  # what else may identify it: for `admit` alone, it does not travel


@dataclass(frozen=True)
class Admitted:
    """`place` counts every request ever let into the lane; `position` 0: it need not wait. `eta_ms` None: unknown."""

    place: int
    position: int
    eta_ms: int | None


@dataclass(frozen=True)
class Full:
    """Not let in: the lane holds its most, or could not answer by the deadline. `retry_after_ms` None: unknown."""

    retry_after_ms: int | None


@dataclass(frozen=True)
class Expired:
    """Not let in: the deadline had passed."""


@dataclass(frozen=True)
class Known:
    """Not let in: the same request is. JOINED: word of its end will come as a Signed. DONE: ask for a replay."""

    state: Literal["joined", "done", "crowded"]  # crowded: eight wait for it already
    formerly: str = ""  # the former name it is known under, where it is one


@dataclass(frozen=True)
class Delivery:
    """An entry in a worker's hand until it is settled or given back. `entry` None: it could not be read as one."""

    lane: Lane
    token: str  # the broker's own name for it
    entry: Entry | None
    deliveries: int = 1  # how often it was handed out, this time included


@dataclass(frozen=True)
class Sealed:
    """A reply on its way to `rid`'s connection: opens only for the node that asked."""

    rid: str
    box: bytes = field(repr=False)


@dataclass(frozen=True)
class Signed:
    """A push, or word of a failure: no secret in it, but only a holder of the edge secret can have written it."""

    body: bytes
    mac: bytes = field(repr=False)
    rid: str = ""  # the request that joined, where it is word of the one it joined


@dataclass(frozen=True)
class LaneDepth:
    """`ended`: how many of the lane's places are done with; `slots`: how many requests can be worked on at once."""

    ended: int
    slots: int
    rate: float  # requests a second that all living workers can do; 0: none lives


@dataclass(frozen=True)
class SealedMail:
    id: str
    wrapped: bytes = field(repr=False)
    box: bytes = field(repr=False)


@dataclass(frozen=True)
class Settlement:
    """Everything one settling does: all of it or nothing, once for its rid, and never past its deadline."""

    outcome: Outcome
    limits: tuple[Limit, ...]
    reply: Sealed
    notices: tuple[tuple[Notice, Signed], ...] = ()
    mails: tuple[tuple[Mail, SealedMail, tuple[Limit, ...]], ...] = ()
    presence: tuple[str, str] | None = None  # (node, connection) that the outcome's identity belongs to
    previous: Identity | None = None  # what that connection was authenticated as before
    audit: dict[str, str] = field(default_factory=dict)  # no secrets
    record: Record | None = None


@dataclass(frozen=True)
class Record:
    """What to remember of a request that was sent with a key, for ten minutes; and the word to those who joined it."""

    same: str
    session_id: str
    box: bytes | None = field(repr=False)  # None: an `error`, not recorded
    word: Signed


class State:
    """What `Store.check` found of the request itself."""

    DONE, EXPIRED, WAIT = "done", "expired", "wait"


# --- ports -----------------------------------------------------------------------------------------------------


class GatewayBroker(Protocol):
    """The gateway's side of the broker."""

    async def admit(self, entry: Entry, patience: float) -> Admitted | Full | Expired | Known:
        """Queue a request or refuse it at once; never wait for room. It may wait `patience` seconds for company.

        Admitted means durable: it survives the death of any process, and of the broker. Unavailable means that it may
        be queued all the same; the caller tells its client `unavailable` and drops a reply that comes.
        """
        ...

    def replies(self) -> AsyncIterator[Sealed | Signed]:
        """What is sent to this node from its start on, in order, each once while the node lives.

        Goes on by itself after the broker was away; ends when the broker is closed.
        """
        ...

    async def cancel(self, rids: Sequence[str]) -> None:
        """Nobody waits for these any more: those not begun never will be."""
        ...

    async def depths(self) -> dict[Lane, LaneDepth]: ...

    async def leave(self, gone: Sequence[tuple[str, str]]) -> None:
        """(user id, connection) pairs that are authenticated here no longer."""
        ...

    async def heartbeat(self) -> tuple[int, bool]:
        """This node lives. The store's clock in ms, and whether the node had counted as dead meanwhile.

        Without a beat for ten seconds it does: then what concerns its connections is not told to it.
        """
        ...

    async def close(self) -> None: ...


class WorkerBroker(Protocol):
    """The worker's side of the broker."""

    async def take(self, lane: Lane, most: int) -> Sequence[Delivery]:
        """Up to `most` requests that no other worker has; waits a moment for the first, then returns none.

        Must not be cancelled: what was handed out and not received waits for `reap`.
        """
        ...

    async def settle(self, delivery: Delivery, settlement: Settlement, patience: float) -> str:
        """State, reply and acknowledgement: together where the broker is the store, else in that order.

        It may wait `patience` seconds for others, to travel with them.

        "settled" | "done" (somebody else had) | "expired" | "conflict" (the facts changed: decide again, nothing was
        done). After Unavailable the delivery comes again.
        """
        ...

    async def drop(self, delivery: Delivery, limits: tuple[Limit, ...]) -> None:
        """Ended without an evaluation: acknowledged, unanswered, every reserved place given back."""
        ...

    async def give_back(self, delivery: Delivery) -> None:
        """To the tail of its lane."""
        ...

    async def bury(
        self, delivery: Delivery, reason: str, failure: tuple[str, Signed] | None, record: Record | None
    ) -> None:
        """To the dead letters, without its box; `failure` is (node, word for its client), `record` for who joined."""
        ...

    async def reap(self) -> Sequence[Delivery]:
        """What a dead or hanging worker holds, handed out anew."""
        ...

    async def beat(self, capacity: dict[Lane, tuple[int, float]]) -> int:
        """This worker lives and can do (slots, requests a second); empty: it leaves. The store's clock in ms."""
        ...

    async def close(self) -> None: ...


class Store(Protocol):
    """What handlers decide upon."""

    async def check(self, rid: str, deadline: int, needs: Needs) -> Facts | str:
        """Reserve the attempt in every limit, once per rid however often it is called, and read the facts.

        Or, reserving nothing: State.DONE, EXPIRED, or WAIT (a limit's places are all in use: give it back).
        """
        ...

    async def recall(self, same: str) -> Recorded | None:
        """What became of the request that was sent with a key; None when nobody knows."""
        ...

    async def forget(self, same: str, recorded: Recorded) -> None:
        """What became of it is of no more use: sent again, it is a new request. What took its place is left alone."""
        ...


class Mailer(Protocol):
    async def send(self, mail: Mail, message_id: str) -> None:
        """Hand it over for good. May be called again with the same id after a crash; OSError to try again later."""
        ...


class MailQueue(Protocol):
    async def take(self, most: int) -> Sequence[tuple[str, SealedMail | None]]:
        """(token, mail) pairs no other mailer has, those of dead mailers included; mail None: unreadable."""
        ...

    async def done(self, token: str) -> None: ...

    async def bury(self, token: str, reason: str) -> None:
        """To the dead letters, without its box."""
        ...

    async def close(self) -> None: ...
