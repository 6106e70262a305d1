"""A client for Python programs: one WebSocket, any number of requests at once.

async with connect("ws://127.0.0.1:8000/ws") as client:
    answer = await client.ask("login", email="…", password="…")
    answer.event, answer.data
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
import orjson
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as _connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake


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


NEVER_AGAIN = frozenset({1003, 1007, 1008, 1009, 4429})  # close codes after which reconnecting helps nobody
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
        try:
            await self.send(orjson.dumps(frame))
        except Closed:
            self._asked.pop(id, None)
            if not future.cancel():
                future.exception()  # told already, by `read`, what is raised here
            raise
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


class Steady:
    """See `steady`. Remembers the tokens of its login; `refresh` renews them, and so does a reconnect that needs it."""

    def __init__(self, urls: Sequence[str], watch: Watch | None = None) -> None:
        self._urls = itertools.cycle(urls)
        self._watch = watch
        self._stack = AsyncExitStack()
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._tokens: dict[str, Any] | None = None
        self._expires = 0.0

    async def ask(self, event: str, *, timeout_ms: int = 10_000, **data: Any) -> Answer:
        """The terminal event. An error that is worth trying again is tried again until `timeout_ms` are over."""
        key, until = secrets.token_urlsafe(24), time.monotonic() + timeout_ms / 1000
        while True:
            left_ms = int((until - time.monotonic()) * 1000)
            try:
                client = await self._connected()
                answer = await client.ask(event, timeout_ms=min(30_000, max(100, left_ms)), key=key, **data)
            except (Closed, OSError, InvalidHandshake) as error:
                if isinstance(error, Closed) and error.code in NEVER_AGAIN:
                    raise
                pause = random.uniform(0.05, 0.5)  # noqa: S311  # so that not all come back at once
            else:
                if answer.event != "error" or not answer.data["retryable"]:
                    self._remember(answer)
                    return answer
                pause = answer.data.get("retryAfterMs", 250) / 1000
            if time.monotonic() + pause >= until:
                raise TimeoutError(f"no answer to {event} in {timeout_ms} ms")
            await asyncio.sleep(pause)

    async def refresh(self) -> Answer:
        """New tokens for those of the last login or refresh."""
        assert self._tokens is not None, "log in first"
        return await self.ask("refresh", refreshToken=self._tokens["refreshToken"])

    @property
    def tokens(self) -> dict[str, Any] | None:
        """Of the last login or refresh: accessToken, refreshToken and so on."""
        return self._tokens

    async def close(self) -> None:
        await self._stack.aclose()
        self._client = None

    async def _connected(self) -> Client:
        async with self._opening:
            if self._client is None or self._client.close_code.done():
                await self.close()
                client = await self._stack.enter_async_context(connect(next(self._urls), watch=self._watch))
                if self._tokens is not None:
                    await self._identify(client)
                self._client = client
            return self._client

    async def _identify(self, client: Client) -> None:
        assert self._tokens is not None
        if time.monotonic() > self._expires - 30:
            self._remember(await client.ask("refresh", refreshToken=self._tokens["refreshToken"]))
        answer = await client.ask("authenticate", accessToken=self._tokens["accessToken"])
        if answer.code == "token_expired" and self._tokens is not None:  # by the server's clock it is
            self._remember(await client.ask("refresh", refreshToken=self._tokens["refreshToken"]))
            answer = await client.ask("authenticate", accessToken=self._tokens["accessToken"])
        if answer.event == "error":
            raise Closed(1013)  # not now: `ask` tries again
        if answer.event != "authenticated":
            self._tokens = None  # its session has ended: from here on it is nobody

    def _remember(self, answer: Answer) -> None:
        if answer.event in ("login_success", "token_refreshed"):
            self._tokens, self._expires = answer.data, time.monotonic() + answer.data["expiresIn"]
        elif answer.event == "logged_out":
            self._tokens = None


@asynccontextmanager
async def steady(*urls: str, watch: Watch | None = None) -> AsyncIterator[Steady]:
    """A client that outlives its connections; tries the gateways in turn."""
    client = Steady(urls, watch)
    try:
        yield client
    finally:
        await client.close()


class Verifier:
    """Verifies access tokens by the published keys, which are fetched when needed and kept for five minutes."""

    def __init__(self, issuer: str, audience: str, *, jwks_url: str | None = None) -> None:
        self._issuer, self._audience = issuer, audience
        self._keys = jwt.PyJWKClient(jwks_url or f"{issuer}/.well-known/jwks.json", lifespan=300)

    def verify(self, token: str) -> dict[str, Any]:
        """The token's claims. Raises jwt.InvalidTokenError for any other than a good access token of the issuer."""
        if jwt.get_unverified_header(token).get("typ") != "at+jwt":
            raise jwt.InvalidTokenError("not an access token (RFC 9068)")
        key = self._keys.get_signing_key_from_jwt(token)
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["ES256"],
            audience=self._audience,
            issuer=self._issuer,
            options={"require": ["exp", "nbf", "sub", "sid"]},
        )
        return claims


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
