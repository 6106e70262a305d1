"""enroll_2fa: the seed of a second factor, shown once; it counts from its first code on (confirm_2fa).

Refuses invalid_credentials, too_many_attempts, challenge_expired (there is a second factor: disable it first); error
rate_limited.
"""

from __future__ import annotations

import io
from dataclasses import replace
from urllib.parse import urlsplit

import segno

from app import rules, totp
from app.handlers.common import Context, refuse
from app.handlers.proof import needs_proof, wrong_password
from app.messages import Code, Enroll2fa, Enrollment
from app.records import ChangeAccount, Enrolling, Facts, Needs, Outcome, Verdict

REFUSED = "2fa_enrollment_failed"


def needs(request: Enroll2fa, ctx: Context) -> Needs:
    return needs_proof(ctx)


def decide(request: Enroll2fa, facts: Facts, ctx: Context) -> Outcome:
    account = facts.account
    assert account is not None  # handlers.decide lets nothing else through
    if refused := wrong_password(REFUSED, request.password, "password", account, facts, ctx):
        return refused
    if account.has2fa:
        return refuse(REFUSED, Code.CHALLENGE_EXPIRED, subject=account.id)
    seed = totp.new_seed()
    enrolling = Enrolling(facts.now + rules.CHALLENGE_MS, ctx.mint.seal_seed(account.id, seed))
    url = totp.otpauth_url(seed, urlsplit(ctx.settings.public_url).hostname or "finthenticate", account.email)
    return Outcome(
        Enrollment.event,
        Enrollment(secret=totp.base32(seed), otpauth_url=url, qr_svg=_svg(url)),
        Verdict.PASSED,
        writes=(ChangeAccount(account, replace(account, enrolling=enrolling.text)),),
        subject=account.id,
    )


def _svg(url: str) -> str:
    found = io.BytesIO()
    segno.make(url, error="m", micro=False).save(
        found, kind="svg", scale=4, border=2, xmldecl=False, nl=False, light="#fff"
    )
    return found.getvalue().decode()
