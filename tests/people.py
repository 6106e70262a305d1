"""What people do on the pages, for browser tests and the pictures: sit at a known device, sign in, go all the way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from tests.accounts import Authenticator
from tests.browser import Browser, Person
from tests.deployment import PASSWORD, Account, Deployment, new_address

NEW_PASSWORD = "seven brown owls in a boat"
PHONE = (390, 880)
Look = Callable[[Person, str], Awaitable[None]]


async def look(person: Person, view: str) -> None:
    """No serious violation on any page, and nothing that sticks out at its side."""
    assert await person.serious_violations() == [], view
    assert await person.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, view


async def known(person: Person, deployment: Deployment, address: str | None = None) -> Account:
    """An account made over the wire, on whose trusted device this person sits."""
    async with deployment.client() as client:
        account = await deployment.sign_up(client, address)
    await trusts(person, account)
    return account


async def trusts(person: Person, account: Account) -> None:
    """The account's device token is this browser's."""
    script = (
        """([email, token]) => import("/web/client.js").then(({keepDeviceToken}) => keepDeviceToken(email, token))"""
    )
    await person.page.evaluate(script, [account.email, account.device_token])


async def signed_in(
    browser: Browser, deployment: Deployment, address: str | None = None, **how: Any
) -> tuple[Person, Account]:
    person = await browser.person(deployment.url(0, "http", ""), **how)
    account = await known(person, deployment, address)
    await person.signs_in(account.email, account.password)
    await person.is_at("accountTitle")
    return person, account


async def reset_link(deployment: Deployment, address: str) -> str:
    """The mailed link without its host, when it is there."""
    while True:
        for text in deployment.mails(address):
            if found := re.search(r"/reset#\S+", text):
                return found[0]
        await asyncio.sleep(0.02)


async def journey(browser: Browser, deployment: Deployment, look: Look, **how: Any) -> None:
    """Sign up, confirm, a second device by code and a third by approval, two steps, sessions, reset."""
    base, address = deployment.url(0, "http", ""), new_address()

    ana = await browser.person(base, **how)
    await look(ana, "signin")
    await ana.follows("signupLink")
    await ana.types(email=address, newPasswordLabel="correct horse")
    await ana.presses("signupButton")
    await ana.sees("code_password_too_short", least=15)
    await look(ana, "signup")
    await ana.types(newPasswordLabel=PASSWORD)
    await ana.presses("signupButton")
    await ana.is_at("confirmTitle")
    await look(ana, "confirm")
    code = await deployment.mailed_code(address)
    await ana.types(codeLabel=f"{(int(code) + 1) % 10**8:08}")
    await ana.presses("confirmButton")
    await ana.sees("code_invalid_code")
    await ana.types(codeLabel=code)
    await ana.presses("confirmButton")
    await ana.is_at("accountTitle")
    await ana.sees("thisDevice")
    await look(ana, "account")

    desk = await browser.person(base, **how)
    await desk.signs_in(address, "not the password")
    await desk.sees("code_invalid_credentials")
    await look(desk, "refused")
    await desk.signs_in(address, PASSWORD)
    await desk.is_at("deviceTitle")
    await ana.sees("attemptTitle")
    await look(desk, "device")
    await desk.types(codeLabel=await deployment.mailed_code(address, 2))
    await desk.presses("continue")
    await desk.is_at("accountTitle")

    phone = await browser.person(base, **how)
    await phone.signs_in(address, PASSWORD)
    await phone.is_at("deviceTitle")
    number = await phone.page.locator("[data-number]").inner_text()
    await ana.sees("attemptTitle")
    await ana.types(attemptLabel=f"{10 + (int(number) - 9) % 90}")
    await ana.presses("approve")
    await ana.sees("attemptWrong")
    await look(ana, "attempt")
    await ana.types(attemptLabel=number)
    await ana.presses("approve")
    await phone.is_at("accountTitle")
    await ana.sees("attemptApproved")

    await ana.presses("secondTurnOn")
    await ana.types(yourPassword=PASSWORD)
    await look(ana, "enroll")
    await ana.presses("continue")
    app = Authenticator((await ana.page.locator("[data-secret]").inner_text()).replace(" ", ""))
    assert (
        await ana.page.locator("img[data-qr]").evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    )
    await look(ana, "qr")
    await ana.types(appCodeLabel=await app.code())
    await ana.presses("secondConfirm")
    await ana.sees("codesTitle")
    recovery = await ana.page.locator("[data-codes] li").all_inner_texts()
    assert len(recovery) == 10
    await look(ana, "codes")
    await ana.presses("codesKept")
    await ana.sees("codesLeft", count=10)

    await phone.presses("signOut")
    await phone.signs_in(address, PASSWORD)
    await phone.is_at("secondTitle")
    await look(phone, "second")
    await phone.types(appCodeLabel=await app.code())
    await phone.presses("continue")
    await phone.is_at("accountTitle")

    await desk.presses("signOut")
    await desk.signs_in(address, PASSWORD)
    await desk.is_at("secondTitle")
    await desk.presses("useRecovery")
    await look(desk, "recovery")
    await desk.types(recoveryLabel=recovery[0])
    await desk.presses("continue")
    await desk.is_at("accountTitle")
    await desk.sees("codesLeft", count=9)

    others = ana.page.locator("[data-sessions] li").filter(has=ana.page.get_by_role("button"))
    await others.nth(1).wait_for()
    await look(ana, "sessions")
    await ana.presses("revokeOthers")
    for gone in (phone, desk):
        await gone.sees("ended_revoked", within=1000)
    await look(desk, "ended")

    await desk.follows("forgotLink")
    await look(desk, "forgot")
    await desk.types(email=address)
    await desk.presses("forgotButton")
    await desk.is_at("forgotDoneTitle")
    await look(desk, "told")
    await desk.goes_to(await asyncio.wait_for(reset_link(deployment, address), 10))
    await desk.is_at("resetTitle")
    assert desk.page.url == f"{base}/reset"
    await desk.types(newPasswordLabel=NEW_PASSWORD)
    await look(desk, "reset")
    await desk.presses("resetButton")
    await desk.is_at("resetDoneTitle")
    await ana.sees("ended_password_reset")
    await desk.follows("signinButton")
    await desk.signs_in(address, NEW_PASSWORD)
    await desk.is_at("secondTitle")
    await desk.types(appCodeLabel=await app.code())
    await desk.presses("continue")
    await desk.is_at("accountTitle")
