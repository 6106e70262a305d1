"""The keys a deployment makes for itself, as files under FIN_DATA_DIR/keys.

Each ring has two: `RING.json` with the private halves (mode 600), for the role that opens or signs, and `RING.pub.json`
for the roles that seal or verify. Whoever starts first makes both, under a lock, so roles may start at the same moment;
roles that run apart are given the files they need. The newest key stands first; each says from when it is the current
one, and, once there is a newer one, until when it is known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from adapters.files import locked, new_kid, put
from app.keys import KeyEntry, KeyInfo, KeyPairs, Ring, SealKeys, TokenKeys, in_use
from app.settings import Fault

X25519 = (x25519.X25519PublicKey, x25519.X25519PrivateKey)
P256 = (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)
KINDS = {Ring.SEAL: X25519, Ring.MAIL: X25519, Ring.TOKEN: P256}

HOUR, DAY = 3600, 86_400
# How long a key is known once another is current: far more than a request's deadline and reclaim time, or an access
# token's life; a mail may have to wait for its mailer.
KNOWN_SECONDS = {Ring.SEAL: HOUR, Ring.MAIL: DAY, Ring.TOKEN: HOUR}
# Between a key's publication and its use: roles look every second, others keep the JWKS for five minutes.
AFTER_SECONDS: dict[str, int] = {Ring.SEAL: 60, Ring.MAIL: 60, Ring.TOKEN: 600}


class KeyFiles:
    """Reads the rings, making those that are not there yet; `watched` keeps what was handed out as the files are.

    An app.operator.keys.Keyring.
    """

    rings = AFTER_SECONDS

    def __init__(self, data_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = data_dir / "keys"
        self._clock = clock
        self.watched: list[WatchedRing] = []

    def seal_keys(self, ring: Ring, *, private: bool) -> SealKeys:
        """With the private halves for who opens, without them for who seals."""
        keys = SealKeys({})
        self._watch(ring, keys, private)
        return keys

    def token_keys(self, *, private: bool) -> TokenKeys:
        """With the private halves for who signs, without them for who verifies."""
        keys = TokenKeys({})
        self._watch(Ring.TOKEN, keys, private)
        return keys

    def inventory(self) -> list[KeyInfo]:
        """Every key of every ring that is here, newest first."""
        found, now = [], self._clock()
        for ring in Ring:
            halves = (self._path(ring, private=private) for private in (False, True))
            if path := next(filter(_is_there, halves), None):
                entries = _read(path)
                current = in_use(entries, now)[0]
                found += [KeyInfo(ring, e.kid, e.created, e.since, e.until, e is current) for e in entries]
        return found

    def rotate(self, name: str, after: int, say: Callable[[str], None]) -> None:
        """The new key is in the files at once and current in `after` seconds; those whose time is over are dropped."""
        ring = Ring(name)
        path = self._path(ring, private=True)
        if not _is_there(path):
            raise Fault(f"FIN_DATA_DIR: {path} is not here; rotate a ring where its private keys are.")
        try:
            with locked(self._folder):
                now = int(self._clock())
                known = [entry for entry in _read(path) if entry.until is None or now < entry.until]
                new = _new_entry(ring, {entry.kid for entry in known}, now, now + after)
                until = new.since + KNOWN_SECONDS[ring]
                self._write(ring, [new, *(entry if entry.until else replace(entry, until=until) for entry in known)])
        except OSError as error:
            raise Fault(f"FIN_DATA_DIR: {path} cannot be written: {error.strerror}.") from None
        say(f"{ring}: {new.kid} is known; it becomes current in {after} s, by itself.")

    def _watch(self, ring: Ring, keys: KeyPairs[Any, Any], private: bool) -> None:
        path = self._path(ring, private=private)
        if not _is_there(path):
            self._make(ring)
        watched = WatchedRing(ring, path, keys, private, self._clock)
        watched.look()
        self.watched.append(watched)

    def _path(self, ring: Ring, *, private: bool) -> Path:
        return self._folder / (f"{ring}.json" if private else f"{ring}.pub.json")

    def _make(self, ring: Ring) -> None:
        """What is missing of a ring. The public half can always be had from the private one, never the other way."""
        private, public = self._path(ring, private=True), self._path(ring, private=False)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(self._folder):
                if _is_there(private) and not _is_there(public):
                    self._write(ring, _read(private))
                elif not _is_there(public):
                    now = int(self._clock())
                    self._write(ring, [_new_entry(ring, set(), now, now)])
        except OSError as error:
            raise Fault(f"FIN_DATA_DIR: {private} cannot be made: {error.strerror}.") from None

    def _write(self, ring: Ring, entries: Sequence[KeyEntry]) -> None:
        """Whatever stops it between the two: no key may be used that those who open or verify do not know."""
        keys, _ = _pairs(ring, self._path(ring, private=True), entries, private=True)
        public = [replace(entry, pem=_public_pem(keys[entry.kid])) for entry in entries]
        halves = [(True, entries, 0o600), (False, public, 0o644)]
        for private, half, mode in reversed(halves) if ring is Ring.TOKEN else halves:
            put(self._path(ring, private=private), _text(half), mode)


class WatchedRing:
    """What a role holds of a ring, and the file it has it from."""

    def __init__(
        self, ring: Ring, path: Path, held: KeyPairs[Any, Any], private: bool, clock: Callable[[], float]
    ) -> None:
        self._ring, self._path, self._held, self._private, self._clock = ring, path, held, private, clock
        self._seen: list[KeyEntry] = []

    def look(self) -> dict[str, str]:
        """Replace what is held when the file, or which of its keys is current, has changed. See app.reload.Source."""
        entries = in_use(_read(self._path), self._clock())
        if entries == self._seen:
            return {}
        public, private = _pairs(self._ring, self._path, entries, private=self._private)
        # the public halves first: what is signed with a key has to be verified with it
        self._held.public, self._held.private, self._seen = public, private, entries
        return {str(self._ring): entries[0].kid}


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise _unreadable(path, error) from None


def _read(path: Path) -> list[KeyEntry]:
    try:
        if entries := [_entry(key) for key in json.loads(path.read_text(encoding="utf-8"))["keys"]]:
            return entries
        raise ValueError("it has no key")
    except FileNotFoundError:
        raise Fault(f"FIN_DATA_DIR: {path} is missing, and this role needs it.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, KeyError, TypeError) as error:
        raise _no_key_file(path, error) from None


def _unreadable(path: Path, error: OSError) -> Fault:
    return Fault(f"FIN_DATA_DIR: {path} cannot be read: {error.strerror}.")


def _no_key_file(path: Path, error: Exception) -> Fault:
    return Fault(f"FIN_DATA_DIR: {path} is not a key file: {error}.")


def _entry(key: dict[str, Any]) -> KeyEntry:
    """A file from before there was rotation has neither `from` nor `until`."""
    created, until = int(key["created"]), key.get("until")
    return KeyEntry(key["kid"], created, int(key.get("from", created)), until and int(until), key["pem"])


def _text(entries: Sequence[KeyEntry]) -> str:
    named = ({"kid": e.kid, "created": e.created, "from": e.since, "until": e.until, "pem": e.pem} for e in entries)
    return json.dumps({"keys": list(named)}, indent=1) + "\n"


def _new_entry(ring: Ring, taken: set[str], created: int, since: int) -> KeyEntry:
    key = ec.generate_private_key(ec.SECP256R1()) if ring is Ring.TOKEN else x25519.X25519PrivateKey.generate()
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, form, plain).decode()
    return KeyEntry(new_kid(taken), created, since, None, pem)


def _pairs(
    ring: Ring, path: Path, entries: Sequence[KeyEntry], *, private: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The public halves of a file's keys by id, and the private ones where it has those."""
    kind = KINDS[ring][private]
    try:
        keys = {entry.kid: _load(entry.pem.encode(), private) for entry in entries}
        if not all(isinstance(key, kind) for key in keys.values()):
            raise ValueError("it has a key of another kind")
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise _no_key_file(path, error) from None
    return ({kid: key.public_key() for kid, key in keys.items()}, keys) if private else (keys, {})


def _load(pem: bytes, private: bool) -> Any:
    return serialization.load_pem_private_key(pem, None) if private else serialization.load_pem_public_key(pem)


def _public_pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    text: bytes = key.public_bytes(serialization.Encoding.PEM, form)
    return text.decode()
