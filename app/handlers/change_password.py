"""change_password: the present password sets a new one; every other session ends.

Refuses password_too_short, password_common, invalid_credentials, too_many_attempts; error rate_limited.
"""

from __future__ import annotations

from dataclasses import replace

from app.handlers.common import Context, alert, end_all_but, mail, refuse
from app.handlers.proof import needs_proof, wrong_password
from app.messages import ChangePassword, PasswordChanged
from app.passwords import weakness
from app.records import ChangeAccount, Facts, Needs, Outcome, Verdict

REFUSED = "password_change_failed"


def needs(request: ChangePassword, ctx: Context) -> Needs:
    return replace(needs_proof(ctx), sessions=True)


def decide(request: ChangePassword, facts: Facts, ctx: Context) -> Outcome:
    account, settings = facts.account, ctx.settings
    assert account is not None  # handlers.decide lets nothing else through
    if weak := weakness(request.new_password, settings.min_password, account.email, settings.public_url):
        return refuse(REFUSED, weak, field="newPassword", subject=account.id)
    if refused := wrong_password(REFUSED, request.current_password, "currentPassword", account, facts, ctx):
        return refused
    record = ctx.passwords.hash(account.id, request.new_password)
    stays = facts.session.id if facts.session else ""
    ended, notices = end_all_but(stays, "password_changed", account, facts)
    return Outcome(
        PasswordChanged.event,
        PasswordChanged(),
        Verdict.PASSED,
        writes=(ChangeAccount(account, replace(account, password=record, reset="", floor=account.version + 1)), *ended),
        notices=(*notices, alert(account, "password_changed", ctx)),
        mails=(mail("password_changed", account, facts, ctx),),
        subject=account.id,
    )
