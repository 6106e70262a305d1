"""Real people in a real browser: Chromium, driven from outside, against a deployment's pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest
from playwright.async_api import Browser as Chromium
from playwright.async_api import BrowserContext, ConsoleMessage, Locator, Page, Playwright, WebSocket, async_playwright

from tests.deployment import check_frame, collect

ROOT = Path(__file__).parent.parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# As root in a container, on a closed network: Chromium is not to look for its maker's hosts. A page that a test makes
# up comes from no address, and would not be let to one of this machine.
ARGUMENTS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-features=LocalNetworkAccessChecks""".split()
PATIENCE_MS = 30_000  # a machine may have other work
NPM = ROOT / "build/npm"  # git-ignored
# What Chromium itself writes when a server is away; no page can prevent it.
LOSS = re.compile(r"WebSocket connection to .* failed|net::ERR_(CONNECTION|INTERNET|EMPTY|SOCKET)")
AXE = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations
    .filter(({impact}) => ["serious", "critical"].includes(impact))
    .map(({id, nodes}) => id + ": " + nodes.map(({html}) => html).join(" | "))"""


def needs(*names: str) -> str:
    """The path of the first of these programs that is here. Where CI runs, one has to be."""
    for name in names:
        if found := shutil.which(name):
            return found
    why = f"none of {', '.join(names)} is on the PATH"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def npm_folder() -> Path:
    """Where the tools of tests/web/package-lock.json are installed, as it pins them; once, until it changes."""
    needs("npm")
    lock, stamp = ROOT / "tests/web/package-lock.json", NPM / "installed"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        NPM.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(lock.with_name(name), NPM)
        quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(["npm", "ci", *quiet], cwd=NPM, check=True, timeout=180)
        stamp.write_bytes(lock.read_bytes())
    return NPM


def _bytes(frame: bytes | str) -> bytes:
    return frame if isinstance(frame, bytes) else frame.encode()


class Person:
    """Somebody with a browser profile of their own. Whatever the browser complains about is noted in `faults`."""

    def __init__(self, context: BrowserContext, page: Page, base: str) -> None:
        self.context, self.page, self.base = context, page, base
        self.faults: list[str] = []
        self.may_lose = False  # its connection: what Chromium says of that is no fault
        self._texts: dict[str, str] = {}
        self._watch(page)

    def _watch(self, page: Page) -> None:
        page.on("console", self._heard)
        page.on("websocket", self._overhears)
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not (self.may_lose and LOSS.search(message.text)):
            self.faults.append(f"{message.type}: {message.text}")

    def _overhears(self, socket: WebSocket) -> None:
        """Every frame of the server fits the message types; what is secret is noted for tests/test_secrecy.py."""

        def received(frame: bytes | str) -> None:
            collect(_bytes(frame))
            try:
                check_frame(_bytes(frame))
            except Exception as error:
                self.faults.append(f"{frame!r}: {error}")

        socket.on("framesent", lambda frame: collect(_bytes(frame)))
        socket.on("framereceived", received)

    async def tab(self, path: str) -> Page:
        """One more tab of the same profile."""
        page = await self.context.new_page()
        self._watch(page)
        await page.goto(self.base + path)
        return page

    async def goes_to(self, path: str) -> None:
        await self.page.goto(self.base + path)
        if not self._texts:
            script = "import('/web/strings.js').then(({STRINGS, language}) => STRINGS[language])"
            self._texts = await self.page.evaluate(script)

    def text(self, key: str, **values: object) -> str:
        """As the pages say it in this person's language."""
        return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), self._texts[key])

    def button(self, key: str, **values: object) -> Locator:
        return self.page.get_by_role("button", name=self.text(key, **values), exact=True)

    async def presses(self, key: str, **values: object) -> None:
        await self.button(key, **values).click()

    async def follows(self, key: str) -> None:
        await self.page.get_by_role("link", name=self.text(key), exact=True).click()

    def field(self, key: str) -> Locator:
        return self.page.get_by_label(self.text(key), exact=True).and_(self.page.locator("input"))

    async def types(self, **fields: str) -> None:
        """By the label of a field, as a person finds it."""
        for key, value in fields.items():
            await self.field(key).fill(value)

    async def sees(self, key: str, *, within: float = PATIENCE_MS, **values: object) -> None:
        """A text of the pages, up to what is not known of it."""
        pattern = re.sub(r"\\\{\w+\\\}", ".*", re.escape(self.text(key, **values)))
        await self.page.get_by_text(re.compile(pattern)).filter(visible=True).first.wait_for(timeout=within)

    async def is_at(self, title: str) -> None:
        """A view, by its heading."""
        await self.page.get_by_role("heading", level=1, name=self.text(title), exact=True).wait_for(timeout=PATIENCE_MS)

    async def signs_in(self, email: str, password: str) -> None:
        await self.is_at("signinTitle")
        await self.types(email=email, password=password)
        await self.presses("signinButton")

    async def serious_violations(self) -> list[str]:
        """What axe-core finds on the page as it is."""
        await self.page.evaluate((npm_folder() / "node_modules/axe-core/axe.min.js").read_text())
        found: list[str] = await self.page.evaluate(AXE)
        return found


class Browser:
    """One Chromium; every person is a profile of it. At the end nobody may have seen it complain."""

    _playwright: Playwright
    _chromium: Chromium

    def __init__(self) -> None:
        self.people: list[Person] = []

    async def __aenter__(self) -> Browser:
        path = needs(*CHROMIUM)
        self._playwright = await async_playwright().start()
        self._chromium = await self._playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._chromium.close()
        await self._playwright.stop()
        if error is None:
            faults = [fault for person in self.people for fault in person.faults]
            assert not faults, faults

    async def person(
        self,
        base: str,
        path: str = "/",
        *,
        language: str = "en-US",
        dark: bool = False,
        size: Sequence[int] = (1180, 900),
    ) -> Person:
        context = await self._chromium.new_context(
            locale=language,
            color_scheme="dark" if dark else "light",
            viewport={"width": size[0], "height": size[1]},
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(PATIENCE_MS)
        person = Person(context, await context.new_page(), base)
        self.people.append(person)
        await person.goes_to(path)
        return person

    async def weigh(self, base: str) -> tuple[int, float]:
        """The sign-in page for who was never there: bytes transferred, and ms until it can be used."""
        context = await self._chromium.new_context()
        page = await context.new_page()
        cdp, sizes = await context.new_cdp_session(page), list[float]()
        cdp.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
        await cdp.send("Network.enable")
        await page.goto(f"{base}/", wait_until="networkidle")
        interactive = await page.evaluate("performance.getEntriesByName('interactive')[0].startTime")
        assert len(sizes) >= 7, "scripts and styles are part of it"
        await context.close()
        return int(sum(sizes)), interactive
