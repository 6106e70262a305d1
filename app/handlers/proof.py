"""Proving again who one is, within a session: what changes the account asks for it. Failures of the
password count together, and those of the second factor by themselves.
"""

from __future__ import annotations

from dataclasses import replace

from app import rules
from app.handlers.common import Context, rate_limited, refuse, too_many
from app.messages import Code
from app.records import Account, Facts, Needs, Outcome, Verdict


def needs_proof(ctx: Context, *, password: bool = True, factor: bool = False) -> Needs:
    """A place for each that is to be proved."""
    identity = ctx.origin.identity
    if identity is None:
        return Needs()
    about = (ctx.settings.limits, identity.user_id, ctx.origin.network)
    of_password = rules.proof_limits(*about) if password else ()
    of_factor = rules.factor_limits(*about) if factor else ()
    return Needs(session_id=identity.session_id, limits=tuple(dict.fromkeys((*of_password, *of_factor))))


def no_place(event: str, facts: Facts) -> Outcome | None:
    return too_many(event, facts, "proof", "factor") or rate_limited(facts, "ip")


def wrong_password(
    event: str, password: str, field: str, account: Account, facts: Facts, ctx: Context
) -> Outcome | None:
    """Exactly one evaluation, unless there is no place for it."""
    if limited := no_place(event, facts):
        return limited
    if ctx.passwords.verify(account.password, account.id, password):
        return None
    refused = refuse(event, Code.INVALID_CREDENTIALS, Verdict.FAILED, field=field, subject=account.id)
    return replace(refused, uncounted=("factor",))


def wrong_code(event: str, field: str, account: Account) -> Outcome:
    """The password, where it was asked for too, was right."""
    refused = refuse(event, Code.INVALID_CODE, Verdict.FAILED, field=field, subject=account.id)
    return replace(refused, uncounted=("proof",))
