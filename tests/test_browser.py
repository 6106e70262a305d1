"""What people do on the pages, in Chromium, against real processes. No walk may end with a complaint in the console."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Route

from tests.accounts import Authenticator
from tests.browser import Browser
from tests.deployment import PASSWORD, Deployment, new_address
from tests.people import NEW_PASSWORD, PHONE, journey, known, look, signed_in, trusts

pytestmark = pytest.mark.all


@pytest.mark.parametrize(
    "how", [{"language": "en-US"}, {"language": "pt-BR", "dark": True, "size": PHONE}], ids=["en", "pt-dark-phone"]
)
async def test_a_person_gets_in_from_one_device_after_another_and_out_again(
    how: dict[str, Any], browser: Browser, guarded: Deployment
) -> None:
    await journey(browser, guarded, look, **how)


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


@pytest.mark.parametrize("language", ["en-US", "pt-BR"])
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
