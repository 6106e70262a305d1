"""`python -m app audit`: what became of every request, and what operators did: the newest, and live from there on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from app.operator.users import the
from app.operator.words import NONE, Misuse, line_of_json, moment, plain
from app.ports import Accounts, Event, Unavailable

USAGE = "python -m app audit [--follow] [--account EMAIL-or-USER-ID] [--last N] [--json]"
LAST, MOST_LAST = 50, 100_000
AGAIN_SECONDS = 1.0
COLUMNS = {"event": 26, "code": 19, "user": 28, "ip": 15, "request": 28}
NOT_SHOWN = {"worker"}  # of interest to programs alone


@dataclass(frozen=True)
class Audit:
    follow: bool = False
    account: str = ""
    last: int | None = None
    json: bool = False

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Audit:
        follow, account, last, json, rest = False, "", None, False, list(arguments)
        while rest:
            match rest:
                case ["--follow", *rest] if not follow:
                    follow = True
                case ["--json", *rest] if not json:
                    json = True
                case ["--account", who, *rest] if not account and who and not who.startswith("-"):
                    account = who
                case ["--last", number, *rest] if last is None:
                    last = _number(number)
                case _:
                    raise Misuse(f"usage: {USAGE}")
        return cls(follow, account, last, json)

    async def run(
        self, connect: Callable[[], Awaitable[Accounts]], say: Callable[[str], None], *, terminal: bool = False
    ) -> int:
        """The exit status. Unavailable ends a list; who follows is told, and misses nothing of what came meanwhile."""
        if self.follow:
            with suppress(asyncio.CancelledError):  # Ctrl-C is how it ends
                await self._follow(connect, say)
            return 0
        accounts = await connect()
        try:
            self._say(say, (await self._newest(accounts, await self._user(accounts)))[0])
        finally:
            await accounts.close()
        return 0

    async def _follow(self, connect: Callable[[], Awaitable[Accounts]], say: Callable[[str], None]) -> None:
        accounts: Accounts | None = None
        user, end, away = None, "", ""
        try:
            while True:
                try:
                    accounts = accounts or await connect()
                    if not end:
                        user = await self._user(accounts)
                        events, end = await self._newest(accounts, user)
                    else:
                        found = await accounts.events_after(end)
                        end = found[-1].id if found else end
                        events = [event for event in found if user in (None, event.fields.get("user"))]
                    self._say(say, events)
                    away = ""
                except Unavailable as error:
                    if not away:  # said once, however long it lasts
                        say(self._away(str(error)))
                    away = str(error)
                    if accounts is not None:
                        await accounts.close()
                    accounts = None  # an embedded server may come back at another address
                    await asyncio.sleep(AGAIN_SECONDS)
        finally:
            if accounts is not None:
                await accounts.close()

    async def _user(self, accounts: Accounts) -> str | None:
        return (await the(accounts, self.account)).account.id if self.account else None

    async def _newest(self, accounts: Accounts, user: str | None) -> tuple[Sequence[Event], str]:
        return await accounts.events(LAST if self.last is None else self.last, user)

    def _say(self, say: Callable[[str], None], events: Sequence[Event]) -> None:
        for event in events:
            say(line_of_json(as_json(event)) if self.json else as_text(event))

    def _away(self, why: str) -> str:
        return line_of_json({"unavailable": why}) if self.json else f"The store does not answer: {plain(why)}"


def _number(said: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", said) or int(said) > MOST_LAST:
        raise Misuse(f"--last must be a whole number from 0 to {MOST_LAST}.")
    return int(said)


def as_json(event: Event) -> dict[str, Any]:
    """{id, at_ms: since 1970, event, code, user?, ip?, request?, worker?, by?, …}; what is not known is absent."""
    known = {name: value for name, value in event.fields.items() if value}
    return known | {"id": event.id, "at_ms": event.at}


def as_text(event: Event) -> str:
    """Time, event, code, user, address, request; then, quoted, what only some events have."""
    cells = [(plain(event.fields.get(name, "")) or NONE).ljust(width) for name, width in COLUMNS.items()]
    others = {name: value for name, value in event.fields.items() if name not in {*COLUMNS, *NOT_SHOWN}}
    more = [f"{plain(name)}={_quoted(value)}" for name, value in others.items() if value]
    return "  ".join([f"{moment(event.at / 1000)[:-1]}.{event.at % 1000:03}Z", *cells, *more]).rstrip()


def _quoted(said: str) -> str:
    """So that what somebody chose to say does not pass for a field of its own."""
    escaped = plain(said).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
