"""refresh: the next tokens of a session for its refresh token.

Refuses token_invalid, token_expired, token_revoked, and token_reused, which also ends the session.
"""

from __future__ import annotations

from dataclasses import replace

from app.handlers.common import Context, alert, end_session, refuse, tokens
from app.messages import Code, Refresh, TokenRefreshed
from app.records import ConfirmSession, Facts, Needs, Outcome, RotateSession, Verdict
from app.rules import Turn, refresh_turn
from app.tokens import RefreshToken

REFUSED = "refresh_failed"


def needs(request: Refresh, ctx: Context) -> Needs:
    token = ctx.mint.read_refresh_token(request.refresh_token)
    return Needs(session_id=token.session_id if token else None, proof=token)


def decide(request: Refresh, facts: Facts, ctx: Context) -> Outcome:
    token, session, account = facts.needs.proof, facts.session, facts.account
    if not isinstance(token, RefreshToken):
        return refuse(REFUSED, Code.TOKEN_INVALID)
    turn = refresh_turn(session, token, facts.now)
    if isinstance(turn, Code):
        return refuse(REFUSED, turn, subject=session.user_id if session else "")
    assert session is not None  # a turn is of a session
    if account is None or account.status != "active":
        return refuse(REFUSED, Code.TOKEN_REVOKED, subject=session.user_id)
    if turn is Turn.END:
        ended, notice = end_session(session, "token_reused", (ctx.origin.node, ""))
        refused = refuse(REFUSED, Code.TOKEN_REUSED, subject=session.user_id)
        return replace(refused, writes=(ended,), notices=(notice, alert(account, "token_reused", ctx)))
    if turn is Turn.ROTATE:
        current = replace(session, counter=session.counter + 1)
        write: RotateSession | ConfirmSession = RotateSession(session, facts.now)
    else:
        current, write = session, ConfirmSession(session, facts.now)
    data = TokenRefreshed(**tokens(current, facts, ctx))
    return Outcome(TokenRefreshed.event, data, Verdict.PASSED, writes=(write,), subject=session.user_id)
