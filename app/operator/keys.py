"""`python -m app keys …`: what an operator asks of the keys. It shows ids and times, never a key."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from app.keys import KeyInfo
from app.operator.words import Misuse, columns, moment

USAGE = "python -m app keys list | keys rotate RING [--after SECONDS]"
LEAST_AFTER, MOST_AFTER = 3, 86_400  # roles look once a second
HEAD = ("ring", "key", "state", "made", "current from", "until")


class Keyring(Protocol):
    """A place where keys lie. Its methods raise Fault, in a sentence, and then have changed nothing."""

    @property
    def rings(self) -> Mapping[str, int]:
        """Ring → the seconds between a new key's publication and its use, unless the operator says otherwise."""

    def inventory(self) -> list[KeyInfo]:
        """Every key that is here, newest first."""

    def rotate(self, ring: str, after: int, say: Callable[[str], None]) -> None:
        """Make a new key, known to every role before any role uses it; a line to `say` for each thing that happens."""


def keys_command(arguments: Sequence[str], keyrings: Sequence[Keyring], say: Callable[[str], None] = print) -> None:
    match arguments:
        case ["list"]:
            for line in table([key for keyring in keyrings for key in keyring.inventory()], time.time()):
                say(line)
        case ["rotate", ring, *more]:
            _rotate(ring, _after(more), keyrings, say)
        case _:
            raise Misuse(f"usage: {USAGE}")


def _rotate(ring: str, after: int | None, keyrings: Sequence[Keyring], say: Callable[[str], None]) -> None:
    for keyring in keyrings:
        if ring in keyring.rings:
            keyring.rotate(ring, keyring.rings[ring] if after is None else after, say)
            return
    rings = ", ".join(ring for keyring in keyrings for ring in keyring.rings)
    raise Misuse(f"there is no ring {ring!r}; the rings are {rings}.")


def _after(more: Sequence[str]) -> int | None:
    match more:
        case []:
            return None
        case ["--after", seconds] if re.fullmatch("[0-9]{1,5}", seconds) and LEAST_AFTER <= int(seconds) <= MOST_AFTER:
            return int(seconds)
        case ["--after", *_]:
            raise Misuse(f"--after must be whole seconds from {LEAST_AFTER} to {MOST_AFTER}.")
        case _:
            raise Misuse(f"usage: {USAGE}")


def table(keys: Iterable[KeyInfo], now: float) -> Iterator[str]:
    """One line a key, columns aligned; a dash where a time is not known or not set."""
    rows = [HEAD, *((k.ring, k.kid, _state(k, now), *map(moment, (k.created, k.since, k.until))) for k in keys)]
    return columns(rows)


def _state(key: KeyInfo, now: float) -> str:
    if key.current:
        return "current"
    return "next" if key.since is not None and key.since > now else "known"
