"""Tokens, codes and ids: what a client holds and what is stored of it. Pure computation.

Nothing secret that a client holds is stored: a refresh token and a device token are checked by an HMAC under the
worker secret, a mailed code is stored as one. Every id begins with its shard and the id of the key it belongs to.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from app.keys import TokenKeys
from app.sealing import Unreadable, associated, open_kept, seal_kept
from app.settings import Secret, Secrets

SHARD = "0"  # there is one today; ids carry it so that more can come without a change of format
CODE_DIGITS = 8
RECOVERY_CODES = 10
RECOVERY_BYTES = 10  # 80 bits; NIST SP 800-63B asks for 64
EARLY_SECONDS = 10  # a clock that is set back by less than this does not make new tokens invalid (RFC 7519 4.1.5)


def new_id(kid: str) -> str:
    """`SHARD KID - 128 random bits`: 28 characters of [A-Za-z0-9_-]."""
    return f"{SHARD}{kid}-{secrets.token_urlsafe(16)}"


def new_code() -> str:
    """A code to be typed from a mail: eight digits, so five tries guess one in 20 million."""
    return f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"


def new_secret() -> str:
    """256 random bits, for a link."""
    return secrets.token_urlsafe(32)


def new_recovery_codes() -> tuple[str, ...]:
    """Sixteen letters and digits each, in four groups."""
    texts = (base64.b32encode(secrets.token_bytes(RECOVERY_BYTES)).decode() for _ in range(RECOVERY_CODES))
    return tuple("-".join(text[n : n + 4] for n in range(0, 16, 4)) for text in texts)


@dataclass(frozen=True)
class RefreshToken:
    """What a refresh token says: the session it belongs to and how often it had been rotated."""

    session_id: str
    counter: int


@dataclass(frozen=True)
class AccessClaims:
    """What a verified access token says; times in seconds since 1970."""

    user_id: str
    session_id: str
    not_before: int
    expires: int

    @property
    def good_from(self) -> int:
        return self.not_before - EARLY_SECONDS

    def good_at(self, seconds: int) -> bool:
        return self.good_from <= seconds < self.expires


def session_named(token: str) -> str:
    """The session that an access or a refresh token speaks for by its own word, unverified; else the text itself."""
    parts = token.split(".")
    if len(parts) == 4:
        return parts[1]
    try:
        return str(jwt.decode(token, options={"verify_signature": False})["sid"])
    except (jwt.PyJWTError, KeyError, ValueError):
        return token


class Mint:
    """Makes and checks all tokens of one deployment."""

    def __init__(self, worker_secret: Secrets, token_keys: TokenKeys, issuer: str, audience: str) -> None:
        self._secrets, self._keys = worker_secret, token_keys
        self._issuer, self._audience = issuer, audience

    @property
    def kid(self) -> str:
        """The key id that new ids carry."""
        return self._secrets.current.kid

    # refresh tokens: kid.session.counter.HMAC

    def refresh_token(self, token: RefreshToken) -> str:
        secret = self._secrets.current
        return f"{secret.kid}.{token.session_id}.{token.counter}.{_refresh_mac(secret, token)}"

    def read_refresh_token(self, text: str) -> RefreshToken | None:
        """None for anything this deployment did not make."""
        parts = text.split(".")
        if len(parts) != 4 or not (parts[2].isascii() and parts[2].isdigit() and len(parts[2]) <= 9):
            return None
        kid, session_id, counter, mac = parts
        secret, token = self._secrets.find(kid), RefreshToken(session_id, int(counter))
        if secret is None or not hmac.compare_digest(_refresh_mac(secret, token).encode(), mac.encode()):
            return None
        return token

    # access tokens: RFC 9068

    def access_token(
        self, user_id: str, session_id: str, amr: Sequence[str], auth_time: int, now: int, lifetime: int
    ) -> str:
        """Times in seconds since 1970; `amr` as in RFC 8176."""
        kid, key = self._keys.current
        claims = {
            "iss": self._issuer,
            "sub": user_id,
            "aud": self._audience,
            "exp": now + lifetime,
            "iat": now,
            "nbf": now,
            "jti": secrets.token_urlsafe(12),
            "sid": session_id,
            "amr": list(amr),
            "auth_time": auth_time,
        }
        return jwt.encode(claims, key, algorithm="ES256", headers={"typ": "at+jwt", "kid": kid})

    def read_access_token(self, text: str) -> AccessClaims | None:
        """The claims of a token we signed, whatever the time; None for anything else."""
        try:
            header = jwt.get_unverified_header(text)
            key = self._keys.public.get(header.get("kid", ""))
            if key is None or header.get("typ") != "at+jwt":
                return None
            claims = jwt.decode(
                text,
                key,
                algorithms=["ES256"],
                audience=self._audience,
                issuer=self._issuer,
                # the caller compares times with the one clock that counts, Redis's
                options={
                    "require": ["exp", "nbf", "sub", "sid"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
            return AccessClaims(str(claims["sub"]), str(claims["sid"]), int(claims["nbf"]), int(claims["exp"]))
        except (jwt.InvalidTokenError, TypeError, ValueError):
            return None

    # device tokens and mailed codes: stored as `kid:HMAC`

    def new_device_token(self) -> str:
        return f"{SHARD}{self.kid}.{new_secret()}"

    def device_mac(self, token: str) -> str:
        """What is stored of a device token; under the key it names, if that is still here."""
        secret = self._secrets.find(token[1:5]) or self._secrets.current
        return f"{secret.kid}:{_mac(secret, 'device', token)}"

    def code_mac(self, challenge_id: str, code: str) -> str:
        secret = self._secrets.current
        return f"{secret.kid}:{_mac(secret, 'code', challenge_id, code)}"

    def code_matches(self, stored: str, challenge_id: str, code: str) -> bool:
        kid, _, mac = stored.partition(":")
        secret = self._secrets.find(kid)
        return secret is not None and hmac.compare_digest(_mac(secret, "code", challenge_id, code), mac)

    # challenges of a second factor: `id.subject.HMAC`, so that nobody makes up whose failures are counted

    def challenge_id(self, subject: str) -> str:
        secret, id = self._secrets.current, new_id(self.kid)
        return f"{id}.{subject}.{_mac(secret, 'challenge', id, subject)}"

    def challenge_subject(self, challenge_id: str) -> str | None:
        """What it was made for; None where it was not made here."""
        id, _, rest = challenge_id.partition(".")
        subject, _, mac = rest.partition(".")
        secret = self._secrets.find(id[1:5])
        if secret is None or not hmac.compare_digest(_mac(secret, "challenge", id, subject), mac):
            return None
        return subject

    # of a second factor: the seed is sealed, of a recovery code there is an HMAC

    def seal_seed(self, user_id: str, seed: bytes) -> str:
        secret = self._secrets.current
        return f"{secret.kid}.{_b64(seal_kept(secret, seed, associated('totp', user_id)))}"

    def open_seed(self, user_id: str, sealed: str) -> bytes:
        """Unreadable for what was not sealed for this account, or under a secret that is not here."""
        kid, _, box = sealed.partition(".")
        secret = self._secrets.find(kid)
        if secret is None:
            raise Unreadable("sealed under a worker secret that is not here")
        return open_kept(secret, base64.urlsafe_b64decode(box + "=" * (-len(box) % 4)), associated("totp", user_id))

    def recovery_macs(self, user_id: str, codes: Sequence[str]) -> str:
        """What is stored of recovery codes, in their order."""
        secret = self._secrets.current
        return " ".join(f"{secret.kid}:{_mac(secret, 'recovery', user_id, _plain(code))}" for code in codes)

    def without_recovery_code(self, user_id: str, stored: str, code: str) -> str | None:
        """What is left of them once this one is used; None when it is not among them."""
        kept, found = [], False
        for each in stored.split():
            kid, _, mac = each.partition(":")
            secret = self._secrets.find(kid)
            if secret and hmac.compare_digest(_mac(secret, "recovery", user_id, _plain(code)), mac) and not found:
                found = True
            else:
                kept.append(each)
        return " ".join(kept) if found else None


def _plain(recovery_code: str) -> str:
    """However a person typed it."""
    return "".join(recovery_code.split()).replace("-", "").upper()


def jwks(keys: dict[str, EllipticCurvePublicKey]) -> dict[str, list[dict[str, str]]]:
    """The public keys as a JWK set (RFC 7517)."""
    return {"keys": [_jwk(kid, key) for kid, key in keys.items()]}


def _jwk(kid: str, key: EllipticCurvePublicKey) -> dict[str, str]:
    point = key.public_numbers()
    coordinates = {name: _b64(value.to_bytes(32, "big")) for name, value in (("x", point.x), ("y", point.y))}
    return {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid, **coordinates}


def _refresh_mac(secret: Secret, token: RefreshToken) -> str:
    return _mac(secret, "refresh", token.session_id, str(token.counter))


def _mac(secret: Secret, *parts: str) -> str:
    text = "\0".join(parts).encode()
    return _b64(hmac.digest(secret.value, text, "sha256"))


def _b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
