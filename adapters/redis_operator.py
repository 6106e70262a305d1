"""The operator's view of the queue on Redis Streams."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from redis.exceptions import ResponseError

from adapters import names
from adapters.lua import BACKLOG, RETRY
from adapters.redis_link import Batch, Link
from adapters.redis_state import NODE_LIVES_MS, WORKER_LIVES_MS
from adapters.together import together
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
        said, nodes, dead, newest, mail = await _answers(
            batch.command("HGETALL", names.WORKERS),
            batch.command("ZRANGE", names.LIVING, 0, -1, "WITHSCORES"),
            batch.command("XLEN", names.DEAD),
            batch.command("XREVRANGE", names.DEAD, "+", "-", "COUNT", 1),
            batch.script(BACKLOG, [names.MAIL], names.MAIL_GROUP),
        )
        now, ahead = mail[:2]
        since = now - NODE_LIVES_MS
        beats = dict(_beats(said, now))
        pending: dict[str, dict[Lane, int]] = {name: {} for name in beats}
        found = await self._lanes(lanes, beats, now)
        for lane, (_, consumers) in zip(lanes, found):
            for name, held in consumers.items():
                pending.setdefault(name, {})[lane] = held
        return Overview(
            now=now,
            workers=tuple(
                WorkerSeen(name, {lane: held.get(lane, 0) for lane in lanes}, beats.get(name))
                for name, held in sorted(pending.items())
            ),
            nodes=tuple(sorted(_text(node) for node, at in zip(nodes[::2], nodes[1::2]) if int(at) > since)),
            lanes={lane: backlog for lane, (backlog, _) in zip(lanes, found)},
            mail=_backlog(mail),
            dead=dead,
            newest=_letter(*newest[0]) if newest else None,
            ahead=ahead,
        )

    async def _lanes(
        self, lanes: Sequence[Lane], beats: Mapping[str, Beat], now: int
    ) -> Sequence[tuple[Backlog, dict[str, int]]]:
        """Of each lane what it holds, and who holds how much of it."""
        found = await _answers(*(self._batch.script(BACKLOG, [names.lane(lane)], names.GROUP) for lane in lanes))
        return [(_backlog(answer), {_text(name): held for name, held in answer[-1]}) for answer in found]

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


class ElsewhereOperator(RedisOperator):
    """Where another broker holds the entries: what is in hand is what workers say of themselves."""

    async def _lanes(
        self, lanes: Sequence[Lane], beats: Mapping[str, Beat], now: int
    ) -> Sequence[tuple[Backlog, dict[str, int]]]:
        counts = await _answers(*(self._batch.command("ZCARD", names.lane_open(lane)) for lane in lanes))
        firsts = await _answers(
            *(self._batch.command("ZRANGE", names.lane_open(lane), 0, 0, "WITHSCORES") for lane in lanes)
        )
        found = []
        for lane, count, first in zip(lanes, counts, firsts):
            held = {name: can.in_hand for name, beat in beats.items() if (can := beat.vitals.lanes.get(lane))}
            in_hand = min(count, sum(held.values()))
            age = max(0, now - int(first[1])) if first else None
            waits = count > in_hand
            found.append((Backlog(count - in_hand, in_hand, age if waits else None, None if waits else age), held))
        return found


async def _answers(*asked: Awaitable[Any]) -> list[Any]:
    try:
        return await together(*asked)
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
