"""What a gateway knows of its clients: connections, their requests in flight, and who is authenticated where."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.gateway.socket import Socket
from app.messages import Kind
from app.records import Identity, Origin
from app.sealing import Envelope


@dataclass(eq=False)
class Connection:
    """One client. `identity` is only ever set by what a worker sealed."""

    id: str
    socket: Socket
    ip: str
    network: str
    tokens: float  # of its message bucket
    filled: float = field(default_factory=time.monotonic)
    identity: Identity | None = None
    in_flight: dict[str, Pending] = field(default_factory=dict)
    asked: float = field(default_factory=time.monotonic)  # when its last message came

    def origin(self, node: str) -> Origin:
        return Origin(node, self.id, self.ip, self.network, self.identity)

    def take_token(self, per_second: int) -> float:
        """One message of its bucket, which holds a second's worth. What is left: below zero, it is too fast."""
        now = time.monotonic()
        self.tokens = min(per_second, self.tokens + (now - self.filled) * per_second) - 1
        self.filled = now
        return self.tokens


@dataclass(eq=False)
class Pending:
    """A request in flight. `connection` None: its client is gone, but its reply may still come."""

    rid: str
    id: str
    kind: Kind
    connection: Connection | None
    connection_id: str
    envelope: Envelope
    started: float
    keyed: bool
    timer: asyncio.TimerHandle | None = None
    place: int | None = None  # its place in the lane's order, while it waits
    position: int = 0  # what its client was told last


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

    def of_user(self, user_id: str) -> list[Connection]:
        return list(self._by_user.get(user_id, ()))

    def of_ip(self, ip: str) -> int:
        return self._by_ip.get(ip, 0)

    def add(self, connection: Connection) -> None:
        self._all[connection.id] = connection
        self._by_ip[connection.ip] += 1

    def remove(self, connection: Connection) -> None:
        if self._all.pop(connection.id, None) is None:
            return
        self.identify(connection, None)
        self._by_ip[connection.ip] -= 1
        if not self._by_ip[connection.ip]:
            del self._by_ip[connection.ip]

    def identify(self, connection: Connection, identity: Identity | None) -> None:
        """Set who a connection is authenticated as, or that it no longer is."""
        if connection.identity is not None:
            peers = self._by_user[connection.identity.user_id]
            peers.discard(connection)
            if not peers:
                del self._by_user[connection.identity.user_id]
        connection.identity = identity
        if identity is not None and connection.id in self._all:
            self._by_user[identity.user_id].add(connection)
