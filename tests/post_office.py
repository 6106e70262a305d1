"""A real SMTP server for tests, which can be told to refuse, to stall and to hang up."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.running import free_port

STALL, DROP, MUTE = "stall", "drop", "mute"
TAKEN = "250 taken"


class PostOffice:
    """What was taken, in order.

    `rules`: by what stands in an address, what is answered to its message, or to RCPT where it starts with "rcpt ".
    STALL is no answer, MUTE none to a message that was taken all the same, DROP the connection's end amid the message.
    """

    def __init__(self) -> None:
        self.rules: dict[str, str] = {}
        self.taken: list[EmailMessage] = []
        self.senders: list[str] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.tries: Counter[str] = Counter()  # by address
        self.connections: set[Any] = set()
        self.port = free_port()
        self._server: asyncio.Server | None = None
        self._make: Callable[[], SMTP] = lambda: _Connection(self)
        self._tls: ssl.SSLContext | None = None
        self._came = asyncio.Condition()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, tls: str = "none", context: ssl.SSLContext | None = None, *, password: str = ""
    ) -> AsyncIterator[PostOffice]:
        office = cls()
        options: dict[str, Any] = {"tls_context": context, "require_starttls": True} if tls == "starttls" else {}
        if password:
            options |= {"authenticator": office._login(password), "auth_require_tls": False}
        office._make, office._tls = lambda: _Connection(office, **options), context if tls == "implicit" else None
        await office.start()
        try:
            yield office
        finally:
            office.stop()

    async def start(self) -> None:
        """Also again, at the same port, after `stop`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make, "127.0.0.1", self.port, ssl=self._tls)

    def stop(self) -> None:
        """Nobody listens any more, and who was connected is cut off."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.hang_up()

    def hang_up(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()

    def to(self, address: str) -> list[EmailMessage]:
        return [message for message in self.taken if message["To"] == address]

    def count(self) -> Counter[str]:
        """How often each mail was taken, by its Message-ID."""
        return Counter(str(message["Message-ID"]) for message in self.taken)

    async def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        """Looked at whenever something has come."""
        async with self._came:
            await asyncio.wait_for(self._came.wait_for(true), seconds)

    async def tell(self) -> None:
        async with self._came:
            self._came.notify_all()

    def rule(self, address: str, stage: str = "") -> str:
        for part, answer in self.rules.items():
            if part in address and answer.startswith("rcpt ") == (stage == "rcpt"):
                return answer.removeprefix("rcpt ")
        return TAKEN

    def _login(self, password: str) -> Callable[..., AuthResult]:
        def check(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
            assert isinstance(data, LoginPassword)
            self.logins.append((data.login, data.password))
            return AuthResult(success=data.password == password.encode(), handled=False)

        return check

    # --- what aiosmtpd asks of a handler ----------------------------------------------------------------------------

    async def handle_RCPT(
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        self.tries[address] += 1
        await self.tell()
        answer = self.rule(address, "rcpt")
        if answer == STALL:
            await asyncio.Event().wait()
        envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        [address] = envelope.rcpt_tos
        answer = self.rule(address)
        if answer == STALL:
            await asyncio.Event().wait()
        if answer in (TAKEN, MUTE):
            assert isinstance(envelope.content, bytes)
            assert envelope.mail_from is not None
            self.senders.append(envelope.mail_from)
            self.taken.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
            await self.tell()
        if answer == MUTE:
            await asyncio.Event().wait()
        return answer


class _Connection(SMTP):
    def __init__(self, office: PostOffice, **options: Any) -> None:
        super().__init__(office, hostname="office.test", loop=asyncio.get_running_loop(), **options)
        self._office = office

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._office.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._office.connections.discard(self)
        super().connection_lost(error)

    async def smtp_DATA(self, arg: str) -> None:
        transport: Any = self.transport
        if self.envelope is not None and any(self._office.rule(each) == DROP for each in self.envelope.rcpt_tos):
            await self.push("354 go on")
            await self._reader.readline()
            transport.abort()
            return
        await super().smtp_DATA(arg)
