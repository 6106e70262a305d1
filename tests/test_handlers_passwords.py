"""request_password_reset, reset_password, change_password."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app import rules
from app.frames import encode_data
from app.handlers.common import of_now
from app.messages import (
    ChangePassword,
    Code,
    PasswordChanged,
    PasswordReset,
    Request,
    RequestPasswordReset,
    ResetPassword,
    SecurityAlert,
)
from app.records import (
    Account,
    ChangeAccount,
    EndChallenge,
    EndOthers,
    EndSession,
    Mail,
    Needs,
    NewestReset,
    Notice,
    PutChallenge,
    Verdict,
)
from app.rules import HOUR, MINUTE
from app.settings import Limits
from tests.deciding import (
    ANA,
    BEA,
    HASHER,
    HERE,
    LIVING,
    REST,
    evaluations_of,
    needs_of,
    nothing_happens,
    outcome_of,
    refusal_of,
    written,
)
from tests.making import EMAIL, IDENTITY, MINT, NOW, PASSWORD, challenge, session

NEW = "seven brown owls in a boat"


# --- request_password_reset ---------------------------------------------------------------------------------------

REQUEST = RequestPasswordReset(EMAIL)
DISABLED = replace(ANA, status="disabled")


def test_a_request_for_a_reset_reads_the_account_and_reserves_nothing_but_its_mail() -> None:
    assert needs_of(REQUEST) == Needs(email=EMAIL)


def test_a_link_is_mailed_whose_code_has_128_bits_and_is_kept_as_a_mac() -> None:
    outcome = outcome_of(REQUEST, account=replace(ANA, locale="pt-BR"))
    [put, newest], [mail] = outcome.if_mailed, outcome.mails
    assert isinstance(put, PutChallenge)
    kept = put.challenge
    assert (kept.kind, kept.email, kept.user_id, kept.bound) == ("reset", EMAIL, ANA.id, "")
    assert (kept.expires, kept.code_expires) == (NOW + HOUR, NOW + 30 * MINUTE)
    assert newest == NewestReset(ANA.id, kept.id)
    assert mail == Mail("reset", EMAIL, "pt-BR", mail.code, ip="192.0.2.7", at=NOW)
    assert mail.tell is None  # nobody has proved anything: it would tell that there is an account
    id, _, secret = mail.code.partition(".")
    assert id == kept.id
    assert len(secret) * 6 >= 128
    assert MINT.code_matches(kept.code_mac, kept.id, mail.code)
    assert secret not in repr(kept) + kept.code_mac
    assert outcome.writes == ()  # without its mail the older link stays good


@pytest.mark.parametrize("account", [None, DISABLED], ids=["unknown", "disabled"])
def test_where_no_mail_may_go_everything_is_done_alike(account: Account | None) -> None:
    known, for_known = evaluations_of(REQUEST, account=ANA)
    outcome, evaluations = evaluations_of(REQUEST, account=account)
    assert encode_data(outcome.data) == encode_data(known.data) == b"{}"
    assert (outcome.event, outcome.verdict, outcome.even) == (known.event, known.verdict, known.even)
    assert evaluations == for_known == 0
    assert outcome.mails == (Mail("decoy", EMAIL),)
    [put] = outcome.if_mailed
    assert isinstance(put, PutChallenge)
    assert (put.challenge.code_mac, put.challenge.user_id, put.challenge.kind) == ("", "", "reset")
    assert (outcome.writes, outcome.notices, outcome.subject) == ((), (), "")


@pytest.mark.parametrize("account", [ANA, None, DISABLED], ids=["known", "unknown", "disabled"])
def test_no_request_for_a_reset_stands_on_what_was_read(account: Account | None) -> None:
    """Else of many at once some would conflict, and only for an account that there is."""
    writes = outcome_of(REQUEST, account=account).if_mailed
    assert {type(write) for write in writes} <= {PutChallenge, NewestReset}


def test_two_requests_share_neither_challenge_nor_code() -> None:
    mails = [outcome_of(REQUEST, account=ANA).mails[0] for _ in range(20)]
    assert len({mail.code.partition(".")[0] for mail in mails}) == 20
    assert len({mail.code.partition(".")[2] for mail in mails}) == 20


# --- reset_password -----------------------------------------------------------------------------------------------

LINK = "0wrk1-challenge.secret"
LINKED = challenge(
    kind="reset", code_mac=MINT.code_mac("0wrk1-challenge", LINK), expires=NOW + HOUR, code_expires=NOW + 30 * MINUTE
)
FORGETFUL = replace(ANA, reset=LINKED.id)
RESET = ResetPassword(EMAIL, LINK, NEW)
FOUND: dict[str, Any] = {"account": FORGETFUL, "challenge": LINKED}


def test_a_reset_reads_the_account_and_the_challenge_its_code_names() -> None:
    limits = rules.failures_of(Limits(), "192.0.2.7")
    assert needs_of(RESET) == Needs(email=EMAIL, challenge_id=LINKED.id, sessions=True, limits=limits)
    assert needs_of(ResetPassword(EMAIL, ".secret", NEW)).challenge_id is None


def test_the_mailed_link_sets_the_password_and_ends_every_session_and_starts_none() -> None:
    living = (session(), session(id="0wrk1-other"))
    outcome, evaluations = evaluations_of(RESET, sessions=living, **FOUND)
    assert outcome.data == PasswordReset()
    [change] = written(outcome, ChangeAccount)
    assert change == ChangeAccount(
        FORGETFUL, replace(FORGETFUL, password=change.new.password, reset="", floor=ANA.version + 1)
    )
    assert HASHER.verify(change.new.password, ANA.id, NEW)
    assert written(outcome, EndChallenge) == [EndChallenge(LINKED)]
    assert written(outcome, EndSession) == [EndSession(each, "password_reset") for each in living]
    assert written(outcome, EndOthers) == [EndOthers(ANA.id, "", "password_reset")]
    assert len(outcome.writes) == 5
    *told_of, others = outcome.notices
    assert [(told.session_id, told.close, told.spare) for told in told_of] == [
        (each.id, True, ("", "")) for each in living
    ]
    assert (others.session_id, others.spare, others.ends_others) == ("", ("", ""), "password_reset")
    assert outcome.mails == (Mail("password_changed", EMAIL, ip="192.0.2.7", at=NOW),)
    assert (outcome.identity, outcome.verdict, outcome.subject, evaluations) == (None, Verdict.PASSED, ANA.id, 1)


def test_a_reset_leaves_the_second_factor_on() -> None:
    bea = replace(BEA, reset=LINKED.id)
    [change] = written(outcome_of(RESET, account=bea, challenge=LINKED), ChangeAccount)
    assert (change.new.totp, change.new.recovery, change.new.totp_step) == (bea.totp, bea.recovery, bea.totp_step)


WRONG = (Code.INVALID_CODE, "code")


@pytest.mark.parametrize(
    ("code", "found", "expected", "verdict"),
    [
        pytest.param(LINK, {"challenge": None}, WRONG, Verdict.FAILED, id="unknown, or used"),
        pytest.param(LINK, {"challenge": replace(LINKED, expires=NOW)}, WRONG, Verdict.FAILED, id="too old by far"),
        *(
            pytest.param(LINK, {"challenge": replace(LINKED, kind=kind)}, WRONG, Verdict.FAILED, id=kind)
            for kind in ("registration", "second_factor", "device")
        ),
        pytest.param(LINK + "x", {}, WRONG, Verdict.FAILED, id="wrong"),
        pytest.param(LINKED.id, {}, WRONG, Verdict.FAILED, id="the challenge alone"),
        pytest.param(LINK, {"challenge": replace(LINKED, code_mac="")}, WRONG, Verdict.FAILED, id="a decoy"),
        pytest.param(LINK, {"account": None}, WRONG, Verdict.FAILED, id="an unknown address"),
        pytest.param(
            LINK,
            {"account": replace(FORGETFUL, id="0wrk1-other")},
            WRONG,
            Verdict.FAILED,
            id="the link of another account",
        ),
        pytest.param(
            LINK, {"account": replace(FORGETFUL, reset="0wrk1-newer")}, WRONG, Verdict.FAILED, id="not the newest"
        ),
        pytest.param(LINK, {"account": ANA}, WRONG, Verdict.FAILED, id="void since the password was changed"),
        pytest.param(
            LINK, {"account": replace(FORGETFUL, status="disabled")}, WRONG, Verdict.FAILED, id="disabled since"
        ),
        pytest.param(
            LINK,
            {"challenge": replace(LINKED, code_expires=NOW)},
            (Code.CODE_EXPIRED, "code"),
            Verdict.UNJUDGED,
            id="late",
        ),
        pytest.param(
            LINK + "x", {"challenge": replace(LINKED, code_expires=NOW)}, WRONG, Verdict.FAILED, id="late and wrong"
        ),
    ],
)
def test_a_reset_is_refused_unhashed(
    code: str, found: dict[str, Any], expected: tuple[Code, str], verdict: Verdict
) -> None:
    outcome, evaluations = evaluations_of(ResetPassword(EMAIL, code, NEW), sessions=(session(),), **FOUND | found)
    assert refusal_of(outcome) == ("password_reset_failed", *expected, None)
    assert (outcome.verdict, evaluations) == (verdict, 0)
    assert nothing_happens(outcome)


def test_a_wrong_link_is_refused_alike_for_known_and_unknown_addresses() -> None:
    wrong = ResetPassword(EMAIL, LINK + "x", NEW)
    assert outcome_of(wrong, **FOUND) == outcome_of(wrong) == outcome_of(wrong, account=ANA)


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("vbnrqzkwmtplhx", Code.PASSWORD_TOO_SHORT),
        ("password1234567", Code.PASSWORD_COMMON),
        ("ana@example.com", Code.PASSWORD_COMMON),
    ],
)
@pytest.mark.parametrize("found", [FOUND, {}], ids=["good link", "no link"])
def test_a_weak_new_password_is_refused_and_the_link_stays_good(
    password: str, code: Code, found: dict[str, Any]
) -> None:
    outcome = outcome_of(ResetPassword(EMAIL, LINK, password), **found)
    assert refusal_of(outcome) == ("password_reset_failed", code, "newPassword", None)
    assert outcome.verdict is Verdict.UNJUDGED
    assert nothing_happens(outcome)


def test_a_network_that_failed_too_often_is_told_to_wait_whatever_its_link() -> None:
    for found in (FOUND, {}):
        outcome, evaluations = evaluations_of(RESET, refused={"ip": 9000}, **found)
        assert refusal_of(outcome) == ("error", Code.RATE_LIMITED, None, 9000)
        assert evaluations == 0
        assert nothing_happens(outcome)


# --- change_password ----------------------------------------------------------------------------------------------

CHANGE = ChangePassword(PASSWORD, NEW)


def test_a_change_reads_the_own_session_and_reserves_a_proof() -> None:
    limits = rules.proof_limits(Limits(), IDENTITY.user_id, "192.0.2.7")
    assert needs_of(CHANGE, IDENTITY) == Needs(session_id=IDENTITY.session_id, sessions=True, limits=limits)


def test_the_present_password_sets_a_new_one_and_every_other_session_ends() -> None:
    account, other = replace(ANA, reset="0wrk1-reset"), session(id="0wrk1-other")
    found = LIVING | {"account": account, "sessions": (session(), other)}
    outcome, evaluations = evaluations_of(CHANGE, IDENTITY, **found)
    assert outcome.data == PasswordChanged()
    [change] = written(outcome, ChangeAccount)
    assert change == ChangeAccount(
        account, replace(account, password=change.new.password, reset="", floor=ANA.version + 1)
    )
    assert HASHER.verify(change.new.password, ANA.id, NEW)
    assert written(outcome, EndSession) == [EndSession(other, "password_changed")]
    assert written(outcome, EndOthers) == [EndOthers(ANA.id, session().id, "password_changed")]
    closed, others, alerted = outcome.notices
    assert (others.session_id, others.spare, others.ends_others) == (session().id, ("", ""), "password_changed")
    assert (closed.session_id, closed.close) == (other.id, True)
    assert alerted == Notice(ANA.id, "", SecurityAlert(kind="password_changed"), HERE)
    assert outcome.mails == (Mail("password_changed", EMAIL, ip="192.0.2.7", at=NOW, tell=HERE),)
    assert (outcome.verdict, outcome.subject, outcome.forget, evaluations) == (Verdict.PASSED, ANA.id, False, 2)


def test_over_rest_the_mail_tells_nobody_how_it_goes() -> None:
    assert outcome_of(CHANGE, IDENTITY, origin=REST, **LIVING).mails[0].tell is None


@pytest.mark.parametrize(
    ("request_", "refused", "expected", "evaluations"),
    [
        pytest.param(
            ChangePassword(PASSWORD, "vbnrqzkwmtplhx"), {}, (Code.PASSWORD_TOO_SHORT, "newPassword", None), 0,
            id="short"
        ),
        pytest.param(
            ChangePassword("wrong", "password1234567"), {}, (Code.PASSWORD_COMMON, "newPassword", None), 0,
            id="weak comes before wrong",
        ),
        pytest.param(
            ChangePassword("wrong", NEW), {}, (Code.INVALID_CREDENTIALS, "currentPassword", None), 1, id="wrong"
        ),
        pytest.param(
            ChangePassword("", NEW), {}, (Code.INVALID_CREDENTIALS, "currentPassword", None), 1, id="none"
        ),
        pytest.param(CHANGE, {"proof": 30_000}, (Code.TOO_MANY_ATTEMPTS, None, 30_000), 0, id="too many"),
        pytest.param(
            CHANGE, {"proof": 30_000, "ip": 1}, (Code.TOO_MANY_ATTEMPTS, None, 30_000), 0, id="too many of both"
        ),
    ],
)  # fmt: skip
def test_a_change_is_refused(
    request_: ChangePassword, refused: dict[str, int], expected: tuple[Any, ...], evaluations: int
) -> None:
    outcome, spent = evaluations_of(request_, IDENTITY, refused=refused, sessions=(session(id="x"),), **LIVING)
    assert refusal_of(outcome) == ("password_change_failed", *expected)
    assert outcome.verdict is (Verdict.FAILED if spent else Verdict.UNJUDGED)
    assert spent == evaluations
    assert nothing_happens(outcome)


def test_a_network_that_failed_too_often_changes_nothing() -> None:
    outcome, spent = evaluations_of(CHANGE, IDENTITY, refused={"ip": 9000}, **LIVING)
    assert refusal_of(outcome) == ("error", Code.RATE_LIMITED, None, 9000)
    assert (spent, nothing_happens(outcome)) == (0, True)


@pytest.mark.parametrize("request_", [CHANGE, RESET], ids=["change", "reset"])
def test_a_login_that_began_with_the_old_password_ends_there(request_: Request) -> None:
    """A code, an approval or a second factor that comes later lets nobody in who had no more than that."""
    found = LIVING | {"account": FORGETFUL, "challenge": LINKED}
    [change] = written(outcome_of(request_, IDENTITY, **found), ChangeAccount)
    began = challenge(kind="device", decided="approved", version=FORGETFUL.version, user_id=ANA.id)
    assert of_now(began, FORGETFUL)
    assert not of_now(began, change.new)
    assert of_now(replace(began, version=FORGETFUL.version + 1), change.new)  # as the store counts it
