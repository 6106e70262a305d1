"""revoke_other_sessions: ends every session of the account but the one that asks."""

from __future__ import annotations

from app.handlers.common import Context, end_sessions, others
from app.messages import RevokeOtherSessions, SessionsRevoked
from app.records import Facts, Needs, Outcome, Verdict


def needs(request: RevokeOtherSessions, ctx: Context) -> Needs:
    return Needs(session_id=ctx.origin.identity.session_id if ctx.origin.identity else None, sessions=True)


def decide(request: RevokeOtherSessions, facts: Facts, ctx: Context) -> Outcome:
    assert facts.session is not None  # handlers.decide lets nothing else through
    ended, notices = end_sessions(others(facts), "revoked", ("", ""))
    return Outcome(
        SessionsRevoked.event,
        SessionsRevoked(count=len(ended)),
        Verdict.PASSED,
        writes=ended,
        notices=notices,
        subject=facts.session.user_id,
    )
