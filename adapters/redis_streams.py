"""The broker on Redis Streams: one stream a lane, one consumer group, one reply stream a gateway boot.

Acknowledging deletes (XACK and XDEL in the script that settles), so a stream's length is exactly what waits and what is
in hand. Groups begin at 0, never at $: what was admitted before a group existed is taken too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.exceptions import ResponseError

from adapters import names
from adapters.lua import ADMIT, BEAT, REAP, RELEASE, RETIRE, RETURN, TICK
from adapters.redis_link import Batch, Command, Link, refusal
from adapters.redis_store import DONE_KEPT_MS, RECLAIM_MS, REPLIES_KEPT, REPLIES_KEPT_MS, RedisStore, pack, text, unpack
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
    Record,
    Sealed,
    SealedMail,
    Settlement,
    Signed,
    Unavailable,
    Vitals,
)
from app.records import Limit

log = logging.getLogger("finthenticate")

BLOCK_MS = 1000  # a blocked read looks up this often, so stopping needs no cancelling
BLOCK_SECONDS = 5.0  # and answers within this, or its connection is dead
NODE_LIVES_MS = 10_000
WORKER_LIVES_MS = 4_000
TAKEN_OVER_AFTER_MS = 5_000  # far more than any work in hand takes: credit is about 100 ms of it
SPOKEN_FOR_MS = 1_000  # what is in a worker's hand for longer needs its word; far more than an answer is on its way
CONSUMER_GONE_MS = 600_000
REPLIES_A_READ = 500
MOST_JOINED = 8
DEAD_KEPT = 10_000
MAILER_DEAD_MS = 60_000  # a mailer holds a mail for as long as its server takes; past this it is dead
TAKE_OVER_EVERY_SECONDS = 10.0


class RedisGateway:
    """GatewayBroker for one node. `node` is its boot's name, never used again."""

    def __init__(self, batch: Batch, reader: Link, node: str, max_queue: int) -> None:
        self._batch, self._reader, self._node, self._max_queue = batch, reader, node, max_queue
        self._stream = names.REPLIES + node
        self._last = "0"
        self._closed = self._known = False

    async def admit(self, entry: Entry, patience: float) -> Admitted | Full | Expired | Known:
        keys = [names.lane(entry.lane), names.lane_count(entry.lane), names.CAPACITY]
        same = (entry.same, *entry.formerly) if entry.same and not entry.replay else ()
        keys += [key for id in same for key in (names.same(id), names.joined(id))]
        fields = {"r": entry.rid, "n": entry.node, "e": entry.event, "d": entry.deadline, "s": entry.same}
        named = [item for pair in fields.items() for item in pair]
        about = (entry.lane, self._max_queue, entry.deadline, entry.rid, entry.node, MOST_JOINED, RECLAIM_MS)
        boxes = ("p", int(entry.replay), "w", entry.wrapped, "x", entry.box)
        match await self._batch.script(ADMIT, keys, *about, *named, *boxes, patience=patience):
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
            case [_, now]:
                return Expired(now)
            case answer:
                raise TypeError(f"ADMIT answered {answer!r}")

    async def replies(self) -> AsyncIterator[Sealed | Signed]:
        while not self._closed:
            try:
                command = ("XREAD", "COUNT", REPLIES_A_READ, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self._last)
                answer = await self._reader.call(*command, seconds=BLOCK_SECONDS)
            except (Unavailable, ResponseError) as error:
                log.warning("replies cannot be read", extra={"fields": {"reason": str(error)}})
                await asyncio.sleep(0.2)
                continue
            for _, entries in answer or ():
                for id, fields in entries:
                    self._last = id.decode()
                    if (reply := _reply(_fields(fields))) is not None:
                        yield reply

    async def cancel(self, rids: Sequence[str]) -> None:
        await asyncio.gather(
            *(self._batch.command("SET", names.done(rid), "cancelled", "NX", "PX", DONE_KEPT_MS) for rid in rids)
        )

    async def depths(self) -> dict[Lane, LaneDepth]:
        lanes = list(Lane)
        asked = [self._batch.command("HGETALL", names.CAPACITY)]
        asked += [self._batch.command("XLEN", names.lane(lane)) for lane in lanes]
        asked += [self._batch.command("GET", names.lane_count(lane)) for lane in lanes]
        capacity, *numbers = await asyncio.gather(*asked)
        can = _fields(capacity)
        depths = {}
        for lane, length, admitted in zip(lanes, numbers[: len(lanes)], numbers[len(lanes) :], strict=True):
            slots = int(can.get(f"{lane}:slots", b"0"))
            depths[lane] = LaneDepth(int(admitted or 0) - length, slots, float(can.get(f"{lane}:rate", b"0")))
        return depths

    async def leave(self, gone: Sequence[tuple[str, str]]) -> None:
        await asyncio.gather(
            *(
                self._batch.command("HDEL", names.ONLINE + user_id, f"{self._node} {connection}")
                for user_id, connection in gone
            )
        )

    async def heartbeat(self) -> tuple[int, bool]:
        batch = self._batch
        now, before, newest = await asyncio.gather(
            batch.script(TICK, [names.LIVING], self._node, NODE_LIVES_MS),
            batch.command("SET", names.NODES + self._node, "1", "PX", NODE_LIVES_MS, "GET"),
            batch.command("XREVRANGE", self._stream, "+", "-", "COUNT", 1),
        )
        if newest and _order(newest[0][0]) < _order(self._last.encode()):
            self._last = "0"  # the stream was lost and made anew by an earlier clock: read it from its start
        elif newest:  # what has been read is of no more use, and need not lie about
            trimmed = batch.command("XTRIM", self._stream, "MINID", self._last)
            trimmed.add_done_callback(lambda trim: trim.cancelled() or trim.exception())  # the next beat says it
        lapsed, self._known = self._known and before is None, True
        return int(now), lapsed

    async def close(self) -> None:
        self._closed = True
        try:
            leaving = (("DEL", names.NODES + self._node), ("ZREM", names.LIVING, self._node))
            await asyncio.gather(*(self._batch.command(*command) for command in leaving))
        except Unavailable:
            log.info("left without a word", extra={"fields": {"node": self._node}})
        await self._batch.close()
        await self._reader.close()


class RedisWorker:
    """WorkerBroker for one worker. `links`: a connection for each lane's blocking reads."""

    def __init__(self, batch: Batch, store: RedisStore, links: dict[Lane, Link], consumer: str) -> None:
        self._batch, self._store, self._links, self._consumer = batch, store, links, consumer

    async def take(self, lane: Lane, most: int) -> Sequence[Delivery]:
        entries = await _read_group(self._links[lane], names.lane(lane), names.GROUP, self._consumer, most)
        return [_delivery(lane, id, fields) for id, fields in entries]

    async def settle(self, delivery: Delivery, settlement: Settlement, patience: float) -> str:
        entry = delivery.entry
        assert entry is not None  # what could not be read is buried, not settled
        stream = names.REPLIES + entry.node
        reply = ("k", "reply", "r", settlement.reply.rid, "x", text(settlement.reply.box))
        return await self._store.settle(
            entry.rid, entry.deadline, settlement, _to_node(stream, reply), _acknowledge(delivery), patience
        )

    async def drop(self, delivery: Delivery, limits: tuple[Limit, ...]) -> None:
        assert delivery.entry is not None
        await self._store.drop(delivery.entry.rid, limits, _acknowledge(delivery))

    async def give_back(self, delivery: Delivery) -> None:
        keys = [names.lane(delivery.lane), names.lane_count(delivery.lane)]
        await self._batch.script(RETURN, keys, names.GROUP, delivery.token)

    async def release(self, delivery: Delivery) -> None:
        args = (names.GROUP, self._consumer, TAKEN_OVER_AFTER_MS, delivery.token)
        await self._batch.script(RELEASE, [names.lane(delivery.lane)], *args)

    async def bury(
        self,
        delivery: Delivery,
        reason: str,
        failure: tuple[str, Signed] | None,
        record: Record | None,
        limits: tuple[Limit, ...],
    ) -> None:
        entry = delivery.entry
        known = {"r": entry.rid, "n": entry.node, "e": entry.event, "d": entry.deadline} if entry else {}
        words = [item for pair in known.items() for item in pair]
        letter = ("XADD", names.DEAD, "MAXLEN", "~", DEAD_KEPT, "*", "lane", delivery.lane, "reason", reason, *words)
        commands: list[Command] = [letter]
        if failure is not None:
            node, signed = failure
            commands += _to_node(names.REPLIES + node, ("k", "failure", "x", text(signed.body), "m", text(signed.mac)))
        rid = entry.rid if entry else delivery.token
        await self._store.drop(rid, limits, [*commands, *_acknowledge(delivery)], record)

    async def reap(self, lane: Lane, most: int, held: Sequence[str]) -> Sequence[Delivery]:
        args = (names.GROUP, self._consumer, TAKEN_OVER_AFTER_MS, most, CONSUMER_GONE_MS, SPOKEN_FOR_MS)
        try:
            claimed = await self._batch.script(REAP, [names.lane(lane)], *args, *held)
        except ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error):
                raise
            return []  # `take` makes the group anew
        return [_delivery(lane, id, fields, deliveries + 1) for id, deliveries, fields in claimed]

    _since = 0  # ms of the store's clock at its first beat

    async def beat(self, vitals: Vitals) -> Clock:
        lanes = {lane: (can.slots, can.rate, can.in_hand, can.drained) for lane, can in vitals.lanes.items()}
        now, ahead = await self._beat({"since": self._since, "hash_ms": vitals.hash_ms, "lanes": lanes})
        self._since = self._since or now
        return Clock(now, ahead)

    async def leave(self) -> None:
        retired = [self._batch.script(RETIRE, [names.lane(lane)], names.GROUP, self._consumer) for lane in self._links]
        await asyncio.gather(self._beat({}), *retired)

    def _beat(self, said: dict[str, Any]) -> asyncio.Future[Any]:
        keys = [names.WORKERS, names.CAPACITY]
        return self._batch.script(BEAT, keys, self._consumer, pack(said), WORKER_LIVES_MS)

    async def close(self) -> None:
        await self._batch.close()
        for link in self._links.values():
            await link.close()


class RedisMailQueue:
    """MailQueue on a stream of its own; what a dead mailer holds is taken over."""

    def __init__(self, link: Link, consumer: str) -> None:
        self._link, self._consumer = link, consumer
        self._next = ">"  # "0": what was handed to this mailer, and lost on its way or not ended, comes first
        self._looked = -math.inf

    async def take(self, most: int) -> Sequence[tuple[str, SealedMail | None]]:
        after, self._next = self._next, "0"
        entries = await _read_group(self._link, names.MAIL, names.MAIL_GROUP, self._consumer, most, after)
        if (now := time.monotonic()) - self._looked > TAKE_OVER_EVERY_SECONDS and len(entries) < most:
            self._looked = now
            command = ("XAUTOCLAIM", names.MAIL, names.MAIL_GROUP, self._consumer, MAILER_DEAD_MS, "0")
            _, taken_over, _ = await self._link.call(*command, "COUNT", most - len(entries))
            entries += taken_over
        self._next = ">" if after == ">" or not entries else "0"
        return [(id.decode(), _mail(_fields(fields or ()))) for id, fields in entries]

    async def done(self, token: str) -> None:
        await self._tell(_ended(names.MAIL, names.MAIL_GROUP, token))

    async def bury(self, token: str, reason: str, kept: SealedMail | None = None) -> None:
        letter: Command = ("XADD", names.DEAD, "MAXLEN", "~", DEAD_KEPT, "*", "lane", "mail", "reason", reason)
        if kept is not None:
            letter += ("id", kept.id, "w", text(kept.wrapped), "x", text(kept.box))
        ended = _ended(names.MAIL, names.MAIL_GROUP, token)
        await self._tell([letter, *ended])

    async def _tell(self, commands: Sequence[Command]) -> None:
        """All of them or none."""
        try:
            *_, done = await self._link.pipeline([("MULTI",), *commands, ("EXEC",)])
            if isinstance(done, ResponseError):  # a server that is full, say
                raise Unavailable(f"Redis: {done}")
        except Unavailable:
            self._next = "0"
            raise

    async def close(self) -> None:
        await self._link.close()


async def _read_group(
    link: Link, stream: str, group: str, consumer: str, most: int, after: str = ">"
) -> list[tuple[bytes, Any]]:
    """What nobody was handed yet; with `after` "0", what this consumer was handed and has not ended."""
    command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", most, "BLOCK", BLOCK_MS, "STREAMS", stream, after)
    try:
        answer = await link.call(*command, seconds=BLOCK_SECONDS)
    except ResponseError as error:
        # UNBLOCKED is how Redis 7.0 says that the stream was deleted under a blocked read
        if not any(word in str(error) for word in ("NOGROUP", "UNBLOCKED")):
            raise refusal(error) from None
        await _create_group(link, stream, group)
        return []
    return [(id, fields) for _, entries in answer or () for id, fields in entries]


async def _create_group(link: Link, stream: str, group: str) -> None:
    """At 0: nothing that is there already is passed over."""
    try:
        await link.call("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
        log.info("group made", extra={"fields": {"stream": stream}})
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise refusal(error) from None


def _to_node(stream: str, fields: Command) -> list[Command]:
    return [
        ("XADD", stream, "MAXLEN", "~", REPLIES_KEPT, "*", *fields),
        ("PEXPIRE", stream, REPLIES_KEPT_MS),
    ]


def _acknowledge(delivery: Delivery) -> list[Command]:
    return _ended(names.lane(delivery.lane), names.GROUP, delivery.token)


def _ended(stream: str, group: str, id: str) -> list[Command]:
    return [("XACK", stream, group, id), ("XDEL", stream, id)]


def _delivery(lane: Lane, id: bytes, fields: Sequence[bytes] | None, deliveries: int = 1) -> Delivery:
    return Delivery(lane, id.decode(), _entry(lane, _fields(fields or ())), deliveries)


def _entry(lane: Lane, fields: dict[str, bytes]) -> Entry | None:
    try:
        rid, node, event = (fields[name].decode() for name in ("r", "n", "e"))
        same, replay = fields["s"].decode(), fields["p"] == b"1"
        return Entry(rid, node, event, lane, int(fields["d"]), fields["w"], fields["x"], same, replay)
    except (KeyError, ValueError):
        return None


def _reply(fields: dict[str, bytes]) -> Sealed | Signed | None:
    try:
        if fields.get("k") == b"reply":
            return Sealed(fields["r"].decode(), unpack(fields["x"]))
        return Signed(unpack(fields["x"]), unpack(fields["m"]), fields.get("r", b"").decode())
    except (KeyError, ValueError):
        log.error("not a reply", extra={"fields": {"names": sorted(fields)[:10]}})
        return None


def _mail(fields: dict[str, bytes]) -> SealedMail | None:
    try:
        return SealedMail(fields["id"].decode(), unpack(fields["w"]), unpack(fields["x"]))
    except (KeyError, ValueError):
        return None


def _fields(flat: Sequence[bytes]) -> dict[str, bytes]:
    names_ = [name.decode(errors="replace") for name in flat[::2]]
    return dict(zip(names_, flat[1::2], strict=True))


def _order(id: bytes) -> tuple[int, int]:
    ms, _, n = id.partition(b"-")
    return int(ms), int(n or 0)
