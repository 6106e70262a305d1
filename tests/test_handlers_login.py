"""login: every success, every refusal, and what is not to be told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app import rules
from app.handlers import decide
from app.messages import KINDS, Code, Login, LoginSuccess, SessionEnded, SessionStarted, encode_data
from app.passwords import Hasher
from app.records import EndSession, Facts, Identity, Needs, Notice, StartSession, UpgradePassword, Verdict
from app.rules import DAY, SESSIONS_PER_ACCOUNT
from app.settings import Argon2, Limits
from tests.deciding import (
    ANA,
    HASHER,
    HERE,
    OFF,
    PHONE,
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
    assert outcome.identity == Identity(ANA.id, made.id)
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
