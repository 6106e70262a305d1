"""What a gateway knows of its clients: connections, their requests in flight, and who is authenticated where."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from app import frames, messages
from app.frames import Frame
from app.gateway.socket import Socket
from app.messages import Lane
from app.records import Identity, Origin
from app.sealing import Envelope

PING_AFTER_SECONDS = 45.0  # of silence: below the minute after which many proxies drop a connection
DEAD_AFTER_SECONDS = 75.0
IDLE_SECONDS = 300.0
UNREAD_SECONDS = 10.0
DEBT_SECONDS = 3
IDLE = 4408


@dataclass(eq=False)
class Caller:
    """Somebody who asks: a connection, or one REST call. `identity` is only ever set by what a worker sealed."""

    id: str  # "" for a REST call
    ip: str
    network: str
    identity: Identity | None = None
    bearer: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    in_flight: dict[str, Pending] = field(default_factory=dict)

    def origin(self, node: str) -> Origin:
        return Origin(node, self.id, self.ip, self.network, self.identity, self.bearer, self.refresh_token)

    @property
    def identified(self) -> bool:
        """Whether there is anything to identify it by; only a worker can say if it is good."""
        return self.identity is not None or bool(self.bearer or self.refresh_token)

    def progress(self, event: str, id: str, data: bytes) -> None:
        raise TypeError("a caller of no kind")

    def end(self, event: str, id: str, data: bytes) -> None:
        """The terminal event of its request `id`."""
        raise TypeError("a caller of no kind")


@dataclass(eq=False, kw_only=True)
class Connection(Caller):
    """A WebSocket client."""

    socket: Socket
    bucket: Bucket
    probe_at: int | None = None  # ms of the store's clock: when time ends its session, as far as is known here
    asked: float = field(default_factory=time.monotonic)  # when its last message came

    def progress(self, event: str, id: str, data: bytes) -> None:
        self.socket.send(frames.encode(event, id, data))

    end = progress

    def look_after(self, now: float) -> None:
        """Cut it when it is dead or does not read, close it when it is idle, ask whether it lives when it is silent."""
        socket = self.socket
        if socket.unread_since is not None:
            if not socket.still_unread():
                socket.unread_since = None
            elif now - socket.unread_since > UNREAD_SECONDS:
                socket.cut()
                return
        silent = now - socket.heard
        if silent > DEAD_AFTER_SECONDS:
            socket.cut()
        elif self.identity is None and not self.in_flight and now - self.asked > IDLE_SECONDS:
            socket.shut(IDLE, "idle")
        elif silent > PING_AFTER_SECONDS:
            socket.ping()


@dataclass(eq=False)
class RestCall(Caller):
    """One HTTP request; whoever serves it waits for `answer`: the terminal event and its data."""

    answer: asyncio.Future[tuple[str, bytes]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    steps: list[tuple[str, bytes]] = field(default_factory=list)  # what came before, and goes with the answer

    def progress(self, event: str, id: str, data: bytes) -> None:
        if event != messages.Queued.event:  # HTTP has no way to tell it in time
            self.steps.append((event, data))

    def end(self, event: str, id: str, data: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result((event, data))


@dataclass(eq=False)
class Probe(Caller):
    """The gateway asks by itself whether a connection's session lives: nobody else tells it that time has ended it."""

    ended: Callable[[], None] = lambda: None

    def progress(self, event: str, id: str, data: bytes) -> None:
        """Nobody waits for it."""

    def end(self, event: str, id: str, data: bytes) -> None:
        if frames.code_of(data) == messages.Code.NOT_AUTHENTICATED:
            self.ended()


@dataclass
class Bucket:
    """The messages of one connection: so many a second, and as many at once. No limit without `per_second`.

    It owes no more than DEBT_SECONDS make up for: many clients may share the connection of a proxy.
    """

    per_second: int | None
    tokens: float = 0.0
    filled: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.tokens = float(self.per_second or 0)

    def take(self) -> float:
        """Take one. What is left: below zero it was too fast, by that many messages."""
        if self.per_second is None:
            return 0.0
        now = time.monotonic()
        filled = min(self.per_second, self.tokens + (now - self.filled) * self.per_second)
        self.tokens = max(filled - 1, -DEBT_SECONDS * self.per_second)
        self.filled = now
        return self.tokens


@dataclass(eq=False)
class Pending:
    """A request in flight. `caller` None: it is gone, but a reply may still come."""

    rid: str
    frame: Frame
    caller: Caller | None
    origin: Origin  # as it was when it was asked: a connection may become somebody else meanwhile
    envelope: Envelope
    started: float
    lane: Lane  # where it is evaluated; what hashes may be sent to the slow one (InFlight)
    same: str = ""  # what identifies it where it was sent with a key
    formerly: tuple[str, ...] = ()  # and what did before a rotation of the edge secret
    timer: asyncio.TimerHandle | None = None  # its deadline
    again: asyncio.TimerHandle | None = None  # when the request that it joined must have ended
    rounds: int = 0  # how often it was admitted
    place: int = 0  # in the order of the lane where it waits; a question for a replay waits in the fast one
    position: int = 0  # what its client was told last

    def cancel_again(self) -> None:
        if self.again is not None:
            self.again.cancel()
            self.again = None

    def known_as(self, same: str) -> None:
        """Under a former name: from here on it goes by that."""
        if same in self.formerly:
            self.formerly = tuple(name for name in (self.same, *self.formerly) if name != same)
            self.same = same


class Connections:
    """All of one node's connections, by id, by account and by address."""

    def __init__(self) -> None:
        self._all: dict[str, Connection] = {}
        self._by_user: defaultdict[str, set[Connection]] = defaultdict(set)
        self._by_ip: defaultdict[str, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._all.values()))

    def find(self, id: str) -> Connection | None:
        return self._all.get(id)

    def of_user(self, user_id: str) -> list[Connection]:
        return list(self._by_user.get(user_id, ()))

    def of_ip(self, ip: str) -> int:
        return self._by_ip.get(ip, 0)

    def add(self, connection: Connection) -> None:
        self._all[connection.id] = connection
        self.enter(connection.ip)

    def enter(self, ip: str) -> None:
        self._by_ip[ip] += 1

    def leave(self, ip: str) -> None:
        self._by_ip[ip] -= 1
        if not self._by_ip[ip]:
            del self._by_ip[ip]

    def remove(self, connection: Connection) -> None:
        if self._all.pop(connection.id, None) is None:
            return
        self.identify(connection, None)
        self.leave(connection.ip)

    def identify(self, connection: Connection, identity: Identity | None) -> None:
        """Set who a connection is authenticated as, or that it no longer is."""
        if connection.identity is not None:
            peers = self._by_user[connection.identity.user_id]
            peers.discard(connection)
            if not peers:
                del self._by_user[connection.identity.user_id]
        connection.identity = identity
        connection.probe_at = identity.ends if identity is not None and identity.ends else None
        if identity is not None and connection.id in self._all:
            self._by_user[identity.user_id].add(connection)
