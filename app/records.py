"""What is kept, what a request needs to be decided, and what deciding comes to. Plain values, no I/O.

A handler turns `Facts` into an `Outcome`; the store knows how to keep each `Write`. Times are milliseconds since 1970
by the store's clock, the one clock all lifetimes are measured with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from app.messages import Mailed, Refusal, Reply

# --- records -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    id: str
    email: str
    password: str = field(repr=False)  # a passwords.Hasher record
    version: int  # counts changes of credential, status, second factor and devices; a decision rests on one
    created: int
    status: Literal["active", "disabled"] = "active"
    locale: str = ""
    terms: str = ""
    totp: str = field(default="", repr=False)  # the sealed seed of its second factor, "" where it has none
    totp_step: int = 0  # the last step that was used: each once (RFC 6238 section 5.2)
    recovery: str = field(default="", repr=False)  # HMACs of the recovery codes that are left, separated by spaces
    enrolling: str = field(default="", repr=False)  # Enrolling.text: a second factor that is not confirmed yet
    reset: str = ""  # the challenge of the newest reset mail; older ones are void
    attempt: str = ""  # Attempt.text: a login that waits to be let in
    floor: int = 0  # the version since which its password is the one it is: what a login began before is over

    @property
    def has2fa(self) -> bool:
        return bool(self.totp)


@dataclass(frozen=True)
class Device:
    """A device the account trusts. `ref` is shown; `mac` stands for the token, which only the device has."""

    ref: str
    mac: str = field(repr=False)
    name: str
    seen: int


@dataclass(frozen=True)
class Session:
    id: str
    user_id: str
    counter: int  # how often its refresh token has been rotated
    rotated: int
    created: int
    seen: int
    ip: str
    amr: tuple[str, ...]
    device_ref: str = ""
    device_name: str = ""
    ended: str = ""  # why, once it has; the record stays to tell a revoked token from an unknown one


@dataclass(frozen=True)
class Challenge:
    """One step that waits for its proof, and what it is bound to. A decoy has no code and matches nothing.

    `bound`: the connections that may answer it, separated by spaces; "": whoever holds its id, which is secret.
    """

    id: str
    kind: Literal["registration", "device", "second_factor", "reset"]
    email: str
    expires: int
    code_mac: str = field(default="", repr=False)
    code_expires: int = 0
    user_id: str = ""
    bound: str = ""
    password: str = field(default="", repr=False)
    locale: str = ""
    terms: str = ""
    device_ref: str = ""  # the device of a login that waits for its second factor: trusted, or to be with that
    device_mac: str = field(default="", repr=False)  # of one that is to be
    device_name: str = ""
    decided: str = ""  # "approved" or "refused" by who was asked on another device
    noticed: bool = False  # the account has been mailed about this device
    version: int = 0  # of the account when a login began; its password may have changed since

    def may_be_answered_by(self, connection: str) -> bool:
        return not self.bound or connection in self.bound.split()


@dataclass(frozen=True)
class Enrolling:
    """The seed of a second factor until its first code is seen, sealed."""

    expires: int
    seed: str = field(repr=False)

    @property
    def text(self) -> str:
        return f"{self.expires} {self.seed}"

    @classmethod
    def read(cls, text: str) -> Enrolling | None:
        expires, _, seed = text.partition(" ")
        return cls(int(expires), seed) if seed else None


@dataclass(frozen=True)
class Attempt:
    """A login on a new device that another device may let in; one at a time for each account.

    `number` is what the new device shows; `node` and `connection` are where it waits.
    """

    id: str
    challenge: str
    number: int
    expires: int
    node: str
    connection: str

    @property
    def text(self) -> str:
        return " ".join((self.id, self.challenge, str(self.number), str(self.expires), self.node, self.connection))

    @classmethod
    def read(cls, text: str) -> Attempt | None:
        if not text:
            return None
        id, challenge, number, expires, node, connection = text.split(" ")
        return cls(id, challenge, int(number), int(expires), node, connection)


# --- what a request needs, and what was found ---------------------------------------------------------------


class Counts(StrEnum):
    """What spends a place of a limit."""

    FAILURES = "failures"
    USES = "uses"


@dataclass(frozen=True)
class Limit:
    """At most `most` in `window_ms`, in flight included.

    With a penalty, reaching `most` closes the subject for `penalty_ms`, doubling with each further one up to
    `most_penalty_ms`. `clears`: a success forgets what was counted. `waits`: while places are only reserved, not
    spent, a request goes back to its lane instead of being refused.
    """

    name: str
    subject: str
    most: int
    window_ms: int
    counts: Counts
    penalty_ms: int = 0
    most_penalty_ms: int = 0
    clears: bool = False
    waits: bool = False


@dataclass(frozen=True)
class Needs:
    """What is to be read and reserved before a request can be decided. `proof` is what needs() verified already."""

    email: str | None = None
    session_id: str | None = None
    other_session_id: str | None = None
    challenge_id: str | None = None
    devices: bool = False
    sessions: bool = False  # all that live
    crowd: bool = False  # only those that would have to make room for one more
    limits: tuple[Limit, ...] = ()
    proof: object = None


@dataclass(frozen=True)
class Facts:
    """What the store said, at `now`. `refused`: limits that have no place, by name, with the wait in ms.

    `ahead`: ms that the store's clock is ahead of the server's own, since that was set back and this never goes back.
    """

    now: int
    needs: Needs = Needs()
    ahead: int = 0
    account: Account | None = None
    session: Session | None = None
    other_session: Session | None = None
    challenge: Challenge | None = None
    devices: tuple[Device, ...] = ()
    sessions: tuple[Session, ...] = ()
    online: frozenset[str] = frozenset()
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> int:
        """Since 1970, as everybody else has it: for tokens, which others verify by clocks of their own."""
        return (self.now - self.ahead) // 1000


@dataclass(frozen=True)
class Identity:
    """Who a connection is authenticated as. Only ever set by the service, never by a field of a request."""

    user_id: str
    session_id: str
    device_ref: str = ""  # the trusted device that its session was started from
    ends: int = 0  # when time ends its session, unless that is seen again elsewhere


@dataclass(frozen=True)
class Origin:
    """Where a request came from, as its gateway saw it; sealed with the request.

    A connection has an identity; a REST call brings a token instead, which only a worker can verify.
    """

    node: str
    connection: str  # "" for a REST call: there is nothing to push to
    ip: str
    network: str  # what limits count by: the IPv4 address, the IPv6 /64
    identity: Identity | None = None
    bearer: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    good: tuple[int, int] | None = None  # seconds since 1970: from when and until when the bearer's token is, once read

    def good_at(self, seconds: int) -> bool:
        return self.good is None or self.good[0] <= seconds < self.good[1]


@dataclass(frozen=True)
class Recorded:
    """What became of a request that was sent with a key."""

    box: bytes = field(repr=False)
    session_id: str  # whose it was, where it needed a session


# --- what deciding comes to -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PutChallenge:
    challenge: Challenge


@dataclass(frozen=True)
class CreateAccount:
    """Only while the address has no account, and its challenge, if there is one, still stands."""

    account: Account
    challenge: Challenge | None
    device: Device


@dataclass(frozen=True)
class StartSession:
    """Only while the account is as it was read."""

    session: Session
    account: Account
    device: Device | None  # the trusted device it was started from: seen now


@dataclass(frozen=True)
class RotateSession:
    """The counter goes on by one; only while the session lives and the counter is as it was read."""

    session: Session
    now: int


@dataclass(frozen=True)
class ConfirmSession:
    """It has been seen now; only while it lives and the counter is as it was read."""

    session: Session
    now: int


@dataclass(frozen=True)
class KeepSession:
    """Nothing happens to it, and all else only while it lives."""

    session: Session


@dataclass(frozen=True)
class EndSession:
    """The record stays until time would have ended it, or `kept_ms`: a token of it is revoked, not unknown."""

    session: Session
    reason: str
    kept_ms: int | None = None


@dataclass(frozen=True)
class EndOthers:
    """All sessions of the account but one, also what started after they were read."""

    user_id: str
    stays: str  # its id, or ""
    reason: str


@dataclass(frozen=True)
class UpgradePassword:
    """A record with today's cost in place of an older one; without effect when somebody else was quicker."""

    user_id: str
    old: str = field(repr=False)
    new: str = field(repr=False)


@dataclass(frozen=True)
class ChangeAccount:
    """The fields that differ, only while each of them is as it was read; and while the version is, where one of them
    counts for it: password, status and second factor. The version then goes up by one.
    """

    old: Account
    new: Account


@dataclass(frozen=True)
class NewestReset:
    """The reset mail that counts from here on, whatever counted before: a condition would only hold for an account that
    there is, and so tell one from none to who asks for many at once.
    """

    user_id: str
    challenge_id: str


@dataclass(frozen=True)
class TrustDevice:
    """Only while the account is as it was read. Its version goes up."""

    account: Account
    device: Device


@dataclass(frozen=True)
class ForgetDevice:
    """Only while the account is as it was read. Its version goes up."""

    account: Account
    ref: str


@dataclass(frozen=True)
class EndChallenge:
    """It is answered, once: only while it is there."""

    challenge: Challenge


@dataclass(frozen=True)
class RenewCode:
    """A challenge's older code is replaced, only while it is there. Its count of failed tries stays."""

    challenge: Challenge


@dataclass(frozen=True)
class DecideLogin:
    """What became of an attempt, told to its challenge; only while that is there."""

    challenge: str
    user_id: str
    decided: Literal["approved", "refused"]


@dataclass(frozen=True)
class BindChallenge:
    """One more connection that may answer it, only while it is there and is bound as it was read. Of too many the first
    makes room.
    """

    challenge: Challenge
    connection: str


Write = (
    PutChallenge
    | CreateAccount
    | StartSession
    | RotateSession
    | ConfirmSession
    | KeepSession
    | EndSession
    | EndOthers
    | UpgradePassword
    | ChangeAccount
    | NewestReset
    | TrustDevice
    | ForgetDevice
    | EndChallenge
    | RenewCode
    | DecideLogin
    | BindChallenge
)

MailKind = Mailed | Literal["decoy"]


@dataclass(frozen=True)
class Mail:
    """A mail to be sent. `decoy` ones are queued like others and dropped by the mailer: no time tells them apart.

    `code`: six to eight digits; of a reset the opaque code for its link. `device` is a name as it was claimed: it may
    hold anything. `tell`: the connection (node, connection) that is told how it goes; only where that has proved a
    password or a session, since it shows that there is an account.
    """

    kind: MailKind
    to: str
    locale: str = ""
    code: str = field(default="", repr=False)
    device: str = ""
    ip: str = ""
    at: int = 0  # when what it is about happened
    change: Literal["", "enabled", "disabled", "recovery_codes"] = ""  # of a second factor
    tell: tuple[str, str] | None = None


@dataclass(frozen=True)
class Notice:
    """A push to every connection of an account. Carries no secret.

    `session_id`: the session it is about; with `close`, that session's connections are closed after it.
    `spare`: the connection (node, connection) that caused it, which is not told.
    `devices`: only sessions that were started from one of these trusted devices are told.
    `only`: only this connection (node, connection) is told, whoever it is authenticated as.
    `ends_others`: why every session but this one has ended; whoever is there for another is told that, and closed.
    """

    user_id: str
    session_id: str
    event: Reply
    spare: tuple[str, str] = ("", "")
    close: bool = False
    devices: tuple[str, ...] | None = None
    only: tuple[str, str] | None = None
    ends_others: str = ""


class Verdict(StrEnum):
    """What the outcome means for the limits the request reserved."""

    PASSED = "passed"
    FAILED = "failed"
    UNJUDGED = "unjudged"  # neither: every place comes back


@dataclass(frozen=True)
class Outcome:
    """A request's one terminal event, and everything that is to happen with it or not at all."""

    event: str
    data: Reply | Refusal
    verdict: Verdict = Verdict.UNJUDGED
    writes: tuple[Write, ...] = ()
    progress: tuple[Reply, ...] = ()  # told before the terminal event, with its id
    mails: tuple[Mail, ...] = ()
    if_mailed: tuple[Write, ...] = ()  # done only if the first of the mails is within its limits
    notices: tuple[Notice, ...] = ()
    identity: Identity | None = None  # what the connection is authenticated as from here on
    forget: bool = False  # the connection is authenticated no longer
    even: bool = False  # it leaves on a coarse grid of time, so that how long deciding took does not show
    spent_ms: float = 0.0  # on hashing
    uncounted: tuple[str, ...] = ()  # limits whose places come back whatever the verdict
    subject: str = ""  # the account concerned, for the audit

    def with_writes(self, *more: Write) -> Outcome:
        return replace(self, writes=(*self.writes, *more))

    @property
    def code(self) -> str:
        return self.data.code if isinstance(self.data, Refusal) else "ok"
