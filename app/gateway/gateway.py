"""The gateway's core: frames in, sealed entries to the broker, replies back to the connection they belong to.

Everything here runs on one event loop and never waits for a client.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Coroutine
from typing import Any

from msgspec import Struct

from app import entries, messages
from app.gateway.connections import Connection, Connections, Pending
from app.gateway.socket import Socket
from app.keys import SealKeys
from app.messages import BadFrame, Code, Connected, Draining, Frame, Lane, Queued, refusal
from app.ports import Admitted, Expired, Full, GatewayBroker, LaneDepth, Sealed, Signed, Unavailable
from app.records import Identity
from app.rules import iso, network_of
from app.sealing import Envelope, Unreadable
from app.settings import Settings
from app.tokens import new_id

log = logging.getLogger("finthenticate")

DEADLINE_SLACK_SECONDS = 0.1  # the gateway's own timer fires this much after the deadline, when no reply came
ENVELOPE_SECONDS = 86_400.0  # a data key's life
BEAT_SECONDS = 1.0
SWEEP_SECONDS = 1.0
POSITIONS_SECONDS = 0.25  # the contract's four a second; fewer when thousands wait, to spare the loop
POSITIONS_FULL_RATE = 500
PING_AFTER_SECONDS = 45.0  # of silence: below the minute after which many proxies drop a connection
DEAD_AFTER_SECONDS = 75.0
IDLE_SECONDS = 300.0
UNREAD_SECONDS = 10.0
UNAVAILABLE_RETRY_MS = 1000
DRAIN_SECONDS = 10.0
ADMIT_PATIENCE_SECONDS = 0.01  # where others wait already: it has to wait far longer anyway
READY_SECONDS = 3.0  # without a beat for this long the store is away

IDLE, ENDED, FLOODING, GOING_AWAY = 4408, 4401, 4429, 1001


class Gateway:
    """One node. `run` serves until `drain` has been called and has finished."""

    def __init__(self, settings: Settings, broker: GatewayBroker, node: str, seal_keys: SealKeys) -> None:
        self._settings, self._broker, self._node, self._seal_keys = settings, broker, node, seal_keys
        self._edge = settings.edge_secret
        self.connections = Connections()
        self._pending: dict[str, Pending] = {}
        self._waiting: set[Pending] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._envelope = self._new_envelope()
        self._enveloped = time.monotonic()
        self._clock_offset = time.time() * 1000 - time.monotonic() * 1000
        self._beaten: float | None = None
        self._workers = False
        self.draining = False
        self._drained = asyncio.Event()

    # --- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(loop)
                for loop in (self._read_replies(), self._beat(), self._sweep(), self._tell_positions())
            ]
            await self._drained.wait()
            for task in loops:
                task.cancel()
        await self._broker.close()

    async def drain(self) -> None:
        """Take nothing new, let what is in flight end, send everybody elsewhere."""
        self.draining = True
        for connection in self.connections:
            self._push(connection, Draining(reconnect_in_ms=random.randint(500, 5000)))  # noqa: S311  # spread, not secret
        until = time.monotonic() + DRAIN_SECONDS
        while any(pending.connection for pending in self._pending.values()) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for connection in self.connections:
            connection.socket.shut(GOING_AWAY, "going away")
        await asyncio.sleep(0.1 if len(self.connections) else 0)
        self._drained.set()

    def ready(self) -> dict[str, bool]:
        """What /readyz asks: the store answers, and a worker lives."""
        store = self._beaten is not None and time.monotonic() - self._beaten < READY_SECONDS
        return {"redis": store, "broker": store, "worker": store and self._workers, "accepting": not self.draining}

    def now(self) -> int:
        """The store's clock, in ms."""
        return int(time.monotonic() * 1000 + self._clock_offset)

    # --- connections ---------------------------------------------------------------------------------------------

    def room_for(self, ip: str) -> bool:
        most = self._settings.limits.connections_per_ip
        return most is None or self.connections.of_ip(ip) < most

    def welcome(self, socket: Socket, ip: str) -> Connection:
        """A new client: from here on the socket calls back."""
        connection = Connection(
            id=secrets.token_urlsafe(16),
            socket=socket,
            ip=ip,
            network=network_of(ip),
            tokens=float(self._settings.limits.messages_per_second or 0),
        )
        self.connections.add(connection)
        socket.on_text = lambda text: self._receive(connection, text)
        socket.on_closed = lambda: self._gone(connection)
        hello = Connected(
            connection_id=connection.id,
            server_time=iso(self.now()),
            protocol=messages.PROTOCOL,
            max_message_bytes=messages.MAX_MESSAGE_BYTES,
            max_in_flight=messages.MAX_IN_FLIGHT,
        )
        self._push(connection, hello)
        return connection

    def _gone(self, connection: Connection) -> None:
        identity = connection.identity
        self.connections.remove(connection)
        abandoned = list(connection.in_flight.values())
        for pending in abandoned:
            pending.connection = None
            self._waiting.discard(pending)
        connection.in_flight.clear()
        if identity is not None:
            self._later(self._broker.leave([(identity.user_id, connection.id)]))
        if rids := [pending.rid for pending in abandoned if not pending.keyed]:
            self._later(self._broker.cancel(rids))

    # --- requests ------------------------------------------------------------------------------------------------

    def _receive(self, connection: Connection, text: bytes) -> None:
        connection.asked = time.monotonic()
        per_second = self._settings.limits.messages_per_second
        left = connection.take_token(per_second) if per_second else 0.0
        if per_second and left < -2 * per_second:
            connection.socket.shut(FLOODING, "flooding")
            return
        try:
            frame = messages.decode(text)
            if frame.id in connection.in_flight:
                raise BadFrame(Code.DUPLICATE_ID)
        except BadFrame as bad:
            self._send(connection, "error", bad.id, refusal(bad.code, field=bad.field))
            return
        wrong = self._refused(connection, frame, left)
        if wrong is not None:
            self._send(connection, "error", frame.id, wrong)
        else:
            self._later(self._admit(self._begin(connection, frame), frame))

    def _refused(self, connection: Connection, frame: Frame, left: float) -> messages.Refusal | None:
        per_second = self._settings.limits.messages_per_second
        if per_second and left < 0:
            return refusal(Code.RATE_LIMITED, retry_after_ms=int(-left * 1000 / per_second) + 1)
        if len(connection.in_flight) >= messages.MAX_IN_FLIGHT:
            return refusal(Code.TOO_MANY_IN_FLIGHT)
        if self.draining:
            return refusal(Code.UNAVAILABLE, retry_after_ms=UNAVAILABLE_RETRY_MS)
        if frame.kind.needs_session and connection.identity is None:
            return refusal(Code.NOT_AUTHENTICATED)
        return None

    def _begin(self, connection: Connection, frame: Frame) -> Pending:
        pending = Pending(
            rid=new_id(self._edge.current.kid),
            id=frame.id,
            kind=frame.kind,
            connection=connection,
            connection_id=connection.id,
            envelope=self._current_envelope(),
            started=time.monotonic(),
            keyed=frame.key is not None,
        )
        connection.in_flight[frame.id] = pending
        self._pending[pending.rid] = pending
        seconds = frame.timeout_ms / 1000 + DEADLINE_SLACK_SECONDS
        pending.timer = asyncio.get_running_loop().call_later(seconds, self._expire, pending)
        return pending

    async def _admit(self, pending: Pending, frame: Frame) -> None:
        connection = pending.connection
        assert connection is not None  # it was there a moment ago, on the same turn of the loop
        deadline = self.now() + frame.timeout_ms
        origin = connection.origin(self._node)
        entry = entries.pack_request(pending.envelope, pending.rid, frame, origin, deadline)
        try:
            patience = ADMIT_PATIENCE_SECONDS if self._waiting and pending.kind.lane is Lane.HASH else 0.0
            answer = await self._broker.admit(entry, patience)
        except Unavailable:
            self._fail(pending, Code.UNAVAILABLE, UNAVAILABLE_RETRY_MS)
            return
        except Exception:
            log.exception("not admitted", extra={"fields": {"request": pending.rid}})
            self._fail(pending, Code.INTERNAL)
            return
        match answer:
            case Admitted(place, position, eta_ms) if position > 0 and pending.rid in self._pending:
                pending.place = place
                self._waiting.add(pending)
                self._tell(pending, position, frame.timeout_ms if eta_ms is None else eta_ms)
            case Full(retry_after_ms):
                spread = random.uniform(0.75, 1.25)  # noqa: S311  # so that they do not all come back at once
                self._fail(pending, Code.OVERLOADED, int(max(250, retry_after_ms or 1000) * spread))
            case Expired():
                self._fail(pending, Code.DEADLINE_EXCEEDED)

    def _expire(self, pending: Pending) -> None:
        if pending.connection is not None and not pending.keyed:
            self._later(self._broker.cancel([pending.rid]))
        self._fail(pending, Code.DEADLINE_EXCEEDED)

    def _fail(self, pending: Pending, code: Code, retry_after_ms: int | None = None) -> None:
        data = messages.encode_data(refusal(code, retry_after_ms=retry_after_ms))
        self._finish(pending, "error", data, code)

    def _finish(self, pending: Pending, event: str, data: bytes, code: str) -> None:
        """The one terminal event of a request; a second one finds nothing to end."""
        if self._pending.pop(pending.rid, None) is None:
            return
        self._waiting.discard(pending)
        if pending.timer is not None:
            pending.timer.cancel()
        connection = pending.connection
        if connection is not None:
            connection.in_flight.pop(pending.id, None)
            connection.socket.send(messages.encode(event, pending.id, data))
        milliseconds = round((time.monotonic() - pending.started) * 1000, 1)
        fields = {"request": pending.rid, "event": pending.kind.event, "code": code, "ms": milliseconds}
        log.info("answered" if connection else "nobody to answer", extra={"fields": fields})

    # --- replies ---------------------------------------------------------------------------------------------------

    async def _read_replies(self) -> None:
        async for reply in self._broker.replies():
            try:
                if isinstance(reply, Sealed):
                    self._reply(reply)
                else:
                    self._signed(reply)
            except Unreadable as error:
                log.error("unreadable reply", extra={"fields": {"reason": str(error)}})
            except Exception:
                log.exception("reply failed")  # the others' replies still have to be read

    def _reply(self, reply: Sealed) -> None:
        pending = self._pending.get(reply.rid)
        if pending is None:
            log.info("late reply dropped", extra={"fields": {"request": reply.rid}})
            return
        opened = entries.open_reply(pending.envelope, reply)
        connection = pending.connection
        if connection is not None and opened.identity is not None:
            self.connections.identify(connection, opened.identity)
        elif connection is not None and opened.forget:
            self.connections.identify(connection, None)
        elif opened.identity is not None:
            self._forget_absent(pending, opened.identity)
        self._finish(pending, opened.event, opened.data, opened.code)

    def _forget_absent(self, pending: Pending, identity: Identity) -> None:
        """Its client went while it was being authenticated: it is not online after all."""
        self._later(self._broker.leave([(identity.user_id, pending.connection_id)]))

    def _signed(self, signed: Signed) -> None:
        opened = entries.open_signed(self._edge, signed)
        if isinstance(opened, entries.OpenedFailure):
            if (pending := self._pending.get(opened.rid)) is not None:
                self._fail(pending, opened.code)
            return
        for connection in self.connections.of_user(opened.user_id):
            if (self._node, connection.id) == opened.spare or connection.identity is None:
                continue
            connection.socket.send(messages.push(opened.event, opened.data))
            if opened.close and connection.identity.session_id == opened.session_id:
                user_id = connection.identity.user_id
                self.connections.identify(connection, None)
                self._later(self._broker.leave([(user_id, connection.id)]))
                connection.socket.shut(ENDED, "session ended")

    # --- loops ---------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            try:
                self._clock_offset = await self._broker.heartbeat() - time.monotonic() * 1000
                self._workers = any(depth.rate > 0 for depth in (await self._broker.depths()).values())
                if self._beaten is None or time.monotonic() - self._beaten > READY_SECONDS:
                    log.info("the store is there", extra={"fields": {"node": self._node}})
                self._beaten = time.monotonic()
            except Unavailable as error:
                log.warning("the store is away", extra={"fields": {"reason": str(error)}})
            await asyncio.sleep(BEAT_SECONDS)

    async def _sweep(self) -> None:
        """Idle, dead and unreading clients; one loop for all, so an idle socket costs no timer."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for connection in self.connections:
                self._look_at(connection, now)

    def _look_at(self, connection: Connection, now: float) -> None:
        socket = connection.socket
        if socket.unread_since is not None:
            if not socket.still_unread():
                socket.unread_since = None
            elif now - socket.unread_since > UNREAD_SECONDS:
                socket.cut()
                return
        silent = now - socket.heard
        if silent > DEAD_AFTER_SECONDS:
            socket.cut()
        elif connection.identity is None and not connection.in_flight and now - connection.asked > IDLE_SECONDS:
            socket.shut(IDLE, "idle")
        elif silent > PING_AFTER_SECONDS:
            socket.ping()

    async def _tell_positions(self) -> None:
        while True:
            await asyncio.sleep(POSITIONS_SECONDS * min(4.0, max(1.0, len(self._waiting) / POSITIONS_FULL_RATE)))
            if not self._waiting:
                continue
            try:
                depths = await self._broker.depths()
            except Unavailable:
                continue
            for pending in list(self._waiting):
                self._update_position(pending, depths[pending.kind.lane])

    def _update_position(self, pending: Pending, depth: LaneDepth) -> None:
        assert pending.place is not None  # it would not be waiting
        ahead = pending.place - depth.ended
        position = max(1, ahead - depth.slots)
        if position < pending.position:
            eta_ms = int(ahead * 1000 / depth.rate) if depth.rate > 0 else messages.DEFAULT_TIMEOUT_MS
            self._tell(pending, position, eta_ms)

    def _tell(self, pending: Pending, position: int, eta_ms: int) -> None:
        pending.position = position
        if pending.connection is not None:
            self._send(pending.connection, Queued.event, pending.id, Queued(position=position, eta_ms=eta_ms))

    # --- small things --------------------------------------------------------------------------------------------

    def _send(self, connection: Connection, event: str, id: str | None, data: Struct) -> None:
        connection.socket.send(messages.encode(event, id, messages.encode_data(data)))

    def _push(self, connection: Connection, reply: messages.Reply) -> None:
        connection.socket.send(messages.push(reply.event, messages.encode_data(reply)))

    def _current_envelope(self) -> Envelope:
        if time.monotonic() - self._enveloped > ENVELOPE_SECONDS:
            self._envelope, self._enveloped = self._new_envelope(), time.monotonic()
        return self._envelope

    def _new_envelope(self) -> Envelope:
        return Envelope.to(*self._seal_keys.current, self._edge.current, "request")

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Unavailable as error:
        log.warning("not told", extra={"fields": {"reason": str(error)}})
    except Exception:
        log.exception("failed")
