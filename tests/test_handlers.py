"""What holds for every handler: the table, the session it needs, the lanes, and that no repr shows a secret."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from app.handlers import HANDLERS
from app.messages import (
    KINDS,
    Account,
    ApproveLogin,
    Authenticate,
    ChangePassword,
    Code,
    Confirm2fa,
    Disable2fa,
    Enroll2fa,
    ForgetDevice,
    Lane,
    Login,
    Logout,
    NewRecoveryCodes,
    Refresh,
    Request,
    RequestPasswordReset,
    ResendConfirmation,
    ResetPassword,
    RevokeOtherSessions,
    RevokeSession,
    Sessions,
    Tokens,
    Verify2fa,
    VerifyDevice,
)
from app.passwords import Hasher
from app.records import Attempt, Enrolling, Facts, PutChallenge, UpgradePassword, Verdict
from app.rules import DAY
from app.settings import Argon2
from app.tokens import RefreshToken
from tests.deciding import (
    ANA,
    BEA,
    HERE,
    LIVING,
    PHONE,
    SEED,
    TOKEN,
    UNVERIFIED,
    evaluations_of,
    factor,
    kind_of,
    needs_of,
    nothing_happens,
    outcome_of,
    refusal_of,
)
from tests.making import EMAIL, IDENTITY, MINT, NOW, ORIGIN, PASSWORD, PEPPER, challenge, session
from tests.test_handlers_login import LOGIN
from tests.test_handlers_register import CONFIRM, PENDING, REGISTER

# --- the table ----------------------------------------------------------------------------------------------------


def test_every_request_has_a_handler_and_no_handler_is_without_a_request() -> None:
    assert set(HANDLERS) == set(KINDS)


OF_SESSION: dict[str, Any] = {"identity": IDENTITY, **LIVING}
OF_BEA = OF_SESSION | {"account": BEA}
MAILED = challenge(kind="device", bound="connection", code_mac=MINT.code_mac("0wrk1-challenge", "01234567"))
ASKED = challenge(kind="second_factor", bound="connection", code_mac="", code_expires=0)
LINK = "0wrk1-challenge.secret"
LINKED = challenge(kind="reset", code_mac=MINT.code_mac("0wrk1-challenge", LINK))
ATTEMPT = Attempt("0wrk1-attempt", "0wrk1-challenge", 42, NOW + 1000, "0-node", "other")
NEW = "seven brown owls in a boat"
SUCCESSES: list[tuple[Request, dict[str, Any]]] = [
    (REGISTER, {}),
    (CONFIRM, {"challenge": PENDING}),
    (ResendConfirmation(PENDING.id), {"challenge": PENDING}),
    (Login(EMAIL, PASSWORD, device_token=TOKEN), {"account": ANA, "devices": (PHONE,)}),
    (VerifyDevice(MAILED.id, "01234567"), {"account": ANA, "challenge": MAILED}),
    (Verify2fa(challenge=ASKED.id, code=factor()), {"account": BEA, "challenge": ASKED}),
    (Refresh(MINT.refresh_token(RefreshToken("0wrk1-session", 4))), LIVING),
    (Authenticate(MINT.access_token(ANA.id, "0wrk1-session", ("pwd",), NOW // 1000, NOW // 1000, 600)), LIVING),
    (Logout(), OF_SESSION),
    (Sessions(), OF_SESSION),
    (RevokeSession("0wrk1-old"), OF_SESSION | {"other_session": session(id="0wrk1-old")}),
    (RevokeOtherSessions(), OF_SESSION),
    (RequestPasswordReset(EMAIL), {"account": ANA}),
    (ResetPassword(EMAIL, LINK, NEW), {"account": replace(ANA, reset=LINKED.id), "challenge": LINKED}),
    (ChangePassword(PASSWORD, NEW), OF_SESSION),
    (Enroll2fa(PASSWORD), OF_SESSION),
    (
        Confirm2fa(factor()),
        OF_SESSION | {"account": replace(ANA, enrolling=Enrolling(NOW + 1000, MINT.seal_seed(ANA.id, SEED)).text)},
    ),
    (Disable2fa(password=PASSWORD, code=factor()), OF_BEA),
    (NewRecoveryCodes(PASSWORD, factor()), OF_BEA),
    (Account(), OF_SESSION),
    (ForgetDevice(PHONE.ref), OF_SESSION | {"devices": (PHONE,)}),
    (
        ApproveLogin("0wrk1-attempt", True, 42),
        OF_SESSION
        | {
            "session": session(device_ref=PHONE.ref),
            "account": replace(ANA, attempt=ATTEMPT.text),
            "devices": (PHONE,),
        },
    ),
]


def test_only_requests_of_the_hash_lane_evaluate_argon2() -> None:
    spent = {kind_of(request).event: evaluations_of(request, **found)[1] for request, found in SUCCESSES}
    assert set(spent) == set(KINDS)
    assert {event for event, count in spent.items() if count} == {
        event for event, kind in KINDS.items() if kind.lane is Lane.HASH
    }


@pytest.mark.parametrize(("request_", "found"), SUCCESSES, ids=[kind_of(request).event for request, _ in SUCCESSES])
def test_every_request_has_its_success(request_: Request, found: dict[str, Any]) -> None:
    outcome = outcome_of(request_, **found)
    assert type(outcome.data) is kind_of(request_).success
    assert outcome.subject in (ANA.id, "")


# --- the session that some need -----------------------------------------------------------------------------------

OWNED = [(request, found) for request, found in SUCCESSES if kind_of(request).needs_session]
OWNED_NAMES = [kind_of(request).event for request, _ in OWNED]


@pytest.mark.parametrize(
    "lacks",
    [
        pytest.param({"session": None, "account": None}, id="no session, no account"),
        pytest.param({"session": None}, id="no session"),
        pytest.param({"account": None}, id="no account"),
        pytest.param({"session": session(ended="logout", device_ref=PHONE.ref)}, id="ended"),
        pytest.param({"session": session(seen=NOW - 7 * DAY, device_ref=PHONE.ref)}, id="unseen for seven days"),
        pytest.param({"session": session(created=NOW - 30 * DAY, device_ref=PHONE.ref)}, id="thirty days old"),
        pytest.param({"status": "disabled"}, id="disabled"),
        pytest.param({"origin": replace(ORIGIN, good=(NOW // 1000 + 1, NOW // 1000 + 600))}, id="a token not yet good"),
        pytest.param({"origin": replace(ORIGIN, good=(NOW // 1000 - 600, NOW // 1000))}, id="a token good no more"),
    ],
)
@pytest.mark.parametrize(("request_", "found"), OWNED, ids=OWNED_NAMES)
def test_what_needs_a_session_is_not_evaluated_without_a_living_one(
    request_: Request, found: dict[str, Any], lacks: dict[str, Any]
) -> None:
    if "status" in lacks:
        lacks = {"account": replace(found["account"], **lacks)}
    outcome, evaluations = evaluations_of(request_, **found | lacks)
    assert refusal_of(outcome) == ("error", Code.NOT_AUTHENTICATED, None, None)
    assert (outcome.verdict, evaluations) == (Verdict.UNJUDGED, 0)
    assert nothing_happens(outcome)


@pytest.mark.parametrize(("request_", "found"), OWNED, ids=OWNED_NAMES)
def test_what_needs_a_session_reads_the_connections_and_no_other(request_: Request, found: dict[str, Any]) -> None:
    assert needs_of(request_, IDENTITY).session_id == IDENTITY.session_id
    assert needs_of(request_).session_id is None
    assert needs_of(request_, IDENTITY).email is None


@pytest.mark.parametrize(("request_", "found"), SUCCESSES, ids=[kind_of(request).event for request, _ in SUCCESSES])
def test_only_who_proved_a_password_or_a_session_is_told_how_his_mail_goes(
    request_: Request, found: dict[str, Any]
) -> None:
    """To anybody else it would tell that there is an account."""
    strangers = {"register", "confirm_email", "resend_confirmation", "request_password_reset", "reset_password"}
    for mail in outcome_of(request_, **found).mails:
        assert mail.tell == (None if kind_of(request_).event in strangers else HERE)


# --- nothing secret is shown --------------------------------------------------------------------------------------


def test_the_repr_of_an_outcome_shows_no_secret() -> None:
    registered = outcome_of(REGISTER)
    [write] = registered.writes
    assert isinstance(write, PutChallenge)
    upgraded = outcome_of(
        LOGIN,
        settings=UNVERIFIED,
        account=replace(ANA, password=Hasher(Argon2(16, 1, 1), PEPPER).hash(ANA.id, PASSWORD)),
    )
    upgrade = upgraded.writes[1]
    assert isinstance(upgrade, UpgradePassword)
    assert isinstance(upgraded.data, Tokens)
    shown = repr(registered) + repr(upgraded) + repr(Facts(NOW, account=ANA, challenge=PENDING, devices=(PHONE,)))
    for hidden in (
        PASSWORD,
        ANA.password,
        registered.mails[0].code,
        write.challenge.code_mac,
        write.challenge.password,
        upgrade.old,
        upgrade.new,
        upgraded.data.access_token,
        upgraded.data.refresh_token,
        PENDING.code_mac,
        PHONE.mac,
    ):
        assert hidden not in shown


@pytest.mark.parametrize(("request_", "found"), SUCCESSES, ids=[kind_of(request).event for request, _ in SUCCESSES])
def test_no_repr_of_a_success_shows_what_its_client_is_told_in_secret(request_: Request, found: dict[str, Any]) -> None:
    outcome = outcome_of(request_, **found)
    shown = repr(outcome) + repr(request_) + repr(found)
    replies = [msgspec.to_builtins(reply) for reply in (outcome.data, *outcome.progress)]
    names = ("accessToken", "refreshToken", "deviceToken", "secret", "otpauthUrl")
    hidden = [reply[name] for reply in replies for name in names if reply.get(name)]
    hidden += [code for reply in replies for code in reply.get("recoveryCodes", ())]
    hidden += [mail.code for mail in outcome.mails if mail.code]
    hidden += [PASSWORD, ANA.password, PHONE.mac, BEA.totp, *BEA.recovery.split()]
    for value in hidden:
        assert value not in shown
