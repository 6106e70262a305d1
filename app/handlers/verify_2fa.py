"""verify_2fa: a code of the second factor, or a recovery code, completes a login. Each works once.

Refuses invalid_code, challenge_expired (unknown, too old, of another connection, five wrong codes; turned off
or another password since), too_many_attempts (of the account, whichever challenge was tried); error rate_limited.
"""

from __future__ import annotations

from dataclasses import replace

from app import rules
from app.handlers.common import (
    Arrival,
    Context,
    of_now,
    rate_limited,
    refuse,
    start_session,
    too_many,
    use_factor,
    waiting,
)
from app.messages import Code, SecondFactorVerified, Verify2fa
from app.records import ChangeAccount, Device, EndChallenge, Facts, Needs, Outcome, Verdict

REFUSED = "2fa_verification_failed"


def needs(request: Verify2fa, ctx: Context) -> Needs:
    settings, network = ctx.settings.limits, ctx.origin.network
    tries, *_ = rules.code_limits(settings, request.challenge, network)
    subject = ctx.mint.challenge_subject(request.challenge)
    if subject is None:
        return Needs(limits=rules.failures_of(settings, network))
    limits = (tries, *rules.factor_limits(settings, subject, network))
    return Needs(challenge_id=request.challenge, devices=True, crowd=True, limits=limits)


def decide(request: Verify2fa, facts: Facts, ctx: Context) -> Outcome:
    if limited := too_many(REFUSED, facts, "factor") or rate_limited(facts, "ip"):
        return limited
    challenge, account = waiting(facts, "second_factor", ctx), facts.account
    if challenge is None or "tries" in facts.refused:
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED)
    if account is None or not of_now(challenge, account) or not account.has2fa:
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED)
    used = use_factor(account, request.code, request.recovery_code, facts, ctx)
    if used is None:
        field = "code" if request.recovery_code is None else "recoveryCode"
        return refuse(REFUSED, Code.INVALID_CODE, Verdict.FAILED, field=field, subject=account.id)
    device = next((device for device in facts.devices if device.ref == challenge.device_ref), None)
    new = None
    if challenge.device_mac:
        new = Device(challenge.device_ref, challenge.device_mac, challenge.device_name, facts.now)
    factor = ("otp",) if request.recovery_code is None else ()
    amr = ("pwd", *factor, "mfa")
    arrival = Arrival(account, device, challenge.device_name, new, amr, challenge.noticed)
    outcome = start_session(arrival, facts, ctx)
    outcome = outcome.with_writes(EndChallenge(challenge), ChangeAccount(account, used))
    return replace(outcome, progress=(SecondFactorVerified(),))
