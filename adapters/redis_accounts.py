"""The operator's view of accounts and of the audit, and the way in which an operator changes an account."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from redis.exceptions import ResponseError

from adapters import names
from adapters.redis_link import Batch, Link
from adapters.redis_state import to_map
from adapters.redis_store import RedisStore
from app.messages import canonical_email
from app.ports import AccountSeen, Event, Signed, Unavailable
from app.records import Facts, Needs, Notice, Write

EVENTS_AT_ONCE = 1000
ID = re.compile("[A-Za-z0-9_-]{1,64}")  # what else begins with an id names another key
BLOCK_MS = 2000
BLOCK_SECONDS = 5.0  # past the block, for an answer that is on its way
NEVER = 2**52  # a deadline
LOOK = "look"  # the id under which it only reads: nothing is ever done under it


class RedisAccounts:
    """Accounts, over one connection. Nodes are told by their reply streams."""

    def __init__(self, link: Link) -> None:
        self._link, self._batch = link, Batch(link)
        self._store = RedisStore(self._batch)

    async def find(self, who: str) -> AccountSeen | None:
        with _refused():
            email = await self._email(who)
            if email is None:
                return None
            facts = await self._store.check(LOOK, NEVER, Needs(email=email, devices=True, sessions=True))
            if not isinstance(facts, Facts) or facts.account is None:
                return None
        return AccountSeen(facts.account, facts.devices, facts.sessions, facts.online)

    async def _email(self, who: str) -> str | None:
        """The address that may have an account."""
        if ID.fullmatch(who):
            email = await self._batch.command("HGET", names.USERS + who, "email")
            return None if email is None else str(email, "utf-8")
        try:
            return canonical_email(who)
        except ValueError:
            return None

    async def apply(
        self,
        id: str,
        writes: Sequence[Write],
        notices: Sequence[tuple[Notice, Signed]],
        audit: Mapping[str, str],
    ) -> bool:
        with _refused():
            return await self._store.apply(id, writes, notices, audit) != "conflict"

    async def events(self, most: int, user_id: str | None) -> tuple[Sequence[Event], str]:
        found: list[Event] = []
        last, before = "0-0", "+"
        while True:
            with _refused():
                page = await self._batch.command("XREVRANGE", names.EVENTS, before, "-", "COUNT", EVENTS_AT_ONCE)
            events = [_event(id, flat) for id, flat in page]
            if before == "+" and events:
                last = events[0].id
            found += [event for event in events if user_id in (None, event.fields.get("user"))]
            if len(found) >= most or len(page) < EVENTS_AT_ONCE:
                return found[:most][::-1], last
            before = f"({events[-1].id}"

    async def events_after(self, end: str) -> Sequence[Event]:
        command = ("XREAD", "COUNT", EVENTS_AT_ONCE, "BLOCK", BLOCK_MS, "STREAMS", names.EVENTS, end)
        with _refused():
            answer = await self._link.call(*command, seconds=BLOCK_SECONDS)
        return [_event(id, flat) for _, entries in answer or () for id, flat in entries]

    async def close(self) -> None:
        await self._batch.close()


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except ResponseError as refused:
        raise Unavailable(f"Redis refuses: {refused}") from None


def _event(id: bytes, flat: Sequence[bytes]) -> Event:
    fields = {name: value.decode(errors="replace") for name, value in to_map(flat).items()}
    return Event(id.decode(), int(id.partition(b"-")[0]), fields)
