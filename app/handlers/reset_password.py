"""reset_password: the mailed link's code sets a new password and ends every session. It does not log in.

Refuses password_too_short, password_common, invalid_code (unknown, used, or a newer one was asked for;
or the account is disabled), code_expired;
error rate_limited.
"""

from __future__ import annotations

from dataclasses import replace

from app import rules
from app.handlers.common import Context, end_all_but, rate_limited, refuse
from app.messages import Code, PasswordReset, ResetPassword
from app.passwords import weakness
from app.records import ChangeAccount, EndChallenge, Facts, Mail, Needs, Outcome, Verdict

REFUSED = "password_reset_failed"


def needs(request: ResetPassword, ctx: Context) -> Needs:
    limits = rules.failures_of(ctx.settings.limits, ctx.origin.network)
    challenge, _, _ = request.code.partition(".")
    return Needs(email=request.email, challenge_id=challenge or None, sessions=True, limits=limits)


def decide(request: ResetPassword, facts: Facts, ctx: Context) -> Outcome:
    if limited := rate_limited(facts, "ip"):
        return limited
    settings = ctx.settings
    if weak := weakness(request.new_password, settings.min_password, request.email, settings.public_url):
        return refuse(REFUSED, weak, field="newPassword")
    account, challenge = facts.account, facts.challenge
    if challenge is None or challenge.kind != "reset" or facts.now >= challenge.expires:
        return refuse(REFUSED, Code.INVALID_CODE, Verdict.FAILED, field="code")
    matches = ctx.mint.code_matches(challenge.code_mac, challenge.id, request.code)
    if not matches or account is None or account.id != challenge.user_id or account.reset != challenge.id:
        return refuse(REFUSED, Code.INVALID_CODE, Verdict.FAILED, field="code")
    if account.status != "active":
        return refuse(REFUSED, Code.INVALID_CODE, Verdict.FAILED, field="code")
    if facts.now >= challenge.code_expires:
        return refuse(REFUSED, Code.CODE_EXPIRED, field="code", subject=account.id)
    record = ctx.passwords.hash(account.id, request.new_password)
    changed = replace(account, password=record, reset="", floor=account.version + 1)
    ended, notices = end_all_but("", "password_reset", account, facts)
    return Outcome(
        PasswordReset.event,
        PasswordReset(),
        Verdict.PASSED,
        writes=(ChangeAccount(account, changed), EndChallenge(challenge), *ended),
        notices=notices,
        mails=(Mail("password_changed", account.email, account.locale, ip=ctx.origin.ip, at=facts.now),),
        subject=account.id,
    )
