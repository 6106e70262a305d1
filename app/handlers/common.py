"""What several handlers share: their context, refusals, and the start of a session."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from app import rules
from app.messages import Code, LoginSuccess, SessionEnded, SessionStarted, refusal
from app.passwords import PasswordCheck
from app.records import (
    Account,
    Device,
    EndSession,
    Facts,
    Identity,
    Notice,
    Origin,
    Outcome,
    Session,
    StartSession,
    Verdict,
)
from app.settings import Settings
from app.tokens import Mint, RefreshToken, new_id


@dataclass(frozen=True)
class Context:
    """What deciding may use besides the request and the facts."""

    settings: Settings
    mint: Mint
    passwords: PasswordCheck
    origin: Origin


def error(code: Code, *, retry_after_ms: int | None = None) -> Outcome:
    """The request was not evaluated."""
    return Outcome("error", refusal(code, retry_after_ms=retry_after_ms))


def refuse(
    event: str,
    code: Code,
    verdict: Verdict = Verdict.UNJUDGED,
    *,
    field: str | None = None,
    retry_after_ms: int | None = None,
    subject: str = "",
) -> Outcome:
    """The request was evaluated, and the answer is no."""
    return Outcome(event, refusal(code, field=field, retry_after_ms=retry_after_ms), verdict, subject=subject)


def rate_limited(facts: Facts, *names: str) -> Outcome | None:
    """`rate_limited` when one of these limits has no place."""
    waits = [facts.refused[name] for name in names if name in facts.refused]
    return error(Code.RATE_LIMITED, retry_after_ms=max(waits)) if waits else None


def known_device(token: str | None, facts: Facts, ctx: Context) -> Device | None:
    """The account's trusted device that holds this token."""
    if token is None:
        return None
    mac = ctx.mint.device_mac(token)
    return next((device for device in facts.devices if device.mac == mac), None)


def start_session(
    account: Account, device: Device | None, device_name: str | None, amr: tuple[str, ...], facts: Facts, ctx: Context
) -> Outcome:
    """The last step of every login: a new session, its tokens, and the account's other connections told of it."""
    session = Session(
        id=new_id(ctx.mint.kid),
        user_id=account.id,
        counter=0,
        rotated=facts.now,
        created=facts.now,
        seen=facts.now,
        ip=ctx.origin.ip,
        amr=amr,
        device_ref=device.ref if device else "",
        device_name=device_name or (device.name if device else ""),
    )
    here = (ctx.origin.node, ctx.origin.connection)
    told = SessionStarted(session_id=session.id, device_name=session.device_name or None, ip=session.ip)
    crowded_out = [end_session(old, "too_many_sessions", here) for old in facts.sessions]
    return Outcome(
        LoginSuccess.event,
        LoginSuccess(**tokens(session, facts, ctx)),
        Verdict.PASSED,
        writes=(StartSession(session, account, device), *(write for write, _ in crowded_out)),
        notices=(Notice(account.id, session.id, told, here), *(notice for _, notice in crowded_out)),
        identity=Identity(account.id, session.id),
        subject=account.id,
    )


def end_session(session: Session, reason: str, spare: tuple[str, str]) -> tuple[EndSession, Notice]:
    """Ending a session and telling everybody whom it concerns; its connections close."""
    told = SessionEnded(session_id=session.id, reason=reason)
    return EndSession(session, reason), Notice(session.user_id, session.id, told, spare, close=True)


def tokens(session: Session, facts: Facts, ctx: Context) -> dict[str, Any]:
    """The fields of messages.Tokens for a session as it is now."""
    now, lifetime = facts.now, rules.ACCESS_TOKEN_SECONDS
    logged_in = (session.created - facts.ahead) // 1000
    access_token = ctx.mint.access_token(session.user_id, session.id, session.amr, logged_in, facts.seconds, lifetime)
    return {
        "access_token": access_token,
        "token_type": "Bearer",
        "expires_in": lifetime,
        "refresh_token": ctx.mint.refresh_token(RefreshToken(session.id, session.counter)),
        "refresh_expires_in": (rules.session_ends(replace(session, seen=now)) - now) // 1000,
        "session_id": session.id,
        "user_id": session.user_id,
    }
