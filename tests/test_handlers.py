"""What each request comes to: every success, every refusal, and what is not to be told apart."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from app import rules
from app.handlers import HANDLERS, decide
from app.handlers.common import Context
from app.messages import (
    EVENTS,
    KINDS,
    Account,
    AccountData,
    Authenticate,
    Authenticated,
    Code,
    ConfirmationSent,
    ConfirmEmail,
    EmailConfirmed,
    Lane,
    LoggedOut,
    Login,
    LoginSuccess,
    Logout,
    Refresh,
    Refusal,
    Register,
    RegisterAccepted,
    Request,
    ResendConfirmation,
    SessionEnded,
    SessionList,
    Sessions,
    SessionStarted,
    TokenRefreshed,
    Tokens,
    encode_data,
)
from app.passwords import Hasher, PasswordCheck
from app.records import (
    ConfirmSession,
    CreateAccount,
    EndSession,
    Facts,
    Identity,
    Mail,
    Needs,
    Notice,
    Outcome,
    PutChallenge,
    RenewedCode,
    RotateSession,
    StartSession,
    UpgradePassword,
    Verdict,
)
from app.rules import DAY, HOUR, MINUTE, SESSIONS_PER_ACCOUNT
from app.settings import Argon2, Limits, Settings
from app.tokens import AccessClaims, RefreshToken
from tests.making import (
    CHEAP,
    EDGE,
    EMAIL,
    IDENTITY,
    MINT,
    NOW,
    ORIGIN,
    PASSWORD,
    PEPPER,
    WORKER,
    account,
    challenge,
    device,
    session,
)

SETTINGS = Settings(argon2=CHEAP, edge_secret=EDGE, worker_secret=WORKER, pepper=PEPPER)
OFF = Limits(None, None, None, None, None, None, None)
HERE = (ORIGIN.node, ORIGIN.connection)


class Counting(Hasher):
    """The real one, counting its Argon2 evaluations."""

    evaluations = 0

    def hash(self, user_id: str, password: str) -> str:
        self.evaluations += 1
        return super().hash(user_id, password)

    def verify(self, record: str, user_id: str, password: str) -> bool:
        self.evaluations += 1
        return super().verify(record, user_id, password)


HASHER = Counting(CHEAP, PEPPER)
ANA = account(password=HASHER.hash("0wrk1-user", PASSWORD))


def context(request: Request, identity: Identity | None = None, settings: Settings = SETTINGS) -> Context:
    passwords = PasswordCheck(HASHER, getattr(request, "password", ""))
    return Context(settings, MINT, passwords, replace(ORIGIN, identity=identity))


def needs_of(request: Request, identity: Identity | None = None, settings: Settings = SETTINGS) -> Needs:
    kind = next(kind for kind in KINDS.values() if kind.data is type(request))
    return HANDLERS[kind.event].needs(request, context(request, identity, settings))


def outcome_of(
    request: Request, identity: Identity | None = None, settings: Settings = SETTINGS, now: int = NOW, **found: Any
) -> Outcome:
    """What a request comes to when the store found this; every outcome is held to the table of requests."""
    kind = next(kind for kind in KINDS.values() if kind.data is type(request))
    facts = Facts(now=now, needs=needs_of(request, identity, settings), **found)
    outcome = decide(kind, request, facts, context(request, identity, settings))
    assert outcome.event in (kind.success.event, kind.refused, "error")
    assert type(outcome.data) is EVENTS[outcome.event]
    for told in outcome.notices:
        assert EVENTS[told.event.event] is type(told.event)
    return outcome


def refusal_of(outcome: Outcome) -> tuple[str, Code, str | None, int | None]:
    assert isinstance(outcome.data, Refusal)
    return outcome.event, outcome.data.code, outcome.data.field, outcome.data.retry_after_ms


def nothing_happens(outcome: Outcome) -> bool:
    return outcome == Outcome(outcome.event, outcome.data, outcome.verdict, even=outcome.even, subject=outcome.subject)


def evaluations_of(request: Request, **found: Any) -> tuple[Outcome, int]:
    before = HASHER.evaluations
    outcome = outcome_of(request, **found)
    return outcome, HASHER.evaluations - before


def check_tokens(outcome: Outcome, cls: type[Tokens], session_id: str, counter: int, now: int = NOW) -> Tokens:
    data = outcome.data
    assert isinstance(data, cls)
    assert (data.token_type, data.expires_in, data.user_id, data.session_id) == ("Bearer", 600, ANA.id, session_id)
    seconds = now // 1000
    assert MINT.read_access_token(data.access_token) == AccessClaims(ANA.id, session_id, seconds, seconds + 600)
    assert MINT.read_refresh_token(data.refresh_token) == RefreshToken(session_id, counter)
    return data


# --- the table ----------------------------------------------------------------------------------------------------


def test_every_request_has_a_handler_and_no_handler_is_without_a_request() -> None:
    assert set(HANDLERS) == set(KINDS)


def test_only_requests_of_the_hash_lane_evaluate_argon2() -> None:
    requests: dict[str, tuple[Request, dict[str, Any]]] = {
        "confirm_email": (ConfirmEmail("c", "1"), {"challenge": challenge()}),
        "resend_confirmation": (ResendConfirmation("c"), {"challenge": challenge()}),
        "refresh": (Refresh("x"), {}),
        "authenticate": (Authenticate("x"), {}),
        "logout": (Logout(), {"identity": IDENTITY, "session": session(), "account": ANA}),
        "sessions": (Sessions(), {"identity": IDENTITY, "session": session(), "account": ANA}),
        "account": (Account(), {"identity": IDENTITY, "session": session(), "account": ANA}),
    }
    assert set(requests) == {event for event, kind in KINDS.items() if kind.lane is Lane.FAST}
    for request, found in requests.values():
        assert evaluations_of(request, **found)[1] == 0


# --- register -----------------------------------------------------------------------------------------------------

REGISTER = Register(email=EMAIL, password=PASSWORD, locale="pt-BR", terms="2024-01")


def test_register_reads_the_address_and_reserves_both_of_its_limits() -> None:
    assert needs_of(REGISTER) == Needs(email=EMAIL, limits=rules.registration_limits(Limits(), EMAIL, "192.0.2.7"))


def test_a_registration_is_kept_pending_and_its_code_mailed() -> None:
    outcome, evaluations = evaluations_of(REGISTER)
    [write], [mail] = outcome.writes, outcome.mails
    assert isinstance(write, PutChallenge)
    kept = write.challenge
    assert outcome.data == RegisterAccepted(next="confirm_email", challenge=kept.id, expires_in=3600)
    assert (kept.kind, kept.email, kept.expires, kept.code_expires) == (
        "registration", EMAIL, NOW + HOUR, NOW + 10 * MINUTE,
    )  # fmt: skip
    assert (kept.locale, kept.terms) == ("pt-BR", "2024-01")
    assert HASHER.verify(kept.password, kept.user_id, PASSWORD)
    assert mail == Mail("confirmation", EMAIL, "pt-BR", mail.code)
    assert MINT.code_matches(kept.code_mac, kept.id, mail.code)
    assert (outcome.verdict, outcome.identity, outcome.notices) == (Verdict.PASSED, None, ())
    assert evaluations == 1


def test_a_taken_address_differs_from_a_free_one_in_the_mail_only() -> None:
    free, for_free = evaluations_of(REGISTER)
    taken, for_taken = evaluations_of(REGISTER, account=replace(ANA, locale="en"))
    assert (free.event, free.verdict, free.notices, free.identity) == (
        taken.event, taken.verdict, taken.notices, taken.identity,
    )  # fmt: skip
    assert len(encode_data(free.data)) == len(encode_data(taken.data))
    assert for_free == for_taken == 1
    [one], [other] = free.writes, taken.writes
    assert isinstance(one, PutChallenge)
    assert isinstance(other, PutChallenge)
    same = {"id": "", "user_id": "", "password": "", "code_mac": ""}
    assert replace(one.challenge, **same) == replace(other.challenge, **same)  # type: ignore[arg-type]
    assert taken.mails == (Mail("already_registered", EMAIL, "en"),)


def test_two_registrations_of_one_address_share_neither_challenge_nor_account_nor_code() -> None:
    kept = []
    for _ in range(2):
        [write] = outcome_of(REGISTER).writes
        assert isinstance(write, PutChallenge)
        kept.append(write.challenge)
    one, other = kept
    assert one.id != other.id
    assert one.user_id != other.user_id
    assert one.code_mac.partition(":")[2] != other.code_mac.partition(":")[2]


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_a_sixth_pending_registration_is_accepted_in_words_only(taken: bool) -> None:
    found = {"refused": {"pending": 5000}, "account": ANA if taken else None}
    outcome, evaluations = evaluations_of(REGISTER, **found)
    assert isinstance(outcome.data, RegisterAccepted)
    assert len(encode_data(outcome.data)) == len(encode_data(outcome_of(REGISTER).data))
    assert nothing_happens(outcome)
    assert evaluations == 1


def test_a_registration_that_is_accepted_in_words_only_counts_for_its_network_all_the_same() -> None:
    verdict = outcome_of(REGISTER, refused={"pending": 5000}).verdict
    registrations = next(limit for limit in needs_of(REGISTER).limits if limit.name == "registrations")
    assert rules.settle_limit(registrations, verdict) is rules.Settling.SPEND


@pytest.mark.parametrize("pending", [{}, {"pending": 5000}], ids=["few pending", "five pending"])
def test_a_network_that_has_started_too_many_is_told_to_wait_and_nothing_is_hashed(pending: dict[str, int]) -> None:
    outcome, evaluations = evaluations_of(REGISTER, refused=pending | {"registrations": 7000})
    assert refusal_of(outcome) == ("error", Code.RATE_LIMITED, None, 7000)
    assert nothing_happens(outcome)
    assert outcome.verdict is Verdict.UNJUDGED
    assert evaluations == 0


@pytest.mark.parametrize(
    ("password", "long_enough"),
    [
        pytest.param("", False, id="none"),
        pytest.param("x" * 14, False, id="14 characters"),
        pytest.param("x" * 15, True, id="15 characters"),
        pytest.param("🔑" * 14, False, id="14 code points of four bytes"),
        pytest.param("🔑" * 15, True, id="15 code points of four bytes"),
        pytest.param(" " * 15, True, id="15 spaces: there is no rule of composition"),
        pytest.param("e\u0301" * 14, False, id="14 characters written as 28"),
    ],
)
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_a_password_has_at_least_fifteen_code_points(password: str, long_enough: bool, taken: bool) -> None:
    request = Register(email=EMAIL, password=password)
    outcome, evaluations = evaluations_of(request, account=ANA if taken else None)
    if long_enough:
        assert outcome.event == "register_accepted"
    else:
        assert refusal_of(outcome) == ("register_failed", Code.PASSWORD_TOO_SHORT, "password", None)
        assert nothing_happens(outcome)
        assert outcome.verdict is Verdict.UNJUDGED
    assert evaluations == int(long_enough)


def test_the_least_length_is_as_it_was_set() -> None:
    settings = replace(SETTINGS, min_password=8)
    assert outcome_of(Register(email=EMAIL, password="x" * 8), settings=settings).event == "register_accepted"
    assert outcome_of(Register(email=EMAIL, password="x" * 7), settings=settings).event == "register_failed"


UNCONFIRMED = replace(SETTINGS, email_confirmation=False)


def test_without_confirmation_the_account_exists_at_once_and_its_device_is_trusted() -> None:
    outcome = outcome_of(REGISTER, settings=UNCONFIRMED)
    [write] = outcome.writes
    assert isinstance(write, CreateAccount)
    made = write.account
    assert (made.email, made.version, made.created, made.status) == (EMAIL, 1, NOW, "active")
    assert (made.locale, made.terms, write.challenge) == ("pt-BR", "2024-01", None)
    assert HASHER.verify(made.password, made.id, PASSWORD)
    assert isinstance(outcome.data, RegisterAccepted)
    assert (outcome.data.next, outcome.data.challenge, outcome.data.expires_in) == ("login", None, None)
    assert outcome.data.device_token is not None
    assert MINT.device_mac(outcome.data.device_token) == write.device.mac
    assert (outcome.verdict, outcome.mails, outcome.identity) == (Verdict.PASSED, (), None)
    assert outcome.subject == made.id


def test_without_confirmation_a_taken_address_is_said_to_be_taken() -> None:
    outcome, evaluations = evaluations_of(REGISTER, settings=UNCONFIRMED, account=ANA)
    assert refusal_of(outcome) == ("register_failed", Code.ADDRESS_TAKEN, "email", None)
    assert nothing_happens(outcome)
    assert evaluations == 1  # as for a free one


# --- confirm_email ------------------------------------------------------------------------------------------------

PENDING = challenge(code_mac=MINT.code_mac("0wrk1-challenge", "01234567"))
CONFIRM = ConfirmEmail(challenge=PENDING.id, code="01234567")


def test_a_confirmation_reads_its_challenge_and_reserves_a_try() -> None:
    limits = rules.code_limits(Limits(), PENDING.id, "192.0.2.7")
    assert needs_of(CONFIRM) == Needs(challenge_id=PENDING.id, limits=limits)


def test_the_mailed_code_makes_the_account_with_the_password_it_was_registered_with() -> None:
    outcome = outcome_of(CONFIRM, challenge=PENDING)
    [write] = outcome.writes
    assert isinstance(write, CreateAccount)
    assert write.challenge == PENDING
    made = account(
        id=PENDING.user_id,
        email=EMAIL,
        password=PENDING.password,
        version=1,
        created=NOW,
        locale="pt-BR",
        terms="2024-01",
    )
    assert write.account == made
    assert isinstance(outcome.data, EmailConfirmed)
    assert write.device.mac == MINT.device_mac(outcome.data.device_token)
    assert outcome.data.device_token not in write.device.mac + write.device.ref
    assert write.device.ref != outcome_of(CONFIRM, challenge=PENDING).writes[0].device.ref  # type: ignore[union-attr]
    assert (outcome.verdict, outcome.identity, outcome.subject) == (Verdict.PASSED, None, PENDING.user_id)


@pytest.mark.parametrize(
    ("code", "changes", "found", "expected", "verdict"),
    [
        pytest.param("01234567", None, {}, (Code.CHALLENGE_EXPIRED, None), Verdict.UNJUDGED, id="unknown challenge"),
        pytest.param("01234568", {}, {}, (Code.INVALID_CODE, "code"), Verdict.FAILED, id="wrong code"),
        pytest.param("1234567", {}, {}, (Code.INVALID_CODE, "code"), Verdict.FAILED, id="a digit left out"),
        pytest.param("01234567 ", {}, {}, (Code.INVALID_CODE, "code"), Verdict.FAILED, id="a space too many"),
        pytest.param("01234567", {"code_mac": ""}, {}, (Code.INVALID_CODE, "code"), Verdict.FAILED, id="a decoy"),
        pytest.param(
            "01234567",
            {"code_mac": MINT.code_mac("0wrk1-other", "01234567")},
            {},
            (Code.INVALID_CODE, "code"),
            Verdict.FAILED,
            id="the code of another challenge",
        ),
        pytest.param(
            "01234567", {"code_expires": NOW}, {}, (Code.CODE_EXPIRED, "code"), Verdict.UNJUDGED, id="an old code"
        ),
        pytest.param(
            "01234568", {"code_expires": NOW}, {}, (Code.INVALID_CODE, "code"), Verdict.FAILED, id="old and wrong"
        ),
        pytest.param(
            "01234567", {"expires": NOW}, {}, (Code.CHALLENGE_EXPIRED, None), Verdict.UNJUDGED, id="an old challenge"
        ),
        pytest.param(
            "01234567",
            {},
            {"refused": {"tries": 1000}},
            (Code.CHALLENGE_EXPIRED, None),
            Verdict.UNJUDGED,
            id="five wrong codes before, then the right one",
        ),
        pytest.param(
            "01234567",
            {},
            {"account": ANA},
            (Code.CHALLENGE_EXPIRED, None),
            Verdict.UNJUDGED,
            id="confirmed by another",
        ),
        pytest.param(
            "01234568", {}, {"account": ANA}, (Code.INVALID_CODE, "code"), Verdict.FAILED, id="taken, and a wrong code"
        ),
    ],
)
def test_a_confirmation_is_refused(
    code: str,
    changes: dict[str, Any] | None,
    found: dict[str, Any],
    expected: tuple[Code, str | None],
    verdict: Verdict,
) -> None:
    kept = None if changes is None else replace(PENDING, **changes)
    outcome = outcome_of(ConfirmEmail(PENDING.id, code), challenge=kept, **found)
    assert refusal_of(outcome) == ("email_confirmation_failed", *expected, None)
    assert outcome.verdict is verdict
    assert nothing_happens(outcome)


@pytest.mark.parametrize("changes", [{"expires": NOW + 1}, {"code_expires": NOW + 1}], ids=["challenge", "code"])
def test_a_confirmation_in_the_last_millisecond_is_taken(changes: dict[str, Any]) -> None:
    assert outcome_of(CONFIRM, challenge=replace(PENDING, **changes)).event == "email_confirmed"


def test_a_wrong_code_for_a_taken_address_is_refused_as_for_a_free_one() -> None:
    wrong = ConfirmEmail(PENDING.id, "99999999")
    assert outcome_of(wrong, challenge=PENDING) == outcome_of(wrong, challenge=PENDING, account=ANA)


@pytest.mark.parametrize("kept", [None, PENDING], ids=["unknown challenge", "known challenge"])
def test_a_network_that_failed_too_often_is_told_to_wait_whatever_its_code(kept: Any) -> None:
    outcome = outcome_of(CONFIRM, challenge=kept, refused={"ip": 9000, "tries": 1000})
    assert refusal_of(outcome) == ("error", Code.RATE_LIMITED, None, 9000)
    assert outcome.verdict is Verdict.UNJUDGED
    assert nothing_happens(outcome)


# --- resend_confirmation ------------------------------------------------------------------------------------------

RESEND = ResendConfirmation(PENDING.id)


def test_a_new_code_replaces_the_old_one_and_nothing_else_of_the_challenge() -> None:
    outcome = outcome_of(RESEND, challenge=PENDING)
    [mail], renewed = outcome.mails, outcome.renewed
    assert isinstance(renewed, RenewedCode)
    assert mail == Mail("confirmation", EMAIL, "pt-BR", mail.code)
    assert MINT.code_matches(renewed.challenge.code_mac, PENDING.id, mail.code)
    assert renewed.challenge == replace(PENDING, code_mac=renewed.challenge.code_mac, code_expires=NOW + 10 * MINUTE)
    assert mail.code != "01234567"
    assert outcome.writes == ()  # past the mail's limits the older code has to stay: nothing is written without it


def test_asking_for_a_new_code_reserves_no_try_so_it_gives_none_back() -> None:
    assert needs_of(RESEND) == Needs(challenge_id=PENDING.id)
    for kept in (None, PENDING):
        assert outcome_of(RESEND, challenge=kept).verdict is Verdict.UNJUDGED


@pytest.mark.parametrize(
    ("found", "mail"),
    [
        pytest.param({}, Mail("decoy", PENDING.id), id="unknown"),
        pytest.param({"challenge": replace(PENDING, expires=NOW)}, Mail("decoy", PENDING.id), id="too old"),
        pytest.param(
            {"challenge": PENDING, "account": replace(ANA, locale="en")},
            Mail("already_registered", EMAIL, "en"),
            id="of a taken address",
        ),
        pytest.param({"challenge": PENDING}, None, id="pending"),
    ],
)
def test_asking_for_a_new_code_is_answered_the_same_whatever_was_found(
    found: dict[str, Any], mail: Mail | None
) -> None:
    outcome = outcome_of(RESEND, **found)
    assert outcome.data == ConfirmationSent()
    assert (outcome.event, outcome.verdict, outcome.notices) == ("confirmation_sent", Verdict.UNJUDGED, ())
    assert len(outcome.mails) == 1  # a decoy takes the time of a mail
    assert mail is None or outcome.mails == (mail,)
    assert outcome.writes == ()
    assert (outcome.renewed is None) is (outcome.mails[0].kind == "decoy")


def test_what_is_mailed_for_a_taken_address_tells_no_code_but_renews_one_all_the_same() -> None:
    outcome = outcome_of(RESEND, challenge=PENDING, account=ANA)
    assert outcome.renewed is not None
    assert outcome.renewed.challenge.code_mac != PENDING.code_mac
    assert outcome.mails[0].code == ""


# --- login --------------------------------------------------------------------------------------------------------

LOGIN = Login(email=EMAIL, password=PASSWORD)
WRONG = Login(email=EMAIL, password="correct horse battery stable")


def test_a_login_reads_the_account_and_reserves_its_attempt_known_or_unknown_alike() -> None:
    limits = rules.login_limits(Limits(), EMAIL, "192.0.2.7")
    assert needs_of(LOGIN) == Needs(email=EMAIL, devices=True, crowd=True, limits=limits)


def test_with_limits_off_a_login_reserves_nothing() -> None:
    assert needs_of(LOGIN, settings=replace(SETTINGS, limits=OFF)).limits == ()


def test_the_right_password_starts_a_session() -> None:
    outcome, evaluations = evaluations_of(replace_login(device_name="Ana's phone"), account=ANA)
    [write] = outcome.writes
    assert isinstance(write, StartSession)
    made = write.session
    assert (made.user_id, made.counter, made.ip, made.amr) == (ANA.id, 0, "192.0.2.7", ("pwd",))
    assert (made.created, made.seen, made.rotated, made.ended) == (NOW, NOW, NOW, "")
    assert (made.device_ref, made.device_name) == ("", "Ana's phone")
    assert (write.account, write.device) == (ANA, None)
    data = check_tokens(outcome, LoginSuccess, made.id, 0)
    assert data.refresh_expires_in == 7 * DAY // 1000
    assert outcome.identity == Identity(ANA.id, made.id)
    told = SessionStarted(session_id=made.id, device_name="Ana's phone", ip="192.0.2.7")
    assert outcome.notices == (Notice(ANA.id, made.id, told, HERE),)
    assert (outcome.verdict, outcome.subject, outcome.mails) == (Verdict.PASSED, ANA.id, ())
    assert evaluations == 1


def replace_login(**changes: Any) -> Login:
    return Login(email=EMAIL, password=PASSWORD, **changes)


def test_every_login_is_a_session_of_its_own() -> None:
    ids = {outcome_of(LOGIN, account=ANA).identity for _ in range(20)}
    assert len(ids) == 20


def test_unknown_address_and_wrong_password_are_equal_in_everything_but_the_audit() -> None:
    unknown, for_unknown = evaluations_of(WRONG)
    wrong, for_wrong = evaluations_of(WRONG, account=ANA)
    disabled, for_disabled = evaluations_of(WRONG, account=replace(ANA, status="disabled"))
    assert refusal_of(wrong) == ("login_failure", Code.INVALID_CREDENTIALS, None, None)
    assert wrong.verdict is Verdict.FAILED
    assert nothing_happens(wrong)
    assert replace(unknown, subject="") == replace(wrong, subject="") == replace(disabled, subject="")
    assert encode_data(unknown.data) == encode_data(wrong.data) == encode_data(disabled.data)
    assert for_unknown == for_wrong == for_disabled == 1
    assert (unknown.subject, wrong.subject) == ("", ANA.id)


@pytest.mark.parametrize(
    ("request_", "found", "even"),
    [
        pytest.param(WRONG, {"account": ANA}, True, id="a wrong password"),
        pytest.param(LOGIN, {}, True, id="an unknown address"),
        pytest.param(WRONG, {"account": replace(ANA, status="disabled")}, True, id="a wrong password, disabled"),
        pytest.param(LOGIN, {"account": replace(ANA, status="disabled")}, False, id="disabled, the right password"),
        pytest.param(WRONG, {"account": ANA, "refused": {"account": 30_000}}, False, id="too many attempts"),
        pytest.param(WRONG, {"account": ANA, "refused": {"ip": 4000}}, False, id="rate limited"),
        pytest.param(LOGIN, {"account": ANA}, False, id="a success"),
    ],
)
def test_a_refusal_of_credentials_leaves_on_the_grid_and_nothing_else_does(
    request_: Login, found: dict[str, Any], even: bool
) -> None:
    assert outcome_of(request_, **found).even is even


def test_an_unknown_address_is_refused_whatever_the_password() -> None:
    for password in ("", PASSWORD, "nobody"):
        outcome = outcome_of(Login(email=EMAIL, password=password))
        assert refusal_of(outcome)[1] is Code.INVALID_CREDENTIALS


@pytest.mark.parametrize("request_", [LOGIN, WRONG], ids=["right", "wrong"])
@pytest.mark.parametrize("found", [None, ANA, replace(ANA, status="disabled")], ids=["unknown", "known", "disabled"])
@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        pytest.param({"account": 30_000}, ("login_failure", Code.TOO_MANY_ATTEMPTS, None, 30_000), id="account"),
        pytest.param({"ip": 4000}, ("error", Code.RATE_LIMITED, None, 4000), id="network"),
        pytest.param(
            {"account": 30_000, "ip": 4000}, ("login_failure", Code.TOO_MANY_ATTEMPTS, None, 30_000), id="both"
        ),
    ],
)
def test_a_delayed_login_is_refused_unhashed_known_or_not_right_or_not(
    request_: Login, found: Any, refused: dict[str, int], expected: tuple[Any, ...]
) -> None:
    outcome, evaluations = evaluations_of(request_, account=found, refused=refused)
    assert refusal_of(outcome) == expected
    assert evaluations == 0
    assert outcome.verdict is Verdict.UNJUDGED
    assert nothing_happens(outcome)
    assert outcome == outcome_of(request_, refused=refused)


def test_a_disabled_account_is_said_to_be_one_after_the_right_password_only() -> None:
    disabled = replace(ANA, status="disabled")
    outcome, evaluations = evaluations_of(LOGIN, account=disabled)
    assert refusal_of(outcome) == ("login_failure", Code.ACCOUNT_DISABLED, None, None)
    assert (outcome.verdict, outcome.subject, evaluations) == (Verdict.UNJUDGED, ANA.id, 1)
    assert nothing_happens(outcome)
    assert refusal_of(outcome_of(WRONG, account=disabled))[1] is Code.INVALID_CREDENTIALS


TOKEN = MINT.new_device_token()
PHONE = device(mac=MINT.device_mac(TOKEN))


@pytest.mark.parametrize(
    ("token", "name", "expected"),
    [
        pytest.param(TOKEN, None, (PHONE, PHONE.ref, "Ana's phone"), id="trusted, its old name"),
        pytest.param(TOKEN, "New name", (PHONE, PHONE.ref, "New name"), id="trusted, a new name"),
        pytest.param(None, "Laptop", (None, "", "Laptop"), id="no token"),
        pytest.param(MINT.new_device_token(), "Laptop", (None, "", "Laptop"), id="an unknown token is as none"),
        pytest.param("x", None, (None, "", ""), id="a token that nobody made"),
        pytest.param(PHONE.mac.replace(":", "."), None, (None, "", ""), id="what is stored of a token"),
        pytest.param(PHONE.ref, None, (None, "", ""), id="what is shown of a device"),
    ],
)
def test_a_session_knows_the_trusted_device_it_was_started_from(
    token: str | None, name: str | None, expected: tuple[Any, str, str]
) -> None:
    other = device(ref="0wrk1-other", mac=MINT.device_mac(MINT.new_device_token()))
    outcome = outcome_of(replace_login(device_token=token, device_name=name), account=ANA, devices=(other, PHONE))
    [write] = outcome.writes
    assert isinstance(write, StartSession)
    assert (write.device, write.session.device_ref, write.session.device_name) == expected
    [notice] = outcome.notices
    assert notice.event == SessionStarted(session_id=write.session.id, device_name=expected[2] or None, ip="192.0.2.7")


def test_the_device_of_another_account_is_as_none() -> None:
    [write] = outcome_of(replace_login(device_token=TOKEN), account=ANA, devices=()).writes
    assert isinstance(write, StartSession)
    assert write.device is None


def test_sessions_that_would_be_too_many_are_ended_and_their_connections_told() -> None:
    crowd = (session(id="old-1"), session(id="old-2"))
    outcome = outcome_of(LOGIN, account=ANA, sessions=crowd)
    start, *ends = outcome.writes
    assert isinstance(start, StartSession)
    assert ends == [EndSession(old, "too_many_sessions") for old in crowd]
    assert outcome.notices[1:] == tuple(
        Notice(ANA.id, old.id, SessionEnded(session_id=old.id, reason="too_many_sessions"), HERE, close=True)
        for old in crowd
    )
    assert outcome.identity == Identity(ANA.id, start.session.id)
    assert SESSIONS_PER_ACCOUNT == 100


@pytest.mark.parametrize("cost", [Argon2(8, 2, 1), Argon2(16, 1, 1)], ids=["passes", "memory"])
def test_a_login_with_an_older_hash_upgrades_it_with_one_hash_more(cost: Argon2) -> None:
    old = replace(ANA, password=Hasher(cost, PEPPER).hash(ANA.id, PASSWORD))
    outcome, evaluations = evaluations_of(LOGIN, account=old)
    start, upgrade = outcome.writes
    assert isinstance(start, StartSession)
    assert isinstance(upgrade, UpgradePassword)
    assert (upgrade.user_id, upgrade.old) == (old.id, old.password)
    assert HASHER.verify(upgrade.new, old.id, PASSWORD)
    assert not HASHER.outdated(upgrade.new)
    assert evaluations == 2


def test_a_wrong_password_upgrades_nothing() -> None:
    old = replace(ANA, password=Hasher(Argon2(16, 1, 1), PEPPER).hash(ANA.id, PASSWORD))
    outcome, evaluations = evaluations_of(WRONG, account=old)
    assert (outcome.writes, evaluations) == ((), 1)


def test_a_second_round_of_deciding_hashes_nothing_again() -> None:
    old = replace(ANA, password=Hasher(Argon2(16, 1, 1), PEPPER).hash(ANA.id, PASSWORD))
    ctx, before = context(LOGIN), HASHER.evaluations
    facts = Facts(now=NOW, needs=needs_of(LOGIN), account=old)
    first = decide(KINDS["login"], LOGIN, facts, ctx)
    second = decide(KINDS["login"], LOGIN, replace(facts, account=replace(old, version=old.version + 1)), ctx)
    assert HASHER.evaluations - before == 2
    assert (first.event, second.event) == ("login_success", "login_success")
    assert first.writes[1] == second.writes[1]


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
    [notice] = outcome.notices
    assert notice.event == SessionEnded(session_id=found.id, reason="token_reused")
    assert (notice.user_id, notice.session_id, notice.close) == (found.user_id, found.id, True)
    assert notice.spare != HERE  # nobody is spared, whoever sent it
    assert outcome.identity is None


LIVING: dict[str, Any] = {"session": session(), "account": ANA}


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
    assert outcome.identity == Identity(ANA.id, found.id)
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


# --- what needs a session -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [
        pytest.param({}, id="no session, no account"),
        pytest.param({"account": ANA}, id="no session"),
        pytest.param({"session": session()}, id="no account"),
        pytest.param(LIVING | {"session": session(ended="logout")}, id="ended"),
        pytest.param(LIVING | {"session": session(seen=NOW - 7 * DAY)}, id="expired"),
        pytest.param(LIVING | {"account": replace(ANA, status="disabled")}, id="disabled"),
    ],
)
@pytest.mark.parametrize("request_", [Logout(), Sessions(), Account()], ids=["logout", "sessions", "account"])
def test_a_request_that_needs_a_session_is_not_evaluated_without_a_living_one(
    request_: Request, found: dict[str, Any]
) -> None:
    outcome = outcome_of(request_, IDENTITY, **found)
    assert refusal_of(outcome) == ("error", Code.NOT_AUTHENTICATED, None, None)
    assert outcome.verdict is Verdict.UNJUDGED
    assert nothing_happens(outcome)


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


# --- nothing secret is shown --------------------------------------------------------------------------------------


def test_the_repr_of_an_outcome_shows_no_secret() -> None:
    registered = outcome_of(REGISTER)
    [write] = registered.writes
    assert isinstance(write, PutChallenge)
    upgraded = outcome_of(LOGIN, account=replace(ANA, password=Hasher(Argon2(16, 1, 1), PEPPER).hash(ANA.id, PASSWORD)))
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
