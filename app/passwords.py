"""Passwords: which are taken; a keyed pepper, then Argon2id (RFC 9106).

A stored record is `PEPPER_ID:PHC-STRING`. The pepper is an HMAC over the account's id and the password, so a stolen
store verifies nothing without it, and a record copied to another account verifies nothing at all.
"""

from __future__ import annotations

import hmac
import re
import secrets

import argon2
from argon2.exceptions import VerificationError, VerifyMismatchError
from zxcvbn import zxcvbn

from app.messages import Code
from app.settings import ARGON2_CEILING, Argon2, Secret, Secrets

# The account id of nobody: unknown addresses verify against a record made for it.
NOBODY = "nobody"


class Unverifiable(Exception):
    """A stored record that cannot be verified: not a record, a pepper that is gone, or a cost beyond all sense."""


class Hasher:
    """One deployment's way of keeping passwords. Each call of `hash` and `verify` is one Argon2id evaluation."""

    def __init__(self, cost: Argon2, pepper: Secrets) -> None:
        self._pepper = pepper
        self._argon2 = argon2.PasswordHasher(
            time_cost=cost.passes, memory_cost=cost.memory_kib, parallelism=cost.lanes, hash_len=32, salt_len=16
        )
        self._decoy = self.hash(NOBODY, secrets.token_hex()).partition(":")[2]

    @property
    def decoy(self) -> str:
        """A record that no password fits, under the current pepper, whichever it was made with."""
        return f"{self._pepper.current.kid}:{self._decoy}"

    def hash(self, user_id: str, password: str) -> str:
        pepper = self._pepper.current
        return f"{pepper.kid}:{self._argon2.hash(_peppered(pepper, user_id, password))}"

    def verify(self, record: str, user_id: str, password: str) -> bool:
        kid, _, phc = record.partition(":")
        pepper = self._pepper.find(kid)
        if pepper is None:
            raise Unverifiable("its pepper is not configured")
        try:
            _refuse_excess(phc)
            return self._argon2.verify(phc, _peppered(pepper, user_id, password))
        except VerifyMismatchError:
            return False
        except (ValueError, VerificationError):  # argon2's InvalidHashError is a ValueError
            raise Unverifiable("not an Argon2 record") from None

    def outdated(self, record: str) -> bool:
        """Whether a record should be made anew, now that the password is at hand."""
        kid, _, phc = record.partition(":")
        return kid != self._pepper.current.kid or self._argon2.check_needs_rehash(phc)


class PasswordCheck:
    """The hashing of one request. What was computed in one round of deciding is not computed again in the next."""

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher
        self._verified: dict[tuple[str, str, str], bool] = {}
        self._hashed: dict[tuple[str, str], str] = {}

    def verify(self, record: str | None, user_id: str, password: str) -> bool:
        """Exactly one evaluation, for an unknown account too (`record` None)."""
        if record is None:
            record, user_id = self._hasher.decoy, NOBODY
        key = (record, user_id, password)
        if key not in self._verified:
            self._verified[key] = self._hasher.verify(record, user_id, password)
        return self._verified[key]

    def hash(self, user_id: str, password: str) -> str:
        key = (user_id, password)
        if key not in self._hashed:
            self._hashed[key] = self._hasher.hash(user_id, password)
        return self._hashed[key]

    def outdated(self, record: str) -> bool:
        return self._hasher.outdated(record)


# --- which passwords are taken -------------------------------------------------------------------------------------

GUESSES = 1e8  # zxcvbn's bound for what withstands guessing over a network
ESTIMATED = 24  # characters of either end that are looked at: zxcvbn's time grows with far more than their square
# zxcvbn tries every way of reading these for letters, all at once; hardly anybody writes them for one.
_AS_THEY_ARE = str.maketrans("({[<|+%", "àèìòùáé")
_SEPARATORS = re.compile(r"[\s._-]+")


def weakness(password: str, least: int, email: str, service: str) -> Code | None:
    """Why a new password is not taken (NIST SP 800-63B 3.1.1.2): its length in code points, or that it would be among
    the first that are tried: common ones, patterns, what belongs to this address or this service.
    """
    if len(password) < least:
        return Code.PASSWORD_TOO_SHORT
    words = {word for word in re.split(r"[^a-z0-9]+", f"{email} {service}".lower()) if len(word) > 3}
    rest = password.lower()
    for word in sorted({email, *words}, key=len, reverse=True):
        rest = rest.replace(word, "")
    rest = _SEPARATORS.sub("", rest)
    if len(rest) < min(8, least) or not _hard(rest):
        return Code.PASSWORD_COMMON
    return None


def _hard(text: str) -> bool:
    """Whether either end is. Without zxcvbn's user_inputs: it keeps them where every thread's next call finds them."""
    plain = text.translate(_AS_THEY_ARE)
    return any(zxcvbn(end)["guesses"] >= GUESSES for end in dict.fromkeys((plain[:ESTIMATED], plain[-ESTIMATED:])))


def _peppered(pepper: Secret, user_id: str, password: str) -> bytes:
    return hmac.digest(pepper.value, f"{user_id}\0{password}".encode(), "sha256")


def _refuse_excess(phc: str) -> None:
    # A planted record must not be able to take the machine's memory (ory/kratos bounds imported hashes likewise).
    cost = argon2.extract_parameters(phc)
    memory_kib, passes, lanes = ARGON2_CEILING
    if cost.memory_cost > memory_kib or cost.time_cost > passes or cost.parallelism > lanes:
        raise Unverifiable("the record asks for more than any setting allows")
