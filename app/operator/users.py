"""`python -m app users …`: an account as it is kept, and shutting it out or letting it in; never a hash or a secret."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from app.entries import sign_notice
from app.messages import SessionEnded
from app.operator.words import NONE, Misuse, Undone, columns, moment, plain
from app.ports import Accounts, AccountSeen
from app.records import ChangeAccount, EndSession, Notice, Write
from app.settings import NO_SECRETS, Secrets
from app.tokens import new_id

USAGE = "python -m app users show|disable|enable|end-sessions EMAIL-or-USER-ID"
STATUSES: dict[str, Literal["active", "disabled"]] = {"disable": "disabled", "enable": "active"}
REASONS = {"disable": "account_disabled", "end-sessions": "operator"}
EVENTS = {"disable": "operator_disabled", "enable": "operator_enabled", "end-sessions": "operator_ended_sessions"}
ROUNDS = 10
STILL_THERE = "still count as connected: their gateway died just now, or has another FIN_EDGE_SECRET."
LEAVE_SECONDS, LOOK_SECONDS = 2.0, 0.05
DEVICE_HEAD = ("device", "name", "last seen", "online")
SESSION_HEAD = ("session", "device", "address", "began", "last seen", "online")


@dataclass(frozen=True)
class Users:
    """`by`: who asks for it, for the audit. `edge` signs what gateways are told; to show, neither is needed."""

    what: Literal["show", "disable", "enable", "end-sessions"]
    who: str
    by: str = ""
    edge: Secrets = field(default_factory=lambda: NO_SECRETS, repr=False)

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Users:
        match arguments:
            case ["show" | "disable" | "enable" | "end-sessions" as what, who] if who and not who.startswith("-"):
                return cls(what, who)
            case _:
                raise Misuse(f"usage: {USAGE}")

    @property
    def changes(self) -> bool:
        return self.what != "show"

    async def run(
        self, connect: Callable[[], Awaitable[Accounts]], say: Callable[[str], None], *, terminal: bool = False
    ) -> int:
        """The exit status: 1 where connections of ended sessions are still there."""
        accounts = await connect()
        try:
            seen = await the(accounts, self.who)
            if self.what == "show":
                for line in as_text(seen):
                    say(line)
                return 0
            return await self._change(accounts, seen, say)
        finally:
            await accounts.close()

    async def _change(self, accounts: Accounts, seen: AccountSeen, say: Callable[[str], None]) -> int:
        """Until a look finds nothing to do: a session that started while it was read is ended by the next round, and
        of a disabled account none starts any more.
        """
        name = f"{plain(seen.account.email)} ({plain(seen.account.id)})"
        done: list[Write] = []
        for _ in range(ROUNDS):
            writes = writes_of(self.what, seen)
            if not writes:
                break
            if await self._apply(accounts, seen, writes):
                done += writes
            seen = await the(accounts, self.who)
        else:
            raise Undone(f"{name} changes as fast as it is read; {_counted(done)}. Ask again.")
        ended = {write.session.id for write in done if isinstance(write, EndSession)}
        say(f"{name}: {_verdict(self.what, done)}.")
        if ended and (left := await _left(accounts, self.who, ended)):
            say(f"{left} of them {STILL_THERE}")
            return 1
        return 0

    async def _apply(self, accounts: Accounts, seen: AccountSeen, writes: Sequence[Write]) -> bool:
        id, user = new_id(self.edge.current.kid), seen.account.id
        told = [
            Notice(user, w.session.id, SessionEnded(session_id=w.session.id, reason=w.reason), ("", ""), close=True)
            for w in writes
            if isinstance(w, EndSession)
        ]
        what = self.what if any(isinstance(write, ChangeAccount) for write in writes) else "end-sessions"
        audit = {"event": EVENTS[what], "code": "ok", "request": id, "user": user, "ip": "", "by": self.by}
        return await accounts.apply(id, writes, [(notice, sign_notice(self.edge, notice)) for notice in told], audit)


async def the(accounts: Accounts, who: str) -> AccountSeen:
    found = await accounts.find(who)
    if found is None:
        raise Undone(f"there is no account {plain(who)}.")
    return found


def writes_of(what: str, seen: AccountSeen) -> tuple[Write, ...]:
    """What is left to be done."""
    account = replace(seen.account, status=STATUSES.get(what, seen.account.status))
    change = (ChangeAccount(seen.account, account),) if account != seen.account else ()
    ends = tuple(EndSession(session, REASONS[what]) for session in seen.sessions) if what in REASONS else ()
    return (*change, *ends)


def _verdict(what: str, done: Sequence[Write]) -> str:
    changed = any(isinstance(write, ChangeAccount) for write in done)
    if what == "enable":
        return "active again" if changed else "active already"
    if what == "disable":
        return f"{'disabled' if changed else 'disabled already'}, {_counted(done)}"
    return _counted(done)


def _counted(done: Sequence[Write]) -> str:
    ended = sum(isinstance(write, EndSession) for write in done)
    return f"{ended} session{'' if ended == 1 else 's'} ended" if ended else "no session had to end"


async def _left(accounts: Accounts, who: str, ended: set[str]) -> int:
    """How many of these sessions have a connection, when there is none or after LEAVE_SECONDS."""
    until = asyncio.get_running_loop().time() + LEAVE_SECONDS
    while left := len(ended & (await the(accounts, who)).online):
        if asyncio.get_running_loop().time() > until:
            break
        await asyncio.sleep(LOOK_SECONDS)
    return left


def as_text(seen: AccountSeen) -> Iterator[str]:
    account = seen.account
    yield from columns(
        [
            ("id", plain(account.id)),
            ("e-mail", plain(account.email)),
            ("status", account.status),
            ("created", moment(account.created / 1000)),
            ("version", str(account.version)),
            ("second factor", _yes(seen.account.has2fa)),
        ]
    )
    sessions = sorted(seen.sessions, key=lambda session: (-session.seen, session.id))
    devices = sorted(seen.devices, key=lambda device: (-device.seen, device.ref))
    there = {session.device_ref for session in sessions if session.id in seen.online}
    if devices:
        yield ""
        rows = [(d.ref, d.name, moment(d.seen / 1000), _yes(d.ref in there)) for d in devices]
        yield from columns([DEVICE_HEAD, *map(_plain_row, rows)])
    if sessions:
        yield ""
        times = [(moment(s.created / 1000), moment(s.seen / 1000), _yes(s.id in seen.online)) for s in sessions]
        known = [(s.id, s.device_name, s.ip) for s in sessions]
        yield from columns([SESSION_HEAD, *(_plain_row((*k, *t)) for k, t in zip(known, times))])


def _plain_row(row: Sequence[str]) -> tuple[str, ...]:
    return tuple(plain(cell) or NONE for cell in row)


def _yes(true: bool) -> str:
    return "yes" if true else "no"
