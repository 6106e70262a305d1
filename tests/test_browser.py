"""What people do on the pages, in Chromium, against real processes. No walk may end with a complaint in the console."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Route
from redis import Redis

from app.client import connect
from app.messages import Lane
from tests.accounts import Authenticator
from tests.browser import Browser, Person
from tests.deployment import PASSWORD, Account, Deployment, in_lane, new_address

pytestmark = pytest.mark.all

NEW_PASSWORD = "seven brown owls in a boat"
PHONE = (390, 880)
LANGUAGES = pytest.mark.parametrize("language", ["en-US", "pt-BR"])
Look = Callable[[Person, str], Awaitable[None]]


@pytest.fixture
def browser() -> Browser:
    return Browser()


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


# --- the whole way ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "how", [{"language": "en-US"}, {"language": "pt-BR", "dark": True, "size": PHONE}], ids=["en", "pt-dark-phone"]
)
async def test_a_person_gets_in_from_one_device_after_another_and_out_again(
    how: dict[str, Any], browser: Browser, guarded: Deployment
) -> None:
    await journey(browser, guarded, look, **how)


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """One of each, slow at hashing, so that there is a queue; and it bears one failure."""
    settings = {"FIN_ARGON2": "m=19456,t=6,p=1", "FIN_HASH_THREADS": "1", "FIN_FAILURES_PER_ACCOUNT": "1"}
    with Deployment.start(tmp_path, redis_url, settings=settings) as running:
        yield running


@pytest.fixture
def crowded(redis_url: str, tmp_path: Path) -> Iterator[Deployment]:
    """One that waits is all that there is room for."""
    with Deployment.start(tmp_path, redis_url, settings={"FIN_MAX_QUEUE": "1"}) as running:
        yield running


async def waiting(deployment: Deployment, logins: int) -> None:
    """Until so many lie in the lane."""
    with Redis.from_url(deployment.redis_url) as redis:
        while in_lane(redis, Lane.HASH) < logins:
            await asyncio.sleep(0.01)


async def test_a_gateway_that_dies_in_the_middle_of_a_login_is_not_noticed_but_as_a_pause(
    browser: Browser, alone: Deployment
) -> None:
    person = await browser.person(alone.url(0, "http", ""))
    person.may_lose = True
    account = await known(person, alone)
    [worker], [gateway] = alone.of("worker"), alone.of("gateway")
    worker.pause()
    await person.signs_in(account.email, account.password)
    await waiting(alone, 1)
    alone.kill(gateway)
    await person.sees("resending")
    alone.wait_listening(alone.add("gateway", port=gateway.port))
    worker.go_on()

    await person.is_at("accountTitle")


async def test_the_place_in_the_queue_counts_down_to_the_account(browser: Browser, alone: Deployment) -> None:
    person = await browser.person(alone.url(0, "http", ""))
    account = await known(person, alone)
    [worker] = alone.of("worker")
    worker.pause()
    async with connect(alone.url()) as first, connect(alone.url()) as second:
        crowd = [
            asyncio.create_task(client.ask("login", email=new_address(), password="x", timeout_ms=30_000))
            for client in (first, second)
            for _ in range(8)
        ]
        await person.page.evaluate("""() => {
            globalThis.places = [];
            const note = () => globalThis.places.push(document.querySelector(".place b")?.textContent);
            const all = {subtree: true, childList: true, characterData: true};
            new MutationObserver(note).observe(document.querySelector("#main"), all);
        }""")
        await waiting(alone, len(crowd))
        await person.signs_in(account.email, account.password)
        await person.sees("place")
        worker.go_on()
        await person.is_at("accountTitle")
        await asyncio.gather(*crowd)
    places = [int(place) for place in await person.page.evaluate("globalThis.places") if place]

    assert places == sorted(places, reverse=True)
    assert places[0] == 16 and len(set(places)) >= 3


async def test_a_full_queue_is_said_and_tried_again_by_itself(browser: Browser, crowded: Deployment) -> None:
    person = await browser.person(crowded.url(0, "http", ""))
    account = await known(person, crowded)
    [worker] = crowded.of("worker")
    worker.pause()
    async with connect(crowded.url()) as client:
        crowd = asyncio.create_task(client.ask("login", email=new_address(), password="x", timeout_ms=30_000))
        await waiting(crowded, 1)
        await person.signs_in(account.email, account.password)
        await person.sees("code_overloaded")
        worker.go_on()
        await person.is_at("accountTitle")
        await crowd


async def test_codes_that_were_wrong_too_often_lead_back_to_the_start(browser: Browser, guarded: Deployment) -> None:
    async with guarded.client() as client:
        account = await guarded.sign_up(client)
    person = await browser.person(guarded.url(0, "http", ""))
    await person.signs_in(account.email, account.password)
    await person.is_at("deviceTitle")
    wrong = f"{(int(await guarded.mailed_code(account.email, 2)) + 1) % 10**8:08}"
    for _ in range(4):
        await person.types(codeLabel=wrong)
        await person.presses("continue")
        await person.sees("code_invalid_code")
    await person.types(codeLabel=wrong)
    await person.presses("continue")
    await person.sees("code_invalid_code")
    await person.types(codeLabel=wrong)
    await person.presses("continue")

    await person.sees("code_challenge_expired")
    await person.is_at("signinTitle")


async def test_offline_is_said_and_what_was_asked_meanwhile_is_answered_when_it_is_over(
    browser: Browser, guarded: Deployment
) -> None:
    person = await browser.person(guarded.url(0, "http", ""))
    person.may_lose = True
    account = await known(person, guarded)
    await person.context.set_offline(True)
    await person.sees("netOffline")
    await look(person, "offline")
    await person.signs_in(account.email, account.password)
    await person.context.set_offline(False)

    await person.is_at("accountTitle")
    await person.page.locator("#notice").wait_for(state="hidden")


async def test_two_tabs_that_open_at_once_refresh_once(browser: Browser, guarded: Deployment) -> None:
    person, _ = await signed_in(browser, guarded)
    asked: list[str] = []
    person.context.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    await person.page.goto(f"{person.base}/healthz")  # and the page before it is gone, with what it knew
    await person.page.wait_for_function("navigator.locks.query().then(({held}) => held.length === 0)")
    tabs = await asyncio.gather(person.tab("/"), person.tab("/account"))
    for tab in tabs:
        await tab.get_by_text(person.text("thisDevice")).wait_for()

    assert asked.count("refresh") == 1, asked


async def test_a_session_that_is_ended_elsewhere_leaves_the_page_within_a_second(
    browser: Browser, guarded: Deployment
) -> None:
    person, account = await signed_in(browser, guarded)
    other = await browser.person(guarded.url(1, "http", ""))
    await trusts(other, account)
    await other.signs_in(account.email, account.password)
    rows = other.page.locator("[data-sessions] li")
    await rows.nth(1).get_by_role("button").click()
    await person.sees("ended_revoked", within=1000)
    await other.sees("revoked")
    await rows.nth(1).wait_for(state="detached")

    assert await person.page.evaluate("document.cookie") == ""
    await person.page.reload()
    await person.is_at("signinTitle")


async def test_one_tab_signs_out_and_the_other_leaves_too(browser: Browser, guarded: Deployment) -> None:
    person, _ = await signed_in(browser, guarded)
    other = await person.tab("/account")
    await other.get_by_text(person.text("thisDevice")).wait_for()
    await person.presses("signOut")

    await other.get_by_role("heading", name=person.text("signinTitle")).wait_for()
    await person.is_at("signinTitle")


async def test_a_code_that_waits_survives_a_lost_connection(browser: Browser, guarded: Deployment) -> None:
    async with guarded.client() as client:
        account = await guarded.sign_up(client)
    person = await browser.person(guarded.url(0, "http", ""))
    person.may_lose = True
    await person.signs_in(account.email, account.password)
    await person.is_at("deviceTitle")
    await person.context.set_offline(True)
    await person.sees("netOffline")
    await person.context.set_offline(False)
    await person.types(codeLabel=await guarded.mailed_code(account.email, 2))
    await person.presses("continue")

    await person.is_at("accountTitle")


async def test_an_approval_that_is_refused_ends_the_sign_in_and_says_so(browser: Browser, guarded: Deployment) -> None:
    person, account = await signed_in(browser, guarded)
    stranger = await browser.person(person.base)
    await stranger.signs_in(account.email, PASSWORD)
    await stranger.is_at("deviceTitle")
    await person.presses("refuse")
    await person.sees("attemptRefused")

    await stranger.sees("matchRefused")
    await stranger.is_at("signinTitle")


async def test_who_has_approved_while_the_new_device_was_offline_finds_it_signed_in(
    browser: Browser, guarded: Deployment
) -> None:
    person, account = await signed_in(browser, guarded)
    phone = await browser.person(person.base)
    phone.may_lose = True
    await phone.signs_in(account.email, PASSWORD)
    await phone.is_at("deviceTitle")
    await phone.context.set_offline(True)
    await phone.sees("netOffline")
    await person.types(attemptLabel=await phone.page.locator("[data-number]").inner_text())
    await person.presses("approve")
    await person.sees("attemptApproved")
    await phone.context.set_offline(False)

    await phone.is_at("accountTitle")


async def test_an_account_is_looked_after_password_codes_second_step_and_devices(
    browser: Browser, guarded: Deployment
) -> None:
    person, account = await signed_in(browser, guarded)
    other = await browser.person(person.base)
    await trusts(other, account)
    await other.signs_in(account.email, PASSWORD)
    await other.is_at("accountTitle")

    await person.presses("changePassword")
    await person.types(currentPassword="not the password", newPasswordLabel=NEW_PASSWORD)
    await person.presses("changePassword")
    await person.sees("wrongPassword")
    await look(person, "change")
    await person.types(currentPassword=PASSWORD, newPasswordLabel="passwordpassword")
    await person.presses("changePassword")
    await person.sees("code_password_common")
    await person.types(newPasswordLabel=NEW_PASSWORD)
    await person.presses("changePassword")
    await person.sees("passwordChanged")
    await other.sees("ended_password_changed")

    await person.presses("secondTurnOn")
    await person.types(yourPassword=NEW_PASSWORD)
    await person.presses("continue")
    app = Authenticator((await person.page.locator("[data-secret]").inner_text()).replace(" ", ""))
    await person.types(appCodeLabel=await app.code())
    await person.presses("secondConfirm")
    await person.presses("codesKept")
    await person.presses("renewCodes")
    await person.types(yourPassword=NEW_PASSWORD, appCodeLabel=await app.code())
    await look(person, "renew")
    await person.presses("renewCodes")
    await person.sees("codesTitle")
    [recovery, *_] = await person.page.locator("[data-codes] li").all_inner_texts()
    await person.presses("codesKept")
    await person.presses("secondTurnOff")
    await person.types(yourPassword=NEW_PASSWORD, codeOrRecovery=recovery)
    await person.presses("secondTurnOff")
    await person.sees("secondOff")

    await person.page.locator("[data-devices]").get_by_role("button").first.click()
    await person.sees("forgotten")
    await person.sees("noDevices")


async def test_a_person_signs_in_with_the_keyboard_alone(browser: Browser, guarded: Deployment) -> None:
    person = await browser.person(guarded.url(0, "http", ""))
    account = await known(person, guarded)
    for keys in (account.email, "Tab", account.password, "Enter"):
        await (person.page.keyboard.press if keys in ("Tab", "Enter") else person.page.keyboard.type)(keys)
    await person.is_at("accountTitle")
    await person.page.locator("h1:focus").wait_for()


@LANGUAGES
async def test_what_is_typed_wrong_is_said_beside_the_field(
    language: str, browser: Browser, guarded: Deployment
) -> None:
    person = await browser.person(guarded.url(0, "http", ""), language=language)
    assert await person.page.evaluate("document.documentElement.lang") == language[:2]
    await person.presses("signinButton")
    await person.sees("missing_email")
    email = person.field("email")
    assert await email.evaluate("field => document.activeElement === field")
    assert await email.get_attribute("aria-invalid") == "true"
    described = await email.get_attribute("aria-describedby")
    assert await person.page.locator(f"#{described}").inner_text() == person.text("missing_email")
    await person.types(email="ana", password="x")
    await person.presses("signinButton")
    await person.sees("bad_email")


async def test_too_many_attempts_say_when_to_come_again(browser: Browser, alone: Deployment) -> None:
    person = await browser.person(alone.url(0, "http", ""))
    address = new_address()
    await person.signs_in(address, "wrong")
    await person.sees("code_invalid_credentials")
    await person.signs_in(address, "wrong")
    await person.sees("code_too_many_attempts_for")


async def test_a_link_that_is_not_complete_or_was_used_leads_to_a_new_one(
    browser: Browser, guarded: Deployment
) -> None:
    person = await browser.person(guarded.url(0, "http", ""), "/reset")
    await person.is_at("resetBadTitle")
    await look(person, "bad link")
    await person.goes_to("/reset#email=ana%40example.com&code=nothing")
    await person.types(newPasswordLabel=NEW_PASSWORD)
    await person.presses("resetButton")
    await person.is_at("resetBadTitle")
    await person.follows("askNewLink")
    await person.is_at("forgotTitle")


async def test_a_newcomer_signs_up_with_the_browser_alone(browser: Browser, deployment: Deployment) -> None:
    address = new_address()
    person = await browser.person(deployment.url(0, "http", ""), "/signup")
    await person.types(email=address, newPasswordLabel=PASSWORD)
    await person.presses("signupButton")
    async with person.context.expect_page() as opened:
        await person.follows("devMailbox")
    mailbox = await opened.value
    mail = mailbox.get_by_role("article").filter(has_text=address)
    await mail.get_by_role("button").click()
    code = await mailbox.evaluate("navigator.clipboard.readText()")
    await person.types(codeLabel=code)
    await person.presses("confirmButton")
    await person.is_at("accountTitle")


async def test_only_the_device_token_is_kept_in_the_browsers_storage(browser: Browser, guarded: Deployment) -> None:
    person, account = await signed_in(browser, guarded)
    stored = await person.page.evaluate("Object.entries(localStorage)")
    cookies = {cookie["name"]: cookie for cookie in await person.context.cookies()}

    assert [value for _, value in stored] == [account.device_token]
    assert await person.page.evaluate("sessionStorage.length") == 0
    assert cookies["fin_refresh"]["httpOnly"] and cookies["fin_refresh"]["sameSite"] == "Strict"
    assert "fin_refresh" not in await person.page.evaluate("document.cookie")


async def test_somebody_who_was_sent_to_sign_in_gets_back_to_this_host_alone(
    browser: Browser, guarded: Deployment
) -> None:
    base = guarded.url(0, "http", "")
    for wanted, arrives in (
        ("/healthz", "/healthz"),
        ("//evil.example/", "/account"),
        ("https://evil.example", "/account"),
    ):
        person = await browser.person(base, f"/?next={wanted}")
        account = await known(person, guarded)
        await person.signs_in(account.email, account.password)
        await person.page.wait_for_url(f"{base}{arrives}")


# --- other hosts' pages -----------------------------------------------------------------------------------------------


class Elsewhere(SimpleHTTPRequestHandler):
    """A page of somebody else's host, which imports client.js from the gateway."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><link rel=icon href=data:,><title>Elsewhere</title>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elsewhere() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_another_hosts_page_signs_in_with_client_js_alone(
    browser: Browser, elsewhere: str, redis_url: str, tmp_path: Path
) -> None:
    with Deployment.start(tmp_path, redis_url, settings={"FIN_ALLOWED_ORIGINS": elsewhere}) as deployment:
        login = deployment.url(0, "http", "")
        async with deployment.client() as client:
            account = await deployment.sign_up(client)
        person = await browser.person(login)
        await person.page.goto(elsewhere)
        answered = await person.page.evaluate(
            """async ([url, email, password]) => {
                const { Client } = await import(`${url}/web/client.js`);
                const client = new Client({ url, cookie: false });
                const { event, data } = await client.ask("login", { email, password });
                const about = await client.ask("account");
                const parts = (await client.accessToken()).split(".").length;
                client.close();
                return [event, "refreshToken" in data, about.data.email, parts, document.cookie];
            }""",
            [login, account.email, account.password],
        )

    assert answered == ["login_success", False, account.email, 3, ""]


async def test_the_readmes_page_of_an_application_asks_who_is_there_and_follows_them_out(
    browser: Browser, guarded: Deployment
) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    script = re.findall(r'(?m)^    import .* from "/web/client\.js";\n(?:(?:    .*)?\n)+', readme)[0]
    page = f"<!doctype html><link rel=icon href=data:,><script type=module>{script}</script>"
    orders: list[str] = []

    async def serve(route: Route) -> None:
        if route.request.url.endswith("orders"):
            orders.append(route.request.headers["authorization"])
        await route.fulfill(content_type="text/html", body=page)

    person = await browser.person(guarded.url(0, "http", ""))
    await person.context.route("**/app/**", serve)
    account = await known(person, guarded)
    await person.page.goto(f"{person.base}/app/")
    await person.signs_in(account.email, account.password)
    await person.page.wait_for_url(f"{person.base}/app/")
    async with person.page.expect_response("**/app/orders"):
        pass
    other = await person.tab("/account")
    await other.get_by_role("button", name=person.text("signOut")).click()
    await person.is_at("signinTitle")

    assert {authorization.count(".") for authorization in orders} == {2}


# --- how much it is ---------------------------------------------------------------------------------------------------


async def test_the_sign_in_page_is_small(browser: Browser, deployment: Deployment) -> None:
    size, _ = await browser.weigh(deployment.url(0, "http", ""))

    assert 10_000 < size <= 60_000
