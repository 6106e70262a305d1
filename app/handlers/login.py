"""login: address and password in; a session out, or what else has to be proved first.

Refuses invalid_credentials (unknown address, wrong password: the same in everything), too_many_attempts,
account_disabled (after the right password only); error rate_limited when the network has failed too often.
"""

from __future__ import annotations

import secrets
from dataclasses import replace

from app import rules
from app.handlers.common import Arrival, Context, go_on, known_device, mail, rate_limited, refuse, too_many
from app.messages import Code, Login, LoginAttempt, NewDeviceDetected
from app.records import (
    Account,
    Attempt,
    Challenge,
    ChangeAccount,
    Facts,
    Needs,
    Notice,
    Outcome,
    PutChallenge,
    UpgradePassword,
    Verdict,
)
from app.rules import DEVICE_LIMIT, UNKNOWN_DEVICE_LIMITS
from app.tokens import new_code, new_id

REFUSED = "login_failure"


def needs(request: Login, ctx: Context) -> Needs:
    mac = ctx.mint.device_mac(request.device_token) if request.device_token is not None else None
    limits = rules.login_limits(ctx.settings.limits, request.email, ctx.origin.network, mac)
    return Needs(email=request.email, devices=True, crowd=True, limits=limits)


def decide(request: Login, facts: Facts, ctx: Context) -> Outcome:
    device = known_device(request.device_token, facts, ctx)
    of_device, of_others = (DEVICE_LIMIT,), UNKNOWN_DEVICE_LIMITS
    counted, uncounted = (of_device, of_others) if device else (of_others, of_device)
    if limited := too_many(REFUSED, facts, *counted) or rate_limited(facts, "ip"):
        return limited
    account = facts.account
    record, user_id = (account.password, account.id) if account else (None, "")
    right = ctx.passwords.verify(record, user_id, request.password)
    if account is None or not right:
        refused = refuse(REFUSED, Code.INVALID_CREDENTIALS, Verdict.FAILED, subject=user_id)
        # an older record may cost less than the decoy, so it leaves on a grid
        return replace(refused, uncounted=uncounted, even=True)
    if account.status == "disabled":
        return refuse(REFUSED, Code.ACCOUNT_DISABLED, subject=account.id)
    if device is None and ctx.settings.device_verification:
        outcome = _new_device(request, account, facts, ctx)
    else:
        outcome = go_on(Arrival(account, device, request.device_name or ""), facts, ctx)
    outcome = replace(outcome, uncounted=uncounted)
    if not ctx.passwords.outdated(account.password):
        return outcome
    return outcome.with_writes(
        UpgradePassword(account.id, account.password, ctx.passwords.hash(account.id, request.password))
    )


def _new_device(request: Login, account: Account, facts: Facts, ctx: Context) -> Outcome:
    """A code is mailed, and a trusted device that is there is asked, one login at a time."""
    origin, name, code = ctx.origin, request.device_name or "", new_code()
    challenge = Challenge(
        id=new_id(ctx.mint.kid),
        kind="device",
        email=account.email,
        expires=facts.now + rules.CHALLENGE_MS,
        user_id=account.id,
        bound=origin.connection,
        device_name=name,
        version=account.version,
    )
    number = 10 + secrets.randbelow(90)
    detected = NewDeviceDetected(
        challenge=challenge.id,
        sent_to=rules.masked(account.email),
        match_number=number,
        expires_in=rules.CHALLENGE_MS // 1000,
    )
    mailed = replace(challenge, code_mac=ctx.mint.code_mac(challenge.id, code), code_expires=facts.now + rules.CODE_MS)
    outcome = Outcome(
        detected.event,
        detected,
        Verdict.PASSED,
        writes=(PutChallenge(challenge),),
        mails=(mail("new_device", account, facts, ctx, code=code, device=name),),
        if_mailed=(PutChallenge(mailed),),  # without its mail it has no code, and waits for an approval
        subject=account.id,
    )
    pending = Attempt.read(account.attempt)
    busy = pending is not None and facts.now < pending.expires and pending.connection != origin.connection
    if busy or not facts.devices or not origin.connection:
        return outcome
    attempt = Attempt(
        new_id(ctx.mint.kid), challenge.id, number, facts.now + rules.APPROVAL_MS, origin.node, origin.connection
    )
    asked = LoginAttempt(login_id=attempt.id, device_name=name or None, ip=origin.ip)
    trusted = tuple(device.ref for device in facts.devices)
    return replace(
        outcome.with_writes(ChangeAccount(account, replace(account, attempt=attempt.text))),
        notices=(Notice(account.id, "", asked, devices=trusted),),
    )
