"""What a broker keeps in Redis, whoever holds its entries: admission, who lives, what they can do; and its words."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from adapters import names
from adapters.lua import ADMIT, BEAT, TICK
from adapters.redis_link import Batch, Command, Link
from adapters.redis_store import DONE_KEPT_MS, RECLAIM_MS, pack, unpack
from adapters.together import together
from app.messages import Lane
from app.ports import (
    Admitted,
    Clock,
    Delivery,
    Entry,
    Expired,
    Full,
    Known,
    LaneDepth,
    Sealed,
    Signed,
    Unavailable,
    Vitals,
)

log = logging.getLogger("finthenticate")

BLOCK_MS = 1000  # a blocked read looks up this often, so stopping needs no cancelling
BLOCK_SECONDS = 5.0  # and answers within this, or its connection is dead
WORDS_A_READ = 500
NODE_LIVES_MS = 10_000
WORKER_LIVES_MS = 4_000
MOST_JOINED = 8
DEAD_KEPT = 10_000


class GatewayState:
    """The part of GatewayBroker that is Redis's with every broker. `node` is its boot's name, never used again."""

    COUNT = ""  # the command that counts what is in a lane

    def __init__(self, batch: Batch, reader: Link, node: str, max_queue: int) -> None:
        self._batch, self._reader, self._node, self._max_queue = batch, reader, node, max_queue
        self._stream, self._last = names.REPLIES + node, "0"
        self._known = False
        self._closed = False

    @staticmethod
    def holds(lane: Lane) -> str:
        """The key that COUNT counts."""
        raise NotImplementedError

    async def let_in(self, entry: Entry, patience: float, *put: Any) -> Admitted | Full | Expired | Known:
        """`put`: a command without its key, and its arguments, by which Redis knows of an admitted entry."""
        first = entry.lane.first
        keys = [self.holds(entry.lane), names.lane_count(entry.lane), names.CAPACITY, self.holds(first)]
        same = (entry.same, *entry.formerly) if entry.same and not entry.replay else ()
        keys += [key for id in same for key in (names.same(id), names.joined(id))]
        about = (first, self._max_queue, entry.deadline, entry.rid, entry.node, MOST_JOINED, RECLAIM_MS)
        match await self._batch.script(ADMIT, keys, *about, self.COUNT, *put, patience=patience):
            case [b"admitted", place, position, eta]:
                return Admitted(place, position, None if eta < 0 else eta)
            case [b"full", _, wait]:
                return Full(None if wait < 0 else wait)
            case [b"joined", name, left_ms]:
                return Known("joined", same[name] if name else "", left_ms)
            case [b"done", name]:
                return Known("done", same[name] if name else "")
            case [b"crowded", _]:
                return Known("crowded")
            case [b"expired", now]:
                return Expired(now)
            case answer:
                raise TypeError(f"ADMIT answered {answer!r}")

    async def cancel(self, rids: Sequence[str]) -> None:
        await together(
            *(self._batch.command("SET", names.done(rid), "cancelled", "NX", "PX", DONE_KEPT_MS) for rid in rids)
        )

    async def depths(self) -> dict[Lane, LaneDepth]:
        lanes = list(Lane)
        asked = [self._batch.command("HGETALL", names.CAPACITY)]
        asked += [self._batch.command(self.COUNT, self.holds(lane)) for lane in lanes]
        asked += [self._batch.command("GET", names.lane_count(lane)) for lane in lanes]
        capacity, *numbers = await together(*asked)
        can = to_map(capacity)
        lengths = dict(zip(lanes, numbers[: len(lanes)], strict=True))
        depths = {}
        for lane, admitted in zip(lanes, numbers[len(lanes) :], strict=True):
            first = lane.first
            slots, rate = int(can.get(f"{first}:slots", b"0")), float(can.get(f"{first}:rate", b"0"))
            before = lengths[first] if first is not lane else 0
            depths[lane] = LaneDepth(int(admitted or 0) - lengths[lane], slots, rate, before)
        return depths

    async def leave(self, gone: Sequence[tuple[str, str]]) -> None:
        await together(
            *(
                self._batch.command("HDEL", names.ONLINE + user_id, f"{self._node} {connection}")
                for user_id, connection in gone
            )
        )

    async def words(self) -> AsyncIterator[Sealed | Signed]:
        """What reaches the node through Redis: workers' where that is the broker, mailers' and operators' always."""
        while not self._closed:
            try:
                command = ("XREAD", "COUNT", WORDS_A_READ, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self._last)
                answer = await self._reader.call(*command, seconds=BLOCK_SECONDS)
            except (Unavailable, ResponseError) as error:
                log.warning("replies cannot be read", extra={"fields": {"reason": str(error)}})
                await asyncio.sleep(0.2)
                continue
            for _, entries in answer or ():
                for id, fields in entries:
                    self._last = id.decode()
                    if (reply := to_reply(to_map(fields))) is not None:
                        yield reply

    async def heartbeat(self) -> tuple[Clock, bool]:
        read = self._last  # more may be read while the answer is on its way
        told, before, newest = await together(
            self._batch.script(TICK, [names.LIVING], self._node, NODE_LIVES_MS),
            self._batch.command("SET", names.NODES + self._node, "1", "PX", NODE_LIVES_MS, "GET"),
            self._batch.command("XREVRANGE", self._stream, "+", "-", "COUNT", 1),
        )
        if newest and _order(newest[0][0]) < _order(read.encode()):
            self._last = "0"  # the stream was lost and made anew by an earlier clock: read it from its start
        elif newest:  # what has been read is of no more use, and need not lie about
            trimmed = self._batch.command("XTRIM", self._stream, "MINID", read)
            trimmed.add_done_callback(lambda trim: trim.cancelled() or trim.exception())  # the next beat says it
        lapsed, self._known = self._known and before is None, True
        return Clock(*told), lapsed

    async def close(self) -> None:
        self._closed = True
        try:
            leaving = (("DEL", names.NODES + self._node), ("ZREM", names.LIVING, self._node))
            await together(*(self._batch.command(*command) for command in leaving))
        except Unavailable:
            log.info("left without a word", extra={"fields": {"node": self._node}})
        await self._batch.close()
        await self._reader.close()


class WorkerState:
    """The part of WorkerBroker that is Redis's with every broker."""

    def __init__(self, batch: Batch, consumer: str) -> None:
        self._batch, self._consumer = batch, consumer
        self._since = 0  # ms of the store's clock at its first beat

    async def beat(self, vitals: Vitals) -> Clock:
        lanes = {lane: (can.slots, can.rate, can.in_hand, can.drained) for lane, can in vitals.lanes.items()}
        now, ahead = await self._beat({"since": self._since, "hash_ms": vitals.hash_ms, "lanes": lanes})
        self._since = self._since or now
        return Clock(now, ahead)

    async def leave(self) -> None:
        await self._beat({})

    def _beat(self, said: dict[str, Any]) -> asyncio.Future[Any]:
        keys = [names.WORKERS, names.CAPACITY]
        return self._batch.script(BEAT, keys, self._consumer, pack(said), WORKER_LIVES_MS)

    async def close(self) -> None:
        await self._batch.close()


# --- words ------------------------------------------------------------------------------------------------------


def letter(delivery: Delivery, reason: str) -> Command:
    """A dead letter: what is plain of the entry, and nothing that was sealed."""
    entry = delivery.entry
    known = {"r": entry.rid, "n": entry.node, "e": entry.event, "d": entry.deadline} if entry else {}
    words = [item for pair in known.items() for item in pair]
    return ("XADD", names.DEAD, "MAXLEN", "~", DEAD_KEPT, "*", "lane", delivery.lane, "reason", reason, *words)


def to_fields(entry: Entry) -> list[Any]:
    """Names and values in turn; to_entry's inverse."""
    known = {"r": entry.rid, "n": entry.node, "e": entry.event, "d": entry.deadline, "s": entry.same}
    fields = known | {"p": int(entry.replay), "w": entry.wrapped, "x": entry.box}
    return [item for pair in fields.items() for item in pair]


def to_entry(lane: Lane, fields: Mapping[str, bytes]) -> Entry | None:
    """None for what is no entry."""
    try:
        rid, node, event = (fields[name].decode() for name in ("r", "n", "e"))
        same, replay = fields["s"].decode(), fields["p"] == b"1"
        return Entry(rid, node, event, lane, int(fields["d"]), fields["w"], fields["x"], same, replay)
    except (KeyError, ValueError):
        return None


def to_reply(fields: Mapping[str, bytes]) -> Sealed | Signed | None:
    """What a worker or a script told a node; None for what is none of it."""
    try:
        if fields.get("k") == b"reply":
            return Sealed(fields["r"].decode(), unpack(fields["x"]))
        return Signed(unpack(fields["x"]), unpack(fields["m"]), fields.get("r", b"").decode())
    except (KeyError, ValueError):
        log.error("not a reply", extra={"fields": {"names": sorted(fields)[:10]}})
        return None


def to_map(flat: Sequence[bytes]) -> dict[str, bytes]:
    """Names and values in turn, as a map."""
    return dict(zip((name.decode(errors="replace") for name in flat[::2]), flat[1::2], strict=True))


def _order(id: bytes) -> tuple[int, int]:
    """Of an entry's id in its stream."""
    ms, _, n = id.partition(b"-")
    return int(ms), int(n or 0)
