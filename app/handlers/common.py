"""What several handlers share: their context, refusals, and the steps of a login."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from app import rules, totp
from app.messages import Code, LoginSuccess, SecondFactorRequired, SecurityAlert, SessionEnded, SessionStarted, refusal
from app.passwords import PasswordCheck
from app.records import (
    Account,
    Attempt,
    BindChallenge,
    Challenge,
    ChangeAccount,
    ConfirmSession,
    Device,
    EndOthers,
    EndSession,
    Facts,
    ForgetDevice,
    Identity,
    Mail,
    MailKind,
    Notice,
    Origin,
    Outcome,
    PutChallenge,
    Session,
    StartSession,
    TrustDevice,
    Verdict,
    Write,
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


def too_many(event: str, facts: Facts, *names: str) -> Outcome | None:
    """The refusal `too_many_attempts` when one of these limits has no place."""
    waits = [facts.refused[name] for name in names if name in facts.refused]
    return refuse(event, Code.TOO_MANY_ATTEMPTS, retry_after_ms=max(waits)) if waits else None


def known_device(token: str | None, facts: Facts, ctx: Context) -> Device | None:
    """The account's trusted device that holds this token."""
    if token is None:
        return None
    mac = ctx.mint.device_mac(token)
    return next((device for device in facts.devices if device.mac == mac), None)


def waiting(facts: Facts, kind: str, ctx: Context) -> Challenge | None:
    """The challenge, where it is of this kind, in time, and this connection may answer it."""
    challenge = facts.challenge
    if challenge is None or challenge.kind != kind or facts.now >= challenge.expires:
        return None
    return challenge if challenge.may_be_answered_by(ctx.origin.connection) else None


def of_now(challenge: Challenge, account: Account | None) -> bool:
    """Whether a login that began with this challenge may go on: its account is there, and its password still the one
    that was right.
    """
    if account is None or account.id != challenge.user_id or account.status != "active":
        return False
    return challenge.version >= account.floor


def mail(kind: MailKind, account: Account, facts: Facts, ctx: Context, **more: Any) -> Mail:
    """A mail to an account about what this request does, which is told how that goes."""
    origin = ctx.origin
    tell = (origin.node, origin.connection) if origin.connection else None
    return Mail(kind, account.email, account.locale, ip=origin.ip, at=facts.now, tell=tell, **more)


def alert(account: Account, kind: str, ctx: Context) -> Notice:
    """Tells the account's other connections that something happened that its owner should know of."""
    return Notice(account.id, "", SecurityAlert(kind=kind), (ctx.origin.node, ctx.origin.connection))


# --- the steps of a login ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrival:
    """A login so far: from which device, by what proofs (`amr`, RFC 8176)."""

    account: Account
    device: Device | None  # a trusted one
    device_name: str
    to_trust: Device | None = None  # another, from when the login is complete
    amr: tuple[str, ...] = ("pwd",)
    noticed: bool = True  # its owner need not be mailed that somebody came from a new device


def go_on(arrival: Arrival, facts: Facts, ctx: Context) -> Outcome:
    """What comes after the device: the second factor, or the session."""
    if not arrival.account.has2fa:
        return start_session(arrival, facts, ctx)
    account, new = arrival.account, arrival.to_trust
    device_ref = arrival.device.ref if arrival.device else ""
    challenge = Challenge(
        id=ctx.mint.challenge_id(rules.factor_subject(account.id, device_ref)),
        kind="second_factor",
        email=account.email,
        expires=facts.now + rules.CHALLENGE_MS,
        user_id=account.id,
        bound=ctx.origin.connection,
        device_ref=new.ref if new else device_ref,
        device_mac=new.mac if new else "",
        device_name=arrival.device_name,
        noticed=arrival.noticed,
        version=account.version,
    )
    methods = ("totp", "recovery_code") if account.recovery else ("totp",)
    asked = SecondFactorRequired(challenge=challenge.id, methods=methods, expires_in=rules.CHALLENGE_MS // 1000)
    return Outcome(asked.event, asked, Verdict.PASSED, writes=(PutChallenge(challenge),), subject=account.id)


def start_session(arrival: Arrival, facts: Facts, ctx: Context) -> Outcome:
    """The last step of every login: a new session, its tokens, and the account's other connections told of it."""
    account, device = arrival.account, arrival.device or arrival.to_trust
    session = Session(
        id=new_id(ctx.mint.kid),
        user_id=account.id,
        counter=0,
        rotated=facts.now,
        created=facts.now,
        seen=facts.now,
        ip=ctx.origin.ip,
        amr=arrival.amr,
        device_ref=device.ref if device else "",
        device_name=arrival.device_name or (device.name if device else ""),
    )
    here = (ctx.origin.node, ctx.origin.connection)
    told = SessionStarted(session_id=session.id, device_name=session.device_name or None, ip=session.ip)
    crowded_out = end_sessions(facts.sessions, "too_many_sessions", here, rules.CROWDED_OUT_KEPT_MS)
    notice = mail("login_notice", account, facts, ctx, device=session.device_name)
    return Outcome(
        LoginSuccess.event,
        LoginSuccess(**tokens(session, facts, ctx)),
        Verdict.PASSED,
        writes=(*_trusted_now(arrival, facts), StartSession(session, account, device), *crowded_out[0]),
        notices=(Notice(account.id, session.id, told, here), *crowded_out[1]),
        mails=() if arrival.noticed else (notice,),
        identity=identity_of(session, facts.now),
        subject=account.id,
    )


def _trusted_now(arrival: Arrival, facts: Facts) -> tuple[Write, ...]:
    """The device that is trusted from here on; the longest unseen one makes room for it."""
    if arrival.to_trust is None:
        return ()
    by_age = sorted(facts.devices, key=lambda device: device.seen)
    too_many = by_age[: max(0, len(by_age) + 1 - rules.DEVICES_PER_ACCOUNT)]
    account = arrival.account
    return (TrustDevice(account, arrival.to_trust), *(ForgetDevice(account, device.ref) for device in too_many))


def identity_of(session: Session, now: int) -> Identity:
    """What a connection is authenticated as, once its session is seen now."""
    return Identity(session.user_id, session.id, session.device_ref, rules.session_ends(replace(session, seen=now)))


def end_session(
    session: Session, reason: str, spare: tuple[str, str], kept_ms: int | None = None
) -> tuple[EndSession, Notice]:
    """Ending a session and telling everybody whom it concerns; its connections close."""
    told = SessionEnded(session_id=session.id, reason=reason)
    return EndSession(session, reason, kept_ms), Notice(session.user_id, session.id, told, spare, close=True)


def end_sessions(
    sessions: Iterable[Session], reason: str, spare: tuple[str, str], kept_ms: int | None = None
) -> tuple[tuple[EndSession, ...], tuple[Notice, ...]]:
    ended = [end_session(session, reason, spare, kept_ms) for session in sessions]
    return tuple(write for write, _ in ended), tuple(notice for _, notice in ended)


def end_all_but(
    stays: str, reason: str, account: Account, facts: Facts
) -> tuple[tuple[Write, ...], tuple[Notice, ...]]:
    """Every session of the account but one; also such as start while this is being decided."""
    ended, notices = end_sessions(others(facts), reason, ("", ""))
    told = SessionEnded(session_id=stays, reason=reason)
    whoever_is_there = Notice(account.id, stays, told, ends_others=reason)
    return (*ended, EndOthers(account.id, stays, reason)), (*notices, whoever_is_there)


def others(facts: Facts) -> list[Session]:
    """The account's living sessions but for the one that asks."""
    living = (session for session in facts.sessions if rules.session_life(session, facts.now) is rules.Life.ACTIVE)
    return [session for session in living if facts.session is None or session.id != facts.session.id]


def resumed(facts: Facts, origin: Origin) -> tuple[Write, ...]:
    """What it takes to give a recorded answer again: its session lives, and its challenge may be answered from here."""
    if (session := facts.session) is not None:
        return (ConfirmSession(session, session.seen),)
    challenge, here = facts.challenge, origin.connection
    if challenge is None or not here or challenge.may_be_answered_by(here):
        return ()
    bound: tuple[Write, ...] = (BindChallenge(challenge, here),)
    account = facts.account
    attempt = Attempt.read(account.attempt) if account else None
    if account is None or attempt is None or attempt.challenge != challenge.id:
        return bound
    moved = replace(attempt, node=origin.node, connection=here)
    return (*bound, ChangeAccount(account, replace(account, attempt=moved.text)))


# --- the second factor ---------------------------------------------------------------------------------------------


def use_factor(
    account: Account, code: str | None, recovery_code: str | None, facts: Facts, ctx: Context
) -> Account | None:
    """The account once this code has been used up; None when it is none of its own, or was used before."""
    if not account.has2fa:
        return None
    if recovery_code is not None:
        left = ctx.mint.without_recovery_code(account.id, account.recovery, recovery_code)
        return None if left is None else replace(account, recovery=left)
    seed = ctx.mint.open_seed(account.id, account.totp)
    step = totp.step_of(seed, code or "", facts.seconds, account.totp_step)
    return None if step is None else replace(account, totp_step=step)


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
