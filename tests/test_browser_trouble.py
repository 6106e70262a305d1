"""What goes wrong for people on the pages, in Chromium: it has a plain state and a way on, and most mends itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from app.client import connect
from app.messages import Lane
from tests.browser import Browser
from tests.deployment import PASSWORD, Deployment, in_lane, new_address
from tests.people import NEW_PASSWORD, known, look, signed_in, trusts

pytestmark = pytest.mark.all


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
