"""What unit tests are made of: secrets, keys and records with plain defaults, each replaceable by name."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from app.keys import TokenKeys
from app.passwords import Hasher
from app.records import Account, Challenge, Device, Identity, Origin, Session
from app.settings import Argon2, Secret, Secrets
from app.tokens import Mint

NOW = 1_700_000_000_000  # ms
CHEAP = Argon2(memory_kib=8, passes=1, lanes=1)
ISSUER, AUDIENCE = "https://login.test", "tests"
EMAIL, PASSWORD = "ana@example.com", "correct horse battery staple"


def secret(kid: str) -> Secret:
    """The same for the same id, another for another."""
    return Secret(kid, hashlib.sha256(kid.encode()).digest())


def secrets_of(*kids: str) -> Secrets:
    return Secrets(tuple(map(secret, kids)))


def token_keys(*kids: str) -> TokenKeys:
    private = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in kids}
    return TokenKeys({kid: key.public_key() for kid, key in private.items()}, private)


WORKER, EDGE, PEPPER = secrets_of("wrk1"), secrets_of("edg1"), secrets_of("pep1")
TOKEN_KEYS = token_keys("tok1")
MINT = Mint(WORKER, TOKEN_KEYS, ISSUER, AUDIENCE)
ORIGIN = Origin(node="0-node", connection="connection", ip="192.0.2.7", network="192.0.2.7")
IDENTITY = Identity(user_id="0wrk1-user", session_id="0wrk1-session")

_ACCOUNT = Account(id="0wrk1-user", email=EMAIL, password="pep1:record", version=3, created=NOW - 1000)
_DEVICE = Device(ref="0wrk1-device", mac="wrk1:mac", name="Ana's phone", seen=NOW - 1000)
_SESSION = Session(
    id="0wrk1-session",
    user_id="0wrk1-user",
    counter=4,
    rotated=NOW - 60_000,
    created=NOW - 120_000,
    seen=NOW - 60_000,
    ip="192.0.2.7",
    amr=("pwd",),
)
_CHALLENGE = Challenge(
    id="0wrk1-challenge",
    kind="registration",
    email=EMAIL,
    expires=NOW + 3_600_000,
    code_mac="wrk1:mac",
    code_expires=NOW + 600_000,
    user_id="0wrk1-user",
    password="pep1:record",
    locale="pt-BR",
    terms="2024-01",
)


def account(**changes: Any) -> Account:
    return replace(_ACCOUNT, **changes)


def device(**changes: Any) -> Device:
    return replace(_DEVICE, **changes)


def session(**changes: Any) -> Session:
    return replace(_SESSION, **changes)


def challenge(**changes: Any) -> Challenge:
    return replace(_CHALLENGE, **changes)


class Counting(Hasher):
    """The real one, counting its Argon2 evaluations."""

    evaluations = 0

    def hash(self, user_id: str, password: str) -> str:
        self.evaluations += 1
        return super().hash(user_id, password)

    def verify(self, record: str, user_id: str, password: str) -> bool:
        self.evaluations += 1
        return super().verify(record, user_id, password)
