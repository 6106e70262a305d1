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
from dataclasses import replace
from typing import Any

from app import entries, frames, messages
from app.frames import BadFrame, Frame
from app.gateway.answers import Answers, push
from app.gateway.connections import Bucket, Caller, Connection, Connections, Pending, Probe, RestCall
from app.gateway.in_flight import InFlight
from app.gateway.socket import Socket
from app.gateway.waiting import Waiting
from app.keys import SealKeys
from app.messages import Code, Connected, Draining, Lane, refusal
from app.operator.metrics import Metrics
from app.ports import Admitted, Expired, Full, GatewayBroker, Known, Unavailable
from app.rules import iso, network_of
from app.sealing import Envelope, Sealer
from app.settings import Settings
from app.tokens import new_id, session_named

log = logging.getLogger("finthenticate")

ENVELOPE_SECONDS = 86_400.0  # a data key's life
BEAT_SECONDS = 1.0
SWEEP_SECONDS = 2.0
UNAVAILABLE_RETRY_MS = 1000
CROWDED_RETRY_MS = 500
MOST_ROUNDS = 4  # of being admitted anew, when what was recorded, or joined, ended meanwhile
DRAIN_SECONDS = 10.0
ADMIT_PATIENCE_SECONDS = 0.01  # where others wait already: it has to wait far longer anyway
PROBE_AGAIN_MS = 60_000
READY_SECONDS = 3.0  # without a beat for this long the store is away

FLOODING, GOING_AWAY = 4429, 1001


class Gateway:
    """One node. `run` serves until `drain` has been called and has finished."""

    def __init__(
        self, settings: Settings, broker: GatewayBroker, node: str, seal_keys: SealKeys, metrics: Metrics
    ) -> None:
        self._settings, self._broker, self._node = settings, broker, node
        self._edge = settings.edge_secret
        self._sealer = Sealer(seal_keys, self._edge, "request")
        self.connections = Connections()
        self._waiting = Waiting()
        self._in_flight = InFlight(self._waiting, self._cancel, metrics)
        self._metrics = metrics
        metrics.gauge("connections", "Open WebSockets.", lambda: len(self.connections))
        metrics.gauge("requests_in_flight", "Requests without an answer yet.", lambda: len(self._in_flight))
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = Answers(self.connections, self._in_flight, broker, node, self._edge, self._anew, self._later)
        self._enveloped = time.monotonic()
        self._clock_offset = time.time() * 1000 - time.monotonic() * 1000
        self._ahead = 0  # ms that the store's clock is ahead of its server's own
        self._beaten: float | None = None
        self._workers = False
        self.draining = False
        self._drained = asyncio.Event()

    # --- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(loop)
                for loop in (self._answers.read(), self._beat(), self._sweep(), self._tell_positions())
            ]
            await self._drained.wait()
            for task in loops:
                task.cancel()
        await self._broker.close()

    async def drain(self) -> None:
        """Take nothing new, let what is in flight end, send everybody elsewhere."""
        self.draining = True
        for connection in self.connections:
            push(connection, Draining(reconnect_in_ms=random.randint(500, 5000)))  # noqa: S311  # spread, not secret
        until = time.monotonic() + DRAIN_SECONDS
        while self._in_flight.anybody_waits() and time.monotonic() < until:
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

    def _set_clock(self, now: int) -> None:
        self._clock_offset = now - time.monotonic() * 1000

    @staticmethod
    def _left_ms(pending: Pending) -> int:
        return pending.frame.timeout_ms - int((time.monotonic() - pending.started) * 1000)

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
            bucket=self.bucket(),
        )
        self.connections.add(connection)
        socket.on_text = lambda text: self._receive(connection, text)
        socket.on_closed = lambda: self._gone(connection)
        hello = Connected(
            connection_id=connection.id,
            server_time=iso(self.now() - self._ahead),
            protocol=messages.PROTOCOL,
            max_message_bytes=messages.MAX_MESSAGE_BYTES,
            max_in_flight=messages.MAX_IN_FLIGHT,
        )
        push(connection, hello)
        return connection

    def _gone(self, connection: Connection) -> None:
        identity = connection.identity
        self.connections.remove(connection)
        self.abandon(connection)
        if identity is not None:
            self._answers.left(identity.user_id, connection.id)

    def abandon(self, caller: Caller) -> None:
        """Nobody waits for the caller's answers any more. What was sent with a key goes on: it may be asked again."""
        abandoned = list(caller.in_flight.values())
        caller.in_flight.clear()
        for pending in abandoned:
            pending.caller = None
            self._waiting.discard(pending)
        if rids := [pending.rid for pending in abandoned if not pending.same]:
            self._later(self._broker.cancel(rids))

    def rest_call(self, ip: str, bearer: str, refresh_token: str) -> RestCall:
        """A REST caller; it counts as a connection of its address until `rest_done`."""
        self.connections.enter(ip)
        return RestCall("", ip, network_of(ip), bearer=bearer, refresh_token=refresh_token)

    def rest_done(self, call: RestCall) -> None:
        self.connections.leave(call.ip)

    def bucket(self) -> Bucket:
        return Bucket(self._settings.limits.messages_per_second)

    # --- requests ------------------------------------------------------------------------------------------------

    def _receive(self, connection: Connection, text: bytes) -> None:
        connection.asked = time.monotonic()
        bucket = connection.bucket
        left = bucket.take()
        if bucket.per_second and left < -2 * bucket.per_second:
            connection.socket.fail(FLOODING, "flooding")
            return
        try:
            frame = frames.decode(text)
            if frame.id in connection.in_flight:
                raise BadFrame(Code.DUPLICATE_ID)
        except BadFrame as bad:
            refused = frames.encode_data(refusal(bad.code, field=bad.field))
            connection.socket.send(frames.encode("error", bad.id, refused))
            return
        self.ask(connection, frame, bucket, left)

    def ask(self, caller: Caller, frame: Frame, bucket: Bucket, left: float) -> None:
        """A decoded request: its caller gets exactly one `end`, at once or by its deadline."""
        wrong = self._refused(caller, frame, bucket, left)
        if wrong is not None:
            self._metrics.refused(frame.kind.event, wrong.code)
            caller.end("error", frame.id, frames.encode_data(wrong))
        else:
            self._later(self._admit(self._begin(caller, frame)))

    def _refused(self, caller: Caller, frame: Frame, bucket: Bucket, left: float) -> messages.Refusal | None:
        if bucket.per_second and left < 0:
            return refusal(Code.RATE_LIMITED, retry_after_ms=int(-left * 1000 / bucket.per_second) + 1)
        if len(caller.in_flight) >= messages.MAX_IN_FLIGHT:
            return refusal(Code.TOO_MANY_IN_FLIGHT)
        if self.draining:
            return refusal(Code.UNAVAILABLE, retry_after_ms=UNAVAILABLE_RETRY_MS)
        if frame.kind.needs_session and not caller.identified:
            return refusal(Code.NOT_AUTHENTICATED)
        return None

    def _begin(self, caller: Caller, frame: Frame) -> Pending:
        pending = Pending(
            rid=new_id(self._edge.current.kid),
            frame=frame,
            caller=caller,
            origin=caller.origin(self._node),
            envelope=self._current_envelope(),
            started=time.monotonic(),
            lane=frame.kind.lane,
        )
        if frame.key is not None:
            about = (self._edge, frame, self._session_of(caller, frame))
            pending.same, pending.formerly = entries.sameness(*about), entries.former_sameness(*about)
        self._in_flight.add(pending)
        return pending

    def _session_of(self, caller: Caller, frame: Frame) -> str:
        """The session, where one is needed; a token names it unverified, since a worker looks again."""
        if not frame.kind.needs_session:
            return ""
        return caller.identity.session_id if caller.identity else session_named(caller.bearer or caller.refresh_token)

    async def _admit(self, pending: Pending, *, replay: bool = False) -> None:
        """Into its lane, or, with `replay`, a question what became of the same request."""
        frame = pending.frame
        if pending.caller is None:
            return  # gone meanwhile
        pending.rounds += 1
        deadline = self.now() + self._left_ms(pending)
        about = (pending.rid, frame, pending.origin, deadline, pending.lane, pending.same)
        entry = entries.pack_request(pending.envelope, *about, replay=replay)
        if pending.same and not replay:
            in_vain = entries.sign_word(self._edge, pending.same, None, None)
            entry = replace(entry, formerly=pending.formerly, in_vain=in_vain)
        try:
            patience = ADMIT_PATIENCE_SECONDS if self._waiting and entry.lane is not Lane.FAST else 0.0
            answer = await self._broker.admit(entry, patience)
        except Unavailable:  # it may be in its lane all the same
            self._in_flight.give_up(pending, Code.UNAVAILABLE, UNAVAILABLE_RETRY_MS)
            return
        except Exception:
            log.exception("not admitted", extra={"fields": {"request": pending.rid}})
            self._in_flight.fail(pending, Code.INTERNAL)
            return
        match answer:
            case Admitted(place, position, eta_ms) if position > 0 and pending in self._in_flight:
                self._waiting.add(pending, entry.lane, place, position, frame.timeout_ms if eta_ms is None else eta_ms)
            case Full(retry_after_ms):
                spread = random.uniform(0.75, 1.25)  # noqa: S311  # so that they do not all come back at once
                self._in_flight.fail(pending, Code.OVERLOADED, int(max(250, retry_after_ms or 1000) * spread))
            case Expired(now):
                self._set_clock(now)
                if self._left_ms(pending) > 0 and pending.rounds < MOST_ROUNDS:  # the store's clock was set forwards
                    await self._admit(pending, replay=replay)
                else:
                    self._in_flight.fail(pending, Code.DEADLINE_EXCEEDED)
            case Known("joined", formerly, left_ms):
                pending.known_as(formerly)
                self._in_flight.ask_again(pending, left_ms, self._anew)
            case Known("done", formerly):
                pending.known_as(formerly)
                await self._admit(pending, replay=True)
            case Known("crowded"):
                self._in_flight.fail(pending, Code.RATE_LIMITED, CROWDED_RETRY_MS)

    def _anew(self, pending: Pending, *, replay: bool = False) -> None:
        """With `replay`: what became of what it joined is asked for. Else that came to nothing, or may not be given
        again: it is a new request, under a new id.
        """
        if replay:
            self._later(self._admit(pending, replay=True))
            return
        if pending.rounds >= MOST_ROUNDS:
            self._in_flight.fail(pending, Code.UNAVAILABLE, UNAVAILABLE_RETRY_MS)
            return
        self._in_flight.rename(pending, new_id(self._edge.current.kid))
        self._later(self._admit(pending))

    def _cancel(self, pending: Pending) -> None:
        """Its deadline has passed, and nobody else may ask what became of it."""
        if pending.caller is not None and not pending.same:
            self._later(self._broker.cancel([pending.rid]))

    def _probe(self, connection: Connection) -> None:
        """Has time ended its session? It may have been seen elsewhere, so a worker is asked, as its client would."""
        identity = connection.identity

        def ended() -> None:
            if identity is not None and connection.identity == identity:
                self._answers.session_over(connection, identity)

        probe = Probe("", connection.ip, connection.network, identity, ended=ended)
        self.ask(probe, frames.typed("account", {}, "probe"), Bucket(None), 0.0)

    # --- loops ---------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            try:
                clock, lapsed = await self._broker.heartbeat()
                self._set_clock(clock.now)
                self._ahead = clock.ahead
                if lapsed:  # we counted as dead: what ended meanwhile was not told to us
                    for connection in self.connections:
                        if connection.identity is not None:
                            connection.socket.shut(1012, "connect again")
                await self._answers.leave_again()
                depths = await self._broker.depths()
                self._workers = any(depth.rate > 0 for depth in depths.values())
                hashing = depths[Lane.HASH]
                if hashing.rate > 0:
                    self._answers.hash_ms = hashing.slots * 1000 / hashing.rate
                if self._beaten is None or time.monotonic() - self._beaten > READY_SECONDS:
                    log.info("the store is there", extra={"fields": {"node": self._node}})
                self._beaten = time.monotonic()
            except Unavailable as error:
                log.warning("the store is away", extra={"fields": {"reason": str(error)}})
            except Exception:
                log.exception("a beat failed")
            await asyncio.sleep(BEAT_SECONDS)

    async def _sweep(self) -> None:
        """Idle, dead and unreading clients; one loop for all, so an idle socket costs no timer."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now, store_now = time.monotonic(), self.now()
            for connection in self.connections:
                connection.look_after(now)
                if connection.probe_at is not None and store_now >= connection.probe_at:
                    connection.probe_at = store_now + PROBE_AGAIN_MS
                    self._probe(connection)

    async def _tell_positions(self) -> None:
        while True:
            await asyncio.sleep(self._waiting.pause)
            if self._waiting:
                try:
                    self._waiting.update(await self._broker.depths())
                except Unavailable:
                    continue
                except Exception:
                    log.exception("positions not told")

    # --- small things --------------------------------------------------------------------------------------------

    def _current_envelope(self) -> Envelope:
        if time.monotonic() - self._enveloped > ENVELOPE_SECONDS:
            self._sealer.renew()
            self._enveloped = time.monotonic()
        return self._sealer.envelope

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
