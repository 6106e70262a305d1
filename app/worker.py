"""The worker: take, check, decide, settle; as many processes as you like in one consumer group.

Each request is one task; whatever is ready at a moment travels in one pipeline, since the broker and the store
coalesce. Deciding that hashes runs in threads: Argon2 releases the GIL.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from app import entries, handlers, rules
from app.credit import FAST_CREDIT, LaneHold, Turn
from app.handlers.common import Context, error
from app.keys import SealKeys
from app.messages import Code, Kind, Lane, LoggedOut, Refusal, Request
from app.passwords import Hasher, PasswordCheck
from app.ports import Delivery, Record, SealedMail, Settlement, State, Store, Unavailable, WorkerBroker
from app.records import ConfirmSession, Facts, Identity, Mail, Needs, Origin, Outcome, Recorded, Session, Verdict
from app.sealing import Envelope, Opener, Sealer, Unreadable
from app.settings import Settings
from app.tokens import Mint, new_id

log = logging.getLogger("finthenticate")
T = TypeVar("T")
EMPTY = LoggedOut()  # the data of an outcome whose reply is at hand already

MOST_PARKED = 256
PARK_MS = 50
ROUNDS = 3
MOST_DELIVERIES = 3  # what has been taken twice and came back killed its worker: it is not tried a third time
BEAT_SECONDS = 1.0
REAP_SECONDS = 1.0
BACK_OFF_SECONDS = 0.5
HASH_NICENESS = 10  # hashing gives way to the loops of gateway, worker and Redis on the same cores
DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class Work:
    """A request in hand, opened."""

    delivery: Delivery
    rid: str
    envelope: Envelope
    kind: Kind
    request: Request
    origin: Origin
    deadline: int
    same: str


class Worker:
    """One worker process. `run` returns when `stop` was called and everything in hand is settled or given back."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        broker: WorkerBroker,
        store: Store,
        *,
        opener: Opener,
        mint: Mint,
        hasher: Hasher,
        mail_keys: SealKeys,
    ) -> None:
        self._settings, self._name, self._broker, self._store = settings, name, broker, store
        self._opener, self._mint, self._hasher = opener, mint, hasher
        self._mail = Sealer(mail_keys, settings.edge_secret, "mail")
        threads = settings.hash_threads
        self._holds = {Lane.FAST: LaneHold(Lane.FAST, FAST_CREDIT), Lane.HASH: LaneHold(Lane.HASH, threads)}
        self._threads = ThreadPoolExecutor(threads, "hash", _give_way)
        self._tasks: set[asyncio.Task[None]] = set()
        self._parked = 0
        self._stopping = asyncio.Event()
        self._clock_offset = (time.time() - time.monotonic()) * 1000  # until the first beat
        self._outage: float | None = None

    def stop(self) -> None:
        self._stopping.set()
        for hold in self._holds.values():
            hold.room.set()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for lane in self._holds:
                    group.create_task(self._steady(lambda lane=lane: self._take(lane)))  # type: ignore[misc]
                group.create_task(self._steady(self._reap))
                group.create_task(self._steady(self._beat))
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
            await self._farewell()
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
            await self._broker.close()

    # --- loops -----------------------------------------------------------------------------------------------

    async def _steady(self, turn: Callable[[], Any]) -> None:
        """Repeat a turn until told to stop; an outage is said once when it begins and once when it ends."""
        while not self._stopping.is_set():
            try:
                await turn()
            except Unavailable as error:
                if self._outage is None:
                    self._outage = time.monotonic()
                    log.warning("the store is away", extra={"fields": {"reason": str(error)}})
                await self._pause(BACK_OFF_SECONDS)
            except Exception:
                log.exception("a turn failed")  # the other loops, and the next turn, go on
                await self._pause(BACK_OFF_SECONDS)

    async def _take(self, lane: Lane) -> None:
        hold = self._holds[lane]
        if (
            hold.held > hold.credit // 2
        ):  # by half its credit at a time, not one by one: a trip costs more than a request
            hold.room.clear()
            await hold.room.wait()
            return
        for delivery in await self._broker.take(lane, hold.credit - hold.held):
            self._start(delivery, hold)

    async def _reap(self) -> None:
        for delivery in await self._broker.reap():
            log.warning("taken over", extra={"fields": _words(delivery)})
            self._start(delivery, self._holds[delivery.lane])
        await self._pause(REAP_SECONDS)

    async def _beat(self) -> None:
        capacity = {lane: (hold.slots, hold.rate()) for lane, hold in self._holds.items()}
        now = await self._broker.beat(capacity)
        self._clock_offset = now - time.monotonic() * 1000
        if self._outage is not None:
            seconds, self._outage = round(time.monotonic() - self._outage, 1), None
            log.info("the store is back", extra={"fields": {"seconds": seconds}})
        await self._pause(BEAT_SECONDS)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _farewell(self) -> None:
        try:
            await self._broker.beat({})
        except Unavailable:
            return  # it will count as dead a few seconds later

    # --- one request --------------------------------------------------------------------------------------------

    def _start(self, delivery: Delivery, hold: LaneHold) -> None:
        task = asyncio.create_task(self._serve(delivery, Turn(hold)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, delivery: Delivery, turn: Turn) -> None:
        """Never raises: one request's fault is its own. What the store did not hear of comes again by `reap`."""
        waits = False
        try:
            waits = await self._process(delivery, turn)
        except Unavailable as error:
            log.warning("not settled", extra={"fields": {**_words(delivery), "reason": str(error)}})
        except Exception:
            log.exception("failed", extra={"fields": _words(delivery)})
            await self._bury(delivery, "the worker failed")
        finally:
            turn.end()
        if waits:
            await self._park(delivery)

    async def _process(self, delivery: Delivery, turn: Turn) -> bool:
        """True when the request has to wait for others of its account."""
        if delivery.deliveries >= MOST_DELIVERIES:
            await self._bury(delivery, f"delivered {delivery.deliveries} times")
            return False
        if (work := await self._open(delivery)) is None:
            return False
        if delivery.entry is not None and delivery.entry.replay:
            await self._replay(work)
            return False
        passwords = PasswordCheck(self._hasher, getattr(work.request, "password", ""))
        ctx = Context(self._settings, self._mint, passwords, work.origin)
        needs = handlers.HANDLERS[work.kind.event].needs(work.request, ctx)
        for _ in range(ROUNDS):
            facts = await self._store.check(work.rid, work.deadline, needs)
            if isinstance(facts, str):
                if facts == State.WAIT:
                    return True
                await self._drop(work, needs)
                return False
            outcome = await self._decide(work, facts, ctx, turn.hold)
            turn.end()
            if outcome is None:
                await self._drop(work, needs)
                return False
            if await self._settle(work, needs, outcome) != "conflict":
                return False
        await self._settle(work, needs, error(Code.UNAVAILABLE, retry_after_ms=PARK_MS))
        return False

    async def _open(self, delivery: Delivery) -> Work | None:
        entry = delivery.entry
        if entry is None:
            await self._bury(delivery, "not an entry")
            return None
        try:
            envelope, kind, request, origin = entries.open_request(self._opener, entry)
        except Unreadable as unreadable:
            await self._bury(delivery, str(unreadable))
            return None
        return Work(delivery, entry.rid, envelope, kind, request, self._identified(origin), entry.deadline, entry.same)

    def _identified(self, origin: Origin) -> Origin:
        """A REST call is who its token says, if the token is good: the session is looked at with the other facts."""
        if origin.bearer:
            claims, now = self._mint.read_access_token(origin.bearer), self._now() // 1000
            if claims is not None and now < claims.expires:
                return replace(origin, identity=Identity(claims.user_id, claims.session_id))
        elif origin.refresh_token and (token := self._mint.read_refresh_token(origin.refresh_token)) is not None:
            return replace(origin, identity=Identity("", token.session_id))
        return origin

    def _now(self) -> int:
        """The store's clock, in ms."""
        return int(time.monotonic() * 1000 + self._clock_offset)

    async def _decide(self, work: Work, facts: Facts, ctx: Context, hold: LaneHold) -> Outcome | None:
        """None when the deadline passed while it waited for a thread: expired work is never hashed."""
        if hold.lane is Lane.FAST:
            return handlers.decide(work.kind, work.request, facts, ctx)

        def hashing() -> tuple[Outcome | None, float]:
            started = time.perf_counter()
            if self._now() >= work.deadline:
                return None, 0.0
            outcome = handlers.decide(work.kind, work.request, facts, ctx)
            return outcome, (time.perf_counter() - started) * 1000

        outcome, ms = await self._in_thread(hashing)
        if ms > 1.0:  # a refusal without hashing says nothing about the cost of one
            hold.hashed(ms)
        return outcome

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _replay(self, work: Work) -> None:
        """What became of the same request, to one more who asks; nothing is evaluated.

        A session that it speaks for has to live: else it is forgotten, and the request is a new one.
        """
        recorded = await self._store.recall(work.same)
        if recorded is None:
            await self._answer_replay(work, Needs(), entries.ANEW)
        elif recorded.session_id != _owner(work):  # a token that was good when it asked first, perhaps
            await self._answer_replay(work, Needs(), entries.reply_of(error(Code.NOT_AUTHENTICATED)))
        elif (record := self._open_record(work, recorded)) is None:
            await self._replay_anew(work, recorded)
        else:
            needs = Needs(session_id=record.session_id or None)
            facts = await self._store.check(work.rid, work.deadline, needs)
            if isinstance(facts, str):
                await self._drop(work, needs)
                return
            lives = rules.session_life(facts.session, facts.now) is rules.Life.ACTIVE
            if record.session_id and not lives:
                await self._replay_anew(work, recorded)
            elif await self._answer_replay(work, needs, record.reply, facts.session) == "conflict":
                await self._replay_anew(work, recorded)  # the session has ended just now

    async def _replay_anew(self, work: Work, recorded: Recorded) -> None:
        await self._store.forget(work.same, recorded)
        await self._answer_replay(work, Needs(), entries.ANEW)

    async def _answer_replay(
        self, work: Work, needs: Needs, reply: entries.OpenedReply, session: Session | None = None
    ) -> str:
        """It was audited when it was evaluated, so it is not audited again."""
        writes = (ConfirmSession(session, session.seen),) if session is not None and not reply.forget else ()
        outcome = Outcome(reply.event, EMPTY, writes=writes, identity=reply.identity, forget=reply.forget)
        settlement = replace(self._settlement(work, needs, outcome, reply), audit={})
        return await self._broker.settle(work.delivery, settlement, 0.0)

    def _open_record(self, work: Work, recorded: Recorded) -> entries.OpenedRecord | None:
        try:
            return entries.open_record(self._settings.worker_secret, work.same, recorded.box)
        except Unreadable:  # kept under a secret that is here no longer
            return None

    async def _settle(self, work: Work, needs: Needs, outcome: Outcome) -> str:
        settlement = self._settlement(work, needs, outcome, entries.reply_of(outcome))
        if work.same:
            settlement = replace(settlement, record=self._record(work, outcome))
        return await self._broker.settle(work.delivery, settlement, self._holds[work.kind.lane].patience)

    def _record(self, work: Work, outcome: Outcome) -> Record:
        """An `error` is not recorded, but those who joined are told it.

        What a session was needed for is given again only while it lives; its own end may be told afterwards.
        """
        edge, owner = self._settings.edge_secret, _owner(work)
        if outcome.event == "error" and isinstance(outcome.data, Refusal):
            word = entries.sign_word(edge, work.same, outcome.data.code, outcome.data.retry_after_ms)
            return Record(work.same, owner, None, word)
        if isinstance(outcome.data, Refusal) and outcome.verdict is Verdict.UNJUDGED and not outcome.writes:
            # Nothing happened and nothing was counted: keeping it would let anybody fill the store. Those who joined
            # are told to ask again, and are evaluated.
            return Record(work.same, owner, None, entries.sign_word(edge, work.same, None, None))
        speaks_for = "" if outcome.forget else owner or getattr(outcome.data, "session_id", "")
        reply = replace(entries.reply_of(outcome), even=False)
        box = entries.pack_record(self._settings.worker_secret, work.same, reply, speaks_for)
        return Record(work.same, owner, box, entries.sign_word(edge, work.same, None, None))

    def _settlement(self, work: Work, needs: Needs, outcome: Outcome, reply: entries.OpenedReply) -> Settlement:
        edge, limits = self._settings.edge_secret, self._settings.limits
        origin = work.origin
        audit = {"event": outcome.event, "code": outcome.code, "request": work.rid, "user": outcome.subject}
        audit |= {"ip": origin.ip, "worker": self._name}
        return Settlement(
            outcome=outcome,
            limits=needs.limits,
            reply=entries.pack_reply(work.envelope, work.rid, reply),
            notices=tuple((notice, entries.sign_notice(edge, notice)) for notice in outcome.notices),
            mails=tuple(
                (mail, self._seal_mail(mail), rules.mail_limits(limits, mail.to, origin.network))
                for mail in outcome.mails
            ),
            presence=(origin.node, origin.connection) if origin.connection else None,
            previous=origin.identity,
            audit=audit,
        )

    def _seal_mail(self, mail: Mail) -> SealedMail:
        return entries.pack_mail(self._mail.envelope, new_id(self._mint.kid), mail)

    async def _drop(self, work: Work, needs: Needs) -> None:
        """Ended without an evaluation: every place comes back; the gateway's own timer has answered or will."""
        await self._broker.drop(work.delivery, needs.limits)

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        log.error("dead letter", extra={"fields": {**_words(delivery), "reason": reason}})
        entry = delivery.entry
        failure = record = None
        if entry is not None:
            edge = self._settings.edge_secret
            failure = (entry.node, entries.sign_failure(edge, entry.rid, Code.INTERNAL))
            if entry.same:
                record = Record(entry.same, "", None, entries.sign_word(edge, entry.same, Code.INTERNAL, None))
        try:
            await self._broker.bury(delivery, reason, failure, record)
        except Unavailable as unavailable:
            log.warning("not buried", extra={"fields": {**_words(delivery), "reason": str(unavailable)}})

    async def _park(self, delivery: Delivery) -> None:
        """Back to the lane's tail after a short pause, which holds no credit."""
        self._parked += 1
        try:
            if self._parked <= MOST_PARKED:
                await self._pause(PARK_MS / 1000)
            await self._broker.give_back(delivery)
        except Unavailable as unavailable:
            log.warning("not given back", extra={"fields": {**_words(delivery), "reason": str(unavailable)}})
        finally:
            self._parked -= 1


def _owner(work: Work) -> str:
    """The session that a request is made for, where it needs one."""
    identity = work.origin.identity
    return identity.session_id if work.kind.needs_session and identity is not None else ""


def _words(delivery: Delivery) -> dict[str, Any]:
    entry = delivery.entry
    return {"request": entry.rid, "event": entry.event} if entry else {"entry": delivery.token}


def _give_way() -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), HASH_NICENESS)
    except (OSError, AttributeError):
        return  # only Linux has priorities of threads
