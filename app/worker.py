"""The worker: take, check, decide, settle; as many processes as you like in one consumer group.

Each request is one task; whatever is ready at a moment travels in one pipeline, since the broker and the store
coalesce. Deciding that hashes runs in threads: Argon2 releases the GIL.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from app import entries, handlers, rules
from app.credit import FAST_CREDIT, LaneHold, Turn
from app.handlers.common import Context, error, resumed
from app.keys import SealKeys
from app.messages import Code, Lane
from app.passwords import Hasher, PasswordCheck
from app.ports import Delivery, LaneVitals, Settlement, State, Store, Unavailable, Vitals, WorkerBroker
from app.records import Facts, Identity, KeepSession, Limit, Needs, Origin, Outcome, Recorded, Write
from app.sealing import Opener, Sealer, Unreadable
from app.settings import Settings
from app.settlements import Settlements, Work
from app.threads import HashThreads
from app.tokens import Mint

log = logging.getLogger("finthenticate")
T = TypeVar("T")

MOST_PARKED = 256
PARK_MS = 50
ROUNDS = 3
ROUNDS_AGAIN = 10  # eight may join, and ask again at once when it ends: each round lets one of them through
MOST_DELIVERIES = 3  # what has been taken twice and came back killed its worker: it is not tried a third time
BEAT_SECONDS = 1.0
REAP_SECONDS = 0.5  # with what counts as left after five it makes up the seven seconds in which that is finished
BACK_OFF_SECONDS = 0.5
ASK_AGAIN_SECONDS = 0.25
DRAIN_SECONDS = 10.0
HAND_BACK_SECONDS = 1.0  # what a worker that stops has not begun by then is somebody else's
MAIL_FULL_RETRY_MS = 5000


class NotBegun(Exception):
    """The worker stops, and this was not begun."""


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
        self._settlements = Settlements(settings, name, mint, Sealer(mail_keys, settings.edge_secret, "mail"))
        threads = settings.hash_threads
        self._holds = {lane: LaneHold(lane, FAST_CREDIT if lane is Lane.FAST else threads) for lane in Lane}
        self._threads = HashThreads(threads)
        self._thread_of_suspects = HashThreads(1)  # they come one by one, and have waited
        self._in_hand: dict[tuple[Lane, str], asyncio.Task[None]] = {}
        self._suspects: set[asyncio.Task[None]] = set()  # handed out before: perhaps what killed its worker
        self._parked = 0
        self._stopping = asyncio.Event()
        self._clock_offset = (time.time() - time.monotonic()) * 1000  # until the first beat
        self._ahead = 0  # ms that the store's clock is ahead of its server's own
        self._outage: float | None = None
        self._spoken = False  # since the store was away last
        self._hands_back = False

    def stop(self) -> None:
        self._stopping.set()
        asyncio.get_running_loop().call_later(HAND_BACK_SECONDS, self._hand_back)
        for hold in self._holds.values():
            hold.room.set()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for lane in self._holds:
                    group.create_task(self._steady(lambda lane=lane: self._take(lane)))  # type: ignore[misc]
                group.create_task(self._steady(self._reap))
                group.create_task(self._steady(self._beat))
            if self._in_hand:
                await asyncio.wait(self._in_hand.values(), timeout=DRAIN_SECONDS)
            await self._farewell()
        finally:
            for threads in (self._threads, self._thread_of_suspects):
                threads.close()
            await self._broker.close()

    # --- loops -----------------------------------------------------------------------------------------------

    async def _steady(self, turn: Callable[[], Any]) -> None:
        """Repeat a turn until told to stop; an outage is said once when it begins and once when it ends."""
        while not self._stopping.is_set():
            try:
                await turn()
            except Unavailable as error:
                self._spoken = False
                if self._outage is None:
                    self._outage = time.monotonic()
                    log.warning("the store is away", extra={"fields": {"reason": str(error)}})
                await self._pause(BACK_OFF_SECONDS)
            except Exception:
                log.exception("a turn failed")  # the other loops, and the next turn, go on
                await self._pause(BACK_OFF_SECONDS)

    async def _take(self, lane: Lane) -> None:
        hold = self._holds[lane]
        if (full := self._full(lane)) is not None:
            full.room.clear()
            await full.room.wait()
            return
        others = []
        for delivery in await self._broker.take(lane, hold.credit - hold.held):
            if delivery.deliveries > 1 and self._suspects:
                others.append(self._return(delivery, self._broker.release))
            else:
                self._start(delivery, hold)
        await asyncio.gather(*others)

    def _full(self, lane: Lane) -> LaneHold | None:
        """What has to get room before more of a lane is taken: it by half its credit at a time, not one by one, for a
        trip costs more than a request; or what goes first, while that alone keeps the threads busy.
        """
        hold, first = self._holds[lane], self._holds[lane.first]
        if hold.held > hold.credit // 2:
            return hold
        return first if first is not hold and not first.spares else None

    async def _reap(self) -> None:
        """Say what is in hand, and take over what others have left, one at a time and each when the last one has ended:
        what kills its worker is to take no other along to its next death.

        After an outage nothing was heard of anybody, and all that is in hand looks stranded: its holders speak first.
        """
        taken, spoken = 0, self._spoken
        self._spoken = True  # unless the store goes away meanwhile
        for lane, hold in self._holds.items():
            most = 0 if self._suspects or not spoken else 1
            for delivery in await self._broker.reap(lane, most, self._at_work_on(lane)):
                log.warning("taken over", extra={"fields": _words(delivery)})
                self._start(delivery, hold)
                taken += 1
        if self._suspects:
            await asyncio.wait(self._suspects, timeout=REAP_SECONDS)
        elif not taken:
            await self._pause(REAP_SECONDS)

    def _at_work_on(self, lane: Lane) -> Sequence[str]:
        return [token for its_lane, token in self._in_hand if its_lane is lane]

    async def _beat(self) -> None:
        lanes = {
            lane: LaneVitals(hold.slots, hold.rate(), hold.held, hold.drained()) for lane, hold in self._holds.items()
        }
        clock = await self._broker.beat(Vitals(self._holds[Lane.HASH].hash_ms, lanes))
        if abs(clock.now - self._now()) > BEAT_SECONDS * 1000:
            self._spoken = False  # all that is in hand looks as old as the step was wide
        self._clock_offset = clock.now - time.monotonic() * 1000
        if clock.ahead != self._ahead:
            self._ahead = clock.ahead
            log.warning("the store's clock was set back, and goes on", extra={"fields": {"ahead_ms": clock.ahead}})
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
            await self._broker.leave()
        except Unavailable:
            return  # it will count as dead a few seconds later

    # --- one request --------------------------------------------------------------------------------------------

    def _start(self, delivery: Delivery, hold: LaneHold) -> None:
        key = (delivery.lane, delivery.token)
        if key in self._in_hand:
            return  # taken, and taken for lost while it was on its way
        self._in_hand[key] = task = asyncio.create_task(self._serve(delivery, Turn(hold)))
        task.add_done_callback(lambda _: self._in_hand.pop(key))
        if delivery.deliveries > 1:
            self._suspects.add(task)
            task.add_done_callback(self._suspects.discard)

    async def _serve(self, delivery: Delivery, turn: Turn) -> None:
        """Never raises: one request's fault is its own. What the store did not hear of comes again by `reap`."""
        waits = False
        try:
            waits = await self._process(delivery, turn)
        except NotBegun:
            turn.end(done=False)
            await self._return(delivery, self._broker.release)
        except Unavailable as error:
            log.warning("not settled", extra={"fields": {**_words(delivery), "reason": str(error)}})
        except Unreadable as unreadable:
            await self._bury(delivery, str(unreadable), ())
        except Exception:
            log.exception("failed", extra={"fields": _words(delivery)})
            await self._bury(delivery, "the worker failed", self._limits_of(delivery))
        finally:
            turn.end()
        if waits:
            await self._park(delivery)

    async def _process(self, delivery: Delivery, turn: Turn) -> bool:
        """True when the request has to wait for others of its account."""
        if delivery.deliveries >= MOST_DELIVERIES:
            await self._bury(delivery, f"delivered {delivery.deliveries} times", self._limits_of(delivery))
            return False
        work = self._open(delivery)
        if work.entry.replay:
            await self._replay(work)
            return False
        ctx, needs = self._needs(work)
        spent_ms = 0.0
        for _ in range(ROUNDS):
            facts = await self._check(work, needs)
            if isinstance(facts, str):
                if facts == State.WAIT:
                    turn.end(done=False)
                    return True
                await self._drop(work, needs)
                return False
            outcome, ms = await self._decide(work, facts, ctx, turn.hold)
            turn.end()
            if outcome is None:
                await self._drop(work, needs)
                return False
            spent_ms += ms
            outcome = _within_its_session(work, facts, outcome)
            if outcome.even:
                outcome = replace(outcome, spent_ms=round(spent_ms, 1))
            settled = await self._settle(work, needs, outcome)
            if settled == "full":
                await self._settle(work, needs, error(Code.OVERLOADED, retry_after_ms=MAIL_FULL_RETRY_MS))
            if settled != "conflict":
                return False
        await self._settle(work, needs, error(Code.UNAVAILABLE, retry_after_ms=PARK_MS))
        return False

    def _open(self, delivery: Delivery) -> Work:
        """Unreadable for what is no request of this deployment."""
        entry = delivery.entry
        if entry is None:
            raise Unreadable("not an entry")
        envelope, kind, request, origin = entries.open_request(self._opener, entry)
        return Work(delivery, entry, envelope, kind, request, self._identified(origin))

    def _needs(self, work: Work) -> tuple[Context, Needs]:
        ctx = Context(self._settings, self._mint, PasswordCheck(self._hasher), work.origin)
        return ctx, handlers.HANDLERS[work.kind.event].needs(work.request, ctx)

    def _limits_of(self, delivery: Delivery) -> tuple[Limit, ...]:
        """Where a request that is given up may have reserved places.

        Should even asking kill its worker, the next one does not ask.
        """
        if delivery.deliveries > MOST_DELIVERIES:
            return ()
        try:
            return self._needs(self._open(delivery))[1].limits
        except Exception:
            return ()  # it never came as far as to reserve one

    async def _check(self, work: Work, needs: Needs) -> Facts | str:
        return await self._insist(work.deadline, lambda: self._store.check(work.rid, work.deadline, needs))

    async def _insist(self, deadline: int, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store again while it is away, for what is the same however often it is asked.

        Unavailable once the deadline has passed, or when the worker stops: somebody else will ask.
        """
        while True:
            try:
                return await ask()
            except Unavailable:
                if self._stopping.is_set() or self._now() >= deadline:
                    raise
                await self._pause(ASK_AGAIN_SECONDS)

    def _identified(self, origin: Origin) -> Origin:
        """A REST call is who its token says; whether that and its session are good yet is seen by the facts."""
        if origin.bearer:
            if (claims := self._mint.read_access_token(origin.bearer)) is not None:
                identity = Identity(claims.user_id, claims.session_id)
                return replace(origin, identity=identity, good=(claims.good_from, claims.expires))
        elif origin.refresh_token and (token := self._mint.read_refresh_token(origin.refresh_token)) is not None:
            return replace(origin, identity=Identity("", token.session_id))
        return origin

    def _now(self) -> int:
        """The store's clock, in ms."""
        return int(time.monotonic() * 1000 + self._clock_offset)

    async def _decide(self, work: Work, facts: Facts, ctx: Context, hold: LaneHold) -> tuple[Outcome | None, float]:
        """And the ms that it took in a thread. None when the deadline passed while it waited for one: expired work is
        never hashed.
        """
        if hold.lane is Lane.FAST:
            return handlers.decide(work.kind, work.request, facts, ctx), 0.0

        def hashing() -> tuple[Outcome | None, float]:
            started = time.perf_counter()
            if self._now() >= work.deadline:
                return None, 0.0
            if self._hands_back:
                raise NotBegun
            outcome = handlers.decide(work.kind, work.request, facts, ctx)
            return outcome, (time.perf_counter() - started) * 1000

        threads = self._threads if work.delivery.deliveries == 1 else self._thread_of_suspects
        outcome, ms = await threads.run(hashing, first=hold.lane.first is hold.lane)
        if ms > 1.0:  # a refusal without hashing says nothing about the cost of one
            for lane in (Lane.HASH, Lane.SLOW):
                self._holds[lane].hashed(ms)
        return outcome, ms

    async def _replay(self, work: Work) -> None:
        """What became of the same request, to one more who asks; nothing is evaluated.

        A session that it speaks for has to live: else it is forgotten, and the request is a new one. What only changed
        meanwhile is looked at again, for others may ask just now.
        """
        for _ in range(ROUNDS_AGAIN):
            if await self._replayed(work) != "conflict":
                return
        await self._answer_again(work, Needs(), entries.reply_of(error(Code.UNAVAILABLE, retry_after_ms=PARK_MS)))

    async def _replayed(self, work: Work) -> str | None:
        recorded = await self._insist(work.deadline, lambda: self._store.recall(work.same))
        if recorded is None:
            return await self._answer_again(work, Needs(), entries.ANEW)
        if recorded.session_id != work.owner:  # a token that was good when it asked first, perhaps
            return await self._answer_again(work, Needs(), entries.reply_of(error(Code.NOT_AUTHENTICATED)))
        if (record := self._settlements.open_record(work, recorded)) is None:
            return await self._replay_anew(work, recorded)
        needs = Needs(session_id=record.session_id or None, challenge_id=record.challenge_id or None)
        facts = await self._check(work, needs)
        if isinstance(facts, str):
            await self._drop(work, needs)
            return None
        lives = rules.session_life(facts.session, facts.now) is rules.Life.ACTIVE
        if work.kind.needs_session and not work.origin.good_at(facts.seconds):
            return await self._answer_again(work, Needs(), entries.reply_of(error(Code.NOT_AUTHENTICATED)))
        if record.session_id and not lives:
            return await self._replay_anew(work, recorded)
        writes = () if record.reply.forget else resumed(facts, work.origin)
        return await self._answer_again(work, needs, record.reply, writes)

    async def _replay_anew(self, work: Work, recorded: Recorded) -> str:
        await self._insist(work.deadline, lambda: self._store.forget(work.same, recorded))
        return await self._answer_again(work, Needs(), entries.ANEW)

    async def _answer_again(
        self, work: Work, needs: Needs, reply: entries.OpenedReply, writes: tuple[Write, ...] = ()
    ) -> str:
        return await self._hand_in(work, self._settlements.of_replay(work, needs, reply, writes), 0.0)

    async def _settle(self, work: Work, needs: Needs, outcome: Outcome) -> str:
        settlement = self._settlements.of(work, needs, outcome)
        return await self._hand_in(work, settlement, self._holds[work.delivery.lane].patience)

    async def _hand_in(self, work: Work, settlement: Settlement, patience: float) -> str:
        return await self._insist(work.deadline, lambda: self._broker.settle(work.delivery, settlement, patience))

    async def _drop(self, work: Work, needs: Needs) -> None:
        """Ended without an evaluation: every place comes back; the gateway's own timer has answered or will."""
        await self._broker.drop(work.delivery, needs.limits)

    async def _bury(self, delivery: Delivery, reason: str, limits: tuple[Limit, ...]) -> None:
        log.error("dead letter", extra={"fields": {**_words(delivery), "reason": reason}})
        failure, record = self._settlements.of_failure(delivery.entry)
        try:
            await self._broker.bury(delivery, reason, failure, record, limits)
        except Exception as error:  # likewise
            log.warning("not buried", extra={"fields": {**_words(delivery), "reason": str(error)}})

    async def _park(self, delivery: Delivery) -> None:
        """Back to the lane's tail after a short pause, which holds no credit."""
        self._parked += 1
        try:
            if self._parked <= MOST_PARKED:
                await self._pause(PARK_MS / 1000)
            await self._return(delivery, self._broker.give_back)
        finally:
            self._parked -= 1

    async def _return(self, delivery: Delivery, way: Callable[[Delivery], Awaitable[None]]) -> None:
        try:
            await way(delivery)
        except Exception as error:  # it comes again by `reap`
            log.warning("not given back", extra={"fields": {**_words(delivery), "reason": str(error)}})

    def _hand_back(self) -> None:
        self._hands_back = True


def _within_its_session(work: Work, facts: Facts, outcome: Outcome) -> Outcome:
    """What a session asks for happens only while that lives: once its end is acknowledged, nothing of it follows."""
    if not work.kind.needs_session or not outcome.writes or outcome.forget or facts.session is None:
        return outcome
    return outcome.with_writes(KeepSession(facts.session))


def _words(delivery: Delivery) -> dict[str, Any]:
    entry = delivery.entry
    return {"request": entry.rid, "event": entry.event} if entry else {"entry": delivery.token}
