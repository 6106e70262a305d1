"""The keys a deployment makes for itself, by id: pure values, read and written by adapters/key_files.py.

What is held of a ring is one object for the life of a process, looked up at use: its dictionaries are never changed,
only replaced as a whole, so a rotation needs no restart and no lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

Public = TypeVar("Public")
Private = TypeVar("Private")


class Ring(StrEnum):
    """What a key pair is for."""

    SEAL = "seal"  # gateways → workers
    MAIL = "mail"  # workers → mailer
    TOKEN = "token"  # signs access tokens; the public half is the JWKS


@dataclass
class KeyPairs(Generic[Public, Private]):
    """The pairs of one ring by key id, the current one first. `private` is empty where the other half is enough."""

    public: dict[str, Public]
    private: dict[str, Private] = field(default_factory=dict, repr=False)


class SealKeys(KeyPairs[X25519PublicKey, X25519PrivateKey]):
    """What is sealed to one role: the current public key seals, every private one opens."""

    @property
    def current(self) -> tuple[str, X25519PublicKey]:
        return next(iter(self.public.items()))


class TokenKeys(KeyPairs[EllipticCurvePublicKey, EllipticCurvePrivateKey]):
    """Access tokens (ES256): the current private key signs, every public one verifies."""

    @property
    def current(self) -> tuple[str, EllipticCurvePrivateKey]:
        return next(iter(self.private.items()))


@dataclass(frozen=True)
class KeyInfo:
    """What may be told of a key. Times in seconds since 1970; the secrets of `.env` have none."""

    ring: str
    kid: str
    created: int | None = None
    since: int | None = None  # when it becomes current
    until: int | None = None  # when it is forgotten: set once there is a newer one
    current: bool = False


@dataclass(frozen=True)
class KeyEntry:
    """One key of a file."""

    kid: str
    created: int
    since: int
    until: int | None
    pem: str = field(repr=False)


def in_use(entries: Sequence[KeyEntry], now: float) -> list[KeyEntry]:
    """Newest first in; out come those not yet forgotten, first the current one: the newest whose time has come."""
    known = [entry for entry in entries if entry.until is None or now < entry.until] or list(entries)
    current = next((entry for entry in known if entry.since <= now), known[-1])
    return [current, *(entry for entry in known if entry is not current)]
