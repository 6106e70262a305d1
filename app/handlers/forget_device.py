"""forget_device: a device is trusted no longer. Its sessions live on. Refuses not_found."""

from __future__ import annotations

from app.handlers.common import Context, refuse
from app.messages import Code, DeviceForgotten, ForgetDevice
from app.records import Facts, Needs, Outcome, Verdict
from app.records import ForgetDevice as Forget

REFUSED = "device_not_found"


def needs(request: ForgetDevice, ctx: Context) -> Needs:
    return Needs(session_id=ctx.origin.identity.session_id if ctx.origin.identity else None, devices=True)


def decide(request: ForgetDevice, facts: Facts, ctx: Context) -> Outcome:
    account = facts.account
    assert account is not None  # handlers.decide lets nothing else through
    if request.device_ref not in (device.ref for device in facts.devices):
        return refuse(REFUSED, Code.NOT_FOUND, field="deviceRef", subject=account.id)
    writes = (Forget(account, request.device_ref),)
    return Outcome(DeviceForgotten.event, DeviceForgotten(), Verdict.PASSED, writes=writes, subject=account.id)
