"""register, confirm_email, resend_confirmation: every success, every refusal, and what is not to be told apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app import rules
from app.frames import encode_data
from app.messages import (
    Code,
    ConfirmationSent,
    ConfirmEmail,
    EmailConfirmed,
    Register,
    RegisterAccepted,
    ResendConfirmation,
)
from app.records import CreateAccount, Mail, Needs, PutChallenge, RenewCode, Verdict
from app.rules import HOUR, MINUTE
from app.settings import Limits
from tests.deciding import ANA, HASHER, SETTINGS, evaluations_of, needs_of, nothing_happens, outcome_of, refusal_of
from tests.making import EMAIL, MINT, NOW, PASSWORD, account, challenge

# --- register -----------------------------------------------------------------------------------------------------

LETTERS, PICTURES = "vbnrqzkwmtplhxd", "🔑🐢🌵🚲🎻🍋🧲🪁🦔🛶🎈🧩🌋🪐🦑"
UNCONFIRMED = replace(SETTINGS, email_confirmation=False)
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
def test_a_sixth_pending_registration_is_kept_without_a_code_that_fits_and_nobody_is_mailed(taken: bool) -> None:
    found: dict[str, Any] = {"refused": {"pending": 5000}, "account": ANA if taken else None}
    outcome, evaluations = evaluations_of(REGISTER, **found)
    [write], [mail] = outcome.writes, outcome.mails
    assert isinstance(outcome.data, RegisterAccepted) and isinstance(write, PutChallenge)
    assert len(encode_data(outcome.data)) == len(encode_data(outcome_of(REGISTER).data))
    assert (write.challenge.id, write.challenge.kind) == (outcome.data.challenge, "registration")
    assert (write.challenge.code_mac, write.challenge.password) == ("", "")
    assert mail.kind == "decoy"
    assert evaluations == 1


def test_a_registration_that_is_kept_without_a_code_is_mailed_none_later() -> None:
    outcome = outcome_of(RESEND, challenge=replace(PENDING, code_mac="", password=""))
    assert outcome.data == ConfirmationSent()
    assert ([mail.kind for mail in outcome.mails], outcome.if_mailed, outcome.writes) == (["decoy"], (), ())


def test_a_registration_that_is_one_too_many_counts_for_its_network_all_the_same() -> None:
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
        pytest.param(LETTERS[:14], False, id="14 characters"),
        pytest.param(LETTERS, True, id="15 lowercase letters: there is no rule of composition"),
        pytest.param(PICTURES[:14], False, id="14 code points of four bytes"),
        pytest.param(PICTURES, True, id="15 code points of four bytes"),
        pytest.param("\u0301".join(LETTERS[:7]), False, id="7 characters written as 13 code points"),
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
    assert outcome_of(Register(email=EMAIL, password="vqzkwmtp"), settings=settings).event == "register_accepted"
    assert outcome_of(Register(email=EMAIL, password="vqzkwmt"), settings=settings).event == "register_failed"


@pytest.mark.parametrize("password", ["password1234567", f"{EMAIL} {EMAIL}", "q" * 200], ids=["common", "own", "one"])
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
@pytest.mark.parametrize("confirmed", [False, True], ids=["at once", "to be confirmed"])
def test_a_password_that_is_tried_first_is_refused_unhashed(password: str, taken: bool, confirmed: bool) -> None:
    request, settings = Register(email=EMAIL, password=password), SETTINGS if confirmed else UNCONFIRMED
    outcome, evaluations = evaluations_of(request, settings=settings, account=ANA if taken else None)
    assert refusal_of(outcome) == ("register_failed", Code.PASSWORD_COMMON, "password", None)
    assert (outcome.verdict, evaluations) == (Verdict.UNJUDGED, 0)
    assert nothing_happens(outcome)


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
    assert (outcome.verdict, outcome.uncounted) == (Verdict.PASSED, ("pending",)), "it is one of the network's, an hour"
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
    [mail], [renewed] = outcome.mails, outcome.if_mailed
    assert isinstance(renewed, RenewCode)
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
        pytest.param({}, Mail("decoy", rules.made_up(PENDING.id)), id="unknown"),
        pytest.param(
            {"challenge": replace(PENDING, expires=NOW)}, Mail("decoy", rules.made_up(PENDING.id)), id="too old"
        ),
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
    assert (outcome.if_mailed == ()) is (outcome.mails[0].kind == "decoy")


def test_what_is_mailed_for_a_taken_address_tells_no_code_but_renews_one_all_the_same() -> None:
    outcome = outcome_of(RESEND, challenge=PENDING, account=ANA)
    [renewed] = outcome.if_mailed
    assert isinstance(renewed, RenewCode)
    assert renewed.challenge.code_mac != PENDING.code_mac
    assert outcome.mails[0].code == ""
