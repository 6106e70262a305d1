"""The second factor: the vectors of RFC 4226 and RFC 6238, the window, and that a step works once."""

from __future__ import annotations

import base64
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import totp

many = settings(max_examples=200, deadline=None, database=None)

SEED = b"12345678901234567890"  # of both RFCs
NOW = 1_700_000_010  # the middle of a step
STEP = NOW // 30


@pytest.mark.parametrize(
    ("count", "code"),
    list(enumerate("755224 287082 359152 969429 338314 254676 287922 162583 399871 520489".split())),
)
def test_rfc_4226_appendix_d(count: int, code: str) -> None:
    assert totp.code_at(SEED, count) == code


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        (59, "94287082"),
        (1_111_111_109, "07081804"),
        (1_111_111_111, "14050471"),
        (1_234_567_890, "89005924"),
        (2_000_000_000, "69279037"),
        (20_000_000_000, "65353130"),
    ],
)
def test_rfc_6238_appendix_b(seconds: int, code: str) -> None:
    assert totp.code_at(SEED, seconds // 30, 8) == code
    assert totp.step_of(SEED, code[2:], seconds, 0) == seconds // 30  # six digits are its last six


@pytest.mark.parametrize(("away", "taken"), [(-2, False), (-1, True), (0, True), (1, True), (2, False)])
@pytest.mark.parametrize("seconds", [STEP * 30, STEP * 30 + 29], ids=["first second", "last second"])
def test_a_code_is_taken_one_step_before_and_after_its_own(away: int, taken: bool, seconds: int) -> None:
    found = totp.step_of(SEED, totp.code_at(SEED, STEP + away), seconds, 0)
    assert found == (STEP + away if taken else None)


@pytest.mark.parametrize(
    ("used", "taken"),
    [
        pytest.param(-2, [-1, 0, 1], id="long ago"),
        pytest.param(-1, [0, 1], id="the step before"),
        pytest.param(0, [1], id="this step"),
        pytest.param(1, [], id="the next, by a clock that is ahead"),
        pytest.param(100, [], id="far ahead: a clock that was set back"),
    ],
)
def test_a_step_that_was_used_and_all_before_it_are_taken_no_more(used: int, taken: list[int]) -> None:
    found = [totp.step_of(SEED, totp.code_at(SEED, STEP + away), NOW, STEP + used) for away in (-1, 0, 1)]
    assert [step for step in found if step is not None] == [STEP + away for away in taken]


def test_a_code_is_used_once_whenever_it_is_sent_again() -> None:
    code = totp.code_at(SEED, STEP)
    used = totp.step_of(SEED, code, NOW, 0)
    assert used == STEP
    for later in range(0, 90, 10):
        assert totp.step_of(SEED, code, NOW + later, used) is None


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        pytest.param("{0} {1}", True, id="in two groups, as apps show them"),
        pytest.param(" {0}{1}\n", True, id="pasted with white space"),
        pytest.param("{0}-{1}", False, id="with a hyphen"),
        pytest.param("0{0}{1}", False, id="a digit too many"),
        pytest.param("{0}", False, id="half of it"),
        pytest.param("", False, id="nothing"),
        pytest.param("abcdef", False, id="letters"),
        pytest.param("\u0661\u0662\u0663\u0664\u0665\u0666", False, id="digits of another script"),
        pytest.param("\U0001f511" * 6, False, id="pictures"),
        pytest.param("1" * 64, False, id="the longest that is sent"),
    ],
)
def test_only_white_space_is_forgiven(typed: str, taken: bool) -> None:
    code = totp.code_at(SEED, STEP)
    assert (totp.step_of(SEED, typed.format(code[:3], code[3:]), NOW, 0) is not None) is taken


@given(st.text(max_size=64))
@many
def test_any_text_is_taken_or_not_and_raises_nothing(typed: str) -> None:
    found = totp.step_of(SEED, typed, NOW, 0)
    assert found is None or totp.code_at(SEED, found) == "".join(typed.split())


def test_a_code_of_another_seed_is_not_taken() -> None:
    assert totp.step_of(SEED[::-1], totp.code_at(SEED, STEP), NOW, 0) is None


def test_a_seed_has_160_random_bits() -> None:
    seeds = {totp.new_seed() for _ in range(100)}
    assert {len(seed) for seed in seeds} == {20}
    assert len(seeds) == 100


def test_a_seed_is_shown_in_base32_as_apps_take_it() -> None:
    assert totp.base32(SEED) == "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    for seed in (totp.new_seed() for _ in range(50)):
        assert base64.b32decode(totp.base32(seed)) == seed


@pytest.mark.parametrize(
    ("issuer", "account", "label"),
    [
        pytest.param("login.test", "ana@example.com", "login.test:ana@example.com", id="plain"),
        pytest.param("a&b=c d", "ana@example.com", "a%26b%3Dc%20d:ana@example.com", id="an issuer to be escaped"),
        pytest.param("login.test", "a&b?c#d@example.com", "login.test:a%26b%3Fc%23d@example.com", id="an odd address"),
    ],
)
def test_what_an_app_reads_from_the_qr_code_is_the_key_uri_format(issuer: str, account: str, label: str) -> None:
    url = totp.otpauth_url(SEED, issuer, account)
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("otpauth", "totp", f"/{label}")
    assert unquote(parts.path) == f"/{issuer}:{account}"
    assert dict(parse_qsl(parts.query, strict_parsing=True)) == {"secret": totp.base32(SEED), "issuer": issuer}
    assert parts.fragment == ""
