"""Tokens, codes and ids: what is ours is read, everything else is nothing."""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from app import tokens
from app.keys import TokenKeys
from app.sealing import Unreadable
from app.tokens import AccessClaims, Mint, RefreshToken
from tests.making import AUDIENCE, ISSUER, MINT, NOW, TOKEN_KEYS, WORKER, secrets_of, token_keys

many = settings(max_examples=200, deadline=None, database=None)

SECONDS = NOW // 1000
OTHER_KEYS = token_keys("tok1")  # the same id, another key
TOKEN = MINT.access_token("0wrk1-user", "0wrk1-session", ("pwd",), SECONDS - 60, SECONDS, 600)
HEADER: dict[str, Any] = {"alg": "ES256", "typ": "at+jwt", "kid": "tok1"}
CLAIMS: dict[str, Any] = jwt.decode(TOKEN, options={"verify_signature": False})
OURS = AccessClaims("0wrk1-user", "0wrk1-session", SECONDS, SECONDS + 600)


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def forge(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token made by hand, whatever a library would refuse to make."""
    text = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{text}.{b64(sign(text.encode()))}"


def es256(keys: TokenKeys = TOKEN_KEYS) -> Callable[[bytes], bytes]:
    return lambda text: jwt.get_algorithm_by_name("ES256").sign(text, keys.current[1])


def hs256(key: bytes) -> Callable[[bytes], bytes]:
    return lambda text: hmac.digest(key, text, "sha256")


def header(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (HEADER | changes).items() if value is not ...}


def claims(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (CLAIMS | changes).items() if value is not ...}


PUBLIC = TOKEN_KEYS.public["tok1"]
PEM = PUBLIC.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
DER = PUBLIC.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
OUR_JWK = tokens.jwks(TOKEN_KEYS.public)["keys"][0]
OTHER_JWK = tokens.jwks(OTHER_KEYS.public)["keys"][0]


# --- access tokens ------------------------------------------------------------------------------------------------


def test_an_access_token_is_what_rfc_9068_says() -> None:
    assert jwt.get_unverified_header(TOKEN) == HEADER
    found = jwt.decode(TOKEN, PUBLIC, ["ES256"], audience=AUDIENCE, issuer=ISSUER, options={"verify_exp": False})
    assert set(found) == {"iss", "sub", "aud", "exp", "iat", "nbf", "jti", "sid", "amr", "auth_time"}
    assert (found["iss"], found["aud"], found["sub"], found["sid"]) == (ISSUER, AUDIENCE, OURS.user_id, OURS.session_id)
    assert (found["iat"], found["nbf"], found["exp"]) == (SECONDS, SECONDS, SECONDS + 600)
    assert (found["amr"], found["auth_time"]) == (["pwd"], SECONDS - 60)
    assert len(TOKEN) < 4096


def test_two_access_tokens_of_the_same_moment_differ() -> None:
    again = MINT.access_token("0wrk1-user", "0wrk1-session", ("pwd",), SECONDS - 60, SECONDS, 600)
    assert jwt.decode(again, options={"verify_signature": False})["jti"] != CLAIMS["jti"]


def test_an_access_token_of_ours_is_read_whatever_the_time() -> None:
    assert MINT.read_access_token(TOKEN) == OURS
    later = MINT.access_token("u", "s", ("pwd",), 1, 4_000_000_000, 600)  # its caller compares with the store's clock
    assert MINT.read_access_token(later) == AccessClaims("u", "s", 4_000_000_000, 4_000_000_600)


def test_the_forging_of_these_tests_makes_good_tokens_when_nothing_is_changed() -> None:
    assert MINT.read_access_token(forge(HEADER, CLAIMS, es256())) == OURS


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(forge(header(alg="none"), CLAIMS, lambda text: b""), id="alg none, no signature"),
        pytest.param(forge(header(alg="nOnE"), CLAIMS, lambda text: b""), id="alg nOnE"),
        pytest.param(forge(header(alg="none"), CLAIMS, es256()), id="alg none, a good signature"),
        pytest.param(forge(header(alg=...), CLAIMS, es256()), id="no alg"),
        pytest.param(forge(header(alg=["ES256"]), CLAIMS, es256()), id="a list for the alg"),
        pytest.param(forge(header(alg="HS256"), CLAIMS, hs256(PEM)), id="HS256 with the public key's PEM"),
        pytest.param(forge(header(alg="HS256"), CLAIMS, hs256(PEM.strip())), id="HS256 with the PEM, stripped"),
        pytest.param(forge(header(alg="HS256"), CLAIMS, hs256(DER)), id="HS256 with the public key's DER"),
        pytest.param(forge(header(alg="HS256"), CLAIMS, hs256(b"")), id="HS256 with the empty key"),
        pytest.param(forge(header(alg="ES384"), CLAIMS, es256()), id="another curve's alg"),
        pytest.param(forge(header(typ="JWT"), CLAIMS, es256()), id="typ JWT"),
        pytest.param(forge(header(typ=...), CLAIMS, es256()), id="no typ"),
        pytest.param(forge(header(typ="refresh+jwt"), CLAIMS, es256()), id="another typ"),
        pytest.param(forge(header(kid="tok2"), CLAIMS, es256()), id="an unknown kid"),
        pytest.param(forge(header(kid=...), CLAIMS, es256()), id="no kid"),
        pytest.param(forge(header(kid=""), CLAIMS, es256()), id="an empty kid"),
        pytest.param(forge(header(kid=["tok1"]), CLAIMS, es256()), id="a list for the kid"),
        pytest.param(forge(header(kid={"tok1": 1}), CLAIMS, es256()), id="an object for the kid"),
        pytest.param(forge(HEADER, CLAIMS, es256(OTHER_KEYS)), id="another key under our kid"),
        pytest.param(forge(header(jwk=OTHER_JWK), CLAIMS, es256(OTHER_KEYS)), id="a key that the token brings"),
        pytest.param(
            forge(header(jku="https://evil.test/jwks.json"), CLAIMS, es256(OTHER_KEYS)), id="a key to be fetched"
        ),
        pytest.param(forge(header(x5u="https://evil.test/x.pem"), CLAIMS, es256(OTHER_KEYS)), id="a certificate"),
        pytest.param(forge(header(crit=["exp"], exp=1), CLAIMS, es256()), id="a critical header nobody knows"),
        pytest.param(forge(HEADER, claims(iss="https://evil.test"), es256()), id="another issuer"),
        pytest.param(forge(HEADER, claims(iss=ISSUER + "/"), es256()), id="an issuer with a slash"),
        pytest.param(forge(HEADER, claims(iss=...), es256()), id="no issuer"),
        pytest.param(forge(HEADER, claims(aud="others"), es256()), id="another audience"),
        pytest.param(forge(HEADER, claims(aud=["others"]), es256()), id="other audiences"),
        pytest.param(forge(HEADER, claims(aud=...), es256()), id="no audience"),
        pytest.param(forge(HEADER, claims(exp=...), es256()), id="no exp"),
        pytest.param(forge(HEADER, claims(exp="soon"), es256()), id="an exp that is no number"),
        pytest.param(forge(HEADER, claims(exp=None), es256()), id="null for exp"),
        pytest.param(forge(HEADER, claims(nbf=...), es256()), id="no nbf"),
        pytest.param(forge(HEADER, claims(sub=...), es256()), id="no sub"),
        pytest.param(forge(HEADER, claims(sid=...), es256()), id="no sid"),
        pytest.param(TOKEN[:-2], id="a short signature"),
        pytest.param(TOKEN.rpartition(".")[0] + ".", id="no signature"),
        pytest.param(TOKEN.rpartition(".")[0], id="two parts"),
        pytest.param(TOKEN + "." + TOKEN, id="five parts"),
        pytest.param("", id="nothing"),
        pytest.param("..", id="dots"),
        pytest.param("x.y.z", id="no base64"),
        pytest.param(MINT.refresh_token(RefreshToken("0wrk1-session", 4)), id="a refresh token"),
        pytest.param(MINT.new_device_token(), id="a device token"),
    ],
)
def test_an_access_token_that_is_not_wholly_ours_is_nothing(token: str) -> None:
    assert MINT.read_access_token(token) is None


@pytest.mark.parametrize("changes", [{"sub": "0wrk1-other"}, {"sid": "0wrk1-other"}, {"exp": SECONDS + 10**6}])
def test_claims_under_another_tokens_signature_are_nothing(changes: dict[str, Any]) -> None:
    head, _, signature = TOKEN.split(".")
    assert MINT.read_access_token(f"{head}.{b64(json.dumps(claims(**changes)).encode())}.{signature}") is None


def test_headers_that_offer_a_key_are_not_looked_at() -> None:
    token = forge(header(jwk=OTHER_JWK, jku="https://evil.test", x5c=["MIIB"]), CLAIMS, es256())
    assert MINT.read_access_token(token) == OURS


def test_a_token_of_another_deployment_is_nothing() -> None:
    for issuer, audience in ((ISSUER, "others"), ("https://other.test", AUDIENCE)):
        other = Mint(WORKER, TOKEN_KEYS, issuer, audience)
        assert MINT.read_access_token(other.access_token("u", "s", (), 1, SECONDS, 600)) is None


def test_tokens_of_two_signing_keys_verify_while_both_are_here_then_only_the_new() -> None:
    two = token_keys("tok2", "tok1")
    old = Mint(WORKER, TokenKeys(two.public, {"tok1": two.private["tok1"]}), ISSUER, AUDIENCE)
    both = Mint(WORKER, two, ISSUER, AUDIENCE)
    new = Mint(WORKER, TokenKeys({"tok2": two.public["tok2"]}, {"tok2": two.private["tok2"]}), ISSUER, AUDIENCE)
    of_old, of_new = (mint.access_token("u", "s", (), 1, SECONDS, 600) for mint in (old, both))
    assert jwt.get_unverified_header(of_new)["kid"] == "tok2"
    assert both.read_access_token(of_old) and both.read_access_token(of_new)
    assert new.read_access_token(of_new) and new.read_access_token(of_old) is None


@given(st.text(st.characters(exclude_categories=()), max_size=60), st.integers(0, len(TOKEN)))
@many
def test_any_text_is_nothing_and_raises_nothing(text: str, at: int) -> None:
    inserted = TOKEN[:at] + text + TOKEN[at:]
    for token in (text, f"{text}.{text}.{text}", inserted):
        if token != TOKEN:
            assert MINT.read_access_token(token) is None
            assert MINT.read_refresh_token(token) is None


def test_the_published_keys_are_the_public_halves_and_verify_what_was_signed() -> None:
    [key] = tokens.jwks(TOKEN_KEYS.public)["keys"]
    assert set(key) == {"kty", "crv", "use", "alg", "kid", "x", "y"}
    assert (key["kty"], key["crv"], key["use"], key["alg"], key["kid"]) == ("EC", "P-256", "sig", "ES256", "tok1")
    assert all(len(key[name]) == 43 for name in "xy")  # 32 bytes whatever their value (RFC 7518 section 6.2.1.2)
    found = jwt.PyJWK(key)
    assert jwt.decode(TOKEN, found, audience=AUDIENCE, options={"verify_exp": False})["sid"] == OURS.session_id


def test_a_coordinate_that_begins_with_zeros_keeps_its_length() -> None:
    number = next(
        n
        for n in range(1, 2000)
        if ec.derive_private_key(n, ec.SECP256R1()).public_key().public_numbers().x >> 248 == 0
    )
    [key] = tokens.jwks({"kid1": ec.derive_private_key(number, ec.SECP256R1()).public_key()})["keys"]
    assert len(key["x"]) == 43
    jwt.PyJWK(key)


@pytest.mark.parametrize("text", ["", ".", "a.b.c", "a.e30.c", "\udcff", "a.W10.c", "x" * 5000])
def test_a_text_that_names_no_session_stands_for_itself(text: str) -> None:
    assert tokens.session_named(text) == text


def test_both_tokens_of_a_session_name_it_whenever_they_were_made() -> None:
    later = MINT.access_token("0wrk1-user", "0wrk1-session", ("pwd",), SECONDS, SECONDS + 300, 600)
    assert {tokens.session_named(text) for text in (TOKEN, later, REFRESH)} == {"0wrk1-session"}


# --- refresh tokens -----------------------------------------------------------------------------------------------

REFRESH = MINT.refresh_token(RefreshToken("0wrk1-session", 4))


@pytest.mark.parametrize("counter", [0, 1, 999_999_999])
def test_a_refresh_token_says_its_session_and_counter(counter: int) -> None:
    token = RefreshToken(tokens.new_id("wrk1"), counter)
    assert MINT.read_refresh_token(MINT.refresh_token(token)) == token


def test_a_refresh_token_fits_the_wire() -> None:
    assert re.fullmatch(r"wrk1\.0wrk1-session\.4\.[A-Za-z0-9_-]{43}", REFRESH)
    assert len(MINT.refresh_token(RefreshToken(tokens.new_id("wrk1"), 999_999_999))) < 128


@pytest.mark.parametrize("part", range(4), ids=["key id", "session", "counter", "MAC"])
def test_a_refresh_token_with_any_part_altered_is_nothing(part: int) -> None:
    for value in ("", "wrk2", "0wrk1-other", "5", "04", "-4", "4.0", "٤", "9" * 10, "A" * 43, "é"):
        parts = REFRESH.split(".")
        if parts[part] != value and not (part == 2 and value == "04"):
            parts[part] = value
            assert MINT.read_refresh_token(".".join(parts)) is None


@pytest.mark.parametrize(
    "text", ["", "...", REFRESH + ".", "." + REFRESH, REFRESH[:-1], REFRESH + "A", TOKEN, REFRESH + "\n"]
)
def test_what_is_no_refresh_token_is_nothing(text: str) -> None:
    assert MINT.read_refresh_token(text) is None


def test_every_character_of_a_refresh_tokens_mac_counts() -> None:
    body, _, mac = REFRESH.rpartition(".")
    for n, character in enumerate(mac):
        altered = f"{body}.{mac[:n]}{'A' if character != 'A' else 'B'}{mac[n + 1 :]}"
        assert MINT.read_refresh_token(altered) is None


def test_refresh_tokens_survive_a_new_secret_until_theirs_is_gone() -> None:
    token = RefreshToken("0wrk1-session", 4)
    both = Mint(secrets_of("wrk2", "wrk1"), TOKEN_KEYS, ISSUER, AUDIENCE)
    assert both.read_refresh_token(REFRESH) == token
    assert both.refresh_token(token).startswith("wrk2.")
    assert Mint(secrets_of("wrk2"), TOKEN_KEYS, ISSUER, AUDIENCE).read_refresh_token(REFRESH) is None


# --- device tokens and mailed codes -------------------------------------------------------------------------------


def test_a_device_token_fits_the_contract_and_has_256_random_bits() -> None:
    found = {MINT.new_device_token() for _ in range(50)}
    assert len(found) == 50
    for token in found:
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", token)
        assert token.startswith("0wrk1.")
        assert len(base64.urlsafe_b64decode(token.partition(".")[2] + "=")) == 32


def test_of_a_device_token_an_hmac_is_kept_that_only_it_has() -> None:
    one, other = MINT.new_device_token(), MINT.new_device_token()
    assert MINT.device_mac(one) == MINT.device_mac(one)
    assert MINT.device_mac(one) != MINT.device_mac(other)
    assert one.partition(".")[2] not in MINT.device_mac(one)
    thief = Mint(secrets_of("wrk9"), TOKEN_KEYS, ISSUER, AUDIENCE)
    assert thief.device_mac(one).partition(":")[2] != MINT.device_mac(one).partition(":")[2]


def test_a_device_is_known_after_a_new_secret_until_the_one_of_its_token_is_gone() -> None:
    token = MINT.new_device_token()
    both = Mint(secrets_of("wrk2", "wrk1"), TOKEN_KEYS, ISSUER, AUDIENCE)
    assert both.device_mac(token) == MINT.device_mac(token)
    assert Mint(secrets_of("wrk2"), TOKEN_KEYS, ISSUER, AUDIENCE).device_mac(token) != MINT.device_mac(token)


@pytest.mark.parametrize("text", ["x", "0wrk1", "....", "0none.x", "x" * 128])
def test_a_device_token_that_nobody_made_has_a_mac_that_nobody_has(text: str) -> None:
    assert MINT.device_mac(text).startswith("wrk1:")
    assert MINT.device_mac(text) != MINT.device_mac(text + "x")


def test_a_code_is_eight_digits_of_which_the_first_may_be_zero() -> None:
    codes = {tokens.new_code() for _ in range(2000)}
    assert all(re.fullmatch(r"[0-9]{8}", code) for code in codes)
    assert len(codes) > 1990
    assert any(code[0] == "0" for code in codes)


def test_a_stored_code_matches_its_challenge_and_itself_only() -> None:
    stored = MINT.code_mac("0wrk1-a", "01234567")
    assert MINT.code_matches(stored, "0wrk1-a", "01234567")
    for challenge_id, code in (
        ("0wrk1-b", "01234567"),
        ("0wrk1-a", "01234568"),
        ("0wrk1-a", "1234567"),
        ("0wrk1-a", "01234567 "),
        ("0wrk1-a", "０１２３４５６７"),
        ("0wrk1-a\x0001234567", ""),
        ("0wrk1-a", ""),
    ):
        assert not MINT.code_matches(stored, challenge_id, code)


def test_a_stored_code_is_an_hmac_and_no_hash_that_could_be_tried_out() -> None:
    stored = MINT.code_mac("0wrk1-a", "01234567")
    assert "01234567" not in stored
    thief = Mint(secrets_of("wrk9"), TOKEN_KEYS, ISSUER, AUDIENCE)
    assert thief.code_mac("0wrk1-a", "01234567").partition(":")[2] != stored.partition(":")[2]
    assert not thief.code_matches(stored, "0wrk1-a", "01234567")


@pytest.mark.parametrize(
    "stored", ["", ":", "wrk1:", "none:x", "wrk1"], ids=["none", "empty", "no MAC", "no key", "no colon"]
)
def test_a_challenge_without_a_code_is_matched_by_nothing(stored: str) -> None:
    for code in ("", "00000000", stored):
        assert not MINT.code_matches(stored, "0wrk1-a", code)


def test_codes_survive_a_new_secret() -> None:
    both = Mint(secrets_of("wrk2", "wrk1"), TOKEN_KEYS, ISSUER, AUDIENCE)
    assert both.code_matches(MINT.code_mac("0wrk1-a", "01234567"), "0wrk1-a", "01234567")


def test_the_macs_of_different_things_are_never_the_same() -> None:
    macs = {
        MINT.refresh_token(RefreshToken("a", 1)).rpartition(".")[2],
        MINT.device_mac("a").partition(":")[2],
        MINT.device_mac("a\x001").partition(":")[2],
        MINT.code_mac("a", "1").partition(":")[2],
    }
    assert len(macs) == 4


# --- the second factor's seed and recovery codes ------------------------------------------------------------------

SEED = b"12345678901234567890"
CODES = tokens.new_recovery_codes()


def test_a_seed_opens_for_its_account_and_is_never_sealed_to_the_same_text() -> None:
    sealed = [MINT.seal_seed("0wrk1-user", SEED) for _ in range(20)]
    assert len(set(sealed)) == 20
    for text in sealed:
        assert re.fullmatch(r"wrk1\.[A-Za-z0-9_-]+", text)  # a field of the store: no space, no padding
        assert MINT.open_seed("0wrk1-user", text) == SEED


@pytest.mark.parametrize(
    ("mint", "user_id", "alter"),
    [
        pytest.param(MINT, "0wrk1-other", lambda text: text, id="another account"),
        pytest.param(MINT, "", lambda text: text, id="no account"),
        pytest.param(Mint(secrets_of("wrk2"), TOKEN_KEYS, ISSUER, AUDIENCE), "0wrk1-user", lambda text: text,
                     id="a secret that is not here"),
        pytest.param(Mint(secrets_of("wrk2"), TOKEN_KEYS, ISSUER, AUDIENCE), "0wrk1-user",
                     lambda text: "wrk2" + text[4:], id="said to be under another secret"),
        pytest.param(MINT, "0wrk1-user", lambda text: text[5:], id="without its secret's id"),
        pytest.param(MINT, "0wrk1-user", lambda text: "wrk1.", id="nothing but that"),
        pytest.param(MINT, "0wrk1-user", lambda text: "", id="nothing"),
        pytest.param(MINT, "0wrk1-user", lambda text: text[:-4], id="cut off"),
        pytest.param(MINT, "0wrk1-user", lambda text: text[:5] + ("A" if text[5] != "A" else "B") + text[6:],
                     id="altered"),
    ],
)  # fmt: skip
def test_a_seed_opens_for_nobody_else(mint: Mint, user_id: str, alter: Callable[[str], str]) -> None:
    with pytest.raises(Unreadable):
        mint.open_seed(user_id, alter(MINT.seal_seed("0wrk1-user", SEED)))


def test_a_seed_survives_a_new_secret_and_new_ones_are_sealed_under_it() -> None:
    rotated = Mint(secrets_of("wrk2", "wrk1"), TOKEN_KEYS, ISSUER, AUDIENCE)
    assert rotated.open_seed("0wrk1-user", MINT.seal_seed("0wrk1-user", SEED)) == SEED
    assert rotated.seal_seed("0wrk1-user", SEED).startswith("wrk2.")


def test_a_recovery_code_has_eighty_random_bits_and_can_be_typed() -> None:
    made = [code for _ in range(50) for code in tokens.new_recovery_codes()]
    assert len(set(made)) == 500
    for code in made:
        assert re.fullmatch("[A-Z2-7]{4}(-[A-Z2-7]{4}){3}", code)
        assert len(base64.b32decode(code.replace("-", ""))) * 8 == 80  # NIST SP 800-63B asks for 64
    assert len(tokens.new_recovery_codes()) == 10


@pytest.mark.parametrize("n", range(10))
def test_each_recovery_code_is_used_up_alone_and_once(n: int) -> None:
    stored = MINT.recovery_macs("0wrk1-user", CODES)
    left = MINT.without_recovery_code("0wrk1-user", stored, CODES[n])
    assert left is not None
    macs = stored.split()
    assert left.split() == macs[:n] + macs[n + 1 :]
    assert MINT.without_recovery_code("0wrk1-user", left, CODES[n]) is None


@pytest.mark.parametrize(
    ("write", "taken"),
    [
        pytest.param(str.lower, True, id="in small letters"),
        pytest.param(lambda code: code.replace("-", ""), True, id="without its hyphens"),
        pytest.param(lambda code: code.replace("-", " "), True, id="with spaces"),
        pytest.param(lambda code: f"\t{code}\r\n", True, id="with white space around"),
        pytest.param(lambda code: code[:-1], False, id="without its end"),
        pytest.param(lambda code: code + "A", False, id="with a letter more"),
        pytest.param(lambda code: code[::-1], False, id="backwards"),
        pytest.param(lambda code: "", False, id="nothing"),
        pytest.param(lambda code: "----", False, id="nothing but hyphens"),
        pytest.param(lambda code: code.replace("-", "\u2010"), False, id="with other hyphens"),
    ],
)
def test_a_recovery_code_is_taken_however_a_person_types_it(write: Callable[[str], str], taken: bool) -> None:
    stored = MINT.recovery_macs("0wrk1-user", CODES)
    assert (MINT.without_recovery_code("0wrk1-user", stored, write(CODES[0])) is not None) is taken


def test_of_recovery_codes_macs_are_kept_that_are_good_for_their_account_alone() -> None:
    stored = MINT.recovery_macs("0wrk1-user", CODES)
    assert not any(code in stored or code.replace("-", "") in stored for code in CODES)
    assert not set(stored.split()) & set(MINT.recovery_macs("0wrk1-other", CODES).split())
    assert MINT.without_recovery_code("0wrk1-other", stored, CODES[0]) is None
    assert MINT.without_recovery_code("0wrk1-user", "", CODES[0]) is None
    for mac in stored.split():
        assert MINT.without_recovery_code("0wrk1-user", stored, mac) is None


def test_recovery_codes_survive_a_new_secret_until_theirs_is_gone() -> None:
    stored = MINT.recovery_macs("0wrk1-user", CODES)
    rotated = Mint(secrets_of("wrk2", "wrk1"), TOKEN_KEYS, ISSUER, AUDIENCE)
    assert rotated.without_recovery_code("0wrk1-user", stored, CODES[0]) is not None
    assert rotated.recovery_macs("0wrk1-user", CODES).startswith("wrk2:")
    gone = Mint(secrets_of("wrk2"), TOKEN_KEYS, ISSUER, AUDIENCE)
    assert gone.without_recovery_code("0wrk1-user", stored, CODES[0]) is None


@given(st.text(max_size=64))
@many
def test_any_text_is_a_recovery_code_or_none_and_raises_nothing(text: str) -> None:
    assert MINT.without_recovery_code("0wrk1-user", MINT.recovery_macs("0wrk1-user", CODES[:2]), text) is None


# --- ids ----------------------------------------------------------------------------------------------------------


def test_an_id_begins_with_its_shard_and_key_and_has_128_random_bits() -> None:
    found = {tokens.new_id("wrk1") for _ in range(100)}
    assert len(found) == 100
    for id in found:
        assert re.fullmatch(r"0wrk1-[A-Za-z0-9_-]{22}", id)


def test_a_challenge_says_what_it_was_made_for_and_a_made_up_one_nothing() -> None:
    made = MINT.challenge_id("0wrk1-user~0wrk1-phone")
    assert MINT.challenge_subject(made) == "0wrk1-user~0wrk1-phone"
    assert made != MINT.challenge_id("0wrk1-user~0wrk1-phone")
    id, subject, mac = made.split(".")
    for other in (f"{id}.{subject}", f"{id}.0wrk1-other.{mac}", f"0wrk1-x.{subject}.{mac}", f"{made}x", "", ".."):
        assert MINT.challenge_subject(other) is None
