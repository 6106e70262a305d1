"""logout: ends the connection's session; this connection stays, unauthenticated, the session's others close."""

from __future__ import annotations

from app.handlers.common import Context, end_session
from app.messages import LoggedOut, Logout
from app.records import Facts, Needs, Outcome, Verdict


def needs(request: Logout, ctx: Context) -> Needs:
    return Needs(session_id=ctx.origin.identity.session_id if ctx.origin.identity else None)


def decide(request: Logout, facts: Facts, ctx: Context) -> Outcome:
    assert facts.session is not None  # handlers.decide lets nothing else through
    ended, notice = end_session(facts.session, "logout", (ctx.origin.node, ctx.origin.connection))
    return Outcome(
        LoggedOut.event,
        LoggedOut(),
        Verdict.PASSED,
        writes=(ended,),
        notices=(notice,),
        forget=True,
        subject=facts.session.user_id,
    )
