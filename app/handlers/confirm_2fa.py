"""confirm_2fa: the first code of an enrolled second factor turns it on. The recovery codes are shown this once.

Refuses invalid_code, challenge_expired (nothing was enrolled within ten minutes), too_many_attempts; error
rate_limited.
"""

from __future__ import annotations

from dataclasses import replace

from app import totp
from app.handlers.common import Context, alert, mail, refuse
from app.handlers.proof import needs_proof, no_place, wrong_code
from app.messages import Code, Confirm2fa, SecondFactorEnabled
from app.records import ChangeAccount, Enrolling, Facts, Needs, Outcome, Verdict
from app.tokens import new_recovery_codes

REFUSED = "2fa_verification_failed"


def needs(request: Confirm2fa, ctx: Context) -> Needs:
    return needs_proof(ctx, password=False, factor=True)


def decide(request: Confirm2fa, facts: Facts, ctx: Context) -> Outcome:
    account = facts.account
    assert account is not None  # handlers.decide lets nothing else through
    if limited := no_place(REFUSED, facts):
        return limited
    enrolling = Enrolling.read(account.enrolling)
    if account.has2fa or enrolling is None or facts.now >= enrolling.expires:
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED, subject=account.id)
    step = totp.step_of(ctx.mint.open_seed(account.id, enrolling.seed), request.code, facts.seconds, 0)
    if step is None:
        return wrong_code(REFUSED, "code", account)
    codes = new_recovery_codes()
    macs = ctx.mint.recovery_macs(account.id, codes)
    enabled = replace(account, totp=enrolling.seed, totp_step=step, recovery=macs, enrolling="")
    return Outcome(
        SecondFactorEnabled.event,
        SecondFactorEnabled(recovery_codes=codes),
        Verdict.PASSED,
        writes=(ChangeAccount(account, enabled),),
        notices=(alert(account, "2fa_enabled", ctx),),
        mails=(mail("second_factor_changed", account, facts, ctx, change="enabled"),),
        subject=account.id,
    )
