"""The ports: what the core asks of the world. Each docstring is the contract an adapter has to keep.

Of both sides of a broker: every method answers, or raises Unavailable, within seconds, whether a server is dead, hangs
or is full; and works again by itself soon after that is over. `tests/brokers` plays all of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from app.messages import Lane
from app.records import (
    Account,
    Device,
    Facts,
    Identity,
    Limit,
    Mail,
    Needs,
    Notice,
    Outcome,
    Recorded,
    Session,
    Write,
)


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
    formerly: tuple[str, ...] = ()  # what else may identify it: for `admit` alone, like the next; they do not travel
    in_vain: Signed | None = field(default=None, repr=False)  # word to those who joined it, should it not be queued


@dataclass(frozen=True)
class Admitted:
    """`place` counts every request ever let into the lane; `position` 0: it need not wait. `eta_ms` None: unknown.

    Position and ETA count what is in the lane that goes first, whose slots and rate these are; the place does not, and
    neither does the most that a lane holds.
    """

    place: int
    position: int
    eta_ms: int | None


@dataclass(frozen=True)
class Full:
    """Not let in: the lane holds its most, or could not answer by the deadline. `retry_after_ms` None: unknown."""

    retry_after_ms: int | None


@dataclass(frozen=True)
class Expired:
    """Not let in: the deadline had passed at `now`, ms of the store's clock."""

    now: int


@dataclass(frozen=True)
class Known:
    """Not let in: the same request is.

    "joined": word of its end will come as a Signed. "done": ask for a replay. "crowded": eight wait for it already.
    """

    state: Literal["joined", "done", "crowded"]
    formerly: str = ""  # the former name it is known under, where it is one
    left_ms: int = 0  # joined: until its deadline; past that without a word it has come to nothing


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
    before: int = 0  # requests in the lane that goes first


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


@dataclass(frozen=True)
class Clock:
    """The store's, in ms since 1970. It never goes back; `ahead` of the server's own when that was set back."""

    now: int
    ahead: int = 0


# --- what the queue tells of itself ------------------------------------------------------------------------------


@dataclass(frozen=True)
class LaneVitals:
    """Of one lane in one worker. `drained`: requests a second that it ended since its last beat, as counted."""

    slots: int  # requests that it can work on at once
    rate: float  # requests a second that it could do
    in_hand: int  # that hold a part of its credit: neither what is being settled nor what waits for its account
    drained: float


@dataclass(frozen=True)
class Vitals:
    """What a living worker says of itself."""

    hash_ms: float  # a hash in one thread, as measured
    lanes: Mapping[Lane, LaneVitals]


@dataclass(frozen=True)
class Beat:
    """A worker's last sign of life. Times in ms of the store's clock."""

    at: int
    since: int  # its first: when it began
    alive: bool  # False: it has been silent for too long
    vitals: Vitals


@dataclass(frozen=True)
class WorkerSeen:
    """A worker as the broker knows it. `beat` None: gone, there is no sign of life; what is pending is taken over."""

    name: str
    pending: Mapping[Lane, int]  # requests that it was handed and that have not ended, as the broker counts them
    beat: Beat | None = None


@dataclass(frozen=True)
class Backlog:
    """What a queue holds. Ages in ms since it was put there; None: there is none."""

    waiting: int
    in_hand: int
    oldest_waiting_ms: int | None = None
    oldest_in_hand_ms: int | None = None


@dataclass(frozen=True)
class Letter:
    """A dead letter: a request (`lane` is its lane) or a mail ("mail") that was given up. Nothing of it is secret."""

    id: str
    at: int  # ms since 1970
    lane: str
    reason: str
    event: str = ""  # the request, where it could be read
    rid: str = ""  # request id, or the mail's id; "": it could not be read
    retryable: bool = False  # what is needed to try again was kept


@dataclass(frozen=True)
class Overview:
    """The queue at `now`, ms of the store's clock. What is counted in two places may differ by what moved between."""

    now: int
    workers: tuple[WorkerSeen, ...]  # by name
    nodes: tuple[str, ...]  # gateways that live, by name
    lanes: Mapping[Lane, Backlog]  # every lane
    mail: Backlog
    dead: int
    newest: Letter | None  # of the dead
    ahead: int = 0  # ms that the store's clock is ahead of the server's own


# --- what an operator sees of accounts ---------------------------------------------------------------------------


@dataclass(frozen=True)
class AccountSeen:
    """An account as it is kept. `sessions`: all that live; `online`: ids of sessions that have a connection."""

    account: Account
    devices: tuple[Device, ...] = ()
    sessions: tuple[Session, ...] = ()
    online: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Event:
    """One outcome in the audit. No field is secret, but anybody may have chosen what some of them say."""

    id: str
    at: int  # ms since 1970
    fields: Mapping[str, str]


class State:
    """What `Store.check` found of the request itself."""

    DONE, EXPIRED, WAIT = "done", "expired", "wait"


# --- ports -----------------------------------------------------------------------------------------------------


class GatewayBroker(Protocol):
    """The gateway's side of the broker."""

    async def admit(self, entry: Entry, patience: float) -> Admitted | Full | Expired | Known:
        """Queue a request or refuse it at once; never wait for room. It may wait `patience` seconds for company.

        Admitted means durable: it survives the death of any process, and of the broker. Unavailable means that it may
        be queued all the same; the caller tells its client `unavailable` and drops a reply that comes. Never sent a
        second time by itself: one call queues one entry or none. Whoever has joined one that was not queued after all
        is told `entry.in_vain` at once.
        """
        ...

    def replies(self) -> AsyncIterator[Sealed | Signed]:
        """What is sent to this node from its start on, in order, each once while the node lives.

        From the first `admit` on, what is not read yet survives the death of the broker. Goes on by itself after that
        was away; ends when the broker is closed.
        """
        ...

    async def cancel(self, rids: Sequence[str]) -> None:
        """Nobody waits for these any more: those not begun never will be."""
        ...

    async def depths(self) -> dict[Lane, LaneDepth]: ...

    async def leave(self, gone: Sequence[tuple[str, str]]) -> None:
        """(user id, connection) pairs that are authenticated here no longer."""
        ...

    async def heartbeat(self) -> tuple[Clock, bool]:
        """This node lives, and could admit now. The store's clock, and whether the node had counted as dead meanwhile.

        Without a beat for ten seconds it does: then what concerns its connections is not told to it. That it had is
        told once, by the first beat that succeeds. Replies it gets all the same.
        """
        ...

    async def close(self) -> None: ...


class WorkerBroker(Protocol):
    """The worker's side of the broker."""

    async def take(self, lane: Lane, most: int) -> Sequence[Delivery]:
        """Up to `most` requests that no other worker has, in their lane's order; waits a moment for the first, then
        returns none. However much a worker holds, it may take more.

        A worker that asks for nothing keeps nothing from others: what was fetched for it and not returned is another's
        after a moment, and has not been handed out.

        Must not be cancelled: what was handed out and not received waits for `reap`.
        """
        ...

    async def settle(self, delivery: Delivery, settlement: Settlement, patience: float) -> str:
        """State, reply and acknowledgement: together where the broker is the store, else in that order.

        It may wait `patience` seconds for others, to travel with them.

        "settled" | "done" (somebody else had, or an earlier call) | "expired": it is out of the worker's hand.
        "conflict" (the facts changed: decide again) | "full" (too many mails wait): nothing was done, it is in hand.
        After Unavailable it may be called again: it settles once, and is told to each node once. Else the delivery
        comes again, and whoever settles it then sees to what was not told yet.
        """
        ...

    async def drop(self, delivery: Delivery, limits: tuple[Limit, ...]) -> None:
        """Ended without an evaluation: acknowledged, unanswered, every reserved place given back."""
        ...

    async def give_back(self, delivery: Delivery) -> None:
        """To the tail of its lane: its turn has not come. It does not count as handed out.

        What is not in this worker's hand any more (settled, given back, another's) is left alone; so by `release`.
        """
        ...

    async def release(self, delivery: Delivery) -> None:
        """Not begun: another worker gets it within seconds, however much waits, and while this one is still open.

        It does not count as handed out.
        """
        ...

    async def bury(
        self,
        delivery: Delivery,
        reason: str,
        failure: tuple[str, Signed] | None,
        record: Record | None,
        limits: tuple[Limit, ...],
    ) -> None:
        """To the dead letters, without its box, every reserved place of `limits` given back.

        `failure` is (node, word for its client), `record` for who joined. What has ended meanwhile is no letter, and
        nobody is told of a failure; buried twice, it is one letter and told once.
        """
        ...

    async def reap(self, lane: Lane, most: int, held: Sequence[str]) -> Sequence[Delivery]:
        """At most `most` of what dead or hanging workers hold, or have released, handed out anew. What was lost on its
        way here comes besides `most`.

        `held`: tokens of all that this worker is at work on; it is heard of, so nobody takes these over. Of what it was
        handed and does not name, after a moment, it is heard no more. What no worker was heard of for five seconds is
        taken over, here or by `take`, as the broker likes; each time it counts as handed out once more.
        """
        ...

    async def beat(self, vitals: Vitals) -> Clock:
        """This worker lives; silent for four seconds, it counts as dead."""
        ...

    async def leave(self) -> None:
        """This worker takes nothing more: it counts no longer, and its name is gone unless something is in its hand.

        That it may still settle, release or give back; what was fetched for it and not taken is another's at once.
        """
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


class Undeliverable(Exception):
    """A mail that nobody will ever take: to send it again is of no use."""


class Mailer(Protocol):
    async def send(self, mail: Mail, message_id: str) -> None:
        """Hand it over for good: whoever took it answers for it. May be called again with the same id.

        OSError when it may be taken later; Undeliverable when it never will be. Neither says anything secret of it.
        """
        ...


@dataclass(frozen=True)
class MailInHand:
    """A mail that a mailer has begun to send. `mail` None: it could not be read as one."""

    token: str  # the queue's own name for it
    mail: SealedMail | None
    tries: int  # how often it was begun, by whomever, this time included
    queued: int  # ms of the store's clock


class MailQueue(Protocol):
    """A mail is one mailer's from `take` until it has ended, or until that one beats no more. None is ever lost."""

    async def beat(self) -> None:
        """A sign of life, once before anything else and then each second: without it others take over what this holds.

        Takes over what mailers held that have died: it comes out of `take`.
        """
        ...

    def now(self) -> int:
        """The store's clock, in ms."""
        ...

    async def take(self, most: int) -> Sequence[MailInHand]:
        """What is to be tried now: new ones, those put off whose time has come, those of dead mailers. Waits for a
        second at most."""
        ...

    def put_off(self, token: str, seconds: float) -> None:
        """It is taken again after that: by this mailer, or by another where this one ends before."""
        ...

    async def done(self, token: str) -> None: ...

    async def bury(self, token: str, reason: str, kept: SealedMail | None = None) -> None:
        """To the dead letters; with `kept`, sealed as it is, it can be tried again."""
        ...

    async def tell(self, node: str, signed: Signed) -> None:
        """A push for a node, while that lives."""
        ...

    async def close(self) -> None:
        """What is in hand goes to the others."""
        ...


class Operator(Protocol):
    """What an operator asks of the queue. It takes part in nothing: only `retry` and `drop` change anything.

    Every method raises Unavailable when the queue does not answer or does not let it; after `retry` and `drop` that
    means that some may be done: asked again, those are "unknown".
    """

    async def look(self) -> Overview: ...

    async def letters(self, most: int | None) -> Sequence[Letter]:
        """The newest dead letters, newest first; `most` None: all."""
        ...

    async def retry(self, ids: Sequence[str]) -> Sequence[Literal["retried", "request", "unreadable", "unknown"]]:
        """Of each letter, in the order asked: the mail is queued again and the letter gone, in one step, or nothing.

        "request": a request's letter holds nothing to send; "unreadable": nor does this mail's; "unknown": not there.
        """
        ...

    async def drop(self, ids: Sequence[str]) -> Sequence[bool]:
        """Of each letter, in the order asked: whether it was there. It is gone for good."""
        ...

    async def close(self) -> None: ...


class Accounts(Protocol):
    """What an operator asks of accounts, and of the audit. Every method raises Unavailable when the store is away."""

    async def find(self, who: str) -> AccountSeen | None:
        """By e-mail address, in any case, or by user id."""
        ...

    async def apply(
        self,
        id: str,
        writes: Sequence[Write],
        notices: Sequence[tuple[Notice, Signed]],
        audit: Mapping[str, str],
    ) -> bool:
        """All of it, once for its id, or nothing: False, what a write stands on has changed."""
        ...

    async def events(self, most: int, user_id: str | None) -> tuple[Sequence[Event], str]:
        """The newest of the audit, of one user or of all, oldest first; and its end, whoever that was about."""
        ...

    async def events_after(self, end: str) -> Sequence[Event]:
        """What came after that end, in order, as soon as there is something; nothing after some seconds without."""
        ...

    async def close(self) -> None: ...
