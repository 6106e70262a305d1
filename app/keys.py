"""The keys a deployment makes for itself, by id: pure values, read and written by adapters/key_files.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey


class Ring(StrEnum):
    """What a key pair is for."""

    SEAL = "seal"  # gateways → workers
    MAIL = "mail"  # workers → mailer
    TOKEN = "token"  # signs access tokens; the public half is the JWKS


@dataclass(frozen=True)
class SealKeys:
    """X25519 pairs of one ring; the first is the current one. `private` is empty where only sealing is done."""

    public: dict[str, X25519PublicKey]
    private: dict[str, X25519PrivateKey] = field(default_factory=dict, repr=False)

    @property
    def current(self) -> tuple[str, X25519PublicKey]:
        return next(iter(self.public.items()))


@dataclass(frozen=True)
class TokenKeys:
    """P-256 pairs that sign (ES256) and verify access tokens; the first private one signs."""

    public: dict[str, EllipticCurvePublicKey]
    private: dict[str, EllipticCurvePrivateKey] = field(default_factory=dict, repr=False)

    @property
    def current(self) -> tuple[str, EllipticCurvePrivateKey]:
        return next(iter(self.private.items()))
