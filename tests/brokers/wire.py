"""A wire between one side of a broker and a server: a relay on loopback that can be cut, shut, frozen or deafened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from tests.running import Server, free_port


class Wire:
    """To be opened. Connections through it go to where the server is at that moment."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listener: asyncio.Server | None = None
        self._pairs: set[tuple[_End, _End]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: frozenset[str] = frozenset()  # which ways nothing goes: "asks", "answers"
        self._losing = False
        self.port = free_port()

    async def open(self) -> None:
        """Also again, at the same port, after `shut`."""
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(self._client, "127.0.0.1", self.port)

    def cut(self) -> None:
        """Every connection ends without a goodbye; new ones are let through."""
        for pair in list(self._pairs):
            for end in pair:
                end.abort()

    def shut(self) -> None:
        """Every connection ends without a goodbye, and new ones are refused."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self.cut()

    async def close(self) -> None:
        """For good; return when nothing of it is left."""
        self.shut()
        while self._pairs or self._tasks:
            self.cut()
            await asyncio.sleep(0)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing goes either way meanwhile, and nobody is told; what was sent arrives afterwards."""
        yield from self._hold("asks", "answers")

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """What is asked arrives, and no answer comes back; then what was connected is cut."""
        yield from self._hold("answers")
        self.cut()

    @contextmanager
    def losing(self) -> Iterator[None]:
        """The next answer is lost, and every connection with it; new ones are let through at once."""
        self._losing = True
        try:
            yield
        finally:
            self._losing = False

    def _loses(self) -> bool:
        lost, self._losing = self._losing, False
        if lost:
            asyncio.get_running_loop().call_soon(self.cut)
        return lost

    def _hold(self, *ways: str) -> Iterator[None]:
        self._hold_now(frozenset(ways))
        try:
            yield
        finally:
            self._hold_now(frozenset())

    def _hold_now(self, ways: frozenset[str]) -> None:
        self._held = ways
        for pair in self._pairs:
            self._apply(pair)

    def _apply(self, pair: tuple[_End, _End]) -> None:
        for end, way in zip(pair, ("asks", "answers"), strict=True):
            end.read(way not in self._held)

    def _client(self) -> _End:
        near, far = _End(), _End()
        near.peer, far.peer, far.loses = far, near, self._loses
        near.on_made = lambda: self._begin(near, far)
        return near

    def _begin(self, near: _End, far: _End) -> None:
        pair = (near, far)
        self._pairs.add(pair)
        near.on_lost = far.on_lost = lambda: self._pairs.discard(pair) if near.over and far.over else None
        task = asyncio.create_task(self._connect(near, far))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, near: _End, far: _End) -> None:
        near.read(False)
        host, port = self._server.address
        try:
            await asyncio.get_running_loop().create_connection(lambda: far, host, port)
        except OSError:
            near.abort()
            return
        if near.over or self._listener is None:
            near.abort()
            far.abort()
        self._apply((near, far))


class _End(asyncio.Protocol):
    """One end of a relayed connection: what it receives, its peer sends."""

    peer: _End
    transport: asyncio.Transport | None = None
    over = True  # not made yet, or lost
    early = b""  # to be sent: it came before this was made
    loses: Callable[[], bool] = staticmethod(lambda: False)
    on_made: Callable[[], object] = staticmethod(lambda: None)
    on_lost: Callable[[], object] = staticmethod(lambda: None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.over = cast(asyncio.Transport, transport), False  # uvloop's is none by its class
        self.transport.write(self.early)
        self.on_made()

    def data_received(self, data: bytes) -> None:
        if self.peer.transport is None:
            self.peer.early += data
        elif not self.loses():
            self.peer.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.over = True
        if self.peer.transport is not None:
            self.peer.transport.close()
        self.on_lost()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def read(self, wanted: bool) -> None:
        if self.transport is not None and not self.over:
            self.transport.resume_reading() if wanted else self.transport.pause_reading()
