"""authenticate: an access token makes its connection the session's.

Refuses token_invalid, token_expired, token_revoked.
"""

from __future__ import annotations

from app.handlers.common import Context, identity_of, refuse
from app.messages import Authenticate, Authenticated, Code
from app.records import ConfirmSession, Facts, Needs, Outcome, Verdict
from app.rules import Life, session_life
from app.tokens import AccessClaims

REFUSED = "authentication_failed"


def needs(request: Authenticate, ctx: Context) -> Needs:
    claims = ctx.mint.read_access_token(request.access_token)
    return Needs(session_id=claims.session_id if claims else None, proof=claims)


def decide(request: Authenticate, facts: Facts, ctx: Context) -> Outcome:
    claims, session, account = facts.needs.proof, facts.session, facts.account
    seconds = facts.seconds
    if not isinstance(claims, AccessClaims):
        return refuse(REFUSED, Code.TOKEN_INVALID)
    life = session_life(session, facts.now)
    if not claims.good_at(seconds) or life is Life.EXPIRED or session is None:
        return refuse(REFUSED, Code.TOKEN_EXPIRED, subject=claims.user_id)
    if life is Life.REVOKED or account is None or account.status != "active":
        return refuse(REFUSED, Code.TOKEN_REVOKED, subject=claims.user_id)
    if session.user_id != claims.user_id:
        return refuse(REFUSED, Code.TOKEN_INVALID, subject=claims.user_id)
    data = Authenticated(user_id=account.id, session_id=session.id, expires_in=claims.expires - seconds)
    return Outcome(
        Authenticated.event,
        data,
        Verdict.PASSED,
        writes=(ConfirmSession(session, facts.now),),
        identity=identity_of(session, facts.now),
        subject=account.id,
    )
