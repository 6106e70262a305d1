"""The log of a load held against what Redis has at the end: each check says what broke which promise.

A request whose outcome is unknown to its client may have had its effect, or not, but not twice; so every count of
effects lies between the acknowledged requests and those plus the unknown ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters import names
from app.messages import Lane
from tests.deployment import in_lane
from tests.faults.log import Asked, Log, Sending

MOST_SHOWN = 5
NETWORK = "127.0.0.1"  # where all visitors come from: a part of the subject of a limit on failures
ALWAYS = frozenset({"internal", "unavailable", "deadline_exceeded", "overloaded"})


@dataclass(frozen=True)
class Allowed:
    """What a fault excuses: the codes of `error` and the close codes that clients may see."""

    errors: frozenset[str] = frozenset()
    closes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class State:
    """What Redis has, ids and addresses without their prefixes."""

    waiting: dict[str, int] = field(default_factory=dict)  # lane -> entries in it
    pending: dict[str, int] = field(default_factory=dict)  # lane -> entries in somebody's hand
    sessions: dict[str, dict[str, str]] = field(default_factory=dict)
    listed: dict[str, set[str]] = field(default_factory=dict)  # user id -> sessions that it is shown
    users: dict[str, dict[str, str]] = field(default_factory=dict)
    emails: dict[str, str] = field(default_factory=dict)  # address -> user id
    counted: dict[str, int] = field(default_factory=dict)  # "name:subject" of a limit -> n
    held: dict[str, int] = field(default_factory=dict)  # "name:subject" of a limit -> places reserved
    events: list[dict[str, str]] = field(default_factory=list)
    trimmed: int = 0  # events that are gone

    def audited(self, event: str) -> Counter[str]:
        """By user id."""
        return Counter(entry["user"] for entry in self.events if entry["event"] == event)


def read_state(redis: Any) -> State:
    """All of it, by one walk over the keys of a redis.Redis; at rest."""
    state = State()
    for lane in Lane:
        stream = names.lane(lane)
        state.waiting[lane] = in_lane(redis, lane)
        groups = redis.xinfo_groups(stream) if redis.exists(stream) else []
        state.pending[lane] = sum(group["pending"] for group in groups)
    limits, held = names.limit("", "")[:-1], names.held("", "")[:-1]
    for raw in redis.scan_iter(count=1000):
        key = raw.decode()
        if key.startswith(names.SESSIONS):
            state.sessions[key.removeprefix(names.SESSIONS)] = _hash(redis, key)
        elif key.startswith(names.EMAILS):
            state.emails[key.removeprefix(names.EMAILS)] = _text(redis.get(key))
        elif key.startswith(limits):
            state.counted[key.removeprefix(limits)] = int(_text(redis.hget(key, "n")) or 0)
        elif key.startswith(held):
            state.held[key.removeprefix(held)] = redis.zcard(key)
        elif key.startswith(names.USERS) and key.endswith(names.SESSIONS_OF):
            user = key.removeprefix(names.USERS).removesuffix(names.SESSIONS_OF)
            state.listed[user] = {member.decode() for member in redis.zrange(key, 0, -1)}
        elif key.startswith(names.USERS) and not key.endswith(names.DEVICES_OF):
            state.users[key.removeprefix(names.USERS)] = _hash(redis, key)
    if redis.exists(names.EVENTS):
        state.events.extend(_decoded(fields) for _, fields in redis.xrange(names.EVENTS))
    added = redis.xinfo_stream(names.EVENTS)["entries-added"] if state.events else 0
    return State(**{**vars(state), "trimmed": added - len(state.events)})


def audit(log: Log, state: State, allowed: Allowed) -> None:
    """AssertionError with everything that is wrong."""
    found = [f"{name}: {problem}" for name, check in CHECKS.items() for problem in check(log, state, allowed)]
    assert not found, f"{len(found)} broken promises:\n" + "\n".join(found[:40])


# --- answers -------------------------------------------------------------------------------------------------------


def missing(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """Every sending has a terminal event by its deadline, or its connection closed, and only where that is excused."""
    for asked in log.asked:
        if any(
            sending.missing or (sending.closed is not None and sending.closed not in allowed.closes)
            for sending in asked.sendings
        ):
            yield str(asked)


def doubled(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """Nobody is told what it did not ask, or told twice."""
    yield from log.strays


def dishonest(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """What is told is true: a right password is not refused, a wrong one not let in, and errors are the fault's own."""
    for asked in log.asked:
        for sending in asked.sendings:
            if sending.event == "error" and sending.code not in allowed.errors:
                yield f"{asked}: {sending.code} is not excused"
            elif sending.acknowledged and sending.told not in asked.wanted:
                yield f"{asked}: not one of {', '.join(sorted(asked.wanted))}"


def unanswered(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """Who sends again under its key gets its answer in the end; a logout at least that its session has ended."""
    revoked = "authentication_failed token_revoked"
    gone = {asked.session for asked in log.asked if asked.event == "authenticate" and asked.answered(revoked)}
    for asked in log.asked:
        if (
            asked.key
            and asked.sendings
            and not asked.answer
            and not (asked.event == "logout" and asked.session in gone)
        ):
            yield str(asked)


def unequal(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """The same request gets the same answer, however often it is sent."""
    for asked in log.asked:
        answers = [sending for sending in asked.sendings if sending.acknowledged]
        if any((other.event, other.data) != (answers[0].event, answers[0].data) for other in answers[1:]):
            yield str(asked)


def seen(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """What visitors and the harness noted themselves."""
    yield from log.problems


# --- the queue -----------------------------------------------------------------------------------------------------


def left_over(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """Nothing waits, nothing is in hand, no place of a limit is reserved."""
    yield from (f"{n} in the {lane} lane" for lane, n in state.waiting.items() if n)
    yield from (f"{n} in hand of the {lane} lane" for lane, n in state.pending.items() if n)
    yield from (f"{n} places of {limit} are held" for limit, n in state.held.items() if n)


def evaluated_twice(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """No request id is in the audit twice, and the audit is whole."""
    if state.trimmed:
        yield f"{state.trimmed} entries of the audit are gone: what was evaluated twice may be among them"
    ids = Counter(entry["request"] for entry in state.events)
    for id in (id for id, times in ids.items() if times > 1):
        yield f"{id}: {', '.join(e['event'] for e in state.events if e['request'] == id)}"


# --- effects -------------------------------------------------------------------------------------------------------


def accounts(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """An address confirmed has one account, one that was not has none, and no account is without its address."""
    confirmed = _effects(log, "confirm_email", "email_confirmed")
    audited = state.audited("email_confirmed")
    for address, (least, most) in confirmed.items():
        if least > 1:
            yield f"{address}: confirmed {least} times"
        has = address in state.emails
        if least and not has:
            yield f"{address}: its account was acknowledged and is not there"
        if has and not most:
            yield f"{address}: has an account, and nobody was told so"
    yield from (f"{a}: has an account, and nobody confirmed it" for a in state.emails if a not in confirmed)
    for address, user in state.emails.items():
        if state.users.get(user, {}).get("email") != address:
            yield f"{address}: its account {user} is {state.users.get(user, {}).get('email', 'not there')}"
        if audited[user] != 1:
            yield f"{address}: its confirmation is in the audit {audited[user]} times"
    for user, fields in state.users.items():
        if state.emails.get(fields.get("email", "")) != user:
            yield f"{user}: an account that the address {fields.get('email')} does not lead to"


def sessions(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """A login acknowledged is a session, ended if and only if a logout of it was; no login is two."""
    ended = {asked.session for asked in log.asked if asked.answered("logged_out")}
    perhaps = {asked.session for asked in log.asked if asked.event == "logout" and asked.unknown}
    for asked, login in _answers(log, "login", "login_success"):
        id, user = login.data["sessionId"], login.data["userId"]
        session = state.sessions.get(id)
        if session is None or session["user"] != user or state.emails.get(asked.account) != user:
            yield f"{asked}: its session {id} is {'not there' if session is None else 'of another account'}"
            continue
        why, listed = session.get("ended", ""), id in state.listed.get(user, ())
        may_be = {"logout"} if id in ended else {"", "logout"} if id in perhaps else {""}
        if why not in may_be or listed == bool(why):
            yield f"{asked}: its session {id} is {f'ended by {why}' if why else 'alive'} and listed: {listed}"


def logins(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """As many sessions as logins in the audit, and no more of those than clients can know of."""
    found = Counter(session["user"] for session in state.sessions.values())
    audited = state.audited("login_success")
    for user in found.keys() | audited.keys():
        if found[user] != audited[user]:
            yield f"{user}: {found[user]} sessions and {audited[user]} logins in the audit"
    by_user = {user: address for address, user in state.emails.items()}
    asked = _effects(log, "login", "login_success")
    for user, count in audited.items():
        yield from _outside(count, by_user.get(user, ""), asked, "logins in the audit")
    told = Counter(login.data["sessionId"] for _, login in _answers(log, "login", "login_success"))
    yield from (f"session {id} was given to {n} logins" for id, n in told.items() if n > 1)


def refreshes(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """A session's counter has gone on once for each refresh."""
    perhaps = Counter(asked.session for asked in log.asked if asked.event == "refresh" and asked.unknown)
    counters: dict[str, list[int]] = defaultdict(list)
    for asked, refreshed in _answers(log, "refresh", "token_refreshed"):
        counters[asked.session].append(int(refreshed.data["refreshToken"].split(".")[2]))
    for id, session in state.sessions.items():
        told, counter = counters[id], int(session["counter"])
        if len(set(told)) < len(told) or not len(told) <= counter <= len(told) + perhaps[id]:
            yield f"{id}: counter {counter}; told {sorted(told)}, {perhaps[id]} refreshes unknown"


def failures(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """Each wrong password, and each registration, is counted once."""
    for prefix, suffix, event, told in (
        ("account:", f"|{NETWORK}", "login", "login_failure invalid_credentials"),
        ("pending:", "", "register", "register_accepted"),
    ):
        expected = _effects(log, event, told)
        # a login that is right clears the count: only who never has one is looked at
        cleared = {asked.account for asked, _ in _answers(log, "login", "login_success")} if event == "login" else set()
        counted = {
            key.removeprefix(prefix).removesuffix(suffix): n
            for key, n in state.counted.items()
            if key.startswith(prefix)
        }
        for address in (counted.keys() | expected.keys()) - cleared:
            yield from _outside(counted.get(address, 0), address, expected, f"counted as {prefix.rstrip(':')}")


def mails(log: Log, state: State, allowed: Allowed) -> Iterable[str]:
    """A mail for each registration."""
    expected = _effects(log, "register", "register_accepted")
    for address in log.mails.keys() | expected.keys():
        yield from _outside(log.mails[address], address, expected, "mails")


Check = Callable[[Log, State, Allowed], Iterable[str]]
CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        missing, doubled, dishonest, unanswered, unequal, seen, left_over, evaluated_twice, accounts, sessions,
        logins, refreshes, failures, mails,
    )
}  # fmt: skip


# --- small things --------------------------------------------------------------------------------------------------


def _answers(log: Log, event: str, told: str) -> Iterable[tuple[Asked, Sending]]:
    for asked in log.asked:
        if asked.event == event and (answer := asked.answer) is not None and answer.told == told:
            yield asked, answer


def _effects(log: Log, event: str, told: str) -> dict[str, tuple[int, int]]:
    """By address: how many requests were told this, and how many may have come to it."""
    found: dict[str, tuple[int, int]] = {}
    for asked in log.asked:
        if asked.event == event:
            sure, may = asked.answered(told), asked.unknown and told in asked.wanted
            least, most = found.get(asked.account, (0, 0))
            found[asked.account] = (least + sure, most + (sure or may))
    return found


def _outside(count: int, address: str, expected: Mapping[str, tuple[int, int]], what: str) -> Iterable[str]:
    least, most = expected.get(address, (0, 0))
    if not least <= count <= most:
        yield f"{address}: {count} {what}, {least} acknowledged and {most - least} unknown"


def _hash(redis: Any, key: str) -> dict[str, str]:
    return _decoded(redis.hgetall(key))


def _decoded(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode()
