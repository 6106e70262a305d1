"""resend_confirmation: a new code for a pending registration. Always answered the same, whatever was found."""

from __future__ import annotations

from dataclasses import replace

from app.handlers.common import Context
from app.messages import ConfirmationSent, ResendConfirmation
from app.records import Facts, Mail, Needs, Outcome, RenewCode
from app.rules import CODE_MS, made_up
from app.tokens import new_code


def needs(request: ResendConfirmation, ctx: Context) -> Needs:
    return Needs(challenge_id=request.challenge)


def decide(request: ResendConfirmation, facts: Facts, ctx: Context) -> Outcome:
    challenge, code = facts.challenge, new_code()
    sent = Outcome(ConfirmationSent.event, ConfirmationSent())
    if challenge is None or challenge.kind != "registration" or facts.now >= challenge.expires:
        return replace(sent, mails=(Mail("decoy", made_up(request.challenge)),))
    if not challenge.code_mac:  # one too many for its address
        return replace(sent, mails=(Mail("decoy", made_up(request.challenge)),))
    renewed = replace(challenge, code_mac=ctx.mint.code_mac(challenge.id, code), code_expires=facts.now + CODE_MS)
    if facts.account is None:
        mail = Mail("confirmation", challenge.email, challenge.locale, code)
    else:
        mail = Mail("already_registered", challenge.email, facts.account.locale)
    return replace(sent, mails=(mail,), if_mailed=(RenewCode(renewed),))
