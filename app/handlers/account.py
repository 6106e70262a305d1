"""account: what the service knows of the account the connection is authenticated as. Never a secret."""

from __future__ import annotations

from app.handlers.common import Context
from app.messages import Account, AccountData, DeviceItem
from app.records import Facts, Needs, Outcome, Verdict
from app.rules import iso


def needs(request: Account, ctx: Context) -> Needs:
    return Needs(session_id=ctx.origin.identity.session_id if ctx.origin.identity else None, devices=True)


def decide(request: Account, facts: Facts, ctx: Context) -> Outcome:
    account = facts.account
    assert account is not None  # handlers.decide lets nothing else through
    devices = sorted(facts.devices, key=lambda device: (-device.seen, device.ref))
    data = AccountData(
        user_id=account.id,
        email=account.email,
        has2fa=account.has2fa,
        recovery_codes_left=len(account.recovery.split()),
        devices=tuple(DeviceItem(d.ref, d.name or None, iso(d.seen)) for d in devices),
        created_at=iso(account.created),
    )
    return Outcome(AccountData.event, data, Verdict.PASSED, subject=account.id)
