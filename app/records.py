"""What is kept, what a request needs to be decided, and what deciding comes to. Plain values, no I/O.

A handler turns `Facts` into an `Outcome`; the store knows how to keep each `Write`. Times are milliseconds since 1970
by the store's clock, the one clock all lifetimes are measured with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from app.messages import Refusal, Reply

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
    """One step that waits for a mailed code, and what it is bound to. A decoy has no code and matches nothing."""

    id: str
    kind: Literal["registration"]
    email: str
    expires: int
    code_mac: str = field(repr=False)
    code_expires: int
    user_id: str = ""
    password: str = field(default="", repr=False)
    locale: str = ""
    terms: str = ""


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
    """It has been seen now; only while it lives."""

    session: Session
    now: int


@dataclass(frozen=True)
class EndSession:
    session: Session
    reason: str


@dataclass(frozen=True)
class UpgradePassword:
    """A record with today's cost in place of an older one; without effect when somebody else was quicker."""

    user_id: str
    old: str = field(repr=False)
    new: str = field(repr=False)


@dataclass(frozen=True)
class ChangeAccount:
    """The fields that differ; only while the account is as it was read. Its version goes up by one."""

    old: Account
    new: Account


Write = (
    PutChallenge
    | CreateAccount
    | StartSession
    | RotateSession
    | ConfirmSession
    | EndSession
    | UpgradePassword
    | ChangeAccount
)


@dataclass(frozen=True)
class Mail:
    """A mail to be sent. `decoy` ones are queued like others and dropped by the mailer: no time tells them apart."""

    kind: Literal["confirmation", "already_registered", "decoy"]
    to: str
    locale: str = ""
    code: str = field(default="", repr=False)


@dataclass(frozen=True)
class RenewedCode:
    """A challenge whose older code the mail's replaces: only if the mail is sent. Its count of failed tries stays."""

    challenge: Challenge


@dataclass(frozen=True)
class Notice:
    """A push to every connection of an account. Carries no secret.

    `session_id`: the session it is about; with `close`, that session's connections are closed after it.
    `spare`: the connection (node, connection) that caused it, which is not told.
    """

    user_id: str
    session_id: str
    event: Reply
    spare: tuple[str, str]
    close: bool = False


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
    mails: tuple[Mail, ...] = ()
    renewed: RenewedCode | None = None  # by the first of the mails
    notices: tuple[Notice, ...] = ()
    identity: Identity | None = None  # what the connection is authenticated as from here on
    forget: bool = False  # the connection is authenticated no longer
    even: bool = False  # it leaves on a coarse grid of time, so that how long deciding took does not show
    subject: str = ""  # the account concerned, for the audit

    def with_writes(self, *more: Write) -> Outcome:
        return replace(self, writes=(*self.writes, *more))

    @property
    def code(self) -> str:
        return self.data.code if isinstance(self.data, Refusal) else "ok"
