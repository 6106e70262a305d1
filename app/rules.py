"""The rules of time and number: lifetimes, limits, lockout, rotation. Pure; the clock is an argument."""

from __future__ import annotations

import hashlib
import ipaddress
import math
from datetime import UTC, datetime
from enum import StrEnum

from app.messages import Code
from app.records import Counts, Limit, MailKind, Session, Verdict
from app.settings import Limits
from app.tokens import RefreshToken

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000

ACCESS_TOKEN_SECONDS = 600
SESSION_IDLE_MS = 7 * DAY
SESSION_ABSOLUTE_MS = 30 * DAY
REFRESH_GRACE_MS = 10 * SECOND  # a lost reply, two tabs
REGISTRATION_MS = HOUR
CODE_MS = 10 * MINUTE  # OWASP ASVS 6.5.5
CODE_TRIES = 5
PENDING_REGISTRATIONS = 5
ANYWHERE = 10  # times the failures from one network
RESET_MS = 30 * MINUTE
RESET_KEPT_MS = HOUR  # until then a late link is told so
CHALLENGE_MS = 10 * MINUTE
LATE_MS = 5 * MINUTE  # a device's challenge outlives its code by this: a late code is told so
APPROVAL_MS = 3 * MINUTE  # who is asked on another device answers soon, or not at all
APPROVAL_TRIES = 3
DEVICES_PER_ACCOUNT = 50  # the longest unseen one makes room
NOTICES_PER_ACCOUNT = 20  # an hour
FIRST_DELAY_MS, LONGEST_DELAY_MS = 30 * SECOND, 15 * MINUTE
SESSIONS_PER_ACCOUNT = 100  # the longest unseen one makes room
CROWDED_OUT_KEPT_MS = HOUR  # so that who logs in without end does not fill the store with what has ended

# --- limits -------------------------------------------------------------------------------------------------


def network_of(ip: str) -> str:
    """What an address counts as: an IPv4 address itself, an IPv6 address its /64, IPv4-mapped ones as IPv4."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


# Of these a trusted device has no part: it is counted by itself.
UNKNOWN_DEVICE_LIMITS = ("account", "anywhere")
DEVICE_LIMIT = "device"


def login_limits(limits: Limits, email: str, network: str, device_mac: str | None) -> tuple[Limit, ...]:
    """Failures of one address from one network and from anywhere, of a device that may be a trusted one, and of one
    network on all addresses. Known or unknown alike.
    """
    most = limits.failures_per_account
    if most is None:
        return failures_of(limits, network)
    found = [
        _failures("account", f"{email}|{network}", most),
        _failures("anywhere", email, most * ANYWHERE),
    ]
    if device_mac is not None:
        found.append(_failures(DEVICE_LIMIT, device_mac, most))
    return (*found, *failures_of(limits, network))


def proof_limits(limits: Limits, user_id: str, network: str) -> tuple[Limit, ...]:
    """Failures of who proves again who he is with his password, in whichever request."""
    return _proof("proof", limits, user_id, network)


def factor_limits(limits: Limits, subject: str, network: str) -> tuple[Limit, ...]:
    """Failures of a second factor, in whichever request. By themselves: a right password must not clear them, or who
    has only that could guess codes without end.
    """
    return _proof("factor", limits, subject, network)


def _proof(name: str, limits: Limits, subject: str, network: str) -> tuple[Limit, ...]:
    if limits.failures_per_account is None:
        return failures_of(limits, network)
    return (_failures(name, subject, limits.failures_per_account), *failures_of(limits, network))


def _failures(name: str, subject: str, most: int) -> Limit:
    return Limit(
        name,
        subject,
        most,
        window_ms=DAY,
        counts=Counts.FAILURES,
        penalty_ms=FIRST_DELAY_MS,
        most_penalty_ms=LONGEST_DELAY_MS,
        clears=True,
        waits=True,
    )


def failures_of(limits: Limits, network: str) -> tuple[Limit, ...]:
    if limits.failures_per_ip is None:
        return ()
    return (Limit("ip", network, limits.failures_per_ip, MINUTE, Counts.FAILURES, waits=True),)


def registration_limits(limits: Limits, email: str, network: str) -> tuple[Limit, ...]:
    """How many one network may start, and how many may be pending for one address."""
    pending = Limit("pending", email, PENDING_REGISTRATIONS, REGISTRATION_MS, Counts.USES)
    if limits.registrations_per_ip is None:
        return (pending,)
    return (pending, Limit("registrations", network, limits.registrations_per_ip, HOUR, Counts.USES))


def made_up(text: str) -> str:
    """An id from a client as part of a key: it may hold anything, a misplaced secret for one."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def code_limits(limits: Limits, challenge_id: str, network: str) -> tuple[Limit, ...]:
    """Five tries a challenge, whatever is mailed again; wrong codes count as the network's failures too."""
    tries = Limit("tries", made_up(challenge_id), CODE_TRIES, REGISTRATION_MS, Counts.FAILURES, waits=True)
    return (tries, *failures_of(limits, network))


def approval_limits(login_id: str) -> tuple[Limit, ...]:
    return (Limit("approval", made_up(login_id), APPROVAL_TRIES, CHALLENGE_MS, Counts.FAILURES, waits=True),)


# Said to the account's owner by the service itself: no stranger can cause them, nor use up the others' places.
NOTICES = frozenset({"login_notice", "password_changed", "second_factor_changed"})


def mail_limits(limits: Limits, kind: MailKind, email: str, network: str) -> tuple[Limit, ...]:
    """Past one of these a mail is silently not sent: what the client is told never changes."""
    if kind in NOTICES:
        return (Limit("notices", email, NOTICES_PER_ACCOUNT, HOUR, Counts.USES),)
    if kind == "new_device":  # only who knows the password causes it: strangers' mails must not keep its code away
        most = limits.mails_per_account
        return () if most is None else (Limit("codes", email, most, HOUR, Counts.USES),)
    found = []
    if limits.mails_per_account is not None:
        found.append(Limit("mails", email, limits.mails_per_account, HOUR, Counts.USES))
    if limits.mails_per_ip is not None:
        found.append(Limit("mails_ip", network, limits.mails_per_ip, HOUR, Counts.USES))
    return tuple(found)


class Settling(StrEnum):
    """What becomes of a reserved place."""

    SPEND = "spend"
    FREE = "free"
    CLEAR = "clear"


def settle_limit(limit: Limit, verdict: Verdict) -> Settling:
    if limit.counts is Counts.USES:
        return Settling.SPEND if verdict is Verdict.PASSED else Settling.FREE
    if verdict is Verdict.FAILED:
        return Settling.SPEND
    return Settling.CLEAR if verdict is Verdict.PASSED and limit.clears else Settling.FREE


# --- the lane of hash work -------------------------------------------------------------------------------------

FREE_SHARE = 32  # an office behind one address, all at once; and no more than a second's work of one core for a flood
MOST_SHARE = 128  # a large office beside a flood; and no more than that of a second flood beside a first


def beyond_share(mine: int, slow: int, total: int, networks: int) -> bool:
    """Whether a request that hashes has to let other networks go first. All counts are of such requests in flight:
    `mine` its network's, itself included; `total` those of all `networks`, `slow` of them in the slow lane already.

    A share is what each would have if one more network came: who comes next finds room, also after one that was alone.
    That loses nothing, since the slow lane has all that others leave; and alone, what follows slow ones stays behind
    them. However much a flood has in flight, it raises nobody's share past MOST_SHARE.
    """
    if networks == 1 and slow:
        return True
    return mine > max(FREE_SHARE, min(MOST_SHARE, total // (networks + 1)))


# --- even times ---------------------------------------------------------------------------------------------

GRID_MS = 250.0


def even_delay(elapsed_ms: float, spent_ms: float, hash_ms: float) -> float:
    """How long a refusal of credentials is held back, so that it leaves on a coarse grid.

    An unknown address costs one hash with today's parameters, an older record perhaps far less. So what was spent on
    hashing this one is taken out of the time it took, and half a cell put there for all alike; `hash_ms` is what a hash
    takes on average, and a cell is at least four of them.
    """
    grid = GRID_MS * max(1, math.ceil(4 * hash_ms / GRID_MS))
    alike_ms = max(elapsed_ms, elapsed_ms - spent_ms + grid / 2)
    return math.ceil(alike_ms / grid) * grid - elapsed_ms


# --- sessions -------------------------------------------------------------------------------------------------


class Life(StrEnum):
    ACTIVE = "active"
    REVOKED = "revoked"
    EXPIRED = "expired"


def session_ends(session: Session) -> int:
    """When time ends it: seven days unseen, thirty days after login."""
    return min(session.created + SESSION_ABSOLUTE_MS, session.seen + SESSION_IDLE_MS)


def session_life(session: Session | None, now: int) -> Life:
    """A session that is no more has expired: its record outlives a revocation until time would have ended it."""
    if session is None or now >= session_ends(session):
        return Life.EXPIRED
    return Life.REVOKED if session.ended else Life.ACTIVE


class Turn(StrEnum):
    """What a refresh comes to when it is not refused."""

    ROTATE = "rotate"
    REPEAT = "repeat"  # one step behind within the grace: the current token again
    END = "end"  # an old token: somebody has a copy


def refresh_turn(session: Session | None, token: RefreshToken, now: int) -> Turn | Code:
    """RFC 9700 section 4.14.2: rotation, and reuse ends the family; with a grace for lost replies."""
    life = session_life(session, now)
    if session is None or life is Life.EXPIRED:
        return Code.TOKEN_EXPIRED
    if life is Life.REVOKED:
        return Code.TOKEN_REVOKED
    behind = session.counter - token.counter
    if behind == 0:
        return Turn.ROTATE
    if behind == 1 and now - session.rotated <= REFRESH_GRACE_MS:
        return Turn.REPEAT
    return Turn.END if behind > 0 else Code.TOKEN_INVALID


# --- second factor and devices ---------------------------------------------------------------------------------


def factor_subject(user_id: str, device_ref: str) -> str:
    """Whose failures of a second factor are counted: a trusted device's by itself, which nobody else can keep out."""
    return f"{user_id}~{device_ref}" if device_ref else user_id


def masked(email: str) -> str:
    """An address as its owner recognises it: `a***@example.com`."""
    local, _, domain = email.partition("@")
    return f"{local[:1]}***@{domain}"


# --- shown to clients -------------------------------------------------------------------------------------------


def iso(ms: int) -> str:
    """RFC 3339, UTC, milliseconds."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
