"""A client for Python programs: one WebSocket, any number of requests at once.

async with connect("ws://127.0.0.1:8000/ws") as client:
    answer = await client.ask("login", email="…", password="…")
    answer.event, answer.data
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as _connect
from websockets.exceptions import ConnectionClosed


class Closed(Exception):
    """The connection ended before the answer came: its outcome is unknown. `code` is the close code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


@dataclass(frozen=True)
class Answer:
    """A request's terminal event, and the progress events before it."""

    event: str
    data: dict[str, Any] = field(repr=False)
    progress: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @property
    def code(self) -> str | None:
        """Of a refusal or an error."""
        return self.data.get("code")


PROGRESS = frozenset({"queued", "device_verified", "2fa_verified"})
Watch = Callable[[str, bytes], None]


class Client:
    """An open connection. `hello` is the server's first frame's data; `pushes` what came without being asked for."""

    def __init__(self, socket: ClientConnection, watch: Watch | None = None) -> None:
        self._socket, self._watch = socket, watch
        self._ids = itertools.count(1)
        self._asked: dict[str, tuple[asyncio.Future[Answer], list[dict[str, Any]]]] = {}
        self.hello: dict[str, Any] = {}
        self.pushes: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.close_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ask(self, event: str, *, timeout_ms: int | None = None, key: str | None = None, **data: Any) -> Answer:
        """Send a request and wait for its terminal event. Closed when the connection ends first."""
        id = str(next(self._ids))
        frame: dict[str, Any] = {"event": event, "id": id, "data": data}
        if timeout_ms is not None:
            frame["timeoutMs"] = timeout_ms
        if key is not None:
            frame["key"] = key
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[id] = (future, [])
        await self.send(orjson.dumps(frame))
        return await future

    async def send(self, frame: bytes) -> None:
        """A text frame as it is."""
        if self._watch:
            self._watch("→", frame)
        try:
            await self._socket.send(frame.decode(errors="surrogateescape"), text=True)
        except ConnectionClosed:
            raise Closed(self._socket.close_code or 1006) from None

    async def read(self) -> None:
        """Hand out what the server sends until it closes."""
        try:
            async for text in self._socket:
                raw = text if isinstance(text, bytes) else text.encode()
                if self._watch:
                    self._watch("←", raw)
                self._take(orjson.loads(raw))
        except ConnectionClosed:
            pass
        finally:
            code = self._socket.close_code or 1006
            if not self.close_code.done():
                self.close_code.set_result(code)
            for future, _ in self._asked.values():
                if not future.done():
                    future.set_exception(Closed(code))

    def _take(self, frame: dict[str, Any]) -> None:
        asked = self._asked.get(frame.get("id") or "")
        if asked is None:
            self.pushes.put_nowait(frame)
        elif frame["event"] in PROGRESS:
            asked[1].append(frame)
        else:
            del self._asked[frame["id"]]
            if not asked[0].done():
                asked[0].set_result(Answer(frame["event"], frame["data"], asked[1]))


@asynccontextmanager
async def connect(url: str, *, watch: Watch | None = None, **options: Any) -> AsyncIterator[Client]:
    """A client, closed at the end. `watch` sees every frame both ways; other options are those of `websockets`."""
    options = {"compression": None, "max_queue": None, "proxy": None, **options}
    async with _connect(url, **options) as socket:
        client = Client(socket, watch)
        first = await socket.recv()
        raw = first if isinstance(first, bytes) else first.encode()
        if watch:
            watch("←", raw)
        client.hello = orjson.loads(raw)["data"]
        reader = asyncio.create_task(client.read())
        try:
            yield client
        finally:
            await socket.close()
            await reader
