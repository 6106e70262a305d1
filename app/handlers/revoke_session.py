"""revoke_session: ends one of the account's sessions, everywhere. Refuses not_found, for another's like for none."""

from __future__ import annotations

from app.handlers.common import Context, end_session, refuse
from app.messages import Code, RevokeSession, SessionRevoked
from app.records import Facts, Needs, Outcome, Verdict
from app.rules import Life, session_life

REFUSED = "session_not_found"


def needs(request: RevokeSession, ctx: Context) -> Needs:
    own = ctx.origin.identity.session_id if ctx.origin.identity else None
    return Needs(session_id=own, other_session_id=request.session_id)


def decide(request: RevokeSession, facts: Facts, ctx: Context) -> Outcome:
    session, other = facts.session, facts.other_session
    assert session is not None  # handlers.decide lets nothing else through
    if other is None or other.user_id != session.user_id or session_life(other, facts.now) is not Life.ACTIVE:
        return refuse(REFUSED, Code.NOT_FOUND, field="sessionId", subject=session.user_id)
    write, notice = end_session(other, "revoked", ("", ""))
    return Outcome(
        SessionRevoked.event,
        SessionRevoked(),
        Verdict.PASSED,
        writes=(write,),
        notices=(notice,),
        subject=session.user_id,
    )
