"""`python -m app status`: who works, what waits and for how long, what was given up."""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from app.messages import Lane
from app.operator.dead import letter_json
from app.operator.words import NONE, Misuse, columns, figure, moment, plain, span
from app.ports import Backlog, LaneVitals, Operator, Overview, Unavailable, WorkerSeen

USAGE = "python -m app status [--json] [--watch [SECONDS]]"
WATCH_SECONDS, MOST_WATCH_SECONDS = 2, 3600
WIDTH = 120
CLEAR = "\x1b[H\x1b[2J"  # ECMA-48: cursor to the top, erase the page

LANE_HEAD = ("lane", "waiting", "in hand", "oldest waiting", "oldest in hand", "drains/s", "could/s", "empty in")
NOBODY = "NO WORKER IS ALIVE: nothing is taken from the queue."


@dataclass(frozen=True)
class Status:
    """One look, or with `watch` one every so many seconds until it is cancelled."""

    json: bool = False
    watch: float | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Status:
        json, watch, rest = False, None, list(arguments)
        while rest:
            match rest:
                case ["--json", *rest] if not json:
                    json = True
                case ["--watch", seconds, *rest] if watch is None and not seconds.startswith("-"):
                    watch = _seconds(seconds)
                case ["--watch", *rest] if watch is None:
                    watch = WATCH_SECONDS
                case _:
                    raise Misuse(f"usage: {USAGE}")
        return cls(json, watch)

    async def run(
        self, connect: Callable[[], Awaitable[Operator]], say: Callable[[str], None], *, terminal: bool = False
    ) -> int:
        """The exit status. Unavailable from `connect` or a look ends one look; a watch says it and goes on."""
        if self.watch is None:
            operator = await connect()
            try:
                say(self._show(await operator.look()))
            finally:
                await operator.close()
            return 0
        with suppress(asyncio.CancelledError):  # Ctrl-C is how a watch ends
            await self._watch(connect, say, self.watch, terminal)
        return 0

    async def _watch(
        self, connect: Callable[[], Awaitable[Operator]], say: Callable[[str], None], seconds: float, terminal: bool
    ) -> None:
        operator: Operator | None = None
        before, between = ("", "") if self.json else (CLEAR, CLEAR) if terminal else ("", "\n")
        try:
            while True:
                try:
                    operator = operator or await connect()
                    shown = self._show(await operator.look())
                except Unavailable as away:
                    shown = self._show_away(str(away))
                    if operator is not None:
                        await operator.close()
                    operator = None  # an embedded server may come back at another address
                say(before + shown)
                before = between
                await asyncio.sleep(seconds)
        finally:
            if operator is not None:
                await operator.close()

    def _show(self, seen: Overview) -> str:
        return orjson.dumps(as_json(seen)).decode() if self.json else "\n".join(as_text(seen))

    def _show_away(self, why: str) -> str:
        return orjson.dumps({"unavailable": why}).decode() if self.json else f"The queue does not answer: {plain(why)}"


def _seconds(said: str) -> float:
    if not re.fullmatch("[0-9]{1,4}", said) or not 1 <= int(said) <= MOST_WATCH_SECONDS:
        raise Misuse(f"--watch must be whole seconds from 1 to {MOST_WATCH_SECONDS}.")
    return int(said)


# --- what is reckoned from what is seen -------------------------------------------------------------------------


def state(worker: WorkerSeen) -> str:
    if worker.beat is None:
        return "gone"
    return "alive" if worker.beat.alive else "silent"


def rates(seen: Overview, lane: Lane) -> tuple[float, float]:
    """Requests a second that the living workers ended, and could: together."""
    living = [worker.beat.vitals.lanes for worker in seen.workers if worker.beat is not None and worker.beat.alive]
    can = [lanes[lane] for lanes in living if lane in lanes]
    return sum(one.drained for one in can), sum(one.rate for one in can)


def empty_in(queue: Backlog, drained: float) -> float | None:
    """Seconds until all of it has ended, as fast as it goes now, if nothing more came. None: nothing drains it."""
    if not queue.waiting + queue.in_hand:
        return 0.0
    return (queue.waiting + queue.in_hand) / drained if drained > 0 else None


# --- as JSON ----------------------------------------------------------------------------------------------------


def as_json(seen: Overview) -> dict[str, Any]:
    """One object. `…_ms` and `…_s` are lengths of time, but `now_ms` and `at_ms` times since 1970; rates are a second.

    What is not known is absent, never null.

        now_ms    by the store's clock
        clock_ahead_ms   that it is ahead of the server's own, which was set back
        workers   [{name, state: "alive" | "silent" | "gone", pending: {LANE: requests}, and unless it is gone:
                    up_ms, beat_age_ms, hash_ms, lanes: {LANE: {slots, in_hand, drain_rate, could_rate}}}]
        nodes     [name]
        lanes     {LANE: {waiting, in_hand, oldest_waiting_ms?, oldest_in_hand_ms?,
                    drain_rate, could_rate, empty_in_s?}}; hash and slow share their threads: what either could is not
                    to be added up
        mail      {waiting, in_hand, oldest_waiting_ms?, oldest_in_hand_ms?}
        dead      {letters, newest?: a letter as `dead list --json` shows it}

    A watch writes one such object a line; while the queue does not answer, {unavailable: why}.
    """
    dead: dict[str, Any] = {"letters": seen.dead}
    if seen.newest is not None:
        dead["newest"] = letter_json(seen.newest)
    return {
        "now_ms": seen.now,
        "clock_ahead_ms": seen.ahead,
        "workers": [_worker_json(worker, seen.now) for worker in seen.workers],
        "nodes": list(seen.nodes),
        "lanes": {lane.value: _lane_json(seen, lane) for lane in seen.lanes},
        "mail": _backlog_json(seen.mail),
        "dead": dead,
    }


def _worker_json(worker: WorkerSeen, now: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": worker.name,
        "state": state(worker),
        "pending": {lane.value: count for lane, count in worker.pending.items()},
    }
    if worker.beat is not None:
        lanes = worker.beat.vitals.lanes.items()
        found |= {
            "up_ms": now - worker.beat.since,
            "beat_age_ms": now - worker.beat.at,
            "hash_ms": round(worker.beat.vitals.hash_ms, 1),
            "lanes": {lane.value: _vitals_json(vitals) for lane, vitals in lanes},
        }
    return found


def _vitals_json(vitals: LaneVitals) -> dict[str, Any]:
    numbers = {"drain_rate": round(vitals.drained, 1), "could_rate": round(vitals.rate, 1)}
    return {"slots": vitals.slots, "in_hand": vitals.in_hand, **numbers}


def _lane_json(seen: Overview, lane: Lane) -> dict[str, Any]:
    drained, could = rates(seen, lane)
    found = _backlog_json(seen.lanes[lane]) | {"drain_rate": round(drained, 1), "could_rate": round(could, 1)}
    seconds = empty_in(seen.lanes[lane], drained)
    return found if seconds is None else found | {"empty_in_s": round(seconds, 1)}


def _backlog_json(queue: Backlog) -> dict[str, Any]:
    ages = {"oldest_waiting_ms": queue.oldest_waiting_ms, "oldest_in_hand_ms": queue.oldest_in_hand_ms}
    known = {name: age for name, age in ages.items() if age is not None}
    return {"waiting": queue.waiting, "in_hand": queue.in_hand, **known}


# --- as text ----------------------------------------------------------------------------------------------------


def as_text(seen: Overview) -> Iterator[str]:
    """Lines of at most WIDTH columns where names are ordinary ones."""
    states = [state(worker) for worker in seen.workers]
    counts = [f"{states.count(name)} {name}" for name in ("alive", "silent", "gone") if name in states]
    yield f"{moment(seen.now / 1000)}  workers: {', '.join(counts) or 'none'}  gateways: {len(seen.nodes)}"
    if "alive" not in states:
        yield NOBODY
    if seen.ahead:
        yield f"The store's clock is {span(seen.ahead)} ahead of its server's, which was set back."
    yield ""
    if seen.workers:
        lanes = "/".join(lane.value for lane in seen.lanes)
        head = ("worker", "state", "up", "beat", "hash", "slots", "in hand", "pending", "ends/s")
        yield from columns([head, *(_worker_row(worker, seen) for worker in seen.workers)])
        yield f"(numbers with a stroke: {lanes})"
        yield ""
    if seen.nodes:
        listed = f"gateways: {', '.join(map(plain, seen.nodes))}"
        yield from textwrap.wrap(listed, WIDTH, subsequent_indent=" " * 10, break_on_hyphens=False)
        yield ""
    rows = [(lane.value, *_backlog_row(queue), *_rates_row(seen, lane)) for lane, queue in seen.lanes.items()]
    yield from columns([LANE_HEAD, *rows, ("mail", *_backlog_row(seen.mail), NONE, NONE, NONE)])
    yield ""
    yield _dead_line(seen)


def _worker_row(worker: WorkerSeen, seen: Overview) -> tuple[str, ...]:
    pending = "/".join(str(worker.pending.get(lane, 0)) for lane in seen.lanes)
    name, beat = plain(worker.name), worker.beat
    if beat is None:
        return (name, state(worker), NONE, NONE, NONE, NONE, NONE, pending, NONE)
    lanes = [beat.vitals.lanes.get(lane) for lane in seen.lanes]
    numbers = [(NONE,) * 3 if can is None else (can.slots, can.in_hand, figure(can.drained)) for can in lanes]
    slots, in_hand, ends = ("/".join(map(str, column)) for column in zip(*numbers))
    times = (span(seen.now - beat.since), span(seen.now - beat.at), f"{figure(beat.vitals.hash_ms)}ms")
    return (name, state(worker), *times, slots, in_hand, pending, ends)


def _backlog_row(queue: Backlog) -> tuple[str, ...]:
    return (str(queue.waiting), str(queue.in_hand), span(queue.oldest_waiting_ms), span(queue.oldest_in_hand_ms))


def _rates_row(seen: Overview, lane: Lane) -> tuple[str, ...]:
    drained, could = rates(seen, lane)
    seconds = empty_in(seen.lanes[lane], drained)
    ends = NONE if seconds == 0 else "unknown" if seconds is None else span(seconds * 1000)
    return (figure(drained), figure(could), ends)


def _dead_line(seen: Overview) -> str:
    if seen.newest is None:
        return f"dead letters: {seen.dead}"
    newest = seen.newest
    line = (
        f"dead letters: {seen.dead}  newest: {moment(newest.at / 1000)}, {plain(newest.lane)}, {plain(newest.reason)}"
    )
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"
