"""What comes back to a node: replies to those who asked, pushes to those they concern, word of what ended otherwise."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from app import entries, frames
from app.gateway.connections import Connection, Connections, Pending
from app.gateway.in_flight import InFlight
from app.messages import Code, Reply, SessionEnded
from app.ports import GatewayBroker, Sealed, Signed, Unavailable
from app.records import Identity
from app.rules import even_delay
from app.sealing import Unreadable
from app.settings import Secrets

log = logging.getLogger("finthenticate")

EVEN_JITTER_MS = 20.0  # over what a busier machine adds to a timer: fractions of a millisecond
ENDED = 4401
LEFT_AT_ONCE = 1000


class Anew(Protocol):
    def __call__(self, pending: Pending, *, replay: bool = False) -> None: ...


class Answers:
    """`anew` admits a request once more; `later` does what nobody waits for."""

    def __init__(
        self,
        connections: Connections,
        in_flight: InFlight,
        broker: GatewayBroker,
        node: str,
        edge: Secrets,
        anew: Anew,
        later: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._connections, self._in_flight, self._broker = connections, in_flight, broker
        self._node, self._edge, self._anew, self._later = node, edge, anew, later
        self.hash_ms = 0.0  # what one takes, by the workers' own measure
        self._unheard: set[tuple[str, str]] = set()  # (user id, connection): it has left, and the store was away

    async def read(self) -> None:
        """Until the broker is closed."""
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

    # --- replies -----------------------------------------------------------------------------------------------

    def _reply(self, reply: Sealed) -> None:
        pending = self._in_flight.get(reply.rid)
        if pending is None:
            self._too_late(reply)
            return
        opened = entries.open_reply(pending.envelope, reply)
        if opened == entries.ANEW:
            self._anew(pending)
            return
        caller, asked_as = pending.caller, pending.origin.identity
        if isinstance(caller, Connection):
            if opened.identity is not None or opened.forget:
                self._becomes(caller, opened.identity)
            elif opened.code == Code.NOT_AUTHENTICATED and asked_as is not None and caller.identity == asked_as:
                self._in_flight.end(pending, opened)
                self.session_over(caller, asked_as)
                return
        elif caller is None:  # its client went while it was being authenticated
            self._not_online(pending, opened)
        if opened.even:
            elapsed_ms = (time.monotonic() - pending.started) * 1000
            delay_ms = even_delay(elapsed_ms, opened.spent_ms, self.hash_ms)
            delay_ms += random.uniform(0, EVEN_JITTER_MS)  # noqa: S311  # noise, not a secret
            asyncio.get_running_loop().call_later(delay_ms / 1000, self._in_flight.end, pending, opened)
        else:
            self._in_flight.end(pending, opened)

    def _becomes(self, connection: Connection, identity: Identity | None) -> None:
        before = connection.identity
        self._connections.identify(connection, identity)
        if before is not None and (identity is None or before.user_id != identity.user_id):
            self.left(before.user_id, connection.id)

    def _too_late(self, reply: Sealed) -> None:
        """Its client has been told something else, and so is authenticated as little as before."""
        log.info("late reply dropped", extra={"fields": {"request": reply.rid}})
        if (pending := self._in_flight.late(reply.rid)) is not None:
            self._not_online(pending, entries.open_reply(pending.envelope, reply))

    def _not_online(self, pending: Pending, opened: entries.OpenedReply) -> None:
        """The store holds a connection for authenticated that is not."""
        identity, id = opened.identity, pending.origin.connection
        if identity is not None and id and not self._is_authenticated(identity.user_id, self._connections.find(id)):
            self.left(identity.user_id, id)

    def left(self, user_id: str, connection: str) -> None:
        """It is authenticated as this account no longer."""
        self._later(self._leave([(user_id, connection)]))

    async def leave_again(self) -> None:
        """What the store has not heard; by every beat. A connection that waits for an answer may be about to be
        authenticated again, and is left for another time.
        """
        gone = []
        for user_id, id in list(self._unheard):
            there = self._connections.find(id)
            if there is not None and there.in_flight:
                continue
            self._unheard.discard((user_id, id))
            if not self._is_authenticated(user_id, there):
                gone.append((user_id, id))
            if len(gone) == LEFT_AT_ONCE:
                break
        if gone:
            await self._leave(gone)

    async def _leave(self, gone: Sequence[tuple[str, str]]) -> None:
        try:
            await self._broker.leave(gone)
        except Unavailable:
            self._unheard.update(gone)
            raise

    @staticmethod
    def _is_authenticated(user_id: str, there: Connection | None) -> bool:
        return there is not None and there.identity is not None and there.identity.user_id == user_id

    def session_over(self, connection: Connection, identity: Identity) -> None:
        """Its session has ended by time, which nobody else could tell it."""
        push(connection, SessionEnded(session_id=identity.session_id, reason="expired"))
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        self._becomes(connection, None)
        connection.socket.shut(ENDED, "session ended")

    # --- pushes, and word of what ended ------------------------------------------------------------------------

    def _signed(self, signed: Signed) -> None:
        match entries.open_signed(self._edge, signed):
            case entries.OpenedFailure(rid, code):
                if (pending := self._in_flight.get(rid)) is not None:
                    self._in_flight.fail(pending, code)
            case entries.OpenedWord(same, code, retry_after_ms):
                pending = self._in_flight.get(signed.rid)
                if pending is None or same not in (pending.same, *pending.formerly):
                    return
                pending.known_as(same)
                pending.cancel_again()
                if code is not None:
                    self._in_flight.fail(pending, code, retry_after_ms)
                else:
                    self._anew(pending, replay=True)
            case entries.OpenedNotice() as notice:
                self._notice(notice)

    def _notice(self, notice: entries.OpenedNotice) -> None:
        frame = frames.push(notice.event, notice.data)
        if notice.only is not None:
            if (waiting := self._connections.find(notice.only[1])) is not None:
                waiting.socket.send(frame)
            return
        for connection in self._connections.of_user(notice.user_id):
            if (self._node, connection.id) == notice.spare or connection.identity is None:
                continue
            if notice.devices is not None and connection.identity.device_ref not in notice.devices:
                continue
            if notice.ends_others:
                if (ended := connection.identity.session_id) != notice.session_id:
                    push(connection, SessionEnded(session_id=ended, reason=notice.ends_others))
                    self._end(connection)
                continue
            connection.socket.send(frame)
            if notice.close and connection.identity.session_id == notice.session_id:
                self._end(connection)


def push(connection: Connection, reply: Reply) -> None:
    """What it did not ask for."""
    connection.socket.send(frames.push(reply.event, frames.encode_data(reply)))
