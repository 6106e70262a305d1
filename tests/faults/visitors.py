"""Visitors of a login service, each with choices of its own from one seed: owners, guessers, registrants."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from app.client import Client, Closed, connect
from tests.deployment import PASSWORD
from tests.faults.log import Asked, Log, Sending
from tests.faults.mails import Mails

T = TypeVar("T")

SLACK_SECONDS = 2.0  # past its deadline and this a request has been forgotten
KEYED_SECONDS = 90.0  # a keyed request is sent again for this long; a promise that needs longer is broken
CONNECT_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 1.0

SIGNED_UP = frozenset({"email_confirmed"})
RIVAL = SIGNED_UP | {"email_confirmation_failed challenge_expired", "email_confirmation_failed invalid_code"}


@dataclass(frozen=True)
class Line:
    """An open connection and its name in the log: visitor, its n-th, gateway."""

    client: Client
    name: str

    def end(self, log: Log) -> None:
        """Note what came that nobody had asked for, or that was answered already: pushes have no id."""
        pushes = self.client.pushes
        while not pushes.empty():
            frame = pushes.get_nowait()
            if "id" in frame:
                log.strays.append(
                    f"{self.name}: {frame['event']} {frame['data'].get('code', '')} for id {frame['id']!r}"
                )


class Lost(Exception):
    """The visitor cannot go on with what it was doing: an outcome is unknown, or a session has ended."""


class Visitor:
    """One client program. `urls()` are the gateways there are, `stopping` ends it after its current turn."""

    patient = True  # waits as long as an error says

    def __init__(
        self,
        name: str,
        seed: int,
        log: Log,
        mails: Mails,
        urls: Callable[[], Sequence[str]],
        stopping: asyncio.Event,
        *,
        keyed: bool,
        timeout_ms: int,
        mail_seconds: float,
    ) -> None:
        self.name, self.log, self.mails = name, log, mails
        self.random = random.Random(f"{seed} {name}")
        self._urls, self._stopping = urls, stopping
        self._keyed, self._timeout_ms, self._mail_seconds = keyed, timeout_ms, mail_seconds
        self._stack = AsyncExitStack()
        self._line: Line | None = None
        self._opening = asyncio.Lock()
        self._connections = self.random.randrange(1000)
        self._addresses = self._guesses = 0
        self.access_token = self.refresh_token = self.session = ""

    async def run(self) -> None:
        """Turn after turn until told to stop."""
        while not self._stopping.is_set():
            try:
                await self.turn()
            except Lost:
                continue

    async def turn(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        """The connection ends; a frame that nobody asked for is noted."""
        line, self._line = self._line, None
        await self._stack.aclose()
        if line is not None:
            line.end(self.log)

    def new_address(self) -> str:
        self._addresses += 1
        return f"{self.name}-{self._addresses}@load.test"

    # --- asking ------------------------------------------------------------------------------------------------

    async def ask(self, event: str, account: str, wanted: frozenset[str] | str, **data: Any) -> Sending:
        """The answer, which is one of `wanted`. Lost when it is not, its outcome is unknown or it was not evaluated."""
        key = secrets.token_urlsafe(18) if self._keyed else None
        answers = frozenset({wanted}) if isinstance(wanted, str) else wanted
        asked = self._asked(event, account, answers, key, **data)
        if key is None:
            sending = await self.send(asked, await self._connected())
            if not sending.acknowledged:
                await self._pause(sending)
        else:
            sending = await self._insist(asked)
        if sending.told not in answers:
            raise Lost  # the audit says what is wrong with an answer
        return sending

    async def _insist(self, asked: Asked) -> Sending:
        """Send it again, under its key, until it is answered."""
        until = self.log.now() + KEYED_SECONDS
        while self.log.now() < until:
            sending = await self.send(asked, await self._connected(until, asked))
            if sending.acknowledged:
                return sending
            await self._pause(sending)
        raise Lost

    async def send(self, asked: Asked, line: Line) -> Sending:
        """Once, over one connection."""
        sending = Sending(line.name, self.log.now(), self._timeout_ms)
        asked.sendings.append(sending)
        sent = line.client.ask(asked.event, timeout_ms=self._timeout_ms, key=asked.key, **asked.data)
        try:
            answer = await asyncio.wait_for(sent, self._timeout_ms / 1000 + SLACK_SECONDS)
        except TimeoutError:
            sending.missing = True
        except Closed as closed:
            sending.closed = closed.code
        else:
            sending.event, sending.data = answer.event, answer.data
        sending.ended = self.log.now()
        return sending

    async def _pause(self, sending: Sending) -> None:
        """As long as an error says, within reason; not after a lost connection, and not when each moment counts."""
        if sending.event and self.patient:
            await asyncio.sleep(min(sending.data.get("retryAfterMs", 250) / 1000, LONGEST_PAUSE_SECONDS))

    # --- connections ---------------------------------------------------------------------------------------------

    async def _connected(self, until: float | None = None, asked: Asked | None = None) -> Line:
        """The open connection, or one to the next gateway, authenticated as before. Lost when there is none in time."""
        limit = self.log.now() + KEYED_SECONDS if until is None else until
        async with self._opening:
            while self._line is None or self._line.client.close_code.done():
                if self.log.now() > limit:
                    raise Lost
                await self.close()
                line = self._line = await self.open(self._stack)
                if line is not None and self.session and not await self._authenticate(line, asked):
                    await self.close()
            return self._line

    async def open(self, stack: AsyncExitStack) -> Line | None:
        """A connection to the next gateway; None, after a pause, when that does not answer."""
        urls = self._urls()
        self._connections += 1
        url = urls[self._connections % len(urls)]
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                client = await stack.enter_async_context(connect(url, close_timeout=1))
        except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError):
            await asyncio.sleep(self.random.uniform(0.05, 0.2))  # so that not all come back at once
            return None
        return Line(client, f"{self.name}/{self._connections} {url}")

    async def _authenticate(self, line: Line, about: Asked | None) -> bool:
        """Be who it was. Lost when the session has ended, which only a logout under way can have done."""
        wanted = {"authenticated"}
        if about is not None and about.event == "logout":
            wanted.add("authentication_failed token_revoked")
        asked = self._asked("authenticate", "", frozenset(wanted), None, accessToken=self.access_token)
        sending = await self.send(asked, line)
        if sending.acknowledged and sending.event != "authenticated":
            self.session = ""
            raise Lost
        await self._pause(sending)
        return sending.acknowledged

    def _asked(self, event: str, account: str, wanted: frozenset[str], key: str | None, **data: Any) -> Asked:
        asked = Asked(len(self.log.asked), self.name, event, account, data, wanted, key, self.session)
        self.log.asked.append(asked)
        return asked

    # --- signing up ------------------------------------------------------------------------------------------------

    async def register(self, address: str) -> str:
        """The challenge."""
        answer = await self.ask("register", address, "register_accepted", email=address, password=PASSWORD)
        return str(answer.data["challenge"])

    async def codes(self, address: str, count: int = 1) -> list[str]:
        try:
            return await asyncio.wait_for(self.mails.codes(address, count), self._mail_seconds)
        except TimeoutError:
            self.log.problems.append(f"{count} mails to {address} did not come in {self._mail_seconds:.0f} s")
            raise Lost from None

    async def confirm(self, address: str, challenge: str, code: str, wanted: frozenset[str] = SIGNED_UP) -> bool:
        answer = await self.ask("confirm_email", address, wanted, challenge=challenge, code=code)
        return answer.event == "email_confirmed"

    async def sign_up(self) -> str:
        """The address of a new account."""
        address = self.new_address()
        challenge = await self.register(address)
        [code] = await self.codes(address)
        await self.confirm(address, challenge, code)
        return address

    async def login(self, address: str) -> Sending:
        return await self.ask("login", address, "login_success", email=address, password=PASSWORD)

    async def guess(self, address: str) -> None:
        """A wrong password, another one each time."""
        self._guesses += 1
        refused = "login_failure invalid_credentials"
        await self.ask("login", address, refused, email=address, password=f"wrong {self._guesses}")


class Owner(Visitor):
    """Signs up, then logs in, uses its session and logs out, again and again."""

    address = ""

    async def turn(self) -> None:
        self.session = ""
        self.address = self.address or await self.sign_up()
        login = await (self._login_twice() if self.random.random() < 0.15 else self.login(self.address))
        if login.event != "login_success":
            raise Lost
        self._remember(login)
        try:
            for _ in range(self.random.randint(1, 4)):
                await self._use()
            if self.random.random() < 0.9:
                await self.ask("logout", self.address, "logged_out")
        finally:
            self.session = ""

    async def _login_twice(self) -> Sending:
        """One login, sent over two connections at once, or again after its answer: one session either way."""
        key, wanted = secrets.token_urlsafe(18), frozenset({"login_success"})
        asked = self._asked("login", self.address, wanted, key, email=self.address, password=PASSWORD)
        async with AsyncExitStack() as stack:
            other, own = await self.open(stack), await self._connected()
            if other is not None:
                if self.random.random() < 0.5:
                    await self.send(asked, other)
                    await self.send(asked, own)
                else:
                    await asyncio.gather(self.send(asked, other), self.send(asked, own))
                await stack.aclose()
                other.end(self.log)
        # whatever became of those two, this connection has to be the session's: the answer is recorded
        return await self._insist(asked)

    async def _use(self) -> None:
        what = self.random.choice(("refresh", "refresh", "account", "sessions"))
        if what == "refresh":
            try:
                self._remember(
                    await self.ask("refresh", self.address, "token_refreshed", refreshToken=self.refresh_token)
                )
            except Lost:
                self.session = ""  # which token is the newest is not known: an old one would end the session
                raise
        else:
            await self.ask(what, self.address, what)

    def _remember(self, tokens: Sending) -> None:
        self.session = tokens.data["sessionId"]
        self.access_token, self.refresh_token = tokens.data["accessToken"], tokens.data["refreshToken"]


class Guesser(Visitor):
    """Tries wrong passwords at addresses of its own, several at once: the count of failures shows each evaluation."""

    AN_ADDRESS = 25
    address = ""

    async def turn(self) -> None:
        if not self.address or self.random.random() < 1 / self.AN_ADDRESS:
            self.address = self.new_address()
        await together(self.guess(self.address) for _ in range(self.random.randint(1, 4)))


class Registrant(Visitor):
    """New accounts all the time; now and then two at once for one address, of which one becomes the account."""

    async def turn(self) -> None:
        if self.random.random() < 0.7:
            await self.sign_up()
            return
        address = self.new_address()
        one, other = await together(self.register(address) for _ in range(2))
        first, second = await self.codes(address, 2)
        # which code belongs to which challenge is not said: first one way, then the other
        if not any(await self._both(address, (one, first), (other, second))):
            await self._both(address, (one, second), (other, first))

    async def _both(self, address: str, *pairs: tuple[str, str]) -> list[bool]:
        return await together(self.confirm(address, challenge, code, RIVAL) for challenge, code in pairs)


async def together(acts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them came to, when all have ended. Lost when one was; what is no part of the game comes first."""
    outcomes = await asyncio.gather(*acts, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, Lost)):
        raise error
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
