"""sessions: the account's living sessions, with who is online. Never a token."""

from __future__ import annotations

from app.handlers.common import Context
from app.messages import SessionItem, SessionList, Sessions
from app.records import Facts, Needs, Outcome, Session, Verdict
from app.rules import Life, iso, session_life


def needs(request: Sessions, ctx: Context) -> Needs:
    return Needs(session_id=ctx.origin.identity.session_id if ctx.origin.identity else None, sessions=True)


def decide(request: Sessions, facts: Facts, ctx: Context) -> Outcome:
    assert facts.session is not None  # handlers.decide lets nothing else through
    living = [session for session in facts.sessions if session_life(session, facts.now) is Life.ACTIVE]
    living.sort(key=lambda session: (-session.seen, session.id))
    items = tuple(_item(session, facts) for session in living)
    return Outcome(SessionList.event, SessionList(sessions=items), Verdict.PASSED, subject=facts.session.user_id)


def _item(session: Session, facts: Facts) -> SessionItem:
    return SessionItem(
        session_id=session.id,
        device_ref=session.device_ref or None,
        device_name=session.device_name or None,
        ip=session.ip,
        created_at=iso(session.created),
        last_seen_at=iso(session.seen),
        online=session.id in facts.online,
        current=facts.session is not None and session.id == facts.session.id,
    )
