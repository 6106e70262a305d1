"""The audit of a load: a small world in which all is well, and every way in which it is not is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from adapters import names
from app.messages import Lane
from tests.faults.audit import CHECKS, NETWORK, Allowed, audit, read_state
from tests.faults.log import Asked, Log, Sending

OWNER, GUESSED = "owner@load.test", "guess@load.test"
LOGIN, REFUSED = "login_success", "login_failure invalid_credentials"
CLOSED = {"closed": 1006}
ALLOWED = Allowed(errors=frozenset({"unavailable"}), closes=frozenset({1006}))


@dataclass
class World:
    """A log and the Redis it is about. `asked` by a name given to it."""

    log: Log
    redis: Any
    asked: dict[str, Asked]

    def ask(self, name: str, event: str, about: str, wanted: str, *told: dict[str, Any], **more: Any) -> None:
        """`told`: each sending's end, as fields of Sending."""
        sendings = [Sending("visitor/1", 0.0, 1000, **{"ended": 0.1, **end}) for end in told]
        about_it: dict[str, Any] = {"data": {}, "wanted": frozenset({wanted}), "sendings": sendings, **more}
        self.asked[name] = Asked(len(self.log.asked), "visitor", event, about, **about_it)
        self.log.asked.append(self.asked[name])

    def audited(self, event: str, user: str, rid: str) -> None:
        self.redis.xadd(names.EVENTS, {"event": event, "code": "ok", "request": rid, "user": user})

    def session(self, id: str, counter: int = 0, ended: str = "") -> None:
        fields = {"user": "u1", "counter": counter} | ({"ended": ended} if ended else {})
        self.redis.hset(names.SESSIONS + id, mapping=fields)
        if not ended:
            self.redis.zadd(names.USERS + "u1" + names.SESSIONS_OF, {id: 9e12})

    def account(self, user: str, address: str) -> None:
        self.redis.set(names.EMAILS + address, user)
        self.redis.hset(names.USERS + user, mapping={"email": address})

    def problems(self) -> dict[str, list[str]]:
        state = read_state(self.redis)
        found = {name: list(check(self.log, state, ALLOWED)) for name, check in CHECKS.items()}
        return {name: problems for name, problems in found.items() if problems}


def login(session: str, **more: Any) -> dict[str, Any]:
    return {"event": LOGIN, "data": {"sessionId": session, "userId": "u1", **more}}


def failure(event: str, code: str) -> dict[str, Any]:
    return {"event": event, "data": {"code": code}}


def refreshed(counter: int) -> dict[str, Any]:
    return {"event": "token_refreshed", "data": {"refreshToken": f"aaaa.s2.{counter}.mac"}}


@pytest.fixture
def world(redis_url: str) -> Iterator[World]:
    """Everything that an audit looks at, once; some of it with an outcome that its client does not know."""
    with Redis.from_url(redis_url) as redis:
        world = World(Log(), redis, {})
        world.ask("register", "register", OWNER, "register_accepted", {"event": "register_accepted"})
        world.ask("confirm", "confirm_email", OWNER, "email_confirmed", {"event": "email_confirmed"})
        world.ask("first", "login", OWNER, LOGIN, login("s1"))
        world.ask("logout", "logout", OWNER, "logged_out", {"event": "logged_out"}, session="s1")
        world.ask("second", "login", OWNER, LOGIN, CLOSED, login("s2"), login("s2"), key="k" * 16)
        world.ask("refresh", "refresh", OWNER, "token_refreshed", refreshed(1), session="s2")
        world.ask("unknown", "login", OWNER, LOGIN, failure("error", "unavailable"))
        world.ask("guess", "login", GUESSED, REFUSED, failure("login_failure", "invalid_credentials"))
        world.ask("unknown guess", "login", GUESSED, REFUSED, CLOSED)
        world.log.mails[OWNER] = 1
        world.account("u1", OWNER)
        world.session("s1", ended="logout")
        world.session("s2", counter=1)
        for rid, (event, user) in enumerate(
            (("email_confirmed", "u1"), (LOGIN, "u1"), (LOGIN, "u1"), ("login_failure", ""))
        ):
            world.audited(event, user, f"r{rid}")
        redis.hset(names.limit("pending", OWNER), "n", 1)
        redis.hset(names.limit("account", f"{GUESSED}|{NETWORK}"), "n", 1)
        redis.xgroup_create(names.lane(Lane.HASH), names.GROUP, "0", mkstream=True)
        yield world


def test_a_world_in_which_all_is_well_passes(world: World) -> None:
    audit(world.log, read_state(world.redis), ALLOWED)


def unknown_done(world: World) -> None:
    world.session("s3")
    world.audited(LOGIN, "u1", "r9")


def unknown_guess_counted(world: World) -> None:
    world.redis.hincrby(names.limit("account", f"{GUESSED}|{NETWORK}"), "n", 1)


def unknown_refresh_done(world: World) -> None:
    world.ask("again", "refresh", OWNER, "token_refreshed", CLOSED, session="s2")
    world.redis.hset(names.SESSIONS + "s2", "counter", 2)


def unknown_logout_done(world: World) -> None:
    world.ask("out", "logout", OWNER, "logged_out", CLOSED, session="s2", key="o" * 16)
    refused = failure("authentication_failed", "token_revoked")
    world.ask("again", "authenticate", "", "authentication_failed token_revoked", refused, session="s2")
    world.session("s2", counter=1, ended="logout")
    world.redis.zrem(names.USERS + "u1" + names.SESSIONS_OF, "s2")


@pytest.mark.parametrize("done", [unknown_done, unknown_guess_counted, unknown_refresh_done, unknown_logout_done])
def test_what_a_client_does_not_know_may_have_happened(world: World, done: Callable[[World], None]) -> None:
    done(world)
    audit(world.log, read_state(world.redis), ALLOWED)


# --- what is planted, by the check that has to find it ----------------------------------------------------------------


def no_answer(world: World) -> None:
    world.asked["guess"].sendings[0] = Sending("visitor/1", 0.0, 1000, 3.0, missing=True)


def closed_without_excuse(world: World) -> None:
    world.asked["unknown"].sendings[0] = Sending("visitor/1", 0.0, 1000, 0.1, closed=1011)


def answered_twice(world: World) -> None:
    world.log.strays.append("visitor/1: login_success for id '3'")


def right_password_refused(world: World) -> None:
    world.ask("refused", "login", OWNER, LOGIN, failure("login_failure", "invalid_credentials"))


def wrong_password_let_in(world: World) -> None:
    world.ask("let in", "login", GUESSED, REFUSED, login("s9"))


def error_without_excuse(world: World) -> None:
    world.asked["unknown"].sendings[0].data["code"] = "internal"


def key_without_an_answer(world: World) -> None:
    world.ask("keyed", "account", OWNER, "account", CLOSED, CLOSED, key="a" * 16)


def another_session_for_the_same_key(world: World) -> None:
    world.asked["second"].sendings[2].data["sessionId"] = "s1"


def other_tokens_for_the_same_key(world: World) -> None:
    world.asked["second"].sendings[2].data["refreshToken"] = "another"


def mail_that_never_came(world: World) -> None:
    world.log.problems.append("a mail did not come")


def entry_left(world: World) -> None:
    world.redis.xadd(names.lane(Lane.FAST), {"r": "1"})


def entry_in_hand(world: World) -> None:
    world.redis.xadd(names.lane(Lane.HASH), {"r": "1"})
    [(_, [(id, _)])] = world.redis.xreadgroup(names.GROUP, "w", {names.lane(Lane.HASH): ">"})
    world.redis.xdel(names.lane(Lane.HASH), id)


def place_held(world: World) -> None:
    world.redis.zadd(names.held("account", f"{GUESSED}|{NETWORK}"), {"r1": 9e12})


def request_audited_twice(world: World) -> None:
    world.audited("login_failure", "", "r3")


def audit_trimmed(world: World) -> None:
    world.redis.xtrim(names.EVENTS, maxlen=3, approximate=False)


def account_lost(world: World) -> None:
    world.redis.delete(names.EMAILS + OWNER)


def account_of_nobody(world: World) -> None:
    world.account("u2", "nobody@load.test")


def second_account_of_an_address(world: World) -> None:
    world.redis.hset(names.USERS + "u2", mapping={"email": OWNER})


def confirmed_twice(world: World) -> None:
    world.ask("rival", "confirm_email", OWNER, "email_confirmed", {"event": "email_confirmed"})


def account_made_twice(world: World) -> None:
    world.audited("email_confirmed", "u1", "r9")


def session_lost(world: World) -> None:
    world.redis.delete(names.SESSIONS + "s2")


def session_of_another(world: World) -> None:
    world.redis.hset(names.SESSIONS + "s2", "user", "u2")


def session_ended_by_nobody(world: World) -> None:
    world.session("s2", counter=1, ended="token_reused")


def session_alive_after_logout(world: World) -> None:
    world.redis.hdel(names.SESSIONS + "s1", "ended")


def session_unlisted(world: World) -> None:
    world.redis.delete(names.USERS + "u1" + names.SESSIONS_OF)


def session_without_a_login(world: World) -> None:
    world.session("s9")


def more_logins_than_anybody_asked_for(world: World) -> None:
    for n in range(2):
        world.session(f"more-{n}")
        world.audited(LOGIN, "u1", f"more-{n}")


def one_session_for_two_logins(world: World) -> None:
    world.ask("third", "login", OWNER, LOGIN, login("s1"))


def refreshed_once_too_often(world: World) -> None:
    world.redis.hset(names.SESSIONS + "s2", "counter", 2)


def refresh_lost(world: World) -> None:
    world.redis.hset(names.SESSIONS + "s2", "counter", 0)


def one_token_for_two_refreshes(world: World) -> None:
    world.ask("again", "refresh", OWNER, "token_refreshed", refreshed(1), session="s2")
    world.redis.hset(names.SESSIONS + "s2", "counter", 2)


def failure_counted_twice(world: World) -> None:
    world.redis.hincrby(names.limit("account", f"{GUESSED}|{NETWORK}"), "n", 2)


def failure_not_counted(world: World) -> None:
    world.redis.delete(names.limit("account", f"{GUESSED}|{NETWORK}"))


def registration_counted_twice(world: World) -> None:
    world.redis.hincrby(names.limit("pending", OWNER), "n", 1)


def mailed_twice(world: World) -> None:
    world.log.mails[OWNER] += 1


def not_mailed(world: World) -> None:
    del world.log.mails[OWNER]


PLANTED: dict[str, tuple[Callable[[World], None], ...]] = {
    "missing": (no_answer, closed_without_excuse),
    "doubled": (answered_twice,),
    "dishonest": (right_password_refused, wrong_password_let_in, error_without_excuse),
    "unanswered": (key_without_an_answer,),
    "unequal": (another_session_for_the_same_key, other_tokens_for_the_same_key),
    "seen": (mail_that_never_came,),
    "left_over": (entry_left, entry_in_hand, place_held),
    "evaluated_twice": (request_audited_twice, audit_trimmed),
    "accounts": (
        account_lost, account_of_nobody, second_account_of_an_address, confirmed_twice, account_made_twice,
    ),
    "sessions": (
        session_lost, session_of_another, session_ended_by_nobody, session_alive_after_logout, session_unlisted,
    ),
    "logins": (session_without_a_login, more_logins_than_anybody_asked_for, one_session_for_two_logins),
    "refreshes": (refreshed_once_too_often, refresh_lost, one_token_for_two_refreshes),
    "failures": (failure_counted_twice, failure_not_counted, registration_counted_twice),
    "mails": (mailed_twice, not_mailed),
}  # fmt: skip


@pytest.mark.parametrize(
    ("check", "plant"), [pytest.param(check, p, id=p.__name__) for check, plants in PLANTED.items() for p in plants]
)
def test_what_breaks_a_promise_is_found(world: World, check: str, plant: Callable[[World], None]) -> None:
    plant(world)
    assert check in world.problems()
    with pytest.raises(AssertionError, match=f"{check}: "):
        audit(world.log, read_state(world.redis), ALLOWED)


def test_every_check_has_found_something() -> None:
    assert PLANTED.keys() == CHECKS.keys()
