"""verify_device, approve_login, forget_device, and what it takes to give an answer again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app import messages, rules
from app.handlers.common import resumed
from app.messages import (
    ApproveLogin,
    Code,
    DeviceForgotten,
    DeviceVerified,
    LoginDecided,
    LoginSuccess,
    SecondFactorRequired,
    SecurityAlert,
    SessionStarted,
    VerifyDevice,
)
from app.records import (
    Attempt,
    BindChallenge,
    Challenge,
    ChangeAccount,
    ConfirmSession,
    DecideLogin,
    Device,
    EndChallenge,
    Facts,
    ForgetDevice,
    Identity,
    Mail,
    Needs,
    Notice,
    Origin,
    PutChallenge,
    StartSession,
    TrustDevice,
    Verdict,
)
from app.rules import DAY, MINUTE
from app.settings import Limits
from tests.deciding import (
    ANA,
    BEA,
    HERE,
    LIVING,
    PHONE,
    REST,
    TOKEN,
    check_tokens,
    needs_of,
    nothing_happens,
    outcome_of,
    refusal_of,
    written,
)
from tests.making import EMAIL, IDENTITY, MINT, NOW, ORIGIN, challenge, device, session

CODE = "01234567"
WAITS = challenge(
    kind="device",
    bound="connection",
    code_mac=MINT.code_mac("0wrk1-challenge", CODE),
    expires=NOW + 10 * MINUTE,
    code_expires=NOW + 9 * MINUTE,
    password="",
    device_name="Laptop",
    version=3,
)
VERIFY, UNTRUSTED = VerifyDevice(WAITS.id, CODE), VerifyDevice(WAITS.id, CODE, trust=False)
FOUND: dict[str, Any] = {"account": ANA, "challenge": WAITS}


# --- verify_device ------------------------------------------------------------------------------------------------


def test_a_verification_reads_its_challenge_and_reserves_a_try() -> None:
    limits = rules.code_limits(Limits(), WAITS.id, "192.0.2.7")
    assert needs_of(VERIFY) == Needs(challenge_id=WAITS.id, devices=True, crowd=True, limits=limits)


def test_the_mailed_code_starts_a_session_on_a_device_that_is_trusted_from_then_on() -> None:
    outcome = outcome_of(VERIFY, **FOUND)
    [trusted], [start], [told] = written(outcome, TrustDevice), written(outcome, StartSession), outcome.progress
    assert isinstance(told, DeviceVerified)
    assert told.device_token is not None
    assert trusted.device == Device(trusted.device.ref, MINT.device_mac(told.device_token), "Laptop", NOW)
    assert trusted.account == start.account == ANA
    assert start.device == trusted.device
    assert (start.session.device_ref, start.session.device_name) == (trusted.device.ref, "Laptop")
    assert start.session.amr == ("pwd",)  # a mailed code is no second factor
    assert written(outcome, EndChallenge) == [EndChallenge(WAITS)]
    assert len(outcome.writes) == 3
    check_tokens(outcome, LoginSuccess, start.session.id, 0)
    assert outcome.identity == Identity(ANA.id, start.session.id, trusted.device.ref, NOW + 7 * DAY)
    assert (outcome.verdict, outcome.subject) == (Verdict.PASSED, ANA.id)


def test_who_does_not_want_it_trusted_gets_no_token_and_the_session_is_of_no_device() -> None:
    outcome = outcome_of(UNTRUSTED, **FOUND)
    assert outcome.progress == (DeviceVerified(),)
    assert written(outcome, TrustDevice) == []
    [start] = written(outcome, StartSession)
    assert (start.device, start.session.device_ref, start.session.device_name) == (None, "", "Laptop")
    assert EndChallenge(WAITS) in outcome.writes


def test_its_owner_is_mailed_that_somebody_came_from_a_new_device_and_the_sessions_are_told() -> None:
    outcome = outcome_of(VERIFY, **FOUND)
    [start] = written(outcome, StartSession)
    assert outcome.mails == (Mail("login_notice", EMAIL, device="Laptop", ip="192.0.2.7", at=NOW, tell=HERE),)
    told = SessionStarted(session_id=start.session.id, device_name="Laptop", ip="192.0.2.7")
    assert outcome.notices == (Notice(ANA.id, start.session.id, told, HERE),)


@pytest.mark.parametrize("trust", [True, False])
def test_after_it_comes_the_second_factor_and_no_session(trust: bool) -> None:
    outcome = outcome_of(VerifyDevice(WAITS.id, CODE, trust), account=BEA, challenge=WAITS)
    assert isinstance(outcome.data, SecondFactorRequired)
    assert (written(outcome, StartSession), outcome.identity, outcome.notices, outcome.mails) == ([], None, (), ())
    [put] = written(outcome, PutChallenge)
    assert written(outcome, TrustDevice) == [], "not before the second factor"
    assert bool(outcome.progress[0].device_token) is trust  # type: ignore[attr-defined]
    assert put.challenge.id == outcome.data.challenge != WAITS.id
    assert (put.challenge.kind, put.challenge.bound) == ("second_factor", "connection")
    assert bool(put.challenge.device_ref) is bool(put.challenge.device_mac) is trust
    assert MINT.challenge_subject(put.challenge.id) == BEA.id, "its tries are the account's"
    assert put.challenge.version == BEA.version
    assert put.challenge.noticed is False  # so that the mail follows with the session
    assert EndChallenge(WAITS) in outcome.writes


def test_two_devices_share_neither_token_nor_ref() -> None:
    made = [written(outcome_of(VERIFY, **FOUND), TrustDevice)[0].device for _ in range(20)]
    assert len({each.mac for each in made}) == len({each.ref for each in made}) == 20


@pytest.mark.parametrize("code", [None, CODE, "00000000"], ids=["no code", "the code", "a wrong code"])
@pytest.mark.parametrize("mailed", [True, False], ids=["mailed", "not mailed"])
def test_once_another_device_has_approved_it_no_code_is_needed(code: str | None, mailed: bool) -> None:
    approved = replace(WAITS, decided="approved", code_mac=WAITS.code_mac if mailed else "")
    assert outcome_of(VerifyDevice(WAITS.id, code), account=ANA, challenge=approved).event == "login_success"


@pytest.mark.parametrize(("after", "lets_in"), [(rules.CHALLENGE_MS - 1, True), (rules.CHALLENGE_MS, False)])
def test_what_was_approved_is_good_for_no_longer_than_it_was_said_to_be(after: int, lets_in: bool) -> None:
    began = WAITS.expires - rules.CHALLENGE_MS - rules.LATE_MS
    approved = replace(WAITS, decided="approved")
    outcome = outcome_of(VerifyDevice(WAITS.id), account=ANA, challenge=approved, now=began + after)
    assert (outcome.event == "login_success") is lets_in
    if not lets_in:
        assert refusal_of(outcome) == ("device_verification_failed", Code.CHALLENGE_EXPIRED, None, None)


OWN = Attempt("0wrk1-attempt", WAITS.id, 42, NOW + 1, "0-node", "connection")


@pytest.mark.parametrize(
    ("attempt", "closes"),
    [
        pytest.param(OWN, True, id="its own"),
        pytest.param(replace(OWN, expires=NOW - 1), True, id="its own, too old"),
        pytest.param(replace(OWN, challenge="0wrk1-other"), False, id="another login's"),
        pytest.param(None, False, id="none"),
    ],
)
def test_who_is_in_need_not_be_let_in_any_more(attempt: Attempt | None, closes: bool) -> None:
    account = replace(ANA, attempt=attempt.text if attempt else "")
    changes = written(outcome_of(VERIFY, account=account, challenge=WAITS), ChangeAccount)
    assert changes == ([ChangeAccount(account, replace(account, attempt=""))] if closes else [])


@pytest.mark.parametrize(
    ("held", "forgotten"), [(0, 0), (1, 0), (24, 0), (25, 0), (26, 0), (48, 0), (49, 0), (50, 1), (51, 2), (60, 11)]
)
def test_of_more_than_fifty_devices_the_longest_unseen_make_room(held: int, forgotten: int) -> None:
    devices = tuple(device(ref=f"d{n:02}", mac=f"wrk1:{n}", seen=NOW - 1000 * n) for n in range(held))
    for order in (devices, devices[::-1]):
        outcome = outcome_of(VERIFY, devices=order, **FOUND)
        refs = sorted(write.ref for write in written(outcome, ForgetDevice))
        assert refs == [each.ref for each in devices[held - forgotten :]]
        assert written(outcome_of(UNTRUSTED, devices=order, **FOUND), ForgetDevice) == []


EXPIRED, INVALID = Code.CHALLENGE_EXPIRED, Code.INVALID_CODE


@pytest.mark.parametrize(
    ("code", "found", "expected", "verdict"),
    [
        pytest.param(CODE, {"challenge": None}, (EXPIRED, None), Verdict.UNJUDGED, id="unknown challenge"),
        pytest.param(CODE, {"challenge": replace(WAITS, expires=NOW)}, (EXPIRED, None), Verdict.UNJUDGED, id="too old"),
        *(
            pytest.param(CODE, {"challenge": replace(WAITS, kind=kind)}, (EXPIRED, None), Verdict.UNJUDGED, id=kind)
            for kind in ("registration", "second_factor", "reset")
        ),
        pytest.param(
            CODE, {"challenge": replace(WAITS, bound="other")}, (EXPIRED, None), Verdict.UNJUDGED, id="of another"
        ),
        pytest.param(
            CODE,
            {"challenge": replace(WAITS, bound="connectio onnection connection2")},
            (EXPIRED, None),
            Verdict.UNJUDGED,
            id="of others whose names are like it",
        ),
        pytest.param(
            CODE, {"challenge": replace(WAITS, decided="refused")}, (EXPIRED, None), Verdict.UNJUDGED, id="refused"
        ),
        pytest.param(CODE, {"refused": {"tries": 1000}}, (EXPIRED, None), Verdict.UNJUDGED, id="five wrong codes"),
        pytest.param(
            None,
            {"refused": {"tries": 1000}, "challenge": replace(WAITS, decided="approved")},
            (EXPIRED, None),
            Verdict.UNJUDGED,
            id="five wrong codes, then approved",
        ),
        pytest.param(CODE, {"account": None}, (EXPIRED, None), Verdict.UNJUDGED, id="no account"),
        pytest.param(
            CODE, {"account": replace(ANA, id="0wrk1-other")}, (EXPIRED, None), Verdict.UNJUDGED, id="another account"
        ),
        pytest.param(
            CODE, {"account": replace(ANA, status="disabled")}, (EXPIRED, None), Verdict.UNJUDGED, id="disabled"
        ),
        pytest.param(
            None,
            {"account": replace(ANA, status="disabled"), "challenge": replace(WAITS, decided="approved")},
            (EXPIRED, None),
            Verdict.UNJUDGED,
            id="approved, disabled",
        ),
        pytest.param(
            CODE, {"account": replace(ANA, floor=4)}, (EXPIRED, None), Verdict.UNJUDGED, id="another password since"
        ),
        pytest.param(
            None,
            {"account": replace(ANA, floor=4), "challenge": replace(WAITS, decided="approved")},
            (EXPIRED, None),
            Verdict.UNJUDGED,
            id="approved, another password since",
        ),
        pytest.param(None, {}, (INVALID, "code"), Verdict.UNJUDGED, id="no code before anybody approved"),
        pytest.param("01234568", {}, (INVALID, "code"), Verdict.FAILED, id="wrong code"),
        pytest.param("1234567", {}, (INVALID, "code"), Verdict.FAILED, id="a digit left out"),
        pytest.param(
            CODE, {"challenge": replace(WAITS, code_mac="")}, (INVALID, "code"), Verdict.FAILED, id="not mailed"
        ),
        pytest.param(
            CODE,
            {"challenge": replace(WAITS, code_mac=MINT.code_mac("0wrk1-other", CODE))},
            (INVALID, "code"),
            Verdict.FAILED,
            id="the code of another challenge",
        ),
        pytest.param(
            CODE,
            {"challenge": replace(WAITS, code_expires=NOW)},
            (Code.CODE_EXPIRED, "code"),
            Verdict.UNJUDGED,
            id="an old code",
        ),
    ],
)
@pytest.mark.parametrize("trust", [True, False])
def test_a_verification_is_refused(
    code: str | None, found: dict[str, Any], expected: tuple[Code, str | None], verdict: Verdict, trust: bool
) -> None:
    outcome = outcome_of(VerifyDevice(WAITS.id, code, trust), **FOUND | found)
    assert refusal_of(outcome) == ("device_verification_failed", *expected, None)
    assert outcome.verdict is verdict
    assert nothing_happens(outcome)


def test_what_began_on_a_connection_does_not_end_over_rest() -> None:
    assert refusal_of(outcome_of(VERIFY, origin=REST, **FOUND))[1] is EXPIRED
    over_rest = FOUND | {"challenge": replace(WAITS, bound="")}
    assert outcome_of(VERIFY, origin=REST, **over_rest).event == "login_success"
    assert outcome_of(VERIFY, **over_rest).event == "login_success"


@pytest.mark.parametrize("kept", [None, WAITS, replace(WAITS, decided="approved")])
def test_a_network_that_failed_too_often_is_told_to_wait_whatever_it_has(kept: Challenge | None) -> None:
    outcome = outcome_of(VERIFY, account=ANA, challenge=kept, refused={"ip": 9000, "tries": 1000})
    assert refusal_of(outcome) == ("error", Code.RATE_LIMITED, None, 9000)
    assert nothing_happens(outcome)


# --- approve_login ------------------------------------------------------------------------------------------------

ASKED = Attempt("0wrk1-attempt", WAITS.id, 42, NOW + 1, "0-far", "far-connection")
ASKED_ANA = replace(ANA, attempt=ASKED.text)
APPROVE, REFUSE = ApproveLogin(ASKED.id, True, 42), ApproveLogin(ASKED.id, False)
ON_PHONE: dict[str, Any] = {
    "session": session(device_ref=PHONE.ref),
    "account": ASKED_ANA,
    "devices": (device(ref="0wrk1-tablet"), PHONE),
}


def test_a_decision_reads_the_own_session_and_its_devices_and_reserves_a_try() -> None:
    limits = rules.approval_limits(ASKED.id)
    assert needs_of(APPROVE, IDENTITY) == Needs(session_id=IDENTITY.session_id, devices=True, limits=limits)
    assert needs_of(APPROVE).session_id is None


@pytest.mark.parametrize(
    ("request_", "decided", "alerts"),
    [
        (APPROVE, "approved", ()),
        (REFUSE, "refused", (Notice(ANA.id, "", SecurityAlert(kind="login_refused"), HERE),)),
        (
            ApproveLogin(ASKED.id, False, 13),
            "refused",
            (Notice(ANA.id, "", SecurityAlert(kind="login_refused"), HERE),),
        ),
    ],
    ids=["let in", "refused", "refused with a number"],
)
def test_a_trusted_device_decides_and_who_waits_is_told(
    request_: ApproveLogin, decided: Any, alerts: tuple[Notice, ...]
) -> None:
    outcome = outcome_of(request_, IDENTITY, **ON_PHONE)
    told = LoginDecided(approved=decided == "approved")
    assert outcome.data == told
    assert outcome.writes == (
        ChangeAccount(ASKED_ANA, replace(ASKED_ANA, attempt="")),
        DecideLogin(WAITS.id, ANA.id, decided),
    )
    assert outcome.notices == (Notice(ANA.id, "", told, only=("0-far", "far-connection")), *alerts)
    assert (outcome.verdict, outcome.subject, outcome.mails) == (Verdict.PASSED, ANA.id, ())


@pytest.mark.parametrize(
    ("request_", "found", "expected", "verdict"),
    [
        pytest.param(
            APPROVE, {"account": ANA}, (Code.NOT_FOUND, "loginId"), Verdict.UNJUDGED, id="nobody waits, or decided"
        ),
        pytest.param(
            ApproveLogin("0wrk1-other", True, 42),
            {},
            (Code.NOT_FOUND, "loginId"),
            Verdict.UNJUDGED,
            id="another login, of anybody",
        ),
        pytest.param(
            ApproveLogin(WAITS.id, True, 42),
            {},
            (Code.NOT_FOUND, "loginId"),
            Verdict.UNJUDGED,
            id="the challenge in its place",
        ),
        pytest.param(
            APPROVE,
            {"account": replace(ANA, attempt=replace(ASKED, expires=NOW).text)},
            (Code.NOT_FOUND, "loginId"),
            Verdict.UNJUDGED,
            id="too old",
        ),
        pytest.param(
            APPROVE, {"session": session()}, (Code.NOT_FOUND, "loginId"), Verdict.UNJUDGED, id="on no trusted device"
        ),
        pytest.param(
            REFUSE, {"session": session()}, (Code.NOT_FOUND, "loginId"), Verdict.UNJUDGED, id="refused on none either"
        ),
        pytest.param(
            APPROVE, {"devices": ()}, (Code.NOT_FOUND, "loginId"), Verdict.UNJUDGED, id="on a device that was forgotten"
        ),
        pytest.param(
            APPROVE, {"refused": {"approval": 1}}, (Code.NOT_FOUND, "loginId"), Verdict.UNJUDGED, id="three wrong ones"
        ),
        pytest.param(
            ApproveLogin(ASKED.id, True, 43),
            {},
            (Code.INVALID_CODE, "matchNumber"),
            Verdict.FAILED,
            id="another number",
        ),
    ],
)
def test_an_approval_fails(
    request_: ApproveLogin, found: dict[str, Any], expected: tuple[Code, str], verdict: Verdict
) -> None:
    outcome = outcome_of(request_, IDENTITY, **ON_PHONE | found)
    assert refusal_of(outcome) == ("approval_failed", *expected, None)
    assert outcome.verdict is verdict
    assert nothing_happens(outcome)


def test_after_three_wrong_numbers_it_can_still_be_refused() -> None:
    outcome = outcome_of(REFUSE, IDENTITY, refused={"approval": 1}, **ON_PHONE)
    assert outcome.data == LoginDecided(approved=False)


# --- forget_device ------------------------------------------------------------------------------------------------


def test_a_forgotten_device_is_trusted_no_longer_and_its_sessions_live_on() -> None:
    outcome = outcome_of(messages.ForgetDevice(PHONE.ref), IDENTITY, **LIVING, devices=(PHONE,))
    assert outcome.data == DeviceForgotten()
    assert outcome.writes == (ForgetDevice(ANA, PHONE.ref),)
    assert (outcome.notices, outcome.mails, outcome.subject) == ((), (), ANA.id)


@pytest.mark.parametrize("ref", ["0wrk1-other", PHONE.mac.replace(":", "."), TOKEN], ids=["another", "mac", "token"])
def test_a_device_that_is_none_of_the_accounts_is_not_found(ref: str) -> None:
    outcome = outcome_of(messages.ForgetDevice(ref), IDENTITY, **LIVING, devices=(PHONE,))
    assert refusal_of(outcome) == ("device_not_found", Code.NOT_FOUND, "deviceRef", None)
    assert nothing_happens(outcome)


# --- an answer that is given again --------------------------------------------------------------------------------

THERE = replace(ORIGIN, node="0-new", connection="new-connection")


def test_a_session_that_is_spoken_for_again_has_to_live_and_is_not_seen_later_for_it() -> None:
    found = session(seen=NOW - 5000)
    assert resumed(Facts(NOW, session=found, account=ANA), ORIGIN) == (ConfirmSession(found, NOW - 5000),)


@pytest.mark.parametrize(
    ("kept", "origin", "binds"),
    [
        pytest.param(WAITS, THERE, True, id="from another connection"),
        pytest.param(WAITS, ORIGIN, False, id="from its own"),
        pytest.param(replace(WAITS, bound="a connection b"), ORIGIN, False, id="from one of its own"),
        pytest.param(replace(WAITS, bound=""), THERE, False, id="whoever holds it"),
        pytest.param(WAITS, REST, False, id="over REST, which has no connection"),
        pytest.param(None, THERE, False, id="answered meanwhile"),
    ],
)
def test_who_gets_a_challenge_again_may_answer_it_too(kept: Challenge | None, origin: Origin, binds: bool) -> None:
    writes = resumed(Facts(NOW, challenge=kept, account=ANA), origin)
    assert writes == ((BindChallenge(WAITS, "new-connection"),) if binds else ())


@pytest.mark.parametrize(
    ("attempt", "moves"),
    [(OWN, True), (replace(OWN, challenge="0wrk1-other"), False), (None, False)],
    ids=["its own", "another login's", "none"],
)
def test_who_waits_to_be_let_in_is_told_where_he_is_now(attempt: Attempt | None, moves: bool) -> None:
    account = replace(ANA, attempt=attempt.text if attempt else "")
    bound, *more = resumed(Facts(NOW, challenge=WAITS, account=account), THERE)
    assert bound == BindChallenge(WAITS, "new-connection")
    if moves:
        moved = replace(OWN, node="0-new", connection="new-connection")
        assert more == [ChangeAccount(account, replace(account, attempt=moved.text))]
    else:
        assert more == []


# --- what is kept as one text -------------------------------------------------------------------------------------


def test_an_attempt_is_read_as_it_was_written() -> None:
    assert Attempt.read(ASKED.text) == ASKED
    assert Attempt.read("") is None
