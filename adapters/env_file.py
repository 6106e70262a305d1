"""The `.env` file: read beside the real environment, which wins, and rewritten when one of its secrets is rotated."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from adapters.files import locked, new_kid, put
from app.keys import KeyInfo
from app.settings import SECRET_BYTES, SECRET_RINGS, Fault, Settings, dotenv, dotenv_line, read_secrets

AFTER_SECONDS = 10  # between a version's publication and its use: roles look every second
# After a version was replaced, what was sealed with it may still be under way, and for ten minutes requests that were
# sent with a key are known by it.
NEEDED_SECONDS = 900
DROPPED = frozenset({"edge"})  # old password records, refresh tokens and device tokens need the other rings' versions


class EnvFile:
    """The names of `.env`, and over them `given`, the real environment. An app.operator.keys.Keyring."""

    rings = dict.fromkeys(SECRET_RINGS, AFTER_SECONDS)

    def __init__(self, path: Path, given: Mapping[str, str], wait: Callable[[float], None] = time.sleep) -> None:
        self._path, self._wait = path, wait
        self._given = {name: value for name, value in given.items() if value.strip()}

    def read(self) -> dict[str, str]:
        return {**dotenv(self._path), **self._given}

    def inventory(self) -> list[KeyInfo]:
        """The versions of the secrets that are here."""
        environ = self.read()
        held = {ring: read_secrets(environ, ring) for ring, name in SECRET_RINGS.items() if environ.get(name)}
        return [KeyInfo(ring, s.kid, current=s is held[ring].current) for ring in held for s in held[ring].versions]

    def rotate(self, ring: str, after: int, say: Callable[[str], None]) -> None:
        """The new version stands behind the current one for `after` seconds, which this takes, and then before it."""
        name = SECRET_RINGS[ring]
        if name in self._given:
            raise Fault(f"{name} comes from the environment, not from {self._path}; rotate it where it is set.")
        try:
            with locked(self._path.resolve().parent):
                kid, gone = self._add(ring, name)
                say(f"{ring}: {kid} is known; it becomes current in {after} s.")
                self._wait(after)
                self._promote(name, kid, gone)
                say(f"{ring}: {kid} is current.")
        except KeyboardInterrupt:
            raise Fault(f"{name} has a new version that is not current; rotate it again for another.") from None
        except OSError as error:
            raise Fault(f"{self._path} cannot be written: {error.strerror}.") from None

    def _add(self, ring: str, name: str) -> tuple[str, set[str]]:
        """OLD,NEW. Also which versions can go when NEW is current: those before OLD, when OLD itself is not new."""
        kids = [secret.kid for secret in read_secrets(self.read(), ring).versions]
        settled = time.time() - self._path.stat().st_mtime > NEEDED_SECONDS
        new = new_kid(kids)
        value = base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()
        self._edit(name, lambda versions: [*versions, f"{new}:{value}"])
        return new, set(kids[1:]) if settled and ring in DROPPED else set()

    def _promote(self, name: str, kid: str, gone: set[str]) -> None:
        """NEW,OLD."""

        def order(versions: list[str]) -> list[str]:
            new = [version for version in versions if version.startswith(f"{kid}:")]
            if not new:
                raise Fault(f"{name} has lost its new version {kid} meanwhile; rotate it again.")
            return new + [version for version in versions if version.partition(":")[0] not in {kid, *gone}]

        self._edit(name, order)

    def _edit(self, name: str, change: Callable[[list[str]], list[str]]) -> None:
        """One value of the file; every other byte stays as it is."""
        old = dotenv(self._path).get(name, "")
        new = ",".join(change([version.strip() for version in old.split(",")]))
        lines = self._path.read_bytes().decode().splitlines(keepends=True)
        last = max(n for n, line in enumerate(lines) if dotenv_line(line) == (name, old))  # of two, it counts
        lines[last] = lines[last].replace(old, new)
        put(self._path.resolve(), "".join(lines))  # not a file in place of a link


class WatchedEnv:
    """The secrets a role holds, and the file it has them from."""

    def __init__(self, file: EnvFile, settings: Settings) -> None:
        self._file, self._settings = file, settings

    def look(self) -> dict[str, str]:
        """See app.reload.Source."""
        return self._settings.renew(self._file.read())
