"""The second factor: time-based one-time passwords (RFC 6238 over RFC 4226; SHA-1, six digits, 30 s), as authenticator
apps have them. Pure; the clock is an argument.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from urllib.parse import quote, urlencode

SEED_BYTES = 20  # RFC 4226 section 4, R6: 160 bits
STEP_SECONDS = 30
DIGITS = 6
AROUND = 1  # steps before and after now that are taken: RFC 6238 section 5.2, for clocks that differ


def new_seed() -> bytes:
    return secrets.token_bytes(SEED_BYTES)


def code_at(seed: bytes, step: int, digits: int = DIGITS) -> str:
    """RFC 4226 section 5.3."""
    digest = hmac.digest(seed, step.to_bytes(8, "big"), "sha1")
    offset = digest[-1] & 0xF
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFFFFFF
    return f"{number % 10**digits:0{digits}}"


def step_of(seed: bytes, code: str, seconds: int, used: int) -> int | None:
    """The step whose code this is, of those around now and after the last one that was `used`; None: of none."""
    typed = "".join(code.split())  # apps show them in two groups
    if not typed.isascii():
        return None
    now = seconds // STEP_SECONDS
    found = None
    for step in range(now - AROUND, now + AROUND + 1):
        if hmac.compare_digest(code_at(seed, step), typed) and step > used and found is None:
            found = step
    return found


def base32(seed: bytes) -> str:
    """The seed as a person types it into an app."""
    return base64.b32encode(seed).decode().rstrip("=")


def otpauth_url(seed: bytes, issuer: str, account: str) -> str:
    """What an app reads from a QR code: the Key Uri Format of Google Authenticator."""
    label = f"{quote(issuer, safe='')}:{quote(account, safe='@')}"
    return f"otpauth://totp/{label}?{urlencode({'secret': base32(seed), 'issuer': issuer})}"
