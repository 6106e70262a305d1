"""Proving again who one is, within a session: what changes the account asks for it. Failures count together."""

from __future__ import annotations

from app import rules
from app.handlers.common import Context, rate_limited, refuse, too_many
from app.messages import Code
from app.records import Account, Facts, Needs, Outcome, Verdict


def needs_proof(ctx: Context) -> Needs:
    identity = ctx.origin.identity
    if identity is None:
        return Needs()
    limits = rules.proof_limits(ctx.settings.limits, identity.user_id, ctx.origin.network)
    return Needs(session_id=identity.session_id, limits=limits)


def no_place(event: str, facts: Facts) -> Outcome | None:
    return too_many(event, facts, "proof") or rate_limited(facts, "ip")


def wrong_password(
    event: str, password: str, field: str, account: Account, facts: Facts, ctx: Context
) -> Outcome | None:
    """Exactly one evaluation, unless there is no place for it."""
    if limited := no_place(event, facts):
        return limited
    if ctx.passwords.verify(account.password, account.id, password):
        return None
    return refuse(event, Code.INVALID_CREDENTIALS, Verdict.FAILED, field=field, subject=account.id)


def wrong_code(event: str, field: str, account: Account) -> Outcome:
    return refuse(event, Code.INVALID_CODE, Verdict.FAILED, field=field, subject=account.id)
