"""The keys a deployment makes for itself, as files under FIN_DATA_DIR/keys.

Each ring has two: `RING.json` with the private halves (mode 600), for the role that opens or signs, and `RING.pub.json`
for the roles that seal or verify. Whoever starts first makes both, under a lock, so roles may start at the same moment;
roles that run apart are given the files they need.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from app.keys import Ring, SealKeys, TokenKeys
from app.settings import Fault

K = TypeVar("K")


class KeyFiles:
    """Reads the rings, making those that are not there yet."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "keys"

    # mypy: an abstract class is fine here, `kind` is only compared with.

    def seal_keys(self, ring: Ring, *, private: bool) -> SealKeys:
        public = self._keys(ring, x25519.X25519PublicKey)  # type: ignore[type-abstract]
        if not private:
            return SealKeys(public)
        return SealKeys(public, self._keys(ring, x25519.X25519PrivateKey, private=True))  # type: ignore[type-abstract]

    def token_keys(self, *, private: bool) -> TokenKeys:
        public = self._keys(Ring.TOKEN, ec.EllipticCurvePublicKey)  # type: ignore[type-abstract]
        if not private:
            return TokenKeys(public)
        kind = ec.EllipticCurvePrivateKey
        return TokenKeys(public, self._keys(Ring.TOKEN, kind, private=True))  # type: ignore[type-abstract]

    def _keys(self, ring: Ring, kind: type[K], *, private: bool = False) -> dict[str, K]:
        path = self._folder / (f"{ring}.json" if private else f"{ring}.pub.json")
        try:
            if not path.exists():
                self._make(ring)
            keys = json.loads(path.read_text(encoding="utf-8"))["keys"]
            return {key["kid"]: _load(kind, key["pem"], private) for key in keys}
        except FileNotFoundError:
            raise Fault(f"FIN_DATA_DIR: {path} is missing, though the other half of its keys is there.") from None
        except OSError as error:
            raise Fault(f"FIN_DATA_DIR: {path} cannot be read or made: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(f"FIN_DATA_DIR: {path} is not a key file: {error}.") from None

    def _make(self, ring: Ring) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            if (self._folder / f"{ring}.json").exists() or (self._folder / f"{ring}.pub.json").exists():
                return
            private = (
                ec.generate_private_key(ec.SECP256R1()) if ring is Ring.TOKEN else x25519.X25519PrivateKey.generate()
            )
            kid = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(4))
            about = {"kid": kid, "created": int(time.time())}
            public_pem = private.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            private_pem = private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            # the private half first: nobody may seal to a key that cannot be opened
            self._write(f"{ring}.json", [{**about, "pem": private_pem.decode()}], 0o600)
            self._write(f"{ring}.pub.json", [{**about, "pem": public_pem.decode()}], 0o644)

    def _write(self, name: str, keys: list[dict[str, object]], mode: int) -> None:
        partial = self._folder / f".{name}.{os.getpid()}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"keys": keys}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._folder / name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _load(kind: type[K], pem: str, private: bool) -> K:
    text = pem.encode()
    key = serialization.load_pem_private_key(text, None) if private else serialization.load_pem_public_key(text)
    if not isinstance(key, kind):
        raise ValueError(f"a key of another kind than {kind.__name__}")
    return key
