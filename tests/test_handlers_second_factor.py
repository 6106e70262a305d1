"""The second factor: verify_2fa, enroll_2fa, confirm_2fa, disable_2fa, new_recovery_codes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from app import rules, totp
from app.messages import (
    ChangePassword,
    Code,
    Confirm2fa,
    Disable2fa,
    Enroll2fa,
    Enrollment,
    Login,
    LoginSuccess,
    NewRecoveryCodes,
    RecoveryCodes,
    Request,
    SecondFactorDisabled,
    SecondFactorEnabled,
    SecondFactorVerified,
    SecurityAlert,
    Verify2fa,
)
from app.records import (
    Account,
    Challenge,
    ChangeAccount,
    Device,
    EndChallenge,
    Enrolling,
    ForgetDevice,
    Identity,
    Mail,
    Needs,
    Notice,
    StartSession,
    TrustDevice,
    Verdict,
)
from app.rules import DAY, MINUTE, Settling
from app.settings import Limits
from tests.deciding import (
    ANA,
    BEA,
    HERE,
    LIVING,
    PHONE,
    RECOVERY,
    REST,
    SEED,
    SETTINGS,
    TOKEN,
    check_tokens,
    evaluations_of,
    factor,
    kind_of,
    needs_of,
    nothing_happens,
    outcome_of,
    refusal_of,
    written,
)
from tests.making import EMAIL, IDENTITY, MINT, NOW, PASSWORD, challenge, device

WAITS = challenge(
    id=MINT.challenge_id(rules.factor_subject(BEA.id, PHONE.ref)),
    kind="second_factor",
    bound="connection",
    code_mac="",
    code_expires=0,
    password="",
    expires=NOW + 10 * MINUTE,
    device_ref=PHONE.ref,
    device_name="Ana's phone",
    noticed=True,
    version=3,
)
FOUND: dict[str, Any] = {"account": BEA, "challenge": WAITS, "devices": (PHONE,)}
OF_BEA: dict[str, Any] = LIVING | {"account": BEA}
FIRST, SECOND = RECOVERY
FAILED = "2fa_verification_failed"


def verify(code: str | None = None, recovery: str | None = None) -> Verify2fa:
    return Verify2fa(challenge=WAITS.id, code=code, recovery_code=recovery)


# --- verify_2fa ---------------------------------------------------------------------------------------------------


def test_a_second_factor_reserves_a_try_of_its_challenge_and_one_of_its_account() -> None:
    tries, network = rules.code_limits(Limits(), WAITS.id, "192.0.2.7")
    factor_, network_too = rules.factor_limits(Limits(), rules.factor_subject(BEA.id, PHONE.ref), "192.0.2.7")
    assert network == network_too
    limits = (tries, factor_, network)
    assert needs_of(verify("1")) == Needs(challenge_id=WAITS.id, devices=True, crowd=True, limits=limits)


@pytest.mark.parametrize("made_up", [f"{WAITS.id}x", f"0wrk1-a.{BEA.id}.mac", f"0wrk1-a.{BEA.id}", "0wrk1-a", "."])
def test_a_challenge_that_was_not_made_here_takes_nobodys_place(made_up: str) -> None:
    limits = rules.failures_of(Limits(), "192.0.2.7")
    assert needs_of(Verify2fa(challenge=made_up, code="1")) == Needs(limits=limits)
    assert outcome_of(Verify2fa(challenge=made_up, code="1")).code == Code.CHALLENGE_EXPIRED


@pytest.mark.parametrize("away", [-1, 0, 1])
def test_a_code_starts_a_session_and_its_step_is_used(away: int) -> None:
    outcome = outcome_of(verify(factor(away)), **FOUND)
    [start], [change] = written(outcome, StartSession), written(outcome, ChangeAccount)
    assert (start.account, start.device) == (BEA, PHONE)
    assert start.session.amr == ("pwd", "otp", "mfa")
    assert (start.session.device_ref, start.session.device_name) == (PHONE.ref, "Ana's phone")
    assert change == ChangeAccount(BEA, replace(BEA, totp_step=NOW // 30_000 + away))
    assert written(outcome, EndChallenge) == [EndChallenge(WAITS)]
    assert len(outcome.writes) == 3
    assert outcome.progress == (SecondFactorVerified(),)
    check_tokens(outcome, LoginSuccess, start.session.id, 0)
    assert outcome.identity == Identity(BEA.id, start.session.id, PHONE.ref, NOW + 7 * DAY)
    assert (outcome.verdict, outcome.subject) == (Verdict.PASSED, BEA.id)


@pytest.mark.parametrize(
    "typed", [FIRST, FIRST.lower(), FIRST.replace("-", ""), f" {FIRST.replace('-', ' ')}\n"], ids=repr
)
def test_a_recovery_code_starts_a_session_and_is_used_up(typed: str) -> None:
    outcome = outcome_of(verify(recovery=typed), **FOUND)
    [start], [change] = written(outcome, StartSession), written(outcome, ChangeAccount)
    assert start.session.amr == ("pwd", "mfa")
    assert change == ChangeAccount(BEA, replace(BEA, recovery=BEA.recovery.split()[1]))


@pytest.mark.parametrize("noticed", [True, False])
def test_the_mail_about_a_new_device_waits_for_the_session(noticed: bool) -> None:
    outcome = outcome_of(verify(factor()), **FOUND | {"challenge": replace(WAITS, noticed=noticed)})
    notice = Mail("login_notice", EMAIL, device="Ana's phone", ip="192.0.2.7", at=NOW, tell=HERE)
    assert outcome.mails == (() if noticed else (notice,))


@pytest.mark.parametrize("held", [0, 1, 50])
def test_a_device_that_was_verified_on_the_way_is_trusted_with_the_session_and_not_before(held: int) -> None:
    devices = tuple(device(ref=f"d{n:02}", mac=f"wrk1:{n}", seen=NOW - 1000 * n) for n in range(held))
    verified = replace(WAITS, device_ref="0wrk1-new", device_mac="wrk1:new", device_name="Laptop")
    found = FOUND | {"challenge": verified, "devices": devices}
    wrong, right = outcome_of(verify("000000"), **found), outcome_of(verify(factor()), **found)
    assert written(wrong, TrustDevice) == []
    assert written(right, TrustDevice) == [TrustDevice(BEA, Device("0wrk1-new", "wrk1:new", "Laptop", NOW))]
    assert written(right, ForgetDevice) == [ForgetDevice(BEA, each.ref) for each in devices[49:]]
    [start] = written(right, StartSession)
    assert start.session.device_ref == "0wrk1-new"


def test_a_device_that_was_forgotten_meanwhile_is_not_trusted_by_its_challenge() -> None:
    [start] = written(outcome_of(verify(factor()), **FOUND | {"devices": ()}), StartSession)
    assert (start.device, start.session.device_ref) == (None, "")


EXPIRED = (Code.CHALLENGE_EXPIRED, None)
WRONG, WRONG_RECOVERY = (Code.INVALID_CODE, "code"), (Code.INVALID_CODE, "recoveryCode")
USED = replace(BEA, totp_step=NOW // 30_000)


@pytest.mark.parametrize(
    ("request_", "found", "expected", "verdict"),
    [
        pytest.param(verify(factor()), {"challenge": None}, EXPIRED, Verdict.UNJUDGED, id="unknown, or answered"),
        pytest.param(
            verify(factor()), {"challenge": replace(WAITS, expires=NOW)}, EXPIRED, Verdict.UNJUDGED, id="too old"
        ),
        *(
            pytest.param(
                verify(factor()), {"challenge": replace(WAITS, kind=kind)}, EXPIRED, Verdict.UNJUDGED, id=kind
            )
            for kind in ("registration", "device", "reset")
        ),
        pytest.param(
            verify(factor()), {"challenge": replace(WAITS, bound="other")}, EXPIRED, Verdict.UNJUDGED,
            id="of another connection",
        ),
        pytest.param(verify(factor()), {"refused": {"tries": 1}}, EXPIRED, Verdict.UNJUDGED, id="five wrong codes"),
        pytest.param(verify(factor()), {"account": None}, EXPIRED, Verdict.UNJUDGED, id="no account"),
        pytest.param(
            verify(factor()), {"account": replace(BEA, id="0wrk1-bob")}, EXPIRED, Verdict.UNJUDGED, id="another account"
        ),
        pytest.param(
            verify(factor()), {"account": replace(BEA, status="disabled")}, EXPIRED, Verdict.UNJUDGED, id="disabled"
        ),
        pytest.param(verify(factor()), {"account": ANA}, EXPIRED, Verdict.UNJUDGED, id="turned off meanwhile"),
        pytest.param(
            verify(factor()), {"account": replace(BEA, floor=4)}, EXPIRED, Verdict.UNJUDGED, id="another password since"
        ),
        pytest.param(
            verify(recovery=FIRST), {"account": replace(BEA, floor=4)}, EXPIRED, Verdict.UNJUDGED,
            id="another password since, recovery code",
        ),
        pytest.param(verify(factor(-2)), {}, WRONG, Verdict.FAILED, id="two steps late"),
        pytest.param(verify(factor(2)), {}, WRONG, Verdict.FAILED, id="two steps early"),
        pytest.param(verify(factor()), {"account": USED}, WRONG, Verdict.FAILED, id="used"),
        pytest.param(verify(factor(-1)), {"account": USED}, WRONG, Verdict.FAILED, id="before the one that was used"),
        pytest.param(verify("1"), {}, WRONG, Verdict.FAILED, id="wrong"),
        pytest.param(verify(FIRST), {}, WRONG, Verdict.FAILED, id="a recovery code in its place"),
        pytest.param(verify(recovery=factor()), {}, WRONG_RECOVERY, Verdict.FAILED, id="a code for a recovery code"),
        pytest.param(verify(recovery="AAAA-AAAA-AAAA-AAAA"), {}, WRONG_RECOVERY, Verdict.FAILED, id="wrong recovery"),
        pytest.param(verify(recovery="-"), {}, WRONG_RECOVERY, Verdict.FAILED, id="a recovery code of nothing"),
        pytest.param(
            verify(recovery=FIRST), {"account": replace(BEA, recovery=BEA.recovery.split()[1])}, WRONG_RECOVERY,
            Verdict.FAILED, id="a recovery code that was used",
        ),
        pytest.param(
            verify(recovery=FIRST), {"account": replace(BEA, recovery="")}, WRONG_RECOVERY, Verdict.FAILED,
            id="no recovery code left",
        ),
        pytest.param(
            verify(recovery=FIRST),
            {"account": replace(BEA, recovery=MINT.recovery_macs("0wrk1-bob", RECOVERY))},
            WRONG_RECOVERY, Verdict.FAILED, id="the recovery codes of another account",
        ),
    ],
)  # fmt: skip
def test_a_second_factor_is_refused(
    request_: Verify2fa, found: dict[str, Any], expected: tuple[Code, str | None], verdict: Verdict
) -> None:
    outcome = outcome_of(request_, **FOUND | found)
    assert refusal_of(outcome) == (FAILED, *expected, None)
    assert outcome.verdict is verdict
    assert nothing_happens(outcome)


def test_a_step_works_once_also_when_both_were_decided_on_the_same_facts() -> None:
    """What the first writes is what the second stood on, so it is decided again, and refused."""
    first, second = (written(outcome_of(verify(factor()), **FOUND), ChangeAccount)[0] for _ in range(2))
    assert first == second
    assert first.new != first.old
    again = outcome_of(verify(factor()), **FOUND | {"account": first.new})
    assert refusal_of(again)[1] is Code.INVALID_CODE


@pytest.mark.parametrize("kept", [WAITS, None, replace(WAITS, bound="other")], ids=["own", "none", "of another"])
@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ({"factor": 30_000}, (FAILED, Code.TOO_MANY_ATTEMPTS, None, 30_000)),
        ({"factor": 30_000, "ip": 9000, "tries": 1}, (FAILED, Code.TOO_MANY_ATTEMPTS, None, 30_000)),
        ({"ip": 9000, "tries": 1}, ("error", Code.RATE_LIMITED, None, 9000)),
    ],
    ids=["account", "all", "network"],
)
def test_who_failed_too_often_is_told_to_wait_whatever_his_challenge(
    kept: Challenge | None, refused: dict[str, int], expected: tuple[Any, ...]
) -> None:
    outcome = outcome_of(verify(factor()), account=BEA, challenge=kept, refused=refused)
    assert refusal_of(outcome) == expected
    assert nothing_happens(outcome)


def test_a_challenge_over_rest_is_answered_by_who_holds_it_and_one_of_a_connection_is_not() -> None:
    assert refusal_of(outcome_of(verify(factor()), origin=REST, **FOUND))[1] is Code.CHALLENGE_EXPIRED
    held = FOUND | {"challenge": replace(WAITS, bound="")}
    assert outcome_of(verify(factor()), origin=REST, **held).event == "login_success"


# --- enroll_2fa, confirm_2fa --------------------------------------------------------------------------------------


def test_enrolling_asks_for_the_password_and_shows_the_seed_once() -> None:
    outcome, evaluations = evaluations_of(Enroll2fa(PASSWORD), IDENTITY, **LIVING)
    data = outcome.data
    assert isinstance(data, Enrollment)
    [change] = outcome.writes
    assert isinstance(change, ChangeAccount)
    assert change == ChangeAccount(ANA, replace(ANA, enrolling=change.new.enrolling))
    kept = Enrolling.read(change.new.enrolling)
    assert kept is not None
    assert kept.expires == NOW + 10 * MINUTE
    seed = MINT.open_seed(ANA.id, kept.seed)
    assert data.secret == totp.base32(seed)
    assert data.otpauth_url == totp.otpauth_url(seed, "127.0.0.1", EMAIL)
    assert re.match(r"<svg[ >]", data.qr_svg)
    assert "script" not in data.qr_svg
    assert data.secret not in change.new.enrolling + repr(outcome)
    assert (outcome.verdict, outcome.notices, outcome.mails, evaluations) == (Verdict.PASSED, (), (), 1)


def test_its_issuer_is_the_services_host() -> None:
    settings = replace(SETTINGS, public_url="https://login.test:8443/base")
    data = outcome_of(Enroll2fa(PASSWORD), IDENTITY, settings=settings, **LIVING).data
    assert isinstance(data, Enrollment)
    assert "totp/login.test:" in data.otpauth_url


def test_every_seed_is_another_and_the_newest_counts() -> None:
    found = LIVING | {"account": replace(ANA, enrolling=Enrolling(NOW + 1, MINT.seal_seed(ANA.id, SEED)).text)}
    secrets = set()
    for _ in range(5):
        data = outcome_of(Enroll2fa(PASSWORD), IDENTITY, **found).data
        assert isinstance(data, Enrollment)
        secrets.add(data.secret)
    assert len(secrets | {totp.base32(SEED)}) == 6


def test_where_there_is_a_second_factor_none_is_enrolled_and_only_the_right_password_learns_it() -> None:
    outcome = outcome_of(Enroll2fa(PASSWORD), IDENTITY, **OF_BEA)
    assert refusal_of(outcome) == ("2fa_enrollment_failed", Code.CHALLENGE_EXPIRED, None, None)
    assert outcome.verdict is Verdict.UNJUDGED
    assert nothing_happens(outcome)
    assert refusal_of(outcome_of(Enroll2fa("wrong"), IDENTITY, **OF_BEA))[1] is Code.INVALID_CREDENTIALS


ENROLLED = replace(ANA, enrolling=Enrolling(NOW + 1, MINT.seal_seed(ANA.id, SEED)).text)


@pytest.mark.parametrize("away", [-1, 0, 1])
def test_its_first_code_turns_it_on_and_shows_ten_recovery_codes(away: int) -> None:
    outcome = outcome_of(Confirm2fa(factor(away)), IDENTITY, **LIVING | {"account": ENROLLED})
    data = outcome.data
    assert isinstance(data, SecondFactorEnabled)
    assert len(set(data.recovery_codes)) == 10
    [change] = outcome.writes
    assert isinstance(change, ChangeAccount)
    new = change.new
    seed = Enrolling.read(ENROLLED.enrolling)
    assert seed is not None
    assert (new.totp, new.totp_step, new.enrolling) == (seed.seed, NOW // 30_000 + away, "")
    assert change == ChangeAccount(ENROLLED, replace(new, version=ENROLLED.version))
    for code in data.recovery_codes:
        assert MINT.without_recovery_code(ANA.id, new.recovery, code) is not None
        assert code not in repr(outcome) + new.recovery
    assert outcome.mails == (Mail("second_factor_changed", EMAIL, ip="192.0.2.7", at=NOW, change="enabled", tell=HERE),)
    assert outcome.notices == (Notice(ANA.id, "", SecurityAlert(kind="2fa_enabled"), HERE),)
    assert (outcome.verdict, outcome.subject) == (Verdict.PASSED, ANA.id)


def test_the_code_that_turned_it_on_is_used() -> None:
    [change] = written(outcome_of(Confirm2fa(factor()), IDENTITY, **LIVING | {"account": ENROLLED}), ChangeAccount)
    assert refusal_of(outcome_of(verify(factor()), **FOUND | {"account": change.new}))[1] is Code.INVALID_CODE


@pytest.mark.parametrize(
    ("account", "code", "expected", "verdict"),
    [
        pytest.param(ANA, factor(), EXPIRED, Verdict.UNJUDGED, id="nothing was enrolled"),
        pytest.param(
            replace(ENROLLED, enrolling=Enrolling(NOW, MINT.seal_seed(ANA.id, SEED)).text),
            factor(), EXPIRED, Verdict.UNJUDGED, id="too long ago",
        ),
        pytest.param(
            replace(BEA, enrolling=ENROLLED.enrolling), factor(), EXPIRED, Verdict.UNJUDGED, id="there is one already"
        ),
        pytest.param(ENROLLED, "1", WRONG, Verdict.FAILED, id="a wrong code"),
        pytest.param(ENROLLED, factor(2), WRONG, Verdict.FAILED, id="a code of later"),
    ],
)  # fmt: skip
def test_a_confirmation_is_refused(
    account: Account, code: str, expected: tuple[Code, str | None], verdict: Verdict
) -> None:
    outcome = outcome_of(Confirm2fa(code), IDENTITY, **LIVING | {"account": account})
    assert refusal_of(outcome) == (FAILED, *expected, None)
    assert outcome.verdict is verdict
    assert nothing_happens(outcome)


# --- disable_2fa, new_recovery_codes ------------------------------------------------------------------------------


def disable(password: str = PASSWORD, code: str | None = None, recovery: str | None = None) -> Disable2fa:
    return Disable2fa(password=password, code=code, recovery_code=recovery)


@pytest.mark.parametrize("request_", [disable(code=factor()), disable(recovery=SECOND)], ids=["code", "recovery code"])
def test_password_and_either_code_turn_it_off_with_all_that_belonged_to_it(request_: Disable2fa) -> None:
    bea = replace(BEA, totp_step=7)
    outcome, evaluations = evaluations_of(request_, IDENTITY, **LIVING | {"account": bea})
    assert outcome.data == SecondFactorDisabled()
    assert outcome.writes == (ChangeAccount(bea, replace(bea, totp="", totp_step=0, recovery="")),)
    assert outcome.mails == (
        Mail("second_factor_changed", EMAIL, ip="192.0.2.7", at=NOW, change="disabled", tell=HERE),
    )
    assert outcome.notices == (Notice(ANA.id, "", SecurityAlert(kind="2fa_disabled"), HERE),)
    assert (outcome.verdict, evaluations) == (Verdict.PASSED, 1)


def test_password_and_code_make_ten_new_recovery_codes_and_the_old_ones_are_void() -> None:
    outcome, evaluations = evaluations_of(NewRecoveryCodes(PASSWORD, factor()), IDENTITY, **OF_BEA)
    data = outcome.data
    assert isinstance(data, RecoveryCodes)
    assert len(set(data.recovery_codes)) == 10
    [change] = outcome.writes
    assert isinstance(change, ChangeAccount)
    new = change.new
    assert change == ChangeAccount(BEA, replace(BEA, totp_step=NOW // 30_000, recovery=new.recovery))
    for code in RECOVERY:
        assert MINT.without_recovery_code(BEA.id, new.recovery, code) is None
    for code in data.recovery_codes:
        assert MINT.without_recovery_code(BEA.id, new.recovery, code) is not None
    assert outcome.mails == (
        Mail("second_factor_changed", EMAIL, ip="192.0.2.7", at=NOW, change="recovery_codes", tell=HERE),
    )
    assert outcome.notices == (Notice(ANA.id, "", SecurityAlert(kind="recovery_codes"), HERE),)
    assert (outcome.verdict, evaluations) == (Verdict.PASSED, 1)


def test_a_recovery_code_makes_no_new_ones() -> None:
    outcome = outcome_of(NewRecoveryCodes(PASSWORD, FIRST), IDENTITY, **OF_BEA)
    assert refusal_of(outcome) == (FAILED, Code.INVALID_CODE, "code", None)


BAD_PASSWORD = (Code.INVALID_CREDENTIALS, "password")


@pytest.mark.parametrize(
    ("request_", "account", "expected"),
    [
        pytest.param(disable("wrong", factor()), BEA, BAD_PASSWORD, id="disable, wrong password"),
        pytest.param(disable("wrong", "1"), BEA, BAD_PASSWORD, id="disable, both wrong"),
        pytest.param(disable(code="1"), BEA, WRONG, id="disable, wrong code"),
        pytest.param(disable(code=factor()), USED, WRONG, id="disable, used code"),
        pytest.param(disable(recovery="x"), BEA, WRONG_RECOVERY, id="disable, wrong recovery code"),
        pytest.param(disable(code=factor()), ANA, WRONG, id="disable, there is none"),
        pytest.param(disable(recovery=FIRST), ANA, WRONG_RECOVERY, id="disable, there is none, recovery code"),
        pytest.param(NewRecoveryCodes("wrong", factor()), BEA, BAD_PASSWORD, id="new codes, wrong password"),
        pytest.param(NewRecoveryCodes(PASSWORD, "1"), BEA, WRONG, id="new codes, wrong code"),
        pytest.param(NewRecoveryCodes(PASSWORD, factor()), USED, WRONG, id="new codes, used code"),
        pytest.param(NewRecoveryCodes(PASSWORD, factor()), ANA, WRONG, id="new codes, there is none"),
        pytest.param(Enroll2fa("wrong"), ANA, BAD_PASSWORD, id="enroll, wrong password"),
    ],
)
def test_a_proof_that_fails_costs_one_evaluation_and_changes_nothing(
    request_: Request, account: Account, expected: tuple[Code, str]
) -> None:
    outcome, evaluations = evaluations_of(request_, IDENTITY, **LIVING | {"account": account})
    assert refusal_of(outcome) == (kind_of(request_).refused, *expected, None)
    assert (outcome.verdict, evaluations) == (Verdict.FAILED, 1)
    assert nothing_happens(outcome)


OF_PASSWORD = [ChangePassword(PASSWORD, "seven brown owls in a boat"), Enroll2fa(PASSWORD)]
OF_FACTOR = [Confirm2fa("1")]
OF_BOTH = [disable(code="1"), NewRecoveryCodes(PASSWORD, "1")]


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        *((request, {"proof", "ip"}) for request in OF_PASSWORD),
        *((request, {"factor", "ip"}) for request in OF_FACTOR),
        *((request, {"proof", "factor", "ip"}) for request in OF_BOTH),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_request_reserves_a_place_for_each_that_it_has_to_prove(request_: Request, names: set[str]) -> None:
    found = needs_of(request_, IDENTITY).limits
    assert {limit.name for limit in found} == names
    assert len(found) == len(names)
    assert {limit.subject for limit in found} == {BEA.id, "192.0.2.7"}
    assert needs_of(request_).limits == ()


@pytest.mark.parametrize("request_", [*OF_PASSWORD, *OF_FACTOR, *OF_BOTH], ids=lambda request: type(request).__name__)
@pytest.mark.parametrize(
    ("refused", "code", "wait"),
    [
        ({"proof": 30_000}, Code.TOO_MANY_ATTEMPTS, 30_000),
        ({"factor": 30_000}, Code.TOO_MANY_ATTEMPTS, 30_000),
        ({"proof": 30_000, "factor": 60_000}, Code.TOO_MANY_ATTEMPTS, 60_000),
        ({"ip": 9000}, Code.RATE_LIMITED, 9000),
    ],
    ids=str,
)
def test_who_failed_too_often_proves_nothing_and_nothing_is_hashed(
    request_: Request, refused: dict[str, int], code: Code, wait: int
) -> None:
    outcome, evaluations = evaluations_of(request_, IDENTITY, refused=refused, **OF_BEA)
    event = "error" if code is Code.RATE_LIMITED else kind_of(request_).refused
    assert refusal_of(outcome) == (event, code, None, wait)
    assert (outcome.verdict, evaluations) == (Verdict.UNJUDGED, 0)
    assert nothing_happens(outcome)


def settled(request: Request, identity: Identity | None, **found: Any) -> dict[str, Settling]:
    """What becomes of each place that a request has reserved."""
    outcome = outcome_of(request, identity, **found)
    return {
        limit.name: rules.settle_limit(limit, Verdict.UNJUDGED if limit.name in outcome.uncounted else outcome.verdict)
        for limit in needs_of(request, identity).limits
    }


def test_a_right_password_alone_never_clears_the_failures_of_the_second_factor() -> None:
    """Else who has the password guesses codes without end."""
    for request in (*OF_PASSWORD, *OF_BOTH):
        becomes = settled(request, IDENTITY, **OF_BEA)
        assert becomes.get("factor") in (None, Settling.SPEND)
    assert settled(disable(code="1"), IDENTITY, **OF_BEA) == {
        "proof": Settling.FREE, "factor": Settling.SPEND, "ip": Settling.SPEND,
    }  # fmt: skip


def test_a_wrong_password_costs_no_place_of_the_second_factor() -> None:
    """Else who has only a session keeps the owner's codes from being tried."""
    assert settled(disable("wrong", factor()), IDENTITY, **OF_BEA) == {
        "proof": Settling.SPEND, "factor": Settling.FREE, "ip": Settling.SPEND,
    }  # fmt: skip


@pytest.mark.parametrize("request_", [disable(code=factor()), NewRecoveryCodes(PASSWORD, factor())])
def test_who_proved_both_has_failed_in_neither(request_: Request) -> None:
    assert settled(request_, IDENTITY, **OF_BEA) == {
        "proof": Settling.CLEAR, "factor": Settling.CLEAR, "ip": Settling.FREE,
    }  # fmt: skip


def test_a_new_challenge_never_clears_the_failures_of_the_second_factor() -> None:
    login = Login(EMAIL, PASSWORD, device_token=TOKEN)
    assert "factor" not in settled(login, None, account=BEA, devices=(PHONE,))
    assert settled(verify("1"), None, **FOUND) == dict.fromkeys(("tries", "factor", "ip"), Settling.SPEND)
    assert settled(verify(factor()), None, **FOUND) == {
        "tries": Settling.FREE, "factor": Settling.CLEAR, "ip": Settling.FREE,
    }  # fmt: skip
