"""revoke_other_sessions: ends every session of the account but the one that asks."""

from __future__ import annotations

from app.handlers.common import Context, end_all_but, others
from app.messages import RevokeOtherSessions, SessionsRevoked
from app.records import Facts, Needs, Outcome, Verdict


def needs(request: RevokeOtherSessions, ctx: Context) -> Needs:
    return Needs(session_id=ctx.origin.identity.session_id if ctx.origin.identity else None, sessions=True)


def decide(request: RevokeOtherSessions, facts: Facts, ctx: Context) -> Outcome:
    session, account = facts.session, facts.account
    assert session is not None and account is not None  # handlers.decide lets nothing else through
    ended, notices = end_all_but(session.id, "revoked", account, facts)
    return Outcome(
        SessionsRevoked.event,
        SessionsRevoked(count=len(others(facts))),
        Verdict.PASSED,
        writes=ended,
        notices=notices,
        subject=account.id,
    )
