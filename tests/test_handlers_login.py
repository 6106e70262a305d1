"""login: every success, every refusal, and what is not to be told apart."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from app import rules
from app.frames import encode_data
from app.handlers import decide
from app.messages import (
    KINDS,
    Code,
    Login,
    LoginAttempt,
    LoginSuccess,
    NewDeviceDetected,
    SecondFactorRequired,
    SessionEnded,
    SessionStarted,
)
from app.passwords import Hasher
from app.records import (
    Attempt,
    ChangeAccount,
    EndSession,
    Facts,
    Identity,
    Mail,
    Needs,
    Notice,
    Outcome,
    PutChallenge,
    StartSession,
    UpgradePassword,
    Verdict,
)
from app.rules import DAY, HOUR, MINUTE, SESSIONS_PER_ACCOUNT
from app.settings import Argon2, Limits, Settings
from tests.deciding import (
    ANA,
    BEA,
    HASHER,
    HERE,
    OFF,
    PHONE,
    REST,
    SETTINGS,
    TOKEN,
    UNVERIFIED,
    check_tokens,
    context,
    evaluations_of,
    needs_of,
    nothing_happens,
    outcome_of,
    refusal_of,
    written,
)
from tests.making import EMAIL, MINT, NOW, PASSWORD, PEPPER, device, session

# --- login --------------------------------------------------------------------------------------------------------

LOGIN = Login(email=EMAIL, password=PASSWORD)
WRONG = Login(email=EMAIL, password="correct horse battery stable")


def test_a_login_reads_the_account_and_reserves_its_attempt_known_or_unknown_alike() -> None:
    for token in (None, TOKEN, "x"):
        mac = None if token is None else MINT.device_mac(token)
        limits = rules.login_limits(Limits(), EMAIL, "192.0.2.7", mac)
        assert needs_of(replace_login(device_token=token)) == Needs(
            email=EMAIL, devices=True, crowd=True, limits=limits
        )


def test_with_limits_off_a_login_reserves_nothing() -> None:
    assert needs_of(LOGIN, settings=replace(SETTINGS, limits=OFF)).limits == ()


def test_the_right_password_starts_a_session() -> None:
    outcome, evaluations = evaluations_of(replace_login(device_name="Ana's phone"), settings=UNVERIFIED, account=ANA)
    [write] = outcome.writes
    assert isinstance(write, StartSession)
    made = write.session
    assert (made.user_id, made.counter, made.ip, made.amr) == (ANA.id, 0, "192.0.2.7", ("pwd",))
    assert (made.created, made.seen, made.rotated, made.ended) == (NOW, NOW, NOW, "")
    assert (made.device_ref, made.device_name) == ("", "Ana's phone")
    assert (write.account, write.device) == (ANA, None)
    data = check_tokens(outcome, LoginSuccess, made.id, 0)
    assert data.refresh_expires_in == 7 * DAY // 1000
    assert outcome.identity == Identity(ANA.id, made.id, ends=NOW + 7 * DAY)
    told = SessionStarted(session_id=made.id, device_name="Ana's phone", ip="192.0.2.7")
    assert outcome.notices == (Notice(ANA.id, made.id, told, HERE),)
    assert (outcome.verdict, outcome.subject, outcome.mails) == (Verdict.PASSED, ANA.id, ())
    assert evaluations == 1


def replace_login(**changes: Any) -> Login:
    return Login(email=EMAIL, password=PASSWORD, **changes)


def test_every_login_is_a_session_of_its_own() -> None:
    ids = {outcome_of(LOGIN, settings=UNVERIFIED, account=ANA).identity for _ in range(20)}
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
        pytest.param(LOGIN, {"account": ANA, "settings": UNVERIFIED}, False, id="a success"),
        pytest.param(LOGIN, {"account": ANA}, False, id="a new device"),
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
    request = replace_login(device_token=token, device_name=name)
    outcome = outcome_of(request, settings=UNVERIFIED, account=ANA, devices=(other, PHONE))
    [write] = outcome.writes
    assert isinstance(write, StartSession)
    assert (write.device, write.session.device_ref, write.session.device_name) == expected
    [notice] = outcome.notices
    assert notice.event == SessionStarted(session_id=write.session.id, device_name=expected[2] or None, ip="192.0.2.7")


def test_the_device_of_another_account_is_as_none() -> None:
    [write] = outcome_of(replace_login(device_token=TOKEN), settings=UNVERIFIED, account=ANA, devices=()).writes
    assert isinstance(write, StartSession)
    assert write.device is None


def test_sessions_that_would_be_too_many_are_ended_and_their_connections_told() -> None:
    crowd = (session(id="old-1"), session(id="old-2"))
    outcome = outcome_of(LOGIN, settings=UNVERIFIED, account=ANA, sessions=crowd)
    start, *ends = outcome.writes
    assert isinstance(start, StartSession)
    assert ends == [EndSession(old, "too_many_sessions", HOUR) for old in crowd]
    assert outcome.notices[1:] == tuple(
        Notice(ANA.id, old.id, SessionEnded(session_id=old.id, reason="too_many_sessions"), HERE, close=True)
        for old in crowd
    )
    assert outcome.identity == Identity(ANA.id, start.session.id, ends=NOW + 7 * DAY)
    assert SESSIONS_PER_ACCOUNT == 100


@pytest.mark.parametrize("cost", [Argon2(8, 2, 1), Argon2(16, 1, 1)], ids=["passes", "memory"])
def test_a_login_with_an_older_hash_upgrades_it_with_one_hash_more(cost: Argon2) -> None:
    old = replace(ANA, password=Hasher(cost, PEPPER).hash(ANA.id, PASSWORD))
    outcome, evaluations = evaluations_of(LOGIN, settings=UNVERIFIED, account=old)
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
    ctx, before = context(settings=UNVERIFIED), HASHER.evaluations
    facts = Facts(now=NOW, needs=needs_of(LOGIN), account=old)
    first = decide(KINDS["login"], LOGIN, facts, ctx)
    second = decide(KINDS["login"], LOGIN, replace(facts, account=replace(old, version=old.version + 1)), ctx)
    assert HASHER.evaluations - before == 2
    assert (first.event, second.event) == ("login_success", "login_success")
    assert first.writes[1] == second.writes[1]


# --- who is counted where -----------------------------------------------------------------------------------------

TRUSTED: dict[str, Any] = {"account": ANA, "devices": (PHONE,)}
FROM_PHONE, WRONG_FROM_PHONE = (Login(EMAIL, word, device_token=TOKEN) for word in (PASSWORD, WRONG.password))
STRANGE = MINT.new_device_token()


@pytest.mark.parametrize("refused", [{"account": 30_000}, {"anywhere": 30_000}, {"account": 1, "anywhere": 2}])
def test_what_strangers_have_failed_does_not_delay_a_trusted_device(refused: dict[str, int]) -> None:
    assert outcome_of(FROM_PHONE, refused=refused, **TRUSTED).event == "login_success"
    assert refusal_of(outcome_of(WRONG_FROM_PHONE, refused=refused, **TRUSTED))[1] is Code.INVALID_CREDENTIALS


def test_a_trusted_device_is_delayed_by_its_own_failures() -> None:
    outcome, evaluations = evaluations_of(FROM_PHONE, refused={"device": 30_000}, **TRUSTED)
    assert refusal_of(outcome) == ("login_failure", Code.TOO_MANY_ATTEMPTS, None, 30_000)
    assert evaluations == 0


@pytest.mark.parametrize("request_", [FROM_PHONE, WRONG_FROM_PHONE], ids=["right", "wrong"])
def test_a_trusted_devices_attempt_counts_for_itself_and_for_nobody_else(request_: Login) -> None:
    assert outcome_of(request_, **TRUSTED).uncounted == ("account", "anywhere")


@pytest.mark.parametrize("token", [None, STRANGE, "x"], ids=["none", "of another", "made up"])
@pytest.mark.parametrize("password", [PASSWORD, WRONG.password], ids=["right", "wrong"])
@pytest.mark.parametrize("settings", [SETTINGS, UNVERIFIED], ids=["verified", "unverified"])
def test_any_other_attempt_counts_for_the_account_and_not_for_a_device(
    token: str | None, password: str, settings: Settings
) -> None:
    outcome = outcome_of(Login(EMAIL, password, device_token=token), settings=settings, **TRUSTED)
    assert outcome.uncounted == ("device",)


@pytest.mark.parametrize("token", [None, STRANGE], ids=["without a token", "with one"])
@pytest.mark.parametrize(
    "refused",
    [{}, {"account": 30_000}, {"anywhere": 30_000}, {"ip": 4000}, {"device": 5000}, {"account": 1, "anywhere": 2}],
    ids=str,
)
def test_a_refusal_is_the_same_for_a_known_and_an_unknown_address(token: str | None, refused: dict[str, int]) -> None:
    request = Login(EMAIL, WRONG.password, device_token=token)
    known, for_known = evaluations_of(request, refused=refused, **TRUSTED)
    unknown, for_unknown = evaluations_of(request, refused=refused)
    assert replace(known, subject="") == replace(unknown, subject="")
    assert for_known == for_unknown


def test_the_longer_of_two_waits_is_told() -> None:
    outcome = outcome_of(LOGIN, account=ANA, refused={"account": 30_000, "anywhere": 60_000})
    assert refusal_of(outcome)[3] == 60_000


# --- a new device -------------------------------------------------------------------------------------------------

NEW = Login(EMAIL, PASSWORD, device_name="Laptop")


def detected(outcome: Outcome) -> NewDeviceDetected:
    assert isinstance(outcome.data, NewDeviceDetected)
    return outcome.data


def attempt_of(outcome: Outcome) -> Attempt:
    [write] = written(outcome, ChangeAccount)
    found = Attempt.read(write.new.attempt)
    assert found is not None
    assert write.new == replace(write.old, attempt=found.text)
    return found


def test_a_new_device_is_mailed_a_code_and_gets_no_session() -> None:
    outcome, evaluations = evaluations_of(NEW, account=ANA)
    data = detected(outcome)
    [write] = outcome.writes
    assert isinstance(write, PutChallenge)
    kept = write.challenge
    assert (data.challenge, data.sent_to, data.expires_in) == (kept.id, "a***@example.com", 600)
    assert (kept.kind, kept.user_id, kept.email, kept.expires) == ("device", ANA.id, EMAIL, NOW + 15 * MINUTE)
    assert (kept.bound, kept.device_name, kept.decided) == ("connection", "Laptop", "")
    assert (kept.password, kept.device_ref, kept.version) == ("", "", ANA.version)
    assert (outcome.verdict, outcome.identity, outcome.notices) == (Verdict.PASSED, None, ())
    assert (outcome.even, outcome.subject, evaluations) == (False, ANA.id, 1)


def test_its_code_is_good_only_if_it_was_mailed() -> None:
    outcome = outcome_of(NEW, account=replace(ANA, locale="pt-BR"))
    [put], [mailed], [mail] = outcome.writes, outcome.if_mailed, outcome.mails
    assert isinstance(put, PutChallenge)
    assert isinstance(mailed, PutChallenge)
    assert (put.challenge.code_mac, put.challenge.code_expires) == ("", 0)
    assert mailed.challenge == replace(
        put.challenge, code_mac=mailed.challenge.code_mac, code_expires=NOW + 10 * MINUTE
    )
    assert MINT.code_matches(mailed.challenge.code_mac, put.challenge.id, mail.code)
    assert re.fullmatch("[0-9]{8}", mail.code)
    assert mail == Mail("new_device", EMAIL, "pt-BR", mail.code, device="Laptop", ip="192.0.2.7", at=NOW, tell=HERE)


def test_over_rest_nobody_is_told_of_the_mail_and_the_challenge_belongs_to_who_holds_it() -> None:
    outcome = outcome_of(NEW, origin=REST, **TRUSTED)
    [put] = outcome.writes
    assert isinstance(put, PutChallenge)
    assert (put.challenge.bound, outcome.mails[0].tell, outcome.notices) == ("", None, ())


def test_its_number_has_two_digits_and_is_another_each_time() -> None:
    numbers = {detected(outcome_of(NEW, account=ANA)).match_number for _ in range(60)}
    assert min(numbers) >= 10
    assert max(numbers) <= 99
    assert len(numbers) > 20


def test_a_trusted_device_that_is_there_is_asked() -> None:
    tablet = device(ref="0wrk1-tablet", mac="wrk1:other")
    outcome = outcome_of(NEW, account=ANA, devices=(PHONE, tablet))
    attempt, data = attempt_of(outcome), detected(outcome)
    assert (attempt.challenge, attempt.number) == (data.challenge, data.match_number)
    assert (attempt.expires, attempt.node, attempt.connection) == (NOW + 3 * MINUTE, "0-node", "connection")
    assert attempt.id != data.challenge
    asked = LoginAttempt(login_id=attempt.id, device_name="Laptop", ip="192.0.2.7")
    assert outcome.notices == (Notice(ANA.id, "", asked, devices=(PHONE.ref, tablet.ref)),)
    assert str(data.match_number) not in encode_data(asked).decode().replace(attempt.id, "").replace("192.0.2.7", "")


PENDING_ATTEMPT = Attempt("0wrk1-attempt", "0wrk1-before", 42, NOW + 1, "0-node", "other")


@pytest.mark.parametrize(
    ("pending", "opens"),
    [
        pytest.param("", True, id="nobody waits"),
        pytest.param(PENDING_ATTEMPT.text, False, id="somebody waits"),
        pytest.param(replace(PENDING_ATTEMPT, expires=NOW).text, True, id="nobody waits any more"),
    ],
)
def test_one_login_waits_to_be_let_in_at_a_time(pending: str, opens: bool) -> None:
    outcome = outcome_of(NEW, account=replace(ANA, attempt=pending), devices=(PHONE,))
    assert detected(outcome).sent_to == "a***@example.com"
    assert len(outcome.mails) == 1  # the code is there in any case
    assert bool(outcome.notices) is opens
    assert bool(written(outcome, ChangeAccount)) is opens


def test_who_waits_and_logs_in_again_is_asked_about_once_with_the_same_number() -> None:
    waits = replace(PENDING_ATTEMPT, connection="connection")
    account = replace(ANA, attempt=waits.text)
    outcome = outcome_of(NEW, account=account, devices=(PHONE,))
    data = detected(outcome)
    again = replace(waits, challenge=data.challenge)
    assert written(outcome, ChangeAccount) == [ChangeAccount(account, replace(account, attempt=again.text))]
    assert (data.match_number, outcome.notices) == (waits.number, ())


@pytest.mark.parametrize("settings", [SETTINGS, UNVERIFIED], ids=["verified", "unverified"])
@pytest.mark.parametrize("trusted", [False, True], ids=["new", "trusted"])
def test_a_new_device_is_verified_where_it_is_set_and_a_trusted_one_never(settings: Settings, trusted: bool) -> None:
    outcome = outcome_of(FROM_PHONE if trusted else NEW, settings=settings, **TRUSTED)
    verified = settings.device_verification and not trusted
    assert outcome.event == ("new_device_detected" if verified else "login_success")


def test_a_wrong_password_on_a_new_device_mails_nothing_and_asks_nobody() -> None:
    assert nothing_happens(outcome_of(WRONG, **TRUSTED))
    assert nothing_happens(outcome_of(replace_login(device_token=STRANGE)))
    assert nothing_happens(outcome_of(NEW, account=replace(ANA, status="disabled"), devices=(PHONE,)))


# --- a second factor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "settings", "ref", "name"),
    [
        pytest.param(FROM_PHONE, SETTINGS, PHONE.ref, "", id="a trusted device"),
        pytest.param(NEW, UNVERIFIED, "", "Laptop", id="any device, unverified"),
    ],
)
def test_after_the_device_comes_the_second_factor(request_: Login, settings: Settings, ref: str, name: str) -> None:
    outcome = outcome_of(request_, settings=settings, account=BEA, devices=(PHONE,))
    [put] = outcome.writes
    assert isinstance(put, PutChallenge)
    kept = put.challenge
    methods = ("totp", "recovery_code")
    assert outcome.data == SecondFactorRequired(challenge=kept.id, methods=methods, expires_in=600)
    assert (kept.kind, kept.user_id, kept.email, kept.expires) == ("second_factor", BEA.id, EMAIL, NOW + 10 * MINUTE)
    assert (kept.bound, kept.device_ref, kept.device_name, kept.code_mac) == ("connection", ref, name, "")
    assert MINT.challenge_subject(kept.id) == rules.factor_subject(BEA.id, ref)
    assert kept.version == BEA.version
    assert (outcome.identity, outcome.notices, outcome.mails, outcome.subject) == (None, (), (), BEA.id)


def test_a_recovery_code_is_offered_only_while_there_is_one() -> None:
    outcome = outcome_of(FROM_PHONE, account=replace(BEA, recovery=""), devices=(PHONE,))
    assert isinstance(outcome.data, SecondFactorRequired)
    assert outcome.data.methods == ("totp",)


def test_a_new_device_is_verified_before_the_second_factor_is_asked_for() -> None:
    assert detected(outcome_of(NEW, account=BEA, devices=(PHONE,)))


@pytest.mark.parametrize("found", [TRUSTED, {"account": ANA}, TRUSTED | {"account": BEA}])
@pytest.mark.parametrize("request_", [FROM_PHONE, NEW])
def test_whatever_comes_next_an_older_hash_is_upgraded(request_: Login, found: dict[str, Any]) -> None:
    old = replace(found["account"], password=Hasher(Argon2(16, 1, 1), PEPPER).hash(ANA.id, PASSWORD))
    outcome, evaluations = evaluations_of(request_, **found | {"account": old})
    [upgrade] = written(outcome, UpgradePassword)
    assert HASHER.verify(upgrade.new, ANA.id, PASSWORD)
    assert evaluations == 2
