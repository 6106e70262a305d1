"""The store on Redis: what handlers need becomes one `check`, what they decided one `settle`."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from adapters import names
from adapters.lua import CHECK, FORGET, SETTLE
from adapters.redis_link import Batch, Command
from app import rules
from app.ports import Entry, Record, Settlement, Signed, State
from app.records import (
    Account,
    Challenge,
    ChangeAccount,
    ConfirmSession,
    CreateAccount,
    Device,
    EndSession,
    Facts,
    Limit,
    Needs,
    Notice,
    PutChallenge,
    Recorded,
    RotateSession,
    Session,
    StartSession,
    UpgradePassword,
    Verdict,
    Write,
)

RECLAIM_MS = 15_000  # how long after its deadline a copy of a request can still turn up: reclaim time, with a margin
RECORD_KEPT_MS = 600_000  # the contract's ten minutes
DONE_KEPT_MS = 30_000 + RECLAIM_MS  # the longest deadline there is, and until no copy can turn up any more
REPLIES_KEPT = 10_000  # for a node that does not read; what has been read is trimmed each second
REPLIES_KEPT_MS = 60_000  # a dead node's reply stream cleans itself up
ONLINE_KEPT_MS = rules.SESSION_ABSOLUTE_MS
EVENTS_KEPT = 100_000
MAILS_KEPT = 100_000  # that wait for a mailer: about 100 MB

pack = msgspec.msgpack.encode


def text(box: bytes) -> str:
    """Bytes as a script can take them: the msgpack of Redis's Lua knows no binary type."""
    return base64.b64encode(box).decode()


unpack = base64.b64decode


Post = tuple[str, list[str]]  # a node, and what it is told: names and values in turn


class Settled(NamedTuple):
    """How it ended, and what the broker has to send now: again and again, where it settles again."""

    state: str
    posts: list[Post]


class RedisStore:
    """`check` is the Store port; `settle` serves a broker, which adds what delivering and replying takes.

    `replies`: prefix of the nodes' reply streams; None: what is to be told to nodes is the broker's to send.
    """

    def __init__(self, batch: Batch, replies: str | None = names.REPLIES) -> None:
        self._batch, self._replies = batch, replies

    async def check(self, rid: str, deadline: int, needs: Needs) -> Facts | str:
        ask = {
            "rid": rid,
            "deadline": deadline,
            "hold": deadline + RECLAIM_MS,
            "limits": [(*_keys(lim), lim.most, lim.penalty_ms > 0, lim.waits) for lim in needs.limits],
            "email": names.EMAILS + needs.email if needs.email else None,
            "session": names.SESSIONS + needs.session_id if needs.session_id else None,
            "challenge": names.CHALLENGES + needs.challenge_id if needs.challenge_id else None,
            "users": names.USERS,
            "emails": names.EMAILS,
            "sessions": names.SESSIONS,
            "online": names.ONLINE,
            "nodes": names.NODES,
            "devices": names.DEVICES_OF if needs.devices else None,
            "list": names.SESSIONS_OF if needs.sessions or needs.crowd else None,
            "crowd": rules.SESSIONS_PER_ACCOUNT if needs.crowd and not needs.sessions else None,
        }
        state, now, *found = await self._batch.script(CHECK, [names.done(rid)], pack(ask))
        if state != b"ok":
            return {b"done": State.DONE, b"expired": State.EXPIRED, b"wait": State.WAIT}[state]
        ahead, refused, user_id, user, session, challenge, devices, sessions, online = found
        return Facts(
            now=now,
            ahead=ahead,
            needs=needs,
            account=_account(user_id.decode(), _map(user)),
            session=_session(needs.session_id or "", _map(session)),
            challenge=_challenge(needs.challenge_id or "", _map(challenge)),
            devices=tuple(_device(ref, text) for ref, text in _map(devices).items()),
            sessions=tuple(s for id, flat in sessions if (s := _session(id.decode(), _map(flat)))),
            online=frozenset(id.decode() for id in online),
            refused={needs.limits[n - 1].name: wait for n, wait in refused},
        )

    async def recall(self, same: str) -> Recorded | None:
        session_id, outcome = await self._batch.command("HMGET", names.same(same), "session", "outcome")
        return None if outcome is None else Recorded(unpack(outcome), session_id.decode())

    async def forget(self, same: str, recorded: Recorded) -> None:
        await self._batch.script(FORGET, [names.same(same)], text(recorded.box))

    async def settle(
        self,
        entry: Entry,
        settlement: Settlement,
        delivery: Sequence[Command],
        patience: float,
    ) -> Settled:
        """As WorkerBroker.settle says; `delivery` is run in every case but "conflict" and "full"."""
        outcome = settlement.outcome
        conditions: list[Command] = []
        commands: list[Command] = []
        swaps: list[Command] = []
        for write in outcome.writes:
            _translate(write, conditions, commands, swaps)
        if settlement.audit:
            commands.append(_audited(settlement.audit))
        reply = ("k", "reply", "r", settlement.reply.rid, "x", text(settlement.reply.box))
        plan = {
            **self._plan(entry.rid, entry.deadline, settlement.limits, outcome.verdict, delivery),
            "conditions": conditions,
            "commands": commands,
            "posts": [(entry.node, reply)],
            "swaps": swaps,
            "presence": _presence(settlement),
            "record": _record(settlement.record),
            "notices": _told(settlement.notices),
            "mails": _mails(settlement, conditions),
        }
        return await self._settle(entry.rid, plan, patience)

    async def drop(
        self,
        rid: str,
        limits: Sequence[Limit],
        delivery: Sequence[Command],
        record: Record | None = None,
        failure: tuple[str, Signed] | None = None,
        letter: Command | None = None,
    ) -> Settled:
        """Nothing happened: every reserved place comes back. `failure`: (node, word for its client).

        Of what had ended before, nobody is told and no letter is kept.
        """
        posts = []
        if failure is not None:
            node, word = failure
            posts.append((node, ("k", "failure", "x", text(word.body), "m", text(word.mac))))
        plan = self._plan(rid, 0, limits, Verdict.UNJUDGED, delivery) | {"posts": posts, "record": _record(record)}
        plan["commands"] = [letter] if letter is not None else []
        return await self._settle(rid, plan, 0.0)

    async def apply(
        self,
        id: str,
        writes: Sequence[Write],
        notices: Sequence[tuple[Notice, Signed]],
        audit: Mapping[str, str],
    ) -> str:
        """What no request asked for: all of it or nothing, once for its id. "settled", "conflict" or "done" before."""
        conditions: list[Command] = []
        commands: list[Command] = []
        swaps: list[Command] = []
        for write in writes:
            _translate(write, conditions, commands, swaps)
        commands.append(_audited(audit))
        effects = {"conditions": conditions, "commands": commands, "swaps": swaps, "notices": _told(notices)}
        plan = self._plan(id, 0, (), Verdict.UNJUDGED, ()) | effects | {"posts": []}
        return (await self._settle(id, plan, 0.0)).state

    async def _settle(self, rid: str, plan: dict[str, Any], patience: float) -> Settled:
        state, _, posts = await self._batch.script(SETTLE, [names.done(rid)], pack(plan), patience=patience)
        return Settled(str(state, "ascii"), msgspec.msgpack.decode(posts, type=list[Post]) if posts else [])

    def _plan(
        self, rid: str, deadline: int, limits: Sequence[Limit], verdict: Verdict, delivery: Sequence[Command]
    ) -> dict[str, Any]:
        return {
            "rid": rid,
            "deadline": deadline,
            "mark": DONE_KEPT_MS,
            "conditions": [],
            "limits": [
                (
                    *_keys(lim),
                    rules.settle_limit(lim, verdict),
                    lim.most,
                    lim.window_ms,
                    lim.penalty_ms,
                    lim.most_penalty_ms,
                )
                for lim in limits
            ],
            "notices": [],
            "swaps": [],
            "commands": [],
            "mails": [],
            "presence": [],
            "delivery": delivery,
            "nodes": names.NODES,
            "replies": self._replies,
            "mail": names.MAIL,
            "most_mail": MAILS_KEPT,
            "keep": REPLIES_KEPT_MS,
            "most": REPLIES_KEPT,
        }


def _audited(audit: Mapping[str, str]) -> Command:
    return ("XADD", names.EVENTS, "MAXLEN", "~", EVENTS_KEPT, "*", *_flat(audit))


def _told(notices: Iterable[tuple[Notice, Signed]]) -> list[Command]:
    return [
        (names.ONLINE + notice.user_id, " ".join(notice.spare), text(signed.body), text(signed.mac))
        for notice, signed in notices
    ]


def _mails(settlement: Settlement, conditions: list[Command]) -> list[tuple[Any, ...]]:
    """Each mail as its limits and what is done if it is sent."""
    found = []
    for number, (_, sealed, limits) in enumerate(settlement.mails):
        counters = [(names.limit(lim.name, lim.subject), lim.most, lim.window_ms) for lim in limits]
        entry = ("id", sealed.id, "w", text(sealed.wrapped), "x", text(sealed.box))
        commands: list[Command] = [("XADD", names.MAIL, "*", *entry)]
        if number == 0 and settlement.outcome.renewed is not None:
            challenge = settlement.outcome.renewed.challenge
            key = names.CHALLENGES + challenge.id
            conditions.append((challenge.email, "HGET", key, "email"))
            commands.append(("HSET", key, "code", challenge.code_mac, "code_expires", challenge.code_expires))
        found.append((counters, commands))
    return found


def _record(record: Record | None) -> tuple[Any, ...] | None:
    if record is None:
        return None
    outcome = "" if record.box is None else text(record.box)
    keys = (names.same(record.same), names.joined(record.same))
    return (*keys, record.session_id, outcome, RECORD_KEPT_MS, text(record.word.body), text(record.word.mac))


def _keys(limit: Limit) -> tuple[str, str]:
    return names.limit(limit.name, limit.subject), names.held(limit.name, limit.subject)


# --- writes ------------------------------------------------------------------------------------------------------


def _translate(write: Write, conditions: list[Command], commands: list[Command], swaps: list[Command]) -> None:
    """A write as the conditions it stands on and the commands that make it."""
    match write:
        case PutChallenge(challenge):
            key = names.CHALLENGES + challenge.id
            commands.append(("HSET", key, *_flat(_challenge_fields(challenge))))
            commands.append(("PEXPIREAT", key, challenge.expires))
        case CreateAccount(account, of, device):
            user = names.USERS + account.id
            conditions.append(("", "GET", names.EMAILS + account.email))
            if of is not None:
                conditions.append((of.user_id, "HGET", names.CHALLENGES + of.id, "user"))
                commands.append(("DEL", names.CHALLENGES + of.id))
            commands.append(("SET", names.EMAILS + account.email, account.id))
            commands.append(("HSET", user, *_flat(_account_fields(account))))
            commands.append(("HSET", user + names.DEVICES_OF, device.ref, _device_text(device)))
        case StartSession(session, account, trusted):
            user, key = names.USERS + account.id, names.SESSIONS + session.id
            conditions.append((str(account.version), "HGET", user, "version"))
            ends = rules.session_ends(session)
            commands.append(("HSET", key, *_flat(_session_fields(session))))
            commands.append(("PEXPIREAT", key, ends))
            commands.append(("ZREMRANGEBYSCORE", user + names.SESSIONS_OF, "-inf", session.created))
            commands.append(("ZADD", user + names.SESSIONS_OF, ends, session.id))
            if trusted is not None:
                seen = Device(trusted.ref, trusted.mac, session.device_name, session.created)
                commands.append(("HSET", user + names.DEVICES_OF, trusted.ref, _device_text(seen)))
        case RotateSession(session, now):
            counter = session.counter
            _while_it_lives(session, conditions)
            conditions.append((str(counter), "HGET", names.SESSIONS + session.id, "counter"))
            _see(session, now, commands, ("counter", counter + 1, "rotated", now))
        case ConfirmSession(session, now):
            _while_it_lives(session, conditions)
            _see(session, now, commands)
        case EndSession(session, reason):
            # ended twice at once is ended; but a record that has gone must not come back
            key = names.SESSIONS + session.id
            conditions.append((session.user_id, "HGET", key, "user"))
            commands.append(("HSET", key, "ended", reason))
            commands.append(("ZREM", names.USERS + session.user_id + names.SESSIONS_OF, session.id))
        case UpgradePassword(user_id, old, new):
            swaps.append((names.USERS + user_id, "password", old, new))
        case ChangeAccount(old_account, new_account):
            user = names.USERS + old_account.id
            before, after = _account_fields(old_account), _account_fields(new_account)
            changed = {name: value for name, value in after.items() if value != before[name]}
            conditions.append((str(old_account.version), "HGET", user, "version"))
            commands.append(("HSET", user, *_flat(changed | {"version": old_account.version + 1})))


def _while_it_lives(session: Session, conditions: list[Command]) -> None:
    key = names.SESSIONS + session.id
    conditions.append((session.user_id, "HGET", key, "user"))
    conditions.append(("", "HGET", key, "ended"))


def _see(session: Session, now: int, commands: list[Command], fields: Command = ()) -> None:
    key = names.SESSIONS + session.id
    ends = min(session.created + rules.SESSION_ABSOLUTE_MS, now + rules.SESSION_IDLE_MS)
    commands.append(("HSET", key, "seen", now, *fields))
    commands.append(("PEXPIREAT", key, ends))
    commands.append(("ZADD", names.USERS + session.user_id + names.SESSIONS_OF, ends, session.id))


def _presence(settlement: Settlement) -> list[Command]:
    """Who is authenticated where, kept with the outcome that changes it."""
    outcome, before = settlement.outcome, settlement.previous
    if settlement.presence is None or (outcome.identity is None and not outcome.forget):
        return []
    here = " ".join(settlement.presence)
    commands: list[Command] = []
    if before is not None and (outcome.forget or before.user_id != outcome.identity.user_id):  # type: ignore[union-attr]
        commands.append(("HDEL", names.ONLINE + before.user_id, here))
    if outcome.identity is not None:
        key = names.ONLINE + outcome.identity.user_id
        commands.append(("HSET", key, here, outcome.identity.session_id))
        commands.append(("PEXPIRE", key, ONLINE_KEPT_MS))
    return commands


# --- records as hashes ----------------------------------------------------------------------------------------------


def _map(flat: Sequence[bytes]) -> dict[str, str]:
    texts = [item.decode() for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _flat(fields: Mapping[str, Any]) -> list[Any]:
    return [item for pair in fields.items() for item in pair]


def _account_fields(account: Account) -> dict[str, Any]:
    return {
        "email": account.email,
        "password": account.password,
        "version": account.version,
        "created": account.created,
        "status": account.status,
        "locale": account.locale,
        "terms": account.terms,
    }


def _account(id: str, fields: dict[str, str]) -> Account | None:
    if not fields:
        return None
    return Account(
        id=id,
        email=fields["email"],
        password=fields["password"],
        version=int(fields["version"]),
        created=int(fields["created"]),
        status="active" if fields["status"] == "active" else "disabled",
        locale=fields["locale"],
        terms=fields["terms"],
    )


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


def _session(id: str, fields: dict[str, str]) -> Session | None:
    if not fields:
        return None
    return Session(
        id=id,
        user_id=fields["user"],
        counter=int(fields["counter"]),
        rotated=int(fields["rotated"]),
        created=int(fields["created"]),
        seen=int(fields["seen"]),
        ip=fields["ip"],
        amr=tuple(fields["amr"].split()),
        device_ref=fields["device_ref"],
        device_name=fields["device_name"],
        ended=fields.get("ended", ""),
    )


def _challenge_fields(challenge: Challenge) -> dict[str, Any]:
    return {
        "kind": challenge.kind,
        "email": challenge.email,
        "expires": challenge.expires,
        "code": challenge.code_mac,
        "code_expires": challenge.code_expires,
        "user": challenge.user_id,
        "password": challenge.password,
        "locale": challenge.locale,
        "terms": challenge.terms,
    }


def _challenge(id: str, fields: dict[str, str]) -> Challenge | None:
    if not fields:
        return None
    return Challenge(
        id=id,
        kind="registration",
        email=fields["email"],
        expires=int(fields["expires"]),
        code_mac=fields["code"],
        code_expires=int(fields["code_expires"]),
        user_id=fields["user"],
        password=fields["password"],
        locale=fields["locale"],
        terms=fields["terms"],
    )


def _device_text(device: Device) -> str:
    return msgspec.json.encode([device.mac, device.name, device.seen]).decode()


def _device(ref: str, text: str) -> Device:
    mac, name, seen = msgspec.json.decode(text, type=tuple[str, str, int])
    return Device(ref, mac, name, seen)
