"""confirm_email: the mailed code makes the pending registration an account, with the password it was made with.

Refuses invalid_code, code_expired (ask for a new one), challenge_expired (unknown, too old, five wrong codes, or the
address was confirmed by another registration); error rate_limited when the network has failed too often.
"""

from __future__ import annotations

from app.handlers.common import Context, rate_limited, refuse, waiting
from app.messages import Code, ConfirmEmail, EmailConfirmed
from app.records import Account, CreateAccount, Device, Facts, Needs, Outcome, Verdict
from app.rules import code_limits
from app.tokens import new_id

REFUSED = "email_confirmation_failed"


def needs(request: ConfirmEmail, ctx: Context) -> Needs:
    limits = code_limits(ctx.settings.limits, request.challenge, ctx.origin.network)
    return Needs(challenge_id=request.challenge, limits=limits)


def decide(request: ConfirmEmail, facts: Facts, ctx: Context) -> Outcome:
    if limited := rate_limited(facts, "ip"):
        return limited
    challenge = waiting(facts, "registration", ctx)
    if challenge is None or "tries" in facts.refused:
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED)
    if not ctx.mint.code_matches(challenge.code_mac, challenge.id, request.code):
        return refuse(REFUSED, Code.INVALID_CODE, Verdict.FAILED, field="code")
    if facts.now >= challenge.code_expires:
        return refuse(REFUSED, Code.CODE_EXPIRED, field="code")
    if facts.account is not None:
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED)
    account = Account(
        id=challenge.user_id,
        email=challenge.email,
        password=challenge.password,
        version=1,
        created=facts.now,
        locale=challenge.locale,
        terms=challenge.terms,
    )
    token = ctx.mint.new_device_token()
    device = Device(ref=new_id(ctx.mint.kid), mac=ctx.mint.device_mac(token), name="", seen=facts.now)
    return Outcome(
        EmailConfirmed.event,
        EmailConfirmed(device_token=token),
        Verdict.PASSED,
        writes=(CreateAccount(account, challenge, device),),
        subject=account.id,
    )
