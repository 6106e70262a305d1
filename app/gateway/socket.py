"""One WebSocket: framing by `websockets` (sans I/O), reading and writing without a task or a lock of its own.

Sanic's own class waits in `send` for as long as a client does not read, and pauses reading until its handler takes a
message, so a ping can go unanswered. Here a received frame is a call, a sent one a write into the transport; what a
client does not read is bounded, and past the bound the client is cut, never awaited.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, cast

from sanic.exceptions import SanicException
from sanic.http import Stage
from sanic.request import Request
from sanic.server.protocols.websocket_protocol import WebSocketProtocol
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as HandshakeRequest
from websockets.protocol import State
from websockets.server import ServerProtocol

from app.messages import MAX_MESSAGE_BYTES

MOST_UNREAD_BYTES = 64 * 1024
CLOSE_SECONDS = 2.0  # for the other side to answer a close frame
UNREAD_TOO_LONG = 4408
MOST_EXTRAS = 100  # pings, pongs and fragments a second

_quiet = logging.getLogger("finthenticate.websockets")
_quiet.setLevel(logging.CRITICAL)


class Socket:
    """Calls `on_text` with each whole text message and `on_closed` once. All methods are for the loop's thread."""

    def __init__(self, protocol: ServerProtocol, transport: asyncio.Transport) -> None:
        self.ws_proto = protocol  # the name under which Sanic looks for it
        self._transport = transport
        self._parts = bytearray()
        self._extras, self._extras_since = 0, 0.0
        self.on_text: Callable[[bytes], None] = lambda text: None
        self.on_closed: Callable[[], None] = lambda: None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard = time.monotonic()  # when anything last came from the client
        self.unread_since: float | None = None

    @property
    def open(self) -> bool:
        return self.ws_proto.state is State.OPEN

    def send(self, text: bytes) -> None:
        """Never waits. A client that lets 64 KiB lie unread is cut."""
        if not self.open:
            return
        self.ws_proto.send_text(text)
        self._flush()

    def ping(self) -> None:
        if self.open:
            self.ws_proto.send_ping(b"")
            self._flush()

    def shut(self, code: int, reason: str = "") -> None:
        """Send a close frame, and let the other side answer it."""
        if self.open:
            self.ws_proto.send_close(code, reason)
            self._flush()
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)

    def fail(self, code: int, reason: str = "") -> None:
        """Close because of what the client sent; what else it sends is not even parsed."""
        if self.open:
            self.ws_proto.fail(code, reason)
            self._flush()

    def cut(self) -> None:
        """Close at once: what lies unread would keep a close frame from arriving anyway."""
        if self.open:
            self.ws_proto.fail(UNREAD_TOO_LONG)
        self._transport.abort()

    def still_unread(self) -> bool:
        """Whether what was sent still lies here."""
        return self._transport.get_write_buffer_size() > 0

    # --- called by Sanic's protocol -----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        self.ws_proto.receive_data(data)
        for event in self.ws_proto.events_received():
            if isinstance(event, Frame):
                self._frame(event)
        self._flush()

    def eof_received(self) -> bool:
        self.ws_proto.receive_eof()
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self.ws_proto.receive_eof()
        if not self.closed.done():
            self.closed.set_result(None)
            self.on_closed()

    def end_connection(self, code: int) -> None:
        self.shut(code)

    async def close(self) -> None:
        """Sanic calls this when the handler has returned: by then the socket is closed."""

    # --- frames ---------------------------------------------------------------------------------------------

    def _frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.BINARY:
            self.ws_proto.fail(1003, "text frames only")
        if frame.opcode in (Opcode.PING, Opcode.PONG) or not frame.fin:
            self._extra()
        if frame.opcode not in (Opcode.TEXT, Opcode.CONT) or not self.open:
            return
        self._parts += frame.data
        if not frame.fin:
            return
        text, self._parts = bytes(self._parts), bytearray()
        try:
            text.decode()
        except UnicodeDecodeError:
            self.ws_proto.fail(1007)
            return
        self.on_text(text)

    def _extra(self) -> None:
        """Pings and fragments are no messages, but not for nothing either."""
        if self.heard - self._extras_since > 1.0:
            self._extras, self._extras_since = 0, self.heard
        self._extras += 1
        if self._extras > MOST_EXTRAS and self.open:
            self.ws_proto.fail(4429, "flooding")

    def _flush(self) -> None:
        for data in self.ws_proto.data_to_send():
            if self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            else:
                # Half-close and read on: closing with bytes unread would reset the connection, and the
                # close frame with it.
                if self._transport.can_write_eof():
                    self._transport.write_eof()
                asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)
        unread = self._transport.get_write_buffer_size()
        if unread > MOST_UNREAD_BYTES:
            self.cut()
        elif unread == 0:
            self.unread_since = None
        elif self.unread_since is None:
            self.unread_since = time.monotonic()


class Protocol(WebSocketProtocol):
    """Sanic's HTTP protocol, upgrading to a `Socket`. No extension is offered: compression would leak lengths."""

    async def websocket_handshake(self, request: Request, subprotocols: Any = None) -> Socket:
        protocol = ServerProtocol(max_size=MAX_MESSAGE_BYTES, state=State.OPEN, logger=_quiet)
        answer = protocol.accept(HandshakeRequest(request.path, Headers(request.headers.items())))
        if answer.status_code != 101:
            raise SanicException("This is a WebSocket.", answer.status_code, quiet=True)
        lines = [f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.raw_items()]
        transport = cast(asyncio.Transport, self.transport)
        transport.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        socket = Socket(protocol, transport)
        self.websocket = cast(Any, socket)
        return socket

    def check_timeouts(self) -> None:
        """A WebSocket has no time-out of HTTP's. Sanic gives up its own already for what merely asks to become one; and
        who sent half a request it answers in time and keeps for ever, since it waits for the rest once more.
        """
        http = self.http
        asks = http is not None and http.stage is Stage.HANDLER and http.upgrade_websocket and self.websocket is None
        if asks:
            http.upgrade_websocket = False
        super().check_timeouts()  # type: ignore[no-untyped-call]
        if asks:
            http.upgrade_websocket = True  # it may still become one
        if self._task is not None and self._task.cancelling():
            self.loop.call_later(CLOSE_SECONDS, cast(asyncio.Transport, self.transport).abort)
