"""verify_device: the mailed code, or another device's approval, lets a login on a new device go on.

Refuses invalid_code (also without one before anybody approved), code_expired, challenge_expired (unknown, too old, of
another connection, five wrong codes, refused by its owner, another password since); error rate_limited.
"""

from __future__ import annotations

from dataclasses import replace

from app import rules
from app.handlers.common import Arrival, Context, go_on, of_now, rate_limited, refuse, waiting
from app.messages import Code, DeviceVerified, VerifyDevice
from app.records import (
    Attempt,
    Challenge,
    ChangeAccount,
    Device,
    EndChallenge,
    Facts,
    Needs,
    Outcome,
    Verdict,
    Write,
)
from app.tokens import new_id

REFUSED = "device_verification_failed"


def needs(request: VerifyDevice, ctx: Context) -> Needs:
    limits = rules.code_limits(ctx.settings.limits, request.challenge, ctx.origin.network)
    return Needs(challenge_id=request.challenge, devices=True, crowd=True, limits=limits)


def decide(request: VerifyDevice, facts: Facts, ctx: Context) -> Outcome:
    if limited := rate_limited(facts, "ip"):
        return limited
    challenge, account = waiting(facts, "device", ctx), facts.account
    if challenge is None or challenge.decided == "refused" or "tries" in facts.refused:
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED)
    if account is None or not of_now(challenge, account):
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED)
    if wrong := _wrong(request, challenge, facts, ctx):
        return replace(wrong, subject=account.id)
    writes: tuple[Write, ...] = (EndChallenge(challenge),)
    attempt = Attempt.read(account.attempt)
    if attempt is not None and attempt.challenge == challenge.id:
        writes = (*writes, ChangeAccount(account, replace(account, attempt="")))
    device, token = None, None
    if request.trust:  # trusted once the login is complete: a device has tries of its own at the second factor
        token = ctx.mint.new_device_token()
        device = Device(new_id(ctx.mint.kid), ctx.mint.device_mac(token), challenge.device_name, facts.now)
    arrival = Arrival(account, None, challenge.device_name, to_trust=device, noticed=False)
    outcome = go_on(arrival, facts, ctx).with_writes(*writes)
    return replace(outcome, progress=(DeviceVerified(device_token=token),))


def _wrong(request: VerifyDevice, challenge: Challenge, facts: Facts, ctx: Context) -> Outcome | None:
    if challenge.decided == "approved":
        too_late = facts.now >= challenge.expires - rules.LATE_MS  # which is kept to say that a code is too old
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED) if too_late else None
    if request.code is None:
        return refuse(REFUSED, Code.INVALID_CODE, field="code")
    if not ctx.mint.code_matches(challenge.code_mac, challenge.id, request.code):
        return refuse(REFUSED, Code.INVALID_CODE, Verdict.FAILED, field="code")
    return refuse(REFUSED, Code.CODE_EXPIRED, field="code") if facts.now >= challenge.code_expires else None
