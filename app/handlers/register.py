"""register: a pending registration, and a code mailed to who claims the address.

Nothing but the mail tells whether the address is taken. Refuses password_too_short, password_common; address_taken
only where FIN_EMAIL_CONFIRMATION is off; error rate_limited when the network has started too many.
"""

from __future__ import annotations

from dataclasses import replace

from app import rules
from app.handlers.common import Context, rate_limited, refuse
from app.messages import Code, Register, RegisterAccepted
from app.passwords import weakness
from app.records import Account, Challenge, CreateAccount, Device, Facts, Mail, Needs, Outcome, PutChallenge, Verdict
from app.tokens import new_code, new_id

REFUSED = "register_failed"


def needs(request: Register, ctx: Context) -> Needs:
    limits = rules.registration_limits(ctx.settings.limits, request.email, ctx.origin.network)
    return Needs(email=request.email, limits=limits)


def decide(request: Register, facts: Facts, ctx: Context) -> Outcome:
    if limited := rate_limited(facts, "registrations"):
        return limited
    settings = ctx.settings
    if weak := weakness(request.password, settings.min_password, request.email, settings.public_url):
        return refuse(REFUSED, weak, field="password")
    user_id = new_id(ctx.mint.kid)
    record = ctx.passwords.hash(user_id, request.password)
    if not settings.email_confirmation:
        return _at_once(request, user_id, record, facts, ctx)
    code, id = new_code(), new_id(ctx.mint.kid)
    challenge = Challenge(
        id=id,
        kind="registration",
        email=request.email,
        expires=facts.now + rules.REGISTRATION_MS,
        code_mac=ctx.mint.code_mac(id, code),
        code_expires=facts.now + rules.CODE_MS,
        user_id=user_id,
        password=record,
        locale=request.locale or "",
        terms=request.terms or "",
    )
    accepted = RegisterAccepted(next="confirm_email", challenge=id, expires_in=rules.REGISTRATION_MS // 1000)
    if "pending" in facts.refused:  # five are pending: no code fits this one, which does not show, taken address or not
        challenge = replace(challenge, code_mac="", user_id="", password="")
        mail = Mail("decoy", request.email)
    elif facts.account is None:
        mail = Mail("confirmation", request.email, challenge.locale, code)
    else:  # the challenge is kept all the same, and its code told to nobody: it fails like any wrong guess
        mail = Mail("already_registered", request.email, facts.account.locale)
    return Outcome(RegisterAccepted.event, accepted, Verdict.PASSED, writes=(PutChallenge(challenge),), mails=(mail,))


def _at_once(request: Register, user_id: str, record: str, facts: Facts, ctx: Context) -> Outcome:
    if facts.account is not None:
        # it counts as one that was started, or a network could look up as many addresses as it likes
        taken = refuse(REFUSED, Code.ADDRESS_TAKEN, Verdict.PASSED, field="email")
        return replace(taken, uncounted=("pending",))
    account = Account(
        id=user_id,
        email=request.email,
        password=record,
        version=1,
        created=facts.now,
        locale=request.locale or "",
        terms=request.terms or "",
    )
    token = ctx.mint.new_device_token()
    device = Device(ref=new_id(ctx.mint.kid), mac=ctx.mint.device_mac(token), name="", seen=facts.now)
    return Outcome(
        RegisterAccepted.event,
        RegisterAccepted(next="login", device_token=token),
        Verdict.PASSED,
        writes=(CreateAccount(account, None, device),),
        subject=user_id,
    )
