"""disable_2fa: password and a code of either kind turn the second factor off; its recovery codes are void.

Refuses invalid_credentials, invalid_code (also where there is no second factor), too_many_attempts; error rate_limited.
"""

from __future__ import annotations

from dataclasses import replace

from app.handlers.common import Context, alert, mail, use_factor
from app.handlers.proof import needs_proof, wrong_code, wrong_password
from app.messages import Disable2fa, SecondFactorDisabled
from app.records import ChangeAccount, Facts, Needs, Outcome, Verdict

REFUSED = "2fa_verification_failed"


def needs(request: Disable2fa, ctx: Context) -> Needs:
    return needs_proof(ctx, factor=True)


def decide(request: Disable2fa, facts: Facts, ctx: Context) -> Outcome:
    account = facts.account
    assert account is not None  # handlers.decide lets nothing else through
    if refused := wrong_password(REFUSED, request.password, "password", account, facts, ctx):
        return refused
    if use_factor(account, request.code, request.recovery_code, facts, ctx) is None:
        return wrong_code(REFUSED, "code" if request.recovery_code is None else "recoveryCode", account)
    return Outcome(
        SecondFactorDisabled.event,
        SecondFactorDisabled(),
        Verdict.PASSED,
        writes=(ChangeAccount(account, replace(account, totp="", totp_step=0, recovery="")),),
        notices=(alert(account, "2fa_disabled", ctx),),
        mails=(mail("second_factor_changed", account, facts, ctx, change="disabled"),),
        subject=account.id,
    )
