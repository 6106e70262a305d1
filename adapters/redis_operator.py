"""The operator's view of the queue on Redis Streams."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from redis.exceptions import ResponseError

from adapters import names
from adapters.lua import BACKLOG, RETRY
from adapters.redis_link import Batch, Link
from adapters.redis_streams import NODE_LIVES_MS, WORKER_LIVES_MS
from app.messages import Lane
from app.ports import Backlog, Beat, LaneVitals, Letter, Overview, Unavailable, Vitals, WorkerSeen

LETTERS_AT_ONCE = 500
MOST_OF_AN_ID = 2**64


class _Said(msgspec.Struct):
    """What beat.lua keeps of a worker."""

    at: int
    since: int
    hash_ms: float
    lanes: dict[Lane, tuple[int, float, int, float]]


class RedisOperator:
    """Operator, over one connection."""

    def __init__(self, link: Link) -> None:
        self._batch = Batch(link)

    async def look(self) -> Overview:
        lanes, batch = list(Lane), self._batch
        streams = [(names.lane(lane), names.GROUP) for lane in lanes] + [(names.MAIL, names.MAIL_GROUP)]
        said, nodes, dead, newest, *found = await _answers(
            batch.command("HGETALL", names.WORKERS),
            batch.command("ZRANGE", names.LIVING, 0, -1, "WITHSCORES"),
            batch.command("XLEN", names.DEAD),
            batch.command("XREVRANGE", names.DEAD, "+", "-", "COUNT", 1),
            *(batch.script(BACKLOG, [stream], group) for stream, group in streams),
        )
        now, ahead = found[0][:2]
        since = now - NODE_LIVES_MS
        beats = dict(_beats(said, now))
        pending: dict[str, dict[Lane, int]] = {name: {} for name in beats}
        for lane, (*_, consumers) in zip(lanes, found):
            for name, held in consumers:
                pending.setdefault(_text(name), {})[lane] = held
        return Overview(
            now=now,
            workers=tuple(
                WorkerSeen(name, {lane: held.get(lane, 0) for lane in lanes}, beats.get(name))
                for name, held in sorted(pending.items())
            ),
            nodes=tuple(sorted(_text(node) for node, at in zip(nodes[::2], nodes[1::2]) if int(at) > since)),
            lanes={lane: _backlog(answer) for lane, answer in zip(lanes, found)},
            mail=_backlog(found[-1]),
            dead=dead,
            newest=_letter(*newest[0]) if newest else None,
            ahead=ahead,
        )

    async def letters(self, most: int | None) -> Sequence[Letter]:
        found: list[Letter] = []
        end = "+"
        while most is None or len(found) < most:
            count = LETTERS_AT_ONCE if most is None else min(LETTERS_AT_ONCE, most - len(found))
            [page] = await _answers(self._batch.command("XREVRANGE", names.DEAD, end, "-", "COUNT", count))
            found += [_letter(id, fields) for id, fields in page]
            if len(page) < count:
                break
            end = f"({found[-1].id}"
        return found

    async def retry(self, ids: Sequence[str]) -> Sequence[Literal["retried", "request", "unreadable", "unknown"]]:
        known = [id for id in ids if _is_id(id)]
        done = await _answers(*(self._batch.script(RETRY, [names.DEAD, names.MAIL], id) for id in known))
        answers = dict(zip(known, done))
        return [answers[id].decode() if id in answers else "unknown" for id in ids]

    async def drop(self, ids: Sequence[str]) -> Sequence[bool]:
        known = [id for id in ids if _is_id(id)]
        done = await _answers(*(self._batch.command("XDEL", names.DEAD, id) for id in known))
        answers = dict(zip(known, done))
        return [answers.get(id, 0) == 1 for id in ids]

    async def close(self) -> None:
        await self._batch.close()


async def _answers(*asked: Awaitable[Any]) -> list[Any]:
    try:
        return await asyncio.gather(*asked)
    except ResponseError as refused:
        raise Unavailable(f"Redis refuses: {refused}") from None


def _beats(flat: Sequence[bytes], now: int) -> Iterator[tuple[str, Beat]]:
    """By worker. What cannot be read is passed over: that worker counts as gone."""
    for name, packed in zip(flat[::2], flat[1::2], strict=True):
        try:
            said = msgspec.msgpack.decode(packed, type=_Said)
        except msgspec.MsgspecError:
            continue
        lanes = {lane: LaneVitals(*said.lanes[lane]) for lane in Lane if lane in said.lanes}
        alive = abs(now - said.at) <= WORKER_LIVES_MS
        yield _text(name), Beat(said.at, said.since, alive, Vitals(said.hash_ms, lanes))


def _backlog(answer: Sequence[Any]) -> Backlog:
    """What BACKLOG answers."""
    _, _, entries, in_hand, waits, held, _ = answer
    # an entry that was deleted while in hand is pending still, until somebody reaps
    ages = (None if age < 0 else age for age in (waits, held))
    return Backlog(max(0, entries - in_hand), in_hand, *ages)


def _letter(id: bytes, flat: Sequence[bytes]) -> Letter:
    fields: Mapping[str, str] = dict(zip(map(_text, flat[::2]), map(_text, flat[1::2])))
    lane = fields.get("lane", "")
    return Letter(
        id=id.decode(),
        at=int(id.partition(b"-")[0]),
        lane=lane,
        reason=fields.get("reason", ""),
        event=fields.get("e", ""),
        rid=fields.get("id" if lane == "mail" else "r", ""),
        retryable=lane == "mail" and {"id", "w", "x"} <= set(fields),
    )


def _is_id(id: str) -> bool:
    """Of one entry: Redis takes half an id for a range, and refuses what does not fit in 64 bits."""
    found = re.fullmatch("([0-9]{1,20})-([0-9]{1,20})", id)
    return found is not None and max(map(int, found.groups())) < MOST_OF_AN_ID


def _text(said: bytes) -> str:
    return said.decode(errors="replace")
