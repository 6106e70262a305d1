"""One module per request, all of one shape:

    needs(request, ctx) -> Needs            what must be read and reserved first
    decide(request, facts, ctx) -> Outcome  the answer and everything that happens with it

Both are pure and synchronous and raise for nothing a client can do. HANDLERS below is all the service can do.
"""

from __future__ import annotations

from typing import Any, Protocol

from app.handlers import (
    account,
    approve_login,
    authenticate,
    change_password,
    confirm_2fa,
    confirm_email,
    disable_2fa,
    enroll_2fa,
    forget_device,
    login,
    logout,
    new_recovery_codes,
    refresh,
    register,
    request_password_reset,
    resend_confirmation,
    reset_password,
    revoke_other_sessions,
    revoke_session,
    verify_2fa,
    verify_device,
)
from app.handlers import sessions as sessions_
from app.handlers.common import Context, error
from app.messages import Code, Kind, Request
from app.records import Facts, Needs, Outcome
from app.rules import Life, session_life


class Handler(Protocol):
    def needs(self, request: Any, ctx: Context) -> Needs: ...

    def decide(self, request: Any, facts: Facts, ctx: Context) -> Outcome: ...


HANDLERS: dict[str, Handler] = {
    "register": register,
    "confirm_email": confirm_email,
    "resend_confirmation": resend_confirmation,
    "login": login,
    "verify_device": verify_device,
    "verify_2fa": verify_2fa,
    "refresh": refresh,
    "authenticate": authenticate,
    "logout": logout,
    "sessions": sessions_,
    "revoke_session": revoke_session,
    "revoke_other_sessions": revoke_other_sessions,
    "request_password_reset": request_password_reset,
    "reset_password": reset_password,
    "change_password": change_password,
    "enroll_2fa": enroll_2fa,
    "confirm_2fa": confirm_2fa,
    "disable_2fa": disable_2fa,
    "new_recovery_codes": new_recovery_codes,
    "account": account,
    "forget_device": forget_device,
    "approve_login": approve_login,
}


def decide(kind: Kind, request: Request, facts: Facts, ctx: Context) -> Outcome:
    """Decide a request; one that needs a session is decided only while the connection's session lives."""
    if kind.needs_session and (
        not ctx.origin.good_at(facts.seconds)
        or session_life(facts.session, facts.now) is not Life.ACTIVE
        or facts.account is None
        or facts.account.status != "active"
    ):
        return error(Code.NOT_AUTHENTICATED)
    return HANDLERS[kind.event].decide(request, facts, ctx)
