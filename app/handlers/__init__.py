"""One module per request, all of one shape:

    needs(request, ctx) -> Needs            what must be read and reserved first
    decide(request, facts, ctx) -> Outcome  the answer and everything that happens with it

Both are pure and synchronous and raise for nothing a client can do. HANDLERS below is all the service can do.
"""

from __future__ import annotations

from typing import Any, Protocol

from app.handlers import account, authenticate, confirm_email, login, logout, refresh, register, resend_confirmation
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
    "refresh": refresh,
    "authenticate": authenticate,
    "logout": logout,
    "sessions": sessions_,
    "account": account,
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
