"""Tokens and sessions: refresh, authenticate, logout, sessions, account, revocation."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from app import rules
from app.frames import encode_data
from app.messages import (
    Account,
    AccountData,
    Authenticate,
    Authenticated,
    Code,
    LoggedOut,
    Logout,
    Refresh,
    Request,
    RevokeOtherSessions,
    RevokeSession,
    SecurityAlert,
    SessionEnded,
    SessionList,
    SessionRevoked,
    Sessions,
    SessionsRevoked,
    TokenRefreshed,
)
from app.records import ConfirmSession, EndOthers, EndSession, Identity, Needs, Notice, RotateSession, Session, Verdict
from app.rules import DAY
from app.tokens import RefreshToken
from tests.deciding import ANA, HERE, LIVING, check_tokens, needs_of, nothing_happens, outcome_of, refusal_of
from tests.making import EMAIL, IDENTITY, MINT, NOW, device, session

# --- refresh ------------------------------------------------------------------------------------------------------


def refresh(counter: int, id: str = "0wrk1-session") -> Refresh:
    return Refresh(MINT.refresh_token(RefreshToken(id, counter)))


def test_a_refresh_reads_the_session_of_its_token_and_of_no_other() -> None:
    assert needs_of(refresh(4)) == Needs(session_id="0wrk1-session", proof=RefreshToken("0wrk1-session", 4))
    assert needs_of(Refresh("x.0wrk1-session.4.y")) == Needs()


def test_the_current_token_gets_the_next_one() -> None:
    found = session(created=NOW - 25 * DAY)
    outcome = outcome_of(refresh(4), session=found, account=ANA)
    data = check_tokens(outcome, TokenRefreshed, found.id, 5)
    assert data.refresh_expires_in == 5 * DAY // 1000  # the thirty days after login come first
    assert outcome.writes == (RotateSession(found, NOW),)
    assert (outcome.verdict, outcome.notices, outcome.identity) == (Verdict.PASSED, (), None)
    assert outcome.subject == ANA.id


@pytest.mark.parametrize("late", [0, 9_999, 10_000])
def test_the_token_before_gets_the_current_one_again_for_ten_seconds(late: int) -> None:
    found = session(rotated=NOW - late)
    outcome = outcome_of(refresh(3), session=found, account=ANA)
    check_tokens(outcome, TokenRefreshed, found.id, 4)
    assert outcome.writes == (ConfirmSession(found, NOW),)


@pytest.mark.parametrize(
    ("counter", "late"), [(3, 10_001), (2, 0), (0, 0)], ids=["past the grace", "two before", "the first"]
)
def test_a_token_used_before_ends_the_session_for_everybody(counter: int, late: int) -> None:
    found = session(rotated=NOW - late)
    outcome = outcome_of(refresh(counter), session=found, account=ANA)
    assert refusal_of(outcome) == ("refresh_failed", Code.TOKEN_REUSED, None, None)
    assert outcome.writes == (EndSession(found, "token_reused"),)
    notice, alerted = outcome.notices
    assert notice.event == SessionEnded(session_id=found.id, reason="token_reused")
    assert alerted == Notice(ANA.id, "", SecurityAlert(kind="token_reused"), HERE)
    assert (notice.user_id, notice.session_id, notice.close) == (found.user_id, found.id, True)
    assert notice.spare != HERE  # nobody is spared, whoever sent it
    assert outcome.identity is None


@pytest.mark.parametrize(
    ("request_", "found", "code"),
    [
        pytest.param(Refresh("x"), LIVING, Code.TOKEN_INVALID, id="no token"),
        pytest.param(Refresh("wrk1.0wrk1-session.4.AAAA"), LIVING, Code.TOKEN_INVALID, id="a forged token"),
        pytest.param(Refresh(MINT.new_device_token()), LIVING, Code.TOKEN_INVALID, id="a device token"),
        pytest.param(refresh(5), LIVING, Code.TOKEN_INVALID, id="a token that was never given"),
        pytest.param(refresh(4), {}, Code.TOKEN_EXPIRED, id="no session"),
        pytest.param(refresh(4), {"account": ANA}, Code.TOKEN_EXPIRED, id="no session, but an account"),
        pytest.param(refresh(4), LIVING | {"session": session(seen=NOW - 7 * DAY)}, Code.TOKEN_EXPIRED, id="idle"),
        pytest.param(refresh(4), LIVING | {"session": session(created=NOW - 30 * DAY)}, Code.TOKEN_EXPIRED, id="old"),
        pytest.param(refresh(4), LIVING | {"session": session(ended="logout")}, Code.TOKEN_REVOKED, id="ended"),
        pytest.param(refresh(0), LIVING | {"session": session(ended="logout")}, Code.TOKEN_REVOKED, id="ended, reused"),
        pytest.param(refresh(4), {"session": session()}, Code.TOKEN_REVOKED, id="no account"),
        pytest.param(
            refresh(4), LIVING | {"account": replace(ANA, status="disabled")}, Code.TOKEN_REVOKED, id="disabled"
        ),
        pytest.param(
            refresh(3), LIVING | {"account": replace(ANA, status="disabled")}, Code.TOKEN_REVOKED, id="disabled, reused"
        ),
    ],
)
def test_a_refresh_is_refused(request_: Refresh, found: dict[str, Any], code: Code) -> None:
    outcome = outcome_of(request_, **found)
    assert refusal_of(outcome) == ("refresh_failed", code, None, None)
    assert nothing_happens(outcome)


# --- authenticate -------------------------------------------------------------------------------------------------


def access(user_id: str = ANA.id, session_id: str = "0wrk1-session", made: int = NOW) -> Authenticate:
    return Authenticate(MINT.access_token(user_id, session_id, ("pwd",), made // 1000, made // 1000, 600))


def test_authenticate_reads_the_session_of_its_token_and_of_no_other() -> None:
    found = needs_of(access())
    assert (found.session_id, found.email, found.limits) == ("0wrk1-session", None, ())
    assert needs_of(Authenticate("a.b.c")) == Needs()


@pytest.mark.parametrize(("age", "left"), [(0, 600), (1_000, 599), (599_000, 1)])
def test_an_access_token_makes_its_connection_the_sessions(age: int, left: int) -> None:
    found = session()
    outcome = outcome_of(access(made=NOW - age), session=found, account=ANA)
    assert outcome.data == Authenticated(user_id=ANA.id, session_id=found.id, expires_in=left)
    assert outcome.identity == Identity(ANA.id, found.id, ends=NOW + 7 * DAY)
    assert outcome.writes == (ConfirmSession(found, NOW),)
    assert (outcome.verdict, outcome.subject, outcome.notices) == (Verdict.PASSED, ANA.id, ())


@pytest.mark.parametrize(
    ("request_", "found", "code"),
    [
        pytest.param(Authenticate("a.b.c"), LIVING, Code.TOKEN_INVALID, id="no token"),
        pytest.param(
            Authenticate(MINT.refresh_token(RefreshToken("0wrk1-session", 4))),
            LIVING,
            Code.TOKEN_INVALID,
            id="a refresh token",
        ),
        pytest.param(access(made=NOW + 11_000), LIVING, Code.TOKEN_EXPIRED, id="by a clock that was set back"),
        pytest.param(access(user_id="0wrk1-other"), LIVING, Code.TOKEN_INVALID, id="a session of somebody else"),
        pytest.param(access(made=NOW - 600_000), LIVING, Code.TOKEN_EXPIRED, id="ten minutes old"),
        pytest.param(access(), {"account": ANA}, Code.TOKEN_EXPIRED, id="no session"),
        pytest.param(access(), LIVING | {"session": session(seen=NOW - 7 * DAY)}, Code.TOKEN_EXPIRED, id="idle"),
        pytest.param(access(), LIVING | {"session": session(ended="logout")}, Code.TOKEN_REVOKED, id="ended"),
        pytest.param(
            access(), LIVING | {"account": replace(ANA, status="disabled")}, Code.TOKEN_REVOKED, id="disabled"
        ),
        pytest.param(access(), {"session": session()}, Code.TOKEN_REVOKED, id="no account"),
    ],
)
def test_authenticate_is_refused(request_: Authenticate, found: dict[str, Any], code: Code) -> None:
    outcome = outcome_of(request_, **found)
    assert refusal_of(outcome) == ("authentication_failed", code, None, None)
    assert nothing_happens(outcome)


# --- logout, sessions, account ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Logout(), Needs(session_id="0wrk1-session")),
        (Sessions(), Needs(session_id="0wrk1-session", sessions=True)),
        (Account(), Needs(session_id="0wrk1-session", devices=True)),
    ],
    ids=["logout", "sessions", "account"],
)
def test_a_request_that_needs_a_session_reads_its_connections_and_no_other(request_: Request, expected: Needs) -> None:
    assert needs_of(request_, IDENTITY) == expected
    assert needs_of(request_).session_id is None


def test_a_logout_ends_the_session_and_leaves_this_connection_open() -> None:
    found = session()
    outcome = outcome_of(Logout(), IDENTITY, session=found, account=ANA)
    assert (outcome.data, outcome.event) == (LoggedOut(), "logged_out")
    assert outcome.writes == (EndSession(found, "logout"),)
    told = SessionEnded(session_id=found.id, reason="logout")
    assert outcome.notices == (Notice(ANA.id, found.id, told, HERE, close=True),)
    assert (outcome.forget, outcome.identity, outcome.verdict) == (True, None, Verdict.PASSED)


def test_the_sessions_listed_are_the_living_ones_the_last_seen_first() -> None:
    here = session(device_ref="ref", device_name="Laptop")
    others = (
        session(id="seen-now", seen=NOW, ip="2001:db8::1"),
        session(id="idle", seen=NOW - 7 * DAY),
        session(id="ended", ended="logout"),
        session(id="almost-idle", created=NOW - 8 * DAY, seen=NOW - 7 * DAY + 1),
    )
    for order in itertools.permutations((here, *others)):
        outcome = outcome_of(
            Sessions(), IDENTITY, session=here, account=ANA, sessions=order, online=frozenset({"seen-now", "ended"})
        )
        data = outcome.data
        assert isinstance(data, SessionList)
        assert [item.session_id for item in data.sessions] == ["seen-now", here.id, "almost-idle"]
        assert [item.current for item in data.sessions] == [False, True, False]
        assert [item.online for item in data.sessions] == [True, False, False]
        first, second, _ = data.sessions
        assert (first.ip, first.device_ref, first.device_name) == ("2001:db8::1", None, None)
        assert (second.device_ref, second.device_name) == ("ref", "Laptop")
        assert (second.created_at, second.last_seen_at) == (rules.iso(here.created), rules.iso(here.seen))
        assert outcome.writes == ()


def test_an_account_is_shown_with_its_devices_and_without_a_secret() -> None:
    devices = (device(ref="b", seen=NOW - 5), device(ref="a", seen=NOW - 5, name=""), device(ref="c", seen=NOW))
    for order in itertools.permutations(devices):
        outcome = outcome_of(Account(), IDENTITY, session=session(), account=ANA, devices=order)
        data = outcome.data
        assert isinstance(data, AccountData)
        assert (data.user_id, data.email, data.created_at) == (ANA.id, EMAIL, rules.iso(ANA.created))
        assert (data.has2fa, data.recovery_codes_left) == (False, 0)
        assert [(item.device_ref, item.device_name) for item in data.devices] == [
            ("c", "Ana's phone"), ("a", None), ("b", "Ana's phone"),
        ]  # fmt: skip
        shown = encode_data(data).decode()
        assert ANA.password not in shown
        assert devices[0].mac not in shown
        assert outcome.writes == ()


# --- ending sessions ----------------------------------------------------------------------------------------------

OTHER = session(id="0wrk1-other")


def ended(*sessions: Session, reason: str) -> tuple[tuple[EndSession, ...], tuple[Notice, ...]]:
    """As everybody is told it, the connection that asks too."""
    notices = (Notice(ANA.id, s.id, SessionEnded(session_id=s.id, reason=reason), close=True) for s in sessions)
    return tuple(EndSession(each, reason) for each in sessions), tuple(notices)


def test_a_revocation_reads_the_own_session_and_the_one_it_names() -> None:
    expected = Needs(session_id=IDENTITY.session_id, other_session_id="0wrk1-other")
    assert needs_of(RevokeSession("0wrk1-other"), IDENTITY) == expected
    assert needs_of(RevokeOtherSessions(), IDENTITY) == Needs(session_id=IDENTITY.session_id, sessions=True)
    assert needs_of(RevokeOtherSessions()).session_id is None


@pytest.mark.parametrize("other", [OTHER, session()], ids=["another", "its own"])
def test_a_revoked_session_ends_everywhere_and_its_connections_close(other: Session) -> None:
    outcome = outcome_of(RevokeSession(other.id), IDENTITY, other_session=other, **LIVING)
    assert outcome.data == SessionRevoked()
    assert (outcome.writes, outcome.notices) == ended(other, reason="revoked")
    assert (outcome.forget, outcome.subject, outcome.mails) == (False, ANA.id, ())


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(None, id="none"),
        pytest.param(replace(OTHER, user_id="0wrk1-bob"), id="of another account"),
        pytest.param(replace(OTHER, user_id="0wrk1-bob", ended="logout"), id="of another account, ended"),
        pytest.param(replace(OTHER, ended="logout"), id="ended"),
        pytest.param(replace(OTHER, seen=NOW - 7 * DAY), id="expired by being unseen"),
        pytest.param(replace(OTHER, created=NOW - 30 * DAY), id="expired by age"),
    ],
)
def test_a_session_that_is_not_the_accounts_or_lives_no_more_is_not_found(other: Session | None) -> None:
    outcome = outcome_of(RevokeSession(OTHER.id), IDENTITY, other_session=other, **LIVING)
    assert refusal_of(outcome) == ("session_not_found", Code.NOT_FOUND, "sessionId", None)
    assert outcome.subject == ANA.id  # nothing of whose it was
    assert nothing_happens(outcome)


def test_all_sessions_but_this_one_are_ended_and_counted() -> None:
    third = session(id="0wrk1-third")
    old = session(id="0wrk1-old", seen=NOW - 7 * DAY)
    gone = session(id="0wrk1-gone", ended="logout")
    outcome = outcome_of(RevokeOtherSessions(), IDENTITY, sessions=(OTHER, session(), old, third, gone), **LIVING)
    assert outcome.data == SessionsRevoked(count=2)
    writes, notices = ended(OTHER, third, reason="revoked")
    assert outcome.writes == (*writes, EndOthers(ANA.id, session().id, "revoked"))
    *told, whoever_is_there = outcome.notices
    assert tuple(told) == notices
    assert (whoever_is_there.session_id, whoever_is_there.ends_others) == (session().id, "revoked")


def test_where_there_is_no_other_session_only_one_that_begins_meanwhile_would_be_ended() -> None:
    outcome = outcome_of(RevokeOtherSessions(), IDENTITY, sessions=(session(),), **LIVING)
    assert outcome.data == SessionsRevoked(count=0)
    assert outcome.writes == (EndOthers(ANA.id, session().id, "revoked"),)
