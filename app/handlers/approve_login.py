"""approve_login: a session on a trusted device lets a login on a new device in, or refuses it.

Refuses not_found (no such attempt, decided or too old, or this session is not on a trusted device) and invalid_code
(not the number that the new device shows; at the third time the attempt is over).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from app.handlers.common import Context, alert, refuse
from app.messages import ApproveLogin, Code, LoginDecided
from app.records import Account, Attempt, ChangeAccount, DecideLogin, Facts, Needs, Notice, Outcome, Verdict
from app.rules import approval_limits

REFUSED = "approval_failed"


def needs(request: ApproveLogin, ctx: Context) -> Needs:
    own = ctx.origin.identity.session_id if ctx.origin.identity else None
    return Needs(session_id=own, devices=True, limits=approval_limits(request.login_id))


def decide(request: ApproveLogin, facts: Facts, ctx: Context) -> Outcome:
    account, session = facts.account, facts.session
    assert account is not None and session is not None  # handlers.decide lets nothing else through
    attempt = Attempt.read(account.attempt)
    trusted = session.device_ref in (device.ref for device in facts.devices)
    if attempt is None or attempt.id != request.login_id or facts.now >= attempt.expires or not trusted:
        return refuse(REFUSED, Code.NOT_FOUND, field="loginId", subject=account.id)
    if request.approve and "approval" in facts.refused:  # who refuses it never comes too late
        return refuse(REFUSED, Code.NOT_FOUND, field="loginId", subject=account.id)
    if request.approve and request.match_number != attempt.number:
        return refuse(REFUSED, Code.INVALID_CODE, Verdict.FAILED, field="matchNumber", subject=account.id)
    decided = _decided(account, attempt, "approved" if request.approve else "refused")
    return (
        decided
        if request.approve
        else replace(decided, notices=(*decided.notices, alert(account, "login_refused", ctx)))
    )


def _decided(account: Account, attempt: Attempt, decided: Literal["approved", "refused"]) -> Outcome:
    told = LoginDecided(approved=decided == "approved")
    return Outcome(
        told.event,
        told,
        Verdict.PASSED,
        writes=(
            ChangeAccount(account, replace(account, attempt="")),
            DecideLogin(attempt.challenge, account.id, decided),
        ),
        notices=(Notice(account.id, "", told, only=(attempt.node, attempt.connection)),),
        subject=account.id,
    )
