"""request_password_reset: a link is mailed to the account's address. Always answered the same, whatever was found."""

from __future__ import annotations

from app import rules
from app.handlers.common import Context
from app.messages import PasswordResetRequested, RequestPasswordReset
from app.records import Challenge, Facts, Mail, Needs, NewestReset, Outcome, PutChallenge, Write
from app.tokens import new_id, new_secret


def needs(request: RequestPasswordReset, ctx: Context) -> Needs:
    return Needs(email=request.email)


def decide(request: RequestPasswordReset, facts: Facts, ctx: Context) -> Outcome:
    account = facts.account if facts.account is not None and facts.account.status == "active" else None
    id = new_id(ctx.mint.kid)
    code = f"{id}.{new_secret()}"
    challenge = Challenge(
        id=id,
        kind="reset",
        email=request.email,
        expires=facts.now + rules.RESET_KEPT_MS,
        code_mac=ctx.mint.code_mac(id, code) if account else "",
        code_expires=facts.now + rules.RESET_MS,
        user_id=account.id if account else "",
    )
    writes: tuple[Write, ...] = (PutChallenge(challenge),)  # a decoy like the mail, where there is no account
    mail = Mail("decoy", request.email)
    if account is not None:
        writes = (*writes, NewestReset(account.id, id))
        mail = Mail("reset", account.email, account.locale, code, ip=ctx.origin.ip, at=facts.now)
    return Outcome(
        PasswordResetRequested.event,
        PasswordResetRequested(),
        mails=(mail,),
        if_mailed=writes,
        subject=account.id if account else "",
    )
