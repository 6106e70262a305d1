"""The rules of time and number, at every boundary and one step beside it."""

from __future__ import annotations

from datetime import datetime
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import rules
from app.messages import Code, Mailed
from app.records import Counts, Limit, MailKind, Session, Verdict
from app.rules import DAY, HOUR, MINUTE, SECOND, Life, Settling, Turn
from app.settings import Limits
from app.tokens import RefreshToken
from tests.making import NOW, session

many = settings(max_examples=200, deadline=None, database=None)

OFF = Limits(None, None, None, None, None, None, None)
EMAIL, NETWORK = "ana@example.com", "192.0.2.7"


def delayed(name: str, subject: str, most: int) -> Limit:
    return Limit(
        name,
        subject,
        most,
        DAY,
        Counts.FAILURES,
        penalty_ms=30 * SECOND,
        most_penalty_ms=15 * MINUTE,
        clears=True,
        waits=True,
    )


ACCOUNT = delayed("account", f"{EMAIL}|{NETWORK}", 5)
ANYWHERE = delayed("anywhere", EMAIL, 50)
DEVICE = delayed("device", "wrk1:mac", 5)
PROOF = delayed("proof", "0wrk1-user", 5)
FACTOR = delayed("factor", "0wrk1-user", 5)
NETWORK_FAILURES = Limit("ip", NETWORK, 60, MINUTE, Counts.FAILURES, waits=True)
TRIES = Limit("tries", rules.made_up("challenge"), 5, HOUR, Counts.FAILURES, waits=True)
PENDING = Limit("pending", EMAIL, 5, HOUR, Counts.USES)
REGISTRATIONS = Limit("registrations", NETWORK, 20, HOUR, Counts.USES)


# --- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(
            rules.login_limits(Limits(), EMAIL, NETWORK, None), (ACCOUNT, ANYWHERE, NETWORK_FAILURES), id="a login"
        ),
        pytest.param(
            rules.login_limits(Limits(), EMAIL, NETWORK, "wrk1:mac"),
            (ACCOUNT, ANYWHERE, DEVICE, NETWORK_FAILURES),
            id="a login from a device that may be trusted",
        ),
        pytest.param(rules.login_limits(OFF, EMAIL, NETWORK, "wrk1:mac"), (), id="a login, off"),
        pytest.param(
            rules.login_limits(Limits(failures_per_account=None), EMAIL, NETWORK, "wrk1:mac"),
            (NETWORK_FAILURES,),
            id="account off",
        ),
        pytest.param(
            rules.login_limits(Limits(failures_per_ip=None), EMAIL, NETWORK, None),
            (ACCOUNT, ANYWHERE),
            id="network off",
        ),
        pytest.param(
            rules.proof_limits(Limits(), "0wrk1-user", NETWORK),
            (PROOF, NETWORK_FAILURES),
            id="proving again who one is",
        ),
        pytest.param(rules.proof_limits(OFF, "0wrk1-user", NETWORK), (), id="proving again, off"),
        pytest.param(
            rules.factor_limits(Limits(), "0wrk1-user", NETWORK), (FACTOR, NETWORK_FAILURES), id="a second factor"
        ),
        pytest.param(rules.factor_limits(OFF, "0wrk1-user", NETWORK), (), id="a second factor, off"),
        pytest.param(
            rules.proof_limits(Limits(failures_per_account=None), "0wrk1-user", NETWORK),
            (NETWORK_FAILURES,),
            id="proving again, account off",
        ),
        pytest.param(
            rules.proof_limits(Limits(failures_per_ip=None), "0wrk1-user", NETWORK), (PROOF,), id="proving, network off"
        ),
        pytest.param(
            rules.registration_limits(Limits(), EMAIL, NETWORK), (PENDING, REGISTRATIONS), id="a registration"
        ),
        pytest.param(rules.registration_limits(OFF, EMAIL, NETWORK), (PENDING,), id="pending ones are always bounded"),
        pytest.param(rules.code_limits(Limits(), "challenge", NETWORK), (TRIES, NETWORK_FAILURES), id="a code"),
        pytest.param(rules.code_limits(OFF, "challenge", NETWORK), (TRIES,), id="five tries are always all"),
        pytest.param(
            rules.approval_limits("0wrk1-attempt"),
            (Limit("approval", rules.made_up("0wrk1-attempt"), 3, 10 * MINUTE, Counts.FAILURES, waits=True),),
            id="an approval",
        ),
        pytest.param(rules.failures_of(Limits(), NETWORK), (NETWORK_FAILURES,), id="a reset"),
        pytest.param(rules.failures_of(OFF, NETWORK), (), id="a reset, off"),
    ],
)
def test_every_request_reserves_the_limits_of_the_contract(
    found: tuple[Limit, ...], expected: tuple[Limit, ...]
) -> None:
    assert found == expected


MAILS = (Limit("mails", EMAIL, 5, HOUR, Counts.USES), Limit("mails_ip", NETWORK, 30, HOUR, Counts.USES))
CODES = (Limit("codes", EMAIL, 5, HOUR, Counts.USES),)
NOTICES = (Limit("notices", EMAIL, 20, HOUR, Counts.USES),)
BY_KIND: dict[MailKind, tuple[Limit, ...]] = {
    "confirmation": MAILS,
    "already_registered": MAILS,
    "new_device": CODES,
    "reset": MAILS,
    "decoy": MAILS,
    "login_notice": NOTICES,
    "password_changed": NOTICES,
    "second_factor_changed": NOTICES,
}


@pytest.mark.parametrize(("kind", "expected"), BY_KIND.items(), ids=BY_KIND)
def test_what_strangers_can_cause_uses_up_no_place_of_what_only_the_owner_can(
    kind: MailKind, expected: tuple[Limit, ...]
) -> None:
    assert set(BY_KIND) == {*get_args(Mailed), "decoy"}
    assert rules.mail_limits(Limits(), kind, EMAIL, NETWORK) == expected
    assert rules.mail_limits(OFF, kind, EMAIL, NETWORK) == (NOTICES if expected is NOTICES else ())


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_decoy_is_limited_like_the_mails_it_stands_for(kind: MailKind) -> None:
    """Else the limit itself would tell the two apart."""
    if BY_KIND[kind] is MAILS:
        assert rules.mail_limits(Limits(), "decoy", EMAIL, NETWORK) == rules.mail_limits(Limits(), kind, EMAIL, NETWORK)


def test_the_limits_are_as_high_as_they_were_set() -> None:
    limits = Limits(3, 7, 11, 13, 17)
    found = (
        *rules.login_limits(limits, EMAIL, NETWORK, "wrk1:mac"),
        *rules.proof_limits(limits, "0wrk1-user", NETWORK),
        *rules.registration_limits(limits, EMAIL, NETWORK),
        *rules.factor_limits(limits, "0wrk1-user", NETWORK),
        *rules.mail_limits(limits, "reset", EMAIL, NETWORK),
        *rules.mail_limits(limits, "new_device", EMAIL, NETWORK),
    )
    assert {limit.name: limit.most for limit in found} == {
        "account": 3, "anywhere": 30, "device": 3, "proof": 3, "factor": 3, "ip": 7, "pending": 5, "registrations": 11,
        "mails": 17, "mails_ip": 13, "codes": 17,
    }  # fmt: skip


def test_failures_from_another_network_or_of_another_address_are_another_subject() -> None:
    def subject(email: str, network: str) -> str:
        return rules.login_limits(Limits(), email, network, None)[0].subject

    assert len({subject(e, n) for e in ("a@b.c", "a@b.d") for n in ("192.0.2.1", "192.0.2.2")}) == 4


def test_failures_from_anywhere_are_one_subject_whatever_the_network() -> None:
    first, second = (rules.login_limits(Limits(), EMAIL, n, None)[1] for n in ("192.0.2.1", "192.0.2.2"))
    assert first == second == ANYWHERE


def test_no_two_limits_share_a_name_and_so_their_counts() -> None:
    """Two of one name for one subject would be one count."""
    for found in (
        rules.login_limits(Limits(), EMAIL, NETWORK, "wrk1:mac"),
        rules.proof_limits(Limits(), "0wrk1-user", NETWORK),
        rules.registration_limits(Limits(), EMAIL, NETWORK),
        rules.code_limits(Limits(), "challenge", NETWORK),
    ):
        assert len({limit.name for limit in found}) == len(found)


def test_a_trusted_devices_failures_of_a_second_factor_count_by_themselves() -> None:
    alone, phone = rules.factor_subject("0wrk1-user", ""), rules.factor_subject("0wrk1-user", "0wrk1-phone")
    assert len({alone, phone, rules.factor_subject("0wrk1-user", "0wrk1-tablet")}) == 3


@pytest.mark.parametrize(
    ("email", "shown"),
    [
        ("ana@example.com", "a***@example.com"),
        ("a@example.com", "a***@example.com"),
        ("ana.maria+tag@sub.example.com", "a***@sub.example.com"),
    ],
)
def test_an_address_is_shown_as_only_its_owner_recognises_it(email: str, shown: str) -> None:
    assert rules.masked(email) == shown


@pytest.mark.parametrize(
    ("counts", "clears", "verdict", "becomes"),
    [
        (Counts.FAILURES, True, Verdict.FAILED, Settling.SPEND),
        (Counts.FAILURES, True, Verdict.PASSED, Settling.CLEAR),
        (Counts.FAILURES, True, Verdict.UNJUDGED, Settling.FREE),
        (Counts.FAILURES, False, Verdict.FAILED, Settling.SPEND),
        (Counts.FAILURES, False, Verdict.PASSED, Settling.FREE),
        (Counts.FAILURES, False, Verdict.UNJUDGED, Settling.FREE),
        (Counts.USES, False, Verdict.FAILED, Settling.FREE),
        (Counts.USES, False, Verdict.PASSED, Settling.SPEND),
        (Counts.USES, False, Verdict.UNJUDGED, Settling.FREE),
        (Counts.USES, True, Verdict.FAILED, Settling.FREE),
        (Counts.USES, True, Verdict.PASSED, Settling.SPEND),
        (Counts.USES, True, Verdict.UNJUDGED, Settling.FREE),
    ],
)
def test_a_failure_spends_a_place_of_failures_and_a_success_one_of_uses(
    counts: Counts, clears: bool, verdict: Verdict, becomes: Settling
) -> None:
    assert rules.settle_limit(Limit("name", "subject", 5, HOUR, counts, clears=clears), verdict) is becomes


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        pytest.param("192.0.2.7", "192.0.2.7", id="IPv4 as it is"),
        pytest.param("::ffff:192.0.2.7", "192.0.2.7", id="IPv4 mapped into IPv6"),
        pytest.param("::ffff:c000:207", "192.0.2.7", id="mapped, written in hex"),
        pytest.param("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", id="IPv6 to its /64"),
        pytest.param("2001:DB8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64", id="the last of the same /64"),
        pytest.param("2001:db8:1:3::", "2001:db8:1:3::/64", id="the next /64"),
        pytest.param("::1", "::/64", id="loopback"),
        pytest.param("fe80::1%eth0", "fe80::/64", id="link-local with a zone"),
    ],
)
def test_an_address_counts_as_its_network(ip: str, network: str) -> None:
    assert rules.network_of(ip) == network


# --- the lane of hash work ----------------------------------------------------------------------------------------

MOST = rules.FREE_SHARE


@pytest.mark.parametrize(
    ("mine", "slow", "total", "networks", "expected"),
    [
        pytest.param(1, 0, 1, 1, False, id="one request, alone"),
        pytest.param(MOST, 0, MOST, 1, False, id="an office alone"),
        pytest.param(MOST + 1, 0, MOST + 1, 1, True, id="more than an office, alone: somebody may come"),
        pytest.param(MOST, 1, MOST, 1, True, id="alone, behind its own that are slow"),
        pytest.param(1, 1, 1, 1, True, id="alone, behind its last one that is slow"),
        pytest.param(1, 1, 2, 2, False, id="one of two, whoever has something in the slow lane"),
        pytest.param(MOST, 200, 500, 10, False, id="an office among a flood"),
        pytest.param(MOST + 1, 0, MOST + 2, 2, True, id="more than an office, beside one other"),
        pytest.param(400, 300, 410, 11, True, id="a flood beside ten others"),
        pytest.param(1, 300, 410, 11, False, id="one of the ten"),
        pytest.param(100, 0, 300, 2, False, id="as many as there would be with one network more"),
        pytest.param(101, 0, 300, 2, True, id="one more than that"),
        pytest.param(300, 0, 600, 2, True, id="two floods of a size"),
        pytest.param(50, 0, 550, 2, False, id="a large office beside a flood of ten times its size"),
        pytest.param(128, 2000, 2128, 2, False, id="a very large one beside a flood"),
        pytest.param(129, 2000, 2129, 2, True, id="a second flood beside a first"),
        pytest.param(1, 0, 5000, 5000, False, id="everybody at once"),
    ],
)
def test_what_is_beyond_a_networks_share_lets_others_go_first(
    mine: int, slow: int, total: int, networks: int, expected: bool
) -> None:
    assert rules.beyond_share(mine, slow, total, networks) is expected


@given(st.lists(st.integers(1, 500), min_size=1, max_size=50))
@many
def test_the_network_that_has_most_is_beyond_its_share_unless_that_is_free(counts: list[int]) -> None:
    assert rules.beyond_share(max(counts), 0, sum(counts), len(counts)) is (max(counts) > MOST)


# --- even times ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elapsed", "spent", "hash_ms", "delay"),
    [
        pytest.param(0, 0, 0, 250, id="at once, the cost unknown"),
        pytest.param(30, 30, 30, 220, id="nobody waits before it"),
        pytest.param(3, 3, 30, 247, id="of a tenth of the cost"),
        pytest.param(154.5, 30, 30, 95.5, id="just below the cell's end"),
        pytest.param(155, 30, 30, 95, id="at the cell's end"),
        pytest.param(155.5, 30, 30, 344.5, id="just past the cell's end"),
        pytest.param(128, 3, 30, 122, id="of a tenth of the cost, at the cell's end"),
        pytest.param(128.5, 3, 30, 371.5, id="of a tenth of the cost, just past it"),
        pytest.param(10_030, 30, 30, 220, id="after long waiting"),
        pytest.param(240, 230, 30, 10, id="far more than a hash takes"),
        pytest.param(260, 250, 30, 240, id="more than a cell"),
        pytest.param(62.5, 62.5, 62.5, 187.5, id="a cell is four hashes"),
        pytest.param(63, 63, 63, 437, id="a hash of just more makes it twice as long"),
        pytest.param(1000, 1000, 1000, 3000, id="a second for a hash"),
    ],
)
def test_a_refusal_of_credentials_is_held_back_to_the_end_of_its_cell(
    elapsed: float, spent: float, hash_ms: float, delay: float
) -> None:
    assert rules.even_delay(elapsed, spent, hash_ms) == delay


@given(
    waited=st.integers(0, 30_000).map(float),
    share=st.floats(0, 2),
    hash_ms=st.integers(0, 5_000).map(float),
)
@many
def test_what_a_hash_took_does_not_show_in_when_its_refusal_leaves(waited: float, share: float, hash_ms: float) -> None:
    def leaves(spent: float) -> float:
        return waited + spent + rules.even_delay(waited + spent, spent, hash_ms)

    spent = round(share * hash_ms)
    assert leaves(spent) == pytest.approx(leaves(hash_ms))
    assert leaves(spent) >= waited + spent
    assert leaves(spent) % rules.GRID_MS == pytest.approx(0)


# --- sessions -----------------------------------------------------------------------------------------------------

IDLE = session(created=NOW, seen=NOW, rotated=NOW)  # its idle end comes first
OLD = session(created=NOW, seen=NOW + 29 * DAY, rotated=NOW + 29 * DAY)  # its absolute end comes first


@pytest.mark.parametrize(
    ("found", "now", "life"),
    [
        pytest.param(None, NOW, Life.EXPIRED, id="no record"),
        pytest.param(IDLE, NOW, Life.ACTIVE, id="just begun"),
        pytest.param(IDLE, NOW + 7 * DAY - 1, Life.ACTIVE, id="unseen for seven days less a millisecond"),
        pytest.param(IDLE, NOW + 7 * DAY, Life.EXPIRED, id="unseen for seven days"),
        pytest.param(IDLE, NOW + 7 * DAY + 1, Life.EXPIRED, id="unseen for longer"),
        pytest.param(OLD, NOW + 30 * DAY - 1, Life.ACTIVE, id="thirty days less a millisecond after login"),
        pytest.param(OLD, NOW + 30 * DAY, Life.EXPIRED, id="thirty days after login, seen yesterday"),
        pytest.param(session(created=NOW, seen=NOW, ended="logout"), NOW, Life.REVOKED, id="ended"),
        pytest.param(
            session(created=NOW, seen=NOW, ended="logout"),
            NOW + 7 * DAY - 1,
            Life.REVOKED,
            id="ended, just not expired",
        ),
        pytest.param(
            session(created=NOW, seen=NOW, ended="logout"), NOW + 7 * DAY, Life.EXPIRED, id="ended, then expired"
        ),
    ],
)
def test_a_session_lives_seven_days_unseen_and_thirty_in_all(found: Session | None, now: int, life: Life) -> None:
    assert rules.session_life(found, now) is life


def test_a_sessions_end_is_the_earlier_of_its_two() -> None:
    assert rules.session_ends(IDLE) == NOW + 7 * DAY
    assert rules.session_ends(OLD) == NOW + 30 * DAY


ROTATED = session(counter=4, created=NOW, seen=NOW, rotated=NOW)


@pytest.mark.parametrize(
    ("counter", "now", "turn"),
    [
        pytest.param(4, NOW, Turn.ROTATE, id="the current token"),
        pytest.param(4, NOW + 10_001, Turn.ROTATE, id="the current token, later"),
        pytest.param(4, NOW + 7 * DAY - 1, Turn.ROTATE, id="the current token, just not expired"),
        pytest.param(4, NOW + 7 * DAY, Code.TOKEN_EXPIRED, id="the current token of an expired session"),
        pytest.param(3, NOW, Turn.REPEAT, id="the one before, at once"),
        pytest.param(3, NOW + 9_999, Turn.REPEAT, id="the one before, in the grace"),
        pytest.param(3, NOW + 10_000, Turn.REPEAT, id="the one before, at the end of the grace"),
        pytest.param(3, NOW + 10_001, Turn.END, id="the one before, past the grace"),
        pytest.param(3, NOW + 7 * DAY, Code.TOKEN_EXPIRED, id="the one before, of an expired session"),
        pytest.param(2, NOW, Turn.END, id="two before, at once"),
        pytest.param(0, NOW, Turn.END, id="the first of all"),
        pytest.param(5, NOW, Code.TOKEN_INVALID, id="one that was never given"),
    ],
)
def test_a_refresh_token_rotates_and_an_old_one_ends_its_session(counter: int, now: int, turn: Turn | Code) -> None:
    assert rules.refresh_turn(ROTATED, RefreshToken(ROTATED.id, counter), now) is turn


@pytest.mark.parametrize(
    ("found", "now", "code"),
    [
        pytest.param(None, NOW, Code.TOKEN_EXPIRED, id="no record"),
        pytest.param(session(ended="logout"), NOW, Code.TOKEN_REVOKED, id="ended"),
        pytest.param(session(ended="logout"), NOW + 7 * DAY, Code.TOKEN_EXPIRED, id="ended, then expired"),
        pytest.param(OLD, NOW + 30 * DAY, Code.TOKEN_EXPIRED, id="thirty days after login"),
    ],
)
@pytest.mark.parametrize("behind", [0, 1, 2], ids=["current", "one before", "two before"])
def test_no_token_of_a_session_that_is_over_gets_a_turn(
    found: Session | None, now: int, code: Code, behind: int
) -> None:
    assert rules.refresh_turn(found, RefreshToken("0wrk1-session", 4 - behind), now) is code


# --- shown to clients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (NOW, "2023-11-14T22:13:20.000Z"),
        (NOW + 999, "2023-11-14T22:13:20.999Z"),
    ],
)
def test_a_time_is_shown_in_utc_with_milliseconds(ms: int, text: str) -> None:
    assert rules.iso(ms) == text


@given(st.integers(0, 4_102_444_800_000))  # to the year 2100
@many
def test_a_shown_time_is_the_time_to_the_millisecond(ms: int) -> None:
    shown = datetime.fromisoformat(rules.iso(ms))
    assert round(shown.timestamp() * 1000) == ms


def test_what_a_client_made_up_is_in_no_key() -> None:
    assert "secret" not in rules.made_up("secret") and rules.made_up("secret") == rules.made_up("secret")
    assert rules.made_up("secret") != rules.made_up("secrets")
