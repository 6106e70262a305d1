"""login: address and password in, a session out.

Refuses invalid_credentials (unknown address, wrong password: the same in everything), too_many_attempts,
account_disabled (after the right password only); error rate_limited when the network has failed too often.
"""

from __future__ import annotations

from dataclasses import replace

from app.handlers.common import Context, known_device, rate_limited, refuse, start_session
from app.messages import Code, Login
from app.records import Facts, Needs, Outcome, UpgradePassword, Verdict
from app.rules import login_limits

REFUSED = "login_failure"


def needs(request: Login, ctx: Context) -> Needs:
    limits = login_limits(ctx.settings.limits, request.email, ctx.origin.network)
    return Needs(email=request.email, devices=True, crowd=True, limits=limits)


def decide(request: Login, facts: Facts, ctx: Context) -> Outcome:
    if "account" in facts.refused:
        return refuse(REFUSED, Code.TOO_MANY_ATTEMPTS, retry_after_ms=facts.refused["account"])
    if limited := rate_limited(facts, "ip"):
        return limited
    account = facts.account
    right = ctx.passwords.verify(account.password if account else None, account.id if account else "")
    if account is None or not right:
        refused = refuse(REFUSED, Code.INVALID_CREDENTIALS, Verdict.FAILED, subject=account.id if account else "")
        return replace(refused, even=True)  # an older record may cost less than the decoy
    if account.status == "disabled":
        return refuse(REFUSED, Code.ACCOUNT_DISABLED, subject=account.id)
    # Device verification, then the second factor, stand here: each may answer with a challenge instead.
    device = known_device(request.device_token, facts, ctx)
    outcome = start_session(account, device, request.device_name, ("pwd",), facts, ctx)
    if not ctx.passwords.outdated(account.password):
        return outcome
    upgrade = UpgradePassword(account.id, account.password, ctx.passwords.hash(account.id))
    return outcome.with_writes(upgrade)
