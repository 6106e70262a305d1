"""Records as hashes, and each `Write` as the conditions it stands on and the commands that make it.

A field whose value is its default is not kept: absent and empty are the same to a condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from adapters import names
from adapters.redis_link import Command
from app import rules
from app.records import (
    Account,
    BindChallenge,
    Challenge,
    ChangeAccount,
    ConfirmSession,
    CreateAccount,
    DecideLogin,
    Device,
    EndChallenge,
    EndOthers,
    EndSession,
    ForgetDevice,
    KeepSession,
    NewestReset,
    PutChallenge,
    RenewCode,
    RotateSession,
    Session,
    StartSession,
    TrustDevice,
    UpgradePassword,
    Write,
)

# Whoever decided on an account decides again when one of these has changed meanwhile.
COUNTED = frozenset({"password", "status", "totp"})
MOST_BOUND = 8  # connections that may answer one challenge; the longest bound makes room


@dataclass
class Translated:
    """Writes as settle.lua takes them."""

    conditions: list[Command] = field(default_factory=list)  # {expected, command...}
    commands: list[Command] = field(default_factory=list)
    endings: list[Command] = field(default_factory=list)  # {list, prefix of sessions, id of one that stays, why}
    swaps: list[Command] = field(default_factory=list)  # {key, field, old, new}

    def add(self, write: Write) -> None:
        match write:
            case PutChallenge(challenge):
                key = names.CHALLENGES + challenge.id
                self._do("HSET", key, *flat(_kept(challenge)))
                self._do("PEXPIREAT", key, challenge.expires)
            case BindChallenge(challenge, connection):
                key = names.CHALLENGES + challenge.id
                self._while_waiting(challenge)
                self._only_while(challenge.bound, key, "bound")
                bound = (*challenge.bound.split(), connection)[-MOST_BOUND:]
                self._do("HSET", key, "bound", " ".join(bound))
            case RenewCode(challenge):
                self._while_waiting(challenge)
                renewed = ("code_mac", challenge.code_mac, "code_expires", challenge.code_expires)
                self._do("HSET", names.CHALLENGES + challenge.id, *renewed)
            case EndChallenge(challenge):
                self._while_waiting(challenge)
                self._do("DEL", names.CHALLENGES + challenge.id)
            case DecideLogin(challenge_id, user_id, decided):
                self._only_while(user_id, names.CHALLENGES + challenge_id, "user_id")
                self._do("HSET", names.CHALLENGES + challenge_id, "decided", decided)
            case CreateAccount(account, of, device):
                self.conditions.append(("", "GET", names.EMAILS + account.email))
                if of is not None:
                    self._only_while(of.user_id, names.CHALLENGES + of.id, "user_id")
                    self._do("DEL", names.CHALLENGES + of.id)
                self._do("SET", names.EMAILS + account.email, account.id)
                self._do("HSET", _user(account), *flat(_kept(account)))
                self._keep_device(account, device)
            case ChangeAccount(old, new):
                self._change(old, new)
            case NewestReset(user_id, challenge_id):
                self._do("HSET", names.USERS + user_id, "reset", challenge_id)
            case TrustDevice(account, device):
                self._keep_device(account, device)
                self._count(account)
            case ForgetDevice(account, ref):
                self._do("HDEL", _user(account) + names.DEVICES_OF, ref)
                self._count(account)
            case EndOthers(user_id, stays, reason):
                listed = names.USERS + user_id + names.SESSIONS_OF
                self.endings.append((listed, names.SESSIONS, stays, reason))
            case UpgradePassword(user_id, old_record, new_record):
                self.swaps.append((names.USERS + user_id, "password", old_record, new_record))
            case KeepSession(session):
                self._while_it_lives(session)
            case StartSession() | RotateSession() | ConfirmSession() | EndSession():
                self._session(write)

    def _session(self, write: StartSession | RotateSession | ConfirmSession | EndSession) -> None:
        session = write.session
        key, listed = names.SESSIONS + session.id, names.USERS + session.user_id + names.SESSIONS_OF
        match write:
            case StartSession(_, account, trusted):
                self._only_while(str(account.version), _user(account), "version")
                ends = rules.session_ends(session)
                self._do("HSET", key, *flat(_session_fields(session)))
                self._do("PEXPIREAT", key, ends)
                self._do("ZREMRANGEBYSCORE", listed, "-inf", session.created)
                self._list(session, ends, session.created)
                if trusted is not None:
                    seen = Device(trusted.ref, trusted.mac, session.device_name, session.created)
                    self._keep_device(account, seen)
            case RotateSession(_, now):
                self._while_it_lives(session)
                self._only_while(str(session.counter), key, "counter")
                self._see(session, now, ("counter", session.counter + 1, "rotated", now))
            case ConfirmSession(_, now):
                self._while_it_lives(session)
                # who is told the current token is told the one that is current then
                self._only_while(str(session.counter), key, "counter")
                if now > session.seen:  # what was seen later meanwhile stays so
                    self._see(session, now)
            case EndSession(_, reason, kept_ms):
                # ended twice at once is ended; but a record that has gone must not come back
                self._only_while(session.user_id, key, "user")
                self._do("HSET", key, "ended", reason)
                if kept_ms is not None:
                    self._do("PEXPIRE", key, kept_ms, "LT")
                self._do("ZREM", listed, session.id)

    def _change(self, old: Account, new: Account) -> None:
        key = _user(old)
        before, after = _texts(old), _texts(new)
        changed = [name for name, text in after.items() if text != before[name]]
        for name in changed:
            self._only_while(before[name], key, name)
        if changed:
            self._only_while(old.email, key, "email")  # an account that has gone must not come back
            self._do("HSET", key, *flat({name: after[name] for name in changed}))
        if COUNTED.intersection(changed):
            self._count(old)

    def _count(self, account: Account) -> None:
        self._only_while(str(account.version), _user(account), "version")
        self._do("HSET", _user(account), "version", account.version + 1)

    def _while_waiting(self, challenge: Challenge) -> None:
        self._only_while(challenge.email, names.CHALLENGES + challenge.id, "email")

    def _while_it_lives(self, session: Session) -> None:
        key = names.SESSIONS + session.id
        self._only_while(session.user_id, key, "user")
        self._only_while("", key, "ended")

    def _see(self, session: Session, now: int, more: Command = ()) -> None:
        key = names.SESSIONS + session.id
        ends = min(session.created + rules.SESSION_ABSOLUTE_MS, now + rules.SESSION_IDLE_MS)
        self._do("HSET", key, "seen", now, *more)
        self._do("PEXPIREAT", key, ends)
        self._list(session, ends, now)

    def _list(self, session: Session, ends: int, now: int) -> None:
        listed = names.USERS + session.user_id + names.SESSIONS_OF
        self._do("ZADD", listed, ends, session.id)
        self._do("PEXPIREAT", listed, now + rules.SESSION_IDLE_MS)  # none that is listed lives longer unseen

    def _keep_device(self, account: Account, device: Device) -> None:
        text = msgspec.json.encode([device.mac, device.name, device.seen]).decode()
        self._do("HSET", _user(account) + names.DEVICES_OF, device.ref, text)

    def _only_while(self, expected: str, key: str, name: str) -> None:
        self.conditions.append((expected, "HGET", key, name))

    def _do(self, *command: Any) -> None:
        self.commands.append(command)


def _user(account: Account) -> str:
    return names.USERS + account.id


# --- hashes --------------------------------------------------------------------------------------------------------


def text_map(found: Sequence[bytes]) -> dict[str, str]:
    texts = [item.decode() for item in found]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def flat(values: Mapping[str, Any]) -> list[Any]:
    return [item for pair in values.items() for item in pair]


def _texts(record: Account | Challenge) -> dict[str, str]:
    """Every field but the id, which is the key's; what is empty, 0 or false as ''."""
    values = {each.name: getattr(record, each.name) for each in fields(record) if each.name != "id"}
    return {name: "1" if value is True else str(value or "") for name, value in values.items()}


def _kept(record: Account | Challenge) -> dict[str, str]:
    return {name: text for name, text in _texts(record).items() if text}


def account_of(id: str, found: dict[str, str]) -> Account | None:
    if not found:
        return None
    numbers = {name: int(found.get(name) or 0) for name in ("version", "created", "totp_step", "floor")}
    return msgspec.convert({**found, **numbers, "id": id}, Account)


def challenge_of(id: str, found: dict[str, str]) -> Challenge | None:
    if not found:
        return None
    numbers = {name: int(found.get(name) or 0) for name in ("expires", "code_expires", "version")}
    return msgspec.convert({**found, **numbers, "noticed": found.get("noticed") == "1", "id": id}, Challenge)


def _session_fields(session: Session) -> dict[str, Any]:
    return {
        "user": session.user_id,
        "counter": session.counter,
        "rotated": session.rotated,
        "created": session.created,
        "seen": session.seen,
        "ip": session.ip,
        "amr": " ".join(session.amr),
        "device_ref": session.device_ref,
        "device_name": session.device_name,
    }


def session_of(id: str, found: dict[str, str]) -> Session | None:
    if not found:
        return None
    return Session(
        id=id,
        user_id=found["user"],
        counter=int(found["counter"]),
        rotated=int(found["rotated"]),
        created=int(found["created"]),
        seen=int(found["seen"]),
        ip=found["ip"],
        amr=tuple(found["amr"].split()),
        device_ref=found["device_ref"],
        device_name=found["device_name"],
        ended=found.get("ended", ""),
    )


def device_of(ref: str, text: str) -> Device:
    mac, name, seen = msgspec.json.decode(text, type=tuple[str, str, int])
    return Device(ref, mac, name, seen)
