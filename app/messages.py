"""The wire: every request, event and code; `app.frames` reads and writes them.

One table, `KINDS`, names each request with its lane, its data and what can answer it; the gateway, the worker
and the tests all read it. Data types are msgspec structs: snake_case here, camelCase on the wire.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

PROTOCOL = 1
MAX_MESSAGE_BYTES = 16 * 1024
MAX_IN_FLIGHT = 8
MAX_PASSWORD_BYTES = 1024
DEFAULT_TIMEOUT_MS = 10_000


class Lane(StrEnum):
    """Which queue a request waits in: FAST never hashes a password, HASH always does. SLOW is for what would be HASH
    and is one network's beyond its share: it has what HASH leaves.
    """

    FAST = "fast"
    HASH = "hash"
    SLOW = "slow"

    @property
    def first(self) -> Lane:
        """The lane whose requests go before, by the same threads; itself where none does."""
        return Lane.HASH if self is Lane.SLOW else self


class Code(StrEnum):
    """Why a request was refused or not evaluated. Programs read these; texts may change."""

    BAD_JSON = "bad_json"
    BAD_REQUEST = "bad_request"
    UNKNOWN_EVENT = "unknown_event"
    DUPLICATE_ID = "duplicate_id"
    TOO_MANY_IN_FLIGHT = "too_many_in_flight"
    NOT_AUTHENTICATED = "not_authenticated"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"
    INVALID_CREDENTIALS = "invalid_credentials"
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    ACCOUNT_DISABLED = "account_disabled"
    ADDRESS_TAKEN = "address_taken"
    INVALID_CODE = "invalid_code"
    CODE_EXPIRED = "code_expired"
    CHALLENGE_EXPIRED = "challenge_expired"
    PASSWORD_TOO_SHORT = "password_too_short"
    PASSWORD_COMMON = "password_common"
    NOT_FOUND = "not_found"
    TOKEN_REUSED = "token_reused"
    TOKEN_EXPIRED = "token_expired"
    TOKEN_REVOKED = "token_revoked"
    TOKEN_INVALID = "token_invalid"


RETRYABLE = frozenset(
    {
        Code.RATE_LIMITED,
        Code.OVERLOADED,
        Code.DEADLINE_EXCEEDED,
        Code.UNAVAILABLE,
        Code.INTERNAL,
        Code.TOO_MANY_IN_FLIGHT,
        Code.TOO_MANY_ATTEMPTS,
    }
)

TEXTS = {
    Code.BAD_JSON: "The frame is not a JSON object this server accepts.",
    Code.BAD_REQUEST: "The request does not fit its type.",
    Code.UNKNOWN_EVENT: "There is no such request.",
    Code.DUPLICATE_ID: "A request with this id is in flight on this connection.",
    Code.TOO_MANY_IN_FLIGHT: f"At most {MAX_IN_FLIGHT} requests may be in flight on one connection.",
    Code.NOT_AUTHENTICATED: "This request needs an authenticated connection.",
    Code.RATE_LIMITED: "Too many requests; wait before the next one.",
    Code.OVERLOADED: "The queue is full; send the request again later.",
    Code.DEADLINE_EXCEEDED: "The deadline passed before there was an answer.",
    Code.UNAVAILABLE: "The service cannot answer now; send the request again.",
    Code.INTERNAL: "Something failed on the server; the outcome is unknown.",
    Code.INVALID_CREDENTIALS: "The address or the password is wrong.",
    Code.TOO_MANY_ATTEMPTS: "Too many failed attempts; wait before the next one.",
    Code.ACCOUNT_DISABLED: "The account is disabled.",
    Code.ADDRESS_TAKEN: "There is an account with this address.",
    Code.INVALID_CODE: "The code is wrong.",
    Code.CODE_EXPIRED: "The code is too old; ask for a new one.",
    Code.CHALLENGE_EXPIRED: "This step is over; start again.",
    Code.PASSWORD_TOO_SHORT: "The password is too short.",
    Code.PASSWORD_COMMON: "The password is one of those that are tried first.",
    Code.NOT_FOUND: "The account has no such thing.",
    Code.TOKEN_REUSED: "The token was used before; its session has been ended.",
    Code.TOKEN_EXPIRED: "The token has expired.",
    Code.TOKEN_REVOKED: "The session of this token has been ended.",
    Code.TOKEN_INVALID: "The token is not one of this server's.",
}

# The HTTP status of a terminal event with this code; without one it is 200.
STATUSES = {
    Code.BAD_JSON: 400,
    Code.BAD_REQUEST: 400,
    Code.PASSWORD_TOO_SHORT: 400,
    Code.PASSWORD_COMMON: 400,
    Code.NOT_FOUND: 404,
    Code.UNKNOWN_EVENT: 404,
    Code.DUPLICATE_ID: 400,  # cannot be met over HTTP
    Code.TOO_MANY_IN_FLIGHT: 429,
    Code.NOT_AUTHENTICATED: 401,
    Code.RATE_LIMITED: 429,
    Code.OVERLOADED: 503,
    Code.DEADLINE_EXCEEDED: 503,
    Code.UNAVAILABLE: 503,
    Code.INTERNAL: 500,
    Code.INVALID_CREDENTIALS: 401,
    Code.TOO_MANY_ATTEMPTS: 429,
    Code.ACCOUNT_DISABLED: 403,
    Code.ADDRESS_TAKEN: 409,
    Code.INVALID_CODE: 401,
    Code.CODE_EXPIRED: 401,
    Code.CHALLENGE_EXPIRED: 401,
    Code.TOKEN_REUSED: 401,
    Code.TOKEN_EXPIRED: 401,
    Code.TOKEN_REVOKED: 401,
    Code.TOKEN_INVALID: 401,
}

# --- what a client sends ---------------------------------------------------------------------------------

END = r"(?![\s\S])"  # the very end, in Python and in ECMA-262 alike; `$` would let a newline through
Text64 = Annotated[str, Meta(min_length=1, max_length=64)]
Opaque = Annotated[str, Meta(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9_.~-]*" + END)]
AccessToken = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^[A-Za-z0-9_.-]*" + END)]
DeviceToken = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]*" + END)]
DeviceName = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*" + END)]
Locale = Annotated[str, Meta(min_length=2, max_length=35, pattern=r"^[A-Za-z0-9-]*" + END)]
OneTimeCode = Annotated[str, Meta(min_length=1, max_length=64)]
MatchNumber = Annotated[int, Meta(ge=0, le=99)]

# WHATWG HTML, "valid e-mail address": what browsers' own address fields accept.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# Not `=?`: mail software would read an encoded word (RFC 2047) out of it, and so another address.
_EMAIL = re.compile(rf"(?!.*=\?)[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})*")


def canonical_email(raw: str) -> str:
    """Trim and lower-case an address. ValueError for what is not one, non-ASCII look-alikes included."""
    trimmed = raw.strip(" \t\r\n")
    lowered = trimmed.lower()
    if not trimmed.isascii() or len(lowered) > 254 or not _EMAIL.fullmatch(lowered):
        raise ValueError("`$.email` is not an e-mail address")
    return lowered


PASSWORDS = {"password": "password", "current_password": "currentPassword", "new_password": "newPassword"}


class Request(Struct, frozen=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """Base of every request's data. Its repr never shows a field: many are secrets."""

    def __post_init__(self) -> None:
        if isinstance(email := getattr(self, "email", None), str):
            msgspec.structs.force_setattr(self, "email", canonical_email(email))
        for name in PASSWORDS:
            if isinstance(password := getattr(self, name, None), str):
                # NFKC and nothing else (NIST SP 800-63B): never cut, and bounded as it was sent
                msgspec.structs.force_setattr(self, name, unicodedata.normalize("NFKC", password))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Register(Request, frozen=True):
    email: str
    password: str
    locale: Locale | None = None
    terms: Text64 | None = None


class ConfirmEmail(Request, frozen=True):
    challenge: Opaque
    code: OneTimeCode


class ResendConfirmation(Request, frozen=True):
    challenge: Opaque


class Login(Request, frozen=True):
    email: str
    password: str
    device_token: DeviceToken | None = None
    device_name: DeviceName | None = None


class Refresh(Request, frozen=True):
    refresh_token: Opaque


class Authenticate(Request, frozen=True):
    access_token: AccessToken


class Logout(Request, frozen=True):
    pass


class Sessions(Request, frozen=True):
    pass


class Account(Request, frozen=True):
    pass


class VerifyDevice(Request, frozen=True):
    """Without a code once another device has approved it."""

    challenge: Opaque
    code: OneTimeCode | None = None
    trust: bool = True


class _SecondFactor(Request, frozen=True, kw_only=True):
    """Either of the two, not both."""

    code: OneTimeCode | None = None
    recovery_code: OneTimeCode | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.code is None) is (self.recovery_code is None):
            raise ValueError("`$.code` or `$.recoveryCode` is needed, and not both")


class Verify2fa(_SecondFactor, frozen=True, kw_only=True):
    challenge: Opaque


class RevokeSession(Request, frozen=True):
    session_id: Opaque


class RevokeOtherSessions(Request, frozen=True):
    pass


class RequestPasswordReset(Request, frozen=True):
    email: str


class ResetPassword(Request, frozen=True):
    """`code` as the mailed link has it."""

    email: str
    code: Opaque
    new_password: str


class ChangePassword(Request, frozen=True):
    current_password: str
    new_password: str


class Enroll2fa(Request, frozen=True):
    password: str


class Confirm2fa(Request, frozen=True):
    code: OneTimeCode


class Disable2fa(_SecondFactor, frozen=True, kw_only=True):
    password: str


class NewRecoveryCodes(Request, frozen=True):
    password: str
    code: OneTimeCode


class ForgetDevice(Request, frozen=True):
    device_ref: Opaque


class ApproveLogin(Request, frozen=True):
    """`match_number` as the new device shows it; who refuses need not know it."""

    login_id: Opaque
    approve: bool
    match_number: MatchNumber | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.approve and self.match_number is None:
            raise ValueError("`$.matchNumber` is needed")


# --- what the server sends ----------------------------------------------------------------------------------


class Reply(Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """Base of the data of every event the server sends. Its repr shows no field: some are tokens."""

    event: ClassVar[str]

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class Connected(Reply, frozen=True):
    event: ClassVar[str] = "connected"
    connection_id: str
    server_time: str
    protocol: int
    max_message_bytes: int
    max_in_flight: int


class Queued(Reply, frozen=True):
    event: ClassVar[str] = "queued"
    position: int
    eta_ms: int


class RegisterAccepted(Reply, frozen=True):
    event: ClassVar[str] = "register_accepted"
    next: str
    challenge: str | None = None
    expires_in: int | None = None
    device_token: str | None = None


class EmailConfirmed(Reply, frozen=True):
    event: ClassVar[str] = "email_confirmed"
    device_token: str


class ConfirmationSent(Reply, frozen=True):
    event: ClassVar[str] = "confirmation_sent"


class Tokens(Reply, frozen=True):
    """A session's tokens: times in seconds, the access token a JWT (RFC 9068), the refresh token opaque."""

    access_token: str
    token_type: str
    expires_in: int
    refresh_token: str
    refresh_expires_in: int
    session_id: str
    user_id: str


class LoginSuccess(Tokens, frozen=True):
    event: ClassVar[str] = "login_success"


class TokenRefreshed(Tokens, frozen=True):
    event: ClassVar[str] = "token_refreshed"


class NewDeviceDetected(Reply, frozen=True):
    """The password was right; `match_number` is to be shown, for who approves the login on another device."""

    event: ClassVar[str] = "new_device_detected"
    challenge: str
    sent_to: str
    match_number: int
    expires_in: int


class SecondFactorRequired(Reply, frozen=True):
    event: ClassVar[str] = "2fa_required"
    challenge: str
    methods: tuple[str, ...]
    expires_in: int


class DeviceVerified(Reply, frozen=True):
    event: ClassVar[str] = "device_verified"
    device_token: str | None = None


class SecondFactorVerified(Reply, frozen=True):
    event: ClassVar[str] = "2fa_verified"


class Authenticated(Reply, frozen=True):
    event: ClassVar[str] = "authenticated"
    user_id: str
    session_id: str
    expires_in: int


class LoggedOut(Reply, frozen=True):
    event: ClassVar[str] = "logged_out"


class SessionItem(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    session_id: str
    device_ref: str | None
    device_name: str | None
    ip: str
    created_at: str
    last_seen_at: str
    online: bool
    current: bool


class SessionList(Reply, frozen=True):
    event: ClassVar[str] = "sessions"
    sessions: tuple[SessionItem, ...]


class DeviceItem(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    device_ref: str
    device_name: str | None
    last_seen_at: str


class AccountData(Reply, frozen=True):
    event: ClassVar[str] = "account"
    user_id: str
    email: str
    has2fa: bool
    recovery_codes_left: int
    devices: tuple[DeviceItem, ...]
    created_at: str


class SessionRevoked(Reply, frozen=True):
    event: ClassVar[str] = "session_revoked"


class SessionsRevoked(Reply, frozen=True):
    event: ClassVar[str] = "sessions_revoked"
    count: int


class PasswordResetRequested(Reply, frozen=True):
    event: ClassVar[str] = "password_reset_requested"


class PasswordReset(Reply, frozen=True):
    event: ClassVar[str] = "password_reset"


class PasswordChanged(Reply, frozen=True):
    event: ClassVar[str] = "password_changed"


class Enrollment(Reply, frozen=True):
    """A second factor to be: `secret` in base32, `qr_svg` the QR code of `otpauth_url`."""

    event: ClassVar[str] = "2fa_enrollment"
    secret: str
    otpauth_url: str
    qr_svg: str


class SecondFactorEnabled(Reply, frozen=True):
    event: ClassVar[str] = "2fa_enabled"
    recovery_codes: tuple[str, ...]


class SecondFactorDisabled(Reply, frozen=True):
    event: ClassVar[str] = "2fa_disabled"


class RecoveryCodes(Reply, frozen=True):
    event: ClassVar[str] = "recovery_codes"
    recovery_codes: tuple[str, ...]


class DeviceForgotten(Reply, frozen=True):
    event: ClassVar[str] = "device_forgotten"


class LoginDecided(Reply, frozen=True):
    """To who decided, and as a push to who waits."""

    event: ClassVar[str] = "login_decided"
    approved: bool


class Refusal(Struct, frozen=True, rename="camel", omit_defaults=True, forbid_unknown_fields=True):
    """Data of `error` and of every refusal event."""

    code: Code
    message: str
    retryable: bool
    retry_after_ms: int | None = None
    field: str | None = None


class SessionStarted(Reply, frozen=True):
    event: ClassVar[str] = "session_started"
    session_id: str
    device_name: str | None
    ip: str


class SessionEnded(Reply, frozen=True):
    event: ClassVar[str] = "session_ended"
    session_id: str
    reason: str


class LoginAttempt(Reply, frozen=True):
    event: ClassVar[str] = "login_attempt"
    login_id: str
    device_name: str | None
    ip: str


class SecurityAlert(Reply, frozen=True):
    event: ClassVar[str] = "security_alert"
    kind: str


Mailed = Literal[
    "confirmation",
    "already_registered",
    "new_device",
    "login_notice",
    "reset",
    "password_changed",
    "second_factor_changed",
]


class MailStatus(Reply, frozen=True):
    event: ClassVar[str] = "mail_status"
    kind: Mailed
    status: Literal["sent", "retrying", "failed"]


class Draining(Reply, frozen=True):
    event: ClassVar[str] = "draining"
    reconnect_in_ms: int


def refusal(code: Code, *, retry_after_ms: int | None = None, field: str | None = None) -> Refusal:
    """The data of a refusal; `field` is cut to 64 characters, since a client may have chosen it."""
    return Refusal(code, TEXTS[code], code in RETRYABLE, retry_after_ms, field[:64] if field else None)


# --- the table ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One request of the contract: the queue it waits in and everything that can answer it."""

    event: str
    data: type[Request]
    lane: Lane
    success: type[Reply]
    refused: str | None = None  # the refusal's event, where evaluating can end in one
    needs_session: bool = False
    steps: tuple[type[Reply], ...] = ()  # other terminal events: what is still to be done
    progress: tuple[type[Reply], ...] = ()  # told before the terminal event, besides `queued`

    @property
    def answers(self) -> tuple[type[Reply], ...]:
        """Every terminal event that is neither a refusal nor an error."""
        return (self.success, *self.steps)


_FAST, _HASH = Lane.FAST, Lane.HASH
_NO_2FA = "2fa_verification_failed"
_TO_DO = (NewDeviceDetected, SecondFactorRequired)

KINDS: dict[str, Kind] = {
    kind.event: kind
    for kind in (
        Kind("register", Register, _HASH, RegisterAccepted, "register_failed"),
        Kind("confirm_email", ConfirmEmail, _FAST, EmailConfirmed, "email_confirmation_failed"),
        Kind("resend_confirmation", ResendConfirmation, _FAST, ConfirmationSent),
        Kind("login", Login, _HASH, LoginSuccess, "login_failure", steps=_TO_DO),
        Kind(
            "verify_device",
            VerifyDevice,
            _FAST,
            LoginSuccess,
            "device_verification_failed",
            steps=(SecondFactorRequired,),
            progress=(DeviceVerified,),
        ),
        Kind("verify_2fa", Verify2fa, _FAST, LoginSuccess, _NO_2FA, progress=(SecondFactorVerified,)),
        Kind("refresh", Refresh, _FAST, TokenRefreshed, "refresh_failed"),
        Kind("authenticate", Authenticate, _FAST, Authenticated, "authentication_failed"),
        Kind("logout", Logout, _FAST, LoggedOut, needs_session=True),
        Kind("sessions", Sessions, _FAST, SessionList, needs_session=True),
        Kind("revoke_session", RevokeSession, _FAST, SessionRevoked, "session_not_found", needs_session=True),
        Kind("revoke_other_sessions", RevokeOtherSessions, _FAST, SessionsRevoked, needs_session=True),
        Kind("request_password_reset", RequestPasswordReset, _FAST, PasswordResetRequested),
        Kind("reset_password", ResetPassword, _HASH, PasswordReset, "password_reset_failed"),
        Kind("change_password", ChangePassword, _HASH, PasswordChanged, "password_change_failed", needs_session=True),
        Kind("enroll_2fa", Enroll2fa, _HASH, Enrollment, "2fa_enrollment_failed", needs_session=True),
        Kind("confirm_2fa", Confirm2fa, _FAST, SecondFactorEnabled, _NO_2FA, needs_session=True),
        Kind("disable_2fa", Disable2fa, _HASH, SecondFactorDisabled, _NO_2FA, needs_session=True),
        Kind("new_recovery_codes", NewRecoveryCodes, _HASH, RecoveryCodes, _NO_2FA, needs_session=True),
        Kind("account", Account, _FAST, AccountData, needs_session=True),
        Kind("forget_device", ForgetDevice, _FAST, DeviceForgotten, "device_not_found", needs_session=True),
        Kind("approve_login", ApproveLogin, _FAST, LoginDecided, "approval_failed", needs_session=True),
    )
}

# What nobody asked for: without an id. `login_decided` is an answer too.
PUSHES: tuple[type[Reply], ...] = (
    Connected,
    SessionStarted,
    SessionEnded,
    LoginAttempt,
    LoginDecided,
    MailStatus,
    SecurityAlert,
    Draining,
)

# Every event a client can receive, with the type of its data.
EVENTS: dict[str, type[Struct]] = {
    **{reply.event: reply for kind in KINDS.values() for reply in (*kind.answers, *kind.progress)},
    **{kind.refused: Refusal for kind in KINDS.values() if kind.refused},
    Queued.event: Queued,
    **{reply.event: reply for reply in PUSHES},
    "error": Refusal,
}
