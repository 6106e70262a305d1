"""new_recovery_codes: ten new ones for password and a code of the second factor; the old ones are void.

Refuses invalid_credentials, invalid_code (also where there is no second factor), too_many_attempts; error rate_limited.
"""

from __future__ import annotations

from dataclasses import replace

from app.handlers.common import Context, alert, mail, use_factor
from app.handlers.proof import needs_proof, wrong_code, wrong_password
from app.messages import NewRecoveryCodes, RecoveryCodes
from app.records import ChangeAccount, Facts, Needs, Outcome, Verdict
from app.tokens import new_recovery_codes

REFUSED = "2fa_verification_failed"


def needs(request: NewRecoveryCodes, ctx: Context) -> Needs:
    return needs_proof(ctx, factor=True)


def decide(request: NewRecoveryCodes, facts: Facts, ctx: Context) -> Outcome:
    account = facts.account
    assert account is not None  # handlers.decide lets nothing else through
    if refused := wrong_password(REFUSED, request.password, "password", account, facts, ctx):
        return refused
    used = use_factor(account, request.code, None, facts, ctx)
    if used is None:
        return wrong_code(REFUSED, "code", account)
    codes = new_recovery_codes()
    return Outcome(
        RecoveryCodes.event,
        RecoveryCodes(recovery_codes=codes),
        Verdict.PASSED,
        writes=(ChangeAccount(account, replace(used, recovery=ctx.mint.recovery_macs(account.id, codes))),),
        notices=(alert(account, "recovery_codes", ctx),),
        mails=(mail("second_factor_changed", account, facts, ctx, change="recovery_codes"),),
        subject=account.id,
    )
