"""The mail queue on a Redis stream with a group of its own.

A mail stays pending under its mailer's name from when it is taken until it has ended, however long it waits for
another try, and the stream counts how often it was begun. A mailer that lives holds what is its own; what one that is
not heard of held is taken over.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from contextlib import suppress

from redis.exceptions import ResponseError

from adapters import names
from adapters.lua import POST, POST_AGAIN, POST_END, RETIRE, TELL
from adapters.redis_link import Batch, Link
from adapters.redis_state import BLOCK_MS, DEAD_KEPT, to_map
from adapters.redis_store import REPLIES_KEPT, REPLIES_KEPT_MS, text, unpack
from adapters.redis_streams import read_group
from adapters.together import together
from app.ports import MailInHand, SealedMail, Signed, Unavailable

MAILER_LIVES_MS = 8_000  # many beats: one that is paused for longer counts as dead, and its mails are sent by others
# And is seen to be silent for so long: after an outage, or when a clock was set forwards, the others speak first.
SURE_SECONDS = 3.0
TAKEN_OVER_AT_ONCE = 1000
OWN_AT_ONCE = 1000


def mail_queue(redis_url: str, consumer: str) -> RedisMailQueue:
    return RedisMailQueue(Batch(Link(redis_url, "mailer")), Link(redis_url, "take-mail"), consumer)


class RedisMailQueue:
    """MailQueue for one mailer. `reader`: a connection for its blocking reads."""

    def __init__(self, batch: Batch, reader: Link, consumer: str) -> None:
        self._batch, self._reader, self._consumer = batch, reader, consumer
        self._hand: set[str] = set()  # what is being sent, or waits for another try
        self._due: list[tuple[float, str]] = []  # a heap of what waits
        self._clock: tuple[int, int, float] | None = None  # the store's clock, how far it is ahead, and when that was
        self._silent: dict[str, float] = {}  # mailers that are not heard of, and since when
        self._lost = False  # something may be pending under this name that is not in hand
        self._new_first = False

    async def beat(self) -> None:
        sure = time.monotonic() - SURE_SECONDS
        gone = [name for name, since in self._silent.items() if since <= sure]
        about = (names.MAIL_GROUP, self._consumer, MAILER_LIVES_MS, TAKEN_OVER_AT_ONCE)
        try:
            answer = await self._batch.script(POST, [names.MAIL, names.MAILERS], *about, *gone)
        except Unavailable:
            self._silent.clear()
            raise
        now, ahead, lapsed, silent, taken_over = answer
        if lapsed and self._clock is not None:  # others may hold it by now
            self._hand.difference_update(token for _, token in self._due)
            self._due.clear()
            self._lost = True
        self._clock = now, ahead, time.monotonic()
        self._silent = {name.decode(): self._silent.get(name.decode(), time.monotonic()) for name in silent}
        for id in taken_over:
            if (token := id.decode()) not in self._hand:
                self.put_off(token, 0)

    def now(self) -> int:
        assert self._clock is not None  # who asks has beaten
        now, _, at = self._clock
        return now + int((time.monotonic() - at) * 1000)

    async def take(self, most: int) -> Sequence[MailInHand]:
        try:
            if self._lost:
                await self._find_the_lost()
            wait = self._due[0][0] - time.monotonic() if self._due else BLOCK_MS / 1000
            if wait > 0:
                taken = await self._new(most, max(1, min(BLOCK_MS, int(wait * 1000))))
            else:  # in turn, so that neither what comes nor what comes again waits for all of the other
                self._new_first = not self._new_first
                taken = await self._new(most, 1) if self._new_first else []
                taken += await self._again(most - len(taken))
        except Exception:
            self._lost = True
            raise
        self._hand.update(each.token for each in taken)
        return taken

    def put_off(self, token: str, seconds: float) -> None:
        self._hand.add(token)
        heapq.heappush(self._due, (time.monotonic() + seconds, token))

    async def done(self, token: str) -> None:
        await self._end(token)

    async def bury(self, token: str, reason: str, kept: SealedMail | None = None) -> None:
        box = ("id", kept.id, "w", text(kept.wrapped), "x", text(kept.box)) if kept is not None else ()
        await self._end(token, "lane", "mail", "reason", reason, *box)

    async def tell(self, node: str, signed: Signed) -> None:
        keys = [names.NODES + node, names.REPLIES + node]
        await self._batch.script(TELL, keys, REPLIES_KEPT, REPLIES_KEPT_MS, text(signed.body), text(signed.mac))

    async def close(self) -> None:
        """What is in hand is taken over by the others as soon as they are sure."""
        with suppress(Unavailable, ResponseError):
            gone = self._batch.command("ZREM", names.MAILERS, self._consumer)
            await together(gone, self._batch.script(RETIRE, [names.MAIL], names.MAIL_GROUP, self._consumer))
        await self._batch.close()
        await self._reader.close()

    async def _new(self, most: int, block_ms: int) -> list[MailInHand]:
        found = await read_group(self._reader, names.MAIL, names.MAIL_GROUP, self._consumer, most, block_ms)
        return [self._in_hand(id.decode(), 1, fields) for id, fields in found]

    async def _again(self, most: int) -> list[MailInHand]:
        taken: list[MailInHand] = []
        while len(taken) < most and self._due and self._due[0][0] <= time.monotonic():
            _, token = heapq.heappop(self._due)
            self._hand.discard(token)
            if found := await self._batch.script(POST_AGAIN, [names.MAIL], names.MAIL_GROUP, self._consumer, token):
                taken.append(self._in_hand(token, *found))
        return taken

    async def _find_the_lost(self) -> None:
        """What was handed to this mailer in an answer that never came."""
        after = "-"
        while after:
            about = (names.MAIL, names.MAIL_GROUP, after, "+", OWN_AT_ONCE, self._consumer)
            try:
                found = [id.decode() for id, *_ in await self._batch.command("XPENDING", *about)]
            except ResponseError as error:
                if "NOGROUP" not in str(error):
                    raise
                found = []  # reading makes the group anew
            for token in found:
                if token not in self._hand:
                    self.put_off(token, 0)
            after = f"({found[-1]}" if len(found) == OWN_AT_ONCE else ""
        self._lost = False

    async def _end(self, token: str, *letter: str) -> None:
        keys = [names.MAIL, names.DEAD]
        await self._batch.script(POST_END, keys, names.MAIL_GROUP, token, DEAD_KEPT, *letter)
        self._hand.discard(token)

    def _in_hand(self, token: str, tries: int, fields: Sequence[bytes] | None) -> MailInHand:
        ahead = self._clock[1] if self._clock is not None else 0  # ids are made by the server's own clock
        return MailInHand(token, _mail(to_map(fields or ())), tries, int(token.partition("-")[0]) + ahead)


def _mail(fields: dict[str, bytes]) -> SealedMail | None:
    try:
        return SealedMail(fields["id"].decode(), unpack(fields["w"]), unpack(fields["x"]))
    except (KeyError, ValueError):
        return None
