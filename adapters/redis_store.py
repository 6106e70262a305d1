"""The store on Redis: what handlers need becomes one `check`, what they decided one `settle`."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from adapters import names
from adapters.lua import CHECK, FORGET, SETTLE
from adapters.redis_link import Batch, Command
from adapters.redis_records import Translated, account_of, challenge_of, device_of, flat, session_of, text_map
from app import rules
from app.ports import Entry, Record, Settlement, Signed, State
from app.records import Facts, Limit, Needs, Notice, Recorded, Verdict, Write

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
            "other": names.SESSIONS + needs.other_session_id if needs.other_session_id else None,
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
        ahead, refused, user_id, user, session, other, challenge, devices, sessions, online = found
        return Facts(
            now=now,
            ahead=ahead,
            needs=needs,
            account=account_of(user_id.decode(), text_map(user)),
            session=session_of(needs.session_id or "", text_map(session)),
            other_session=session_of(needs.other_session_id or "", text_map(other)),
            challenge=challenge_of(needs.challenge_id or "", text_map(challenge)),
            devices=tuple(device_of(ref, text) for ref, text in text_map(devices).items()),
            sessions=tuple(s for id, found in sessions if (s := session_of(id.decode(), text_map(found)))),
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
        writes = Translated()
        for write in outcome.writes:
            writes.add(write)
        if settlement.audit:
            writes.commands.append(_audited(settlement.audit))
        reply = ("k", "reply", "r", settlement.reply.rid, "x", text(settlement.reply.box))
        mails, mail_conditions = _mails(settlement)
        limits = [
            (lim, Verdict.UNJUDGED if lim.name in outcome.uncounted else outcome.verdict) for lim in settlement.limits
        ]
        plan = {
            **self._plan(entry.rid, entry.deadline, limits, delivery),
            "conditions": writes.conditions + mail_conditions,
            "commands": writes.commands,
            "posts": [(entry.node, reply), *_direct(settlement)],
            "endings": writes.endings,
            "swaps": writes.swaps,
            "presence": _presence(settlement),
            "record": _record(settlement.record),
            "notices": _told(settlement.notices),
            "mails": mails,
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
        unjudged = [(limit, Verdict.UNJUDGED) for limit in limits]
        plan = self._plan(rid, 0, unjudged, delivery) | {"posts": posts, "record": _record(record)}
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
        translated = Translated()
        for write in writes:
            translated.add(write)
        effects = {
            "conditions": translated.conditions,
            "commands": [*translated.commands, _audited(audit)],
            "endings": translated.endings,
            "swaps": translated.swaps,
            "notices": _told(notices),
        }
        plan = self._plan(id, 0, (), ()) | effects | {"posts": []}
        return (await self._settle(id, plan, 0.0)).state

    async def _settle(self, rid: str, plan: dict[str, Any], patience: float) -> Settled:
        state, _, posts = await self._batch.script(SETTLE, [names.done(rid)], pack(plan), patience=patience)
        return Settled(str(state, "ascii"), msgspec.msgpack.decode(posts, type=list[Post]) if posts else [])

    def _plan(
        self, rid: str, deadline: int, limits: Sequence[tuple[Limit, Verdict]], delivery: Sequence[Command]
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
                for lim, verdict in limits
            ],
            "notices": [],
            "endings": [],
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
    return ("XADD", names.EVENTS, "MAXLEN", "~", EVENTS_KEPT, "*", *flat(audit))


def _told(notices: Iterable[tuple[Notice, Signed]]) -> list[Command]:
    """What an account's connections are told, wherever they are."""
    return [
        (names.ONLINE + notice.user_id, " ".join(notice.spare), text(signed.body), text(signed.mac))
        for notice, signed in notices
        if notice.only is None
    ]


def _mails(settlement: Settlement) -> tuple[list[tuple[Any, ...]], list[Command]]:
    """Each mail as its limits and what is done if it is sent; and what all of it stands on."""
    found = []
    with_first = Translated()
    for write in settlement.outcome.if_mailed:
        with_first.add(write)
    for number, (_, sealed, limits) in enumerate(settlement.mails):
        counters = [(names.limit(lim.name, lim.subject), lim.most, lim.window_ms) for lim in limits]
        entry = ("id", sealed.id, "w", text(sealed.wrapped), "x", text(sealed.box))
        queued: Command = ("XADD", names.MAIL, "*", *entry)
        found.append((counters, [queued, *(with_first.commands if number == 0 else ())]))
    return found, with_first.conditions


def _direct(settlement: Settlement) -> list[tuple[str, Command]]:
    """What a single connection is told, wherever that is."""
    return [
        (notice.only[0], ("k", "notice", "x", text(signed.body), "m", text(signed.mac)))
        for notice, signed in settlement.notices
        if notice.only is not None
    ]


def _record(record: Record | None) -> tuple[Any, ...] | None:
    if record is None:
        return None
    outcome = "" if record.box is None else text(record.box)
    keys = (names.same(record.same), names.joined(record.same))
    return (*keys, record.session_id, outcome, RECORD_KEPT_MS, text(record.word.body), text(record.word.mac))


def _keys(limit: Limit) -> tuple[str, str]:
    return names.limit(limit.name, limit.subject), names.held(limit.name, limit.subject)


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
