"""Sealing: what lies in a queue is readable only by the role it is for, and only its edge could have written it.

A sender makes an `Envelope`: a random data key, wrapped with HPKE (RFC 9180, base mode, X25519 / HKDF-SHA256 /
AES-256-GCM) to the receiver's public key. The keys that seal entries come from that data key *and* the
deployment's edge secret (HKDF, RFC 5869): HPKE alone hides, but anybody could write; the secret alone would let every
gateway read every other's entries. One direction carries requests, the other their replies.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.keys import SealKeys
from app.settings import Secret, Secrets

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_KEY_BYTES = 32
_NONCE_BYTES = 12  # random: 2**32 entries a data key are safe (NIST SP 800-38D), and a data key lives a day
_OPENED_ENVELOPES = 4096  # one a gateway boot and day; older ones are unwrapped again


class Unreadable(Exception):
    """A sealed entry that this role cannot open: damaged, forged, or under a key it does not have."""


class Envelope:
    """One data key, wrapped. `wrapped` travels in the clear beside every entry sealed with it."""

    def __init__(self, wrapped: bytes, data_key: bytes, edge: Secret, purpose: str) -> None:
        self.wrapped = wrapped
        both = HKDF(SHA256(), 2 * _KEY_BYTES, salt=edge.value, info=f"finthenticate {purpose} v1".encode())
        keys = both.derive(data_key)
        self._forward, self._backward = AESGCM(keys[:_KEY_BYTES]), AESGCM(keys[_KEY_BYTES:])

    @classmethod
    def to(cls, kid: str, public_key: X25519PublicKey, edge: Secret, purpose: str) -> Envelope:
        """A fresh envelope to the holder of `public_key`, for one `purpose` ("request", "mail")."""
        data_key = os.urandom(_KEY_BYTES)
        head = f"{kid}.{edge.kid}.".encode()
        return cls(head + _SUITE.encrypt(data_key, public_key, purpose.encode()), data_key, edge, purpose)

    def seal(self, text: bytes, associated: bytes) -> bytes:
        """Towards the receiver; `associated` are the plaintext fields, bound but not hidden."""
        return _seal(self._forward, text, associated)

    def open(self, box: bytes, associated: bytes) -> bytes:
        return _open(self._forward, box, associated)

    def seal_back(self, text: bytes, associated: bytes) -> bytes:
        """Towards the sender."""
        return _seal(self._backward, text, associated)

    def open_back(self, box: bytes, associated: bytes) -> bytes:
        return _open(self._backward, box, associated)


class Sealer:
    """The sender's side: one envelope for as long as the keys it was made with are the current ones."""

    def __init__(self, keys: SealKeys, edge: Secrets, purpose: str) -> None:
        self._keys, self._edge, self._purpose = keys, edge, purpose
        self.renew()

    def renew(self) -> None:
        """A fresh data key from here on."""
        key, edge = self._keys.current, self._edge.current
        self._made_with, self._envelope = (key, edge), Envelope.to(*key, edge, self._purpose)

    @property
    def envelope(self) -> Envelope:
        if self._made_with != (self._keys.current, self._edge.current):
            self.renew()
        return self._envelope


class Opener:
    """The receiver's side: private keys and edge secrets by id, and the envelopes opened lately."""

    def __init__(self, keys: SealKeys, edge: Secrets, purpose: str) -> None:
        self._keys, self._edge, self._purpose = keys, edge, purpose
        self._opened: OrderedDict[bytes, Envelope] = OrderedDict()
        self._opened_with = keys.private, edge.versions

    def envelope(self, wrapped: bytes) -> Envelope:
        """The envelope around `wrapped`; Unreadable when its keys are unknown or it was altered."""
        if (held := (self._keys.private, self._edge.versions)) != self._opened_with:
            self._opened_with = held
            self._opened.clear()  # what a retired key had opened is not open any longer
        if (known := self._opened.get(wrapped)) is not None:
            self._opened.move_to_end(wrapped)
            return known
        try:
            kid, edge_kid, sealed = wrapped.split(b".", 2)
            private_key = self._keys.private[kid.decode()]
            edge = self._edge.find(edge_kid.decode())
            if edge is None:
                raise Unreadable("sealed under an edge secret that is not here")
            data_key = _SUITE.decrypt(sealed, private_key, self._purpose.encode())
        except (ValueError, KeyError, UnicodeDecodeError, InvalidTag) as error:
            raise Unreadable(f"the envelope cannot be opened: {type(error).__name__}") from None
        envelope = Envelope(wrapped, data_key, edge, self._purpose)
        self._opened[wrapped] = envelope
        if len(self._opened) > _OPENED_ENVELOPES:
            self._opened.popitem(last=False)
        return envelope


def associated(*fields: str | bytes | int) -> bytes:
    """Length-prefixed fields, so that no two lists of fields give the same bytes."""
    parts = [f if isinstance(f, bytes) else str(f).encode() for f in fields]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _seal(key: AESGCM, text: bytes, associated: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + key.encrypt(nonce, text, associated)


def _open(key: AESGCM, box: bytes, associated: bytes) -> bytes:
    try:
        return key.decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], associated)
    except (InvalidTag, ValueError):
        raise Unreadable("the seal does not hold") from None


def seal_kept(secret: Secret, text: bytes, associated: bytes) -> bytes:
    """For what a worker keeps for other workers: AES-256-GCM under a key of the worker secret."""
    return _seal(_kept(secret), text, associated)


def open_kept(secret: Secret, box: bytes, associated: bytes) -> bytes:
    return _open(_kept(secret), box, associated)


def _kept(secret: Secret) -> AESGCM:
    return AESGCM(HKDF(SHA256(), _KEY_BYTES, salt=None, info=b"finthenticate kept v1").derive(secret.value))
