"""A deployment of real processes for end-to-end tests."""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import msgspec
import orjson
from redis import Redis

from adapters import names
from app.client import Answer, Client, connect
from app.messages import EVENTS, STATUSES, Code, Lane
from tests.running import free_port

ROOT = Path(__file__).parent.parent
OFF = {
    f"FIN_{name}": "off"
    for name in """FAILURES_PER_ACCOUNT FAILURES_PER_IP REGISTRATIONS_PER_IP MAILS_PER_IP MAILS_PER_ACCOUNT
    CONNECTIONS_PER_IP MESSAGES_PER_SECOND""".split()
}
CHEAP = {"FIN_ARGON2": "m=64,t=1,p=1"}
ANY_DEVICE = {"FIN_DEVICE_VERIFICATION": "off"}  # tests/test_devices.py and its like have it on
PASSWORD = "correct horse battery staple"
START_SECONDS = 20
BROKER: dict[str, str] = {}  # settings for another broker than Redis, where `pytest --broker` asks for one
MAIL_SECONDS = 30  # far longer than any mail takes, also where many wait for theirs
LOOK_SECONDS = 0.02  # between looks into the outbox, however many wait for a mail


# A database of the tests' server for one deployment, empty, and its own until it ends: two with other secrets in one
# would take each other's requests.
Databases = Callable[[], AbstractContextManager[str]]


def secret() -> str:
    return f"t{secrets.randbelow(1000):03}:{secrets.token_urlsafe(32)}"


# What tests/test_secrecy.py looks for at the end.
SECRETS: set[str] = set()
CODES: set[str] = set()
SECRET_FIELDS = (
    "password newPassword currentPassword accessToken refreshToken deviceToken recoveryCode secret key".split()
)


def collect(raw: bytes) -> None:
    """Note the secrets in a frame, whichever way it goes."""
    try:
        frame = orjson.loads(raw)
        found = [{"key": frame.get("key")}, frame["data"], *(step["data"] for step in frame.get("progress", ()))]
        for data in found:
            SECRETS.update(data[name] for name in SECRET_FIELDS if isinstance(data.get(name), str))
            SECRETS.update(data.get("recoveryCodes", ()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return


def check_frame(raw: bytes) -> dict[str, Any]:
    """Every frame of the server has to fit the message types, field for field."""
    frame: dict[str, Any] = orjson.loads(raw)
    assert set(frame) <= {"event", "id", "data", "progress"}, frame
    for each in (frame, *frame.get("progress", ())):
        msgspec.convert(each["data"], EVENTS[each["event"]])
    return frame


BEGUN = {"gateway": '"listening"', "worker": '"working"', "mailer": '"mailing"'}  # what a role logs then


@dataclass
class Process:
    role: str
    popen: subprocess.Popen[bytes]
    log: Path
    port: int = 0
    told: bool = False

    def pause(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Once, and when it can hear it: one that has hardly begun would be killed by the signal."""
        if not self.told:
            self.told = True
            until = time.monotonic() + START_SECONDS
            while self.popen.poll() is None and BEGUN[self.role] not in self.log.read_text(errors="replace"):
                if time.monotonic() > until:
                    break
                time.sleep(0.02)
            self.popen.terminate()

    def end(self) -> int:
        """The exit status, after one SIGTERM; after a SIGKILL, when that was not enough."""
        self.terminate()
        try:
            return self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


@dataclass
class Deployment:
    folder: Path
    redis_url: str
    environ: dict[str, str]
    processes: list[Process] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)  # of all gateways there ever were, the dead ones too
    cwd: Path = ROOT
    transport: str = "ws"
    _mails: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _looked: float = 0.0
    _started: int = 0

    @classmethod
    @contextmanager
    def start(
        cls,
        folder: Path,
        redis_url: str,
        *,
        gateways: int = 1,
        workers: int = 1,
        mailers: int = 1,
        settings: Mapping[str, str] | None = None,
        env_file: bool = False,
    ) -> Iterator[Deployment]:
        """Running and ready; ended at the end, and every process has to end well.

        `env_file`: the secrets are not in the environment but in a `.env` of the folder.
        """
        made = {name: secret() for name in ("FIN_EDGE_SECRET", "FIN_WORKER_SECRET", "FIN_PEPPER")}
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FIN_")},
            "FIN_REDIS_URL": redis_url,
            "FIN_DATA_DIR": str(folder / "data"),
            "FIN_PUBLIC_URL": "http://login.test",
            "PYTHONPATH": str(ROOT),
            **({} if env_file else made),
            **CHEAP,
            **OFF,
            **ANY_DEVICE,
            **({**BROKER, "FIN_DEPLOYMENT": f"t{secrets.token_hex(4)}"} if BROKER else {}),
            **(settings or {}),
        }
        deployment = cls(folder, redis_url, environ, cwd=folder if env_file else ROOT)
        if env_file:
            (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in made.items()))
        try:
            for role, count in (("worker", workers), ("mailer", mailers), ("gateway", gateways)):
                for _ in range(count):
                    deployment.add(role)
            if workers:
                for gateway in deployment.of("gateway"):
                    deployment.wait_ready(gateway)
            yield deployment
        finally:
            for process in deployment.processes:
                process.terminate()
            statuses = {process.log.name: process.end() for process in deployment.processes}
        assert not any(statuses.values()), statuses

    def add(self, role: str, *, port: int = 0, **settings: str) -> Process:
        """One more process, with settings of its own; a gateway listens on `port`, or on a new one."""
        if role == "gateway":
            port = port or free_port()
            settings["FIN_PORT"] = str(port)
            if port not in self.ports:
                self.ports.append(port)
        log = self.folder / f"{role}-{self._started}.out"
        self._started += 1
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "app", role],
                cwd=self.cwd,
                env={**self.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process = Process(role, popen, log, port)
        self.processes.append(process)
        return process

    async def command(self, *arguments: str) -> str:
        """What an operator's command says; it has to succeed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", *arguments),
            cwd=self.cwd,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    def kill(self, process: Process) -> None:
        """SIGKILL; it is no longer expected to end well."""
        process.popen.kill()
        process.popen.wait()
        self.processes.remove(process)

    def replace(self, role: str) -> None:
        """Processes of a role make room for others, with the settings as they are now."""
        for old in self.of(role):
            self.add(role)
            assert old.end() == 0
            self.processes.remove(old)
        for gateway in self.of("gateway"):
            self.wait_ready(gateway)
        self._wait_working()

    def of(self, role: str) -> list[Process]:
        return [process for process in self.processes if process.role == role]

    def wait_listening(self, gateway: Process) -> None:
        self._wait(gateway, "/healthz")

    def wait_ready(self, gateway: Process) -> None:
        self._wait(gateway, "/readyz")

    def _wait(self, gateway: Process, path: str) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            try:
                with urlopen(f"http://127.0.0.1:{gateway.port}{path}", timeout=2):
                    return
            except (URLError, OSError):
                assert gateway.popen.poll() is None, gateway.log.read_text()
                time.sleep(0.02)
        raise AssertionError("\n".join(process.log.read_text() for process in self.processes))

    def _wait_working(self) -> None:
        """Until every worker has given a sign of life; one that is told to end before that ends badly."""
        until = time.monotonic() + START_SECONDS
        with Redis.from_url(self.redis_url) as redis:
            while int(redis.hlen(names.WORKERS)) < len(self.of("worker")):
                assert time.monotonic() < until, "\n".join(process.log.read_text() for process in self.of("worker"))
                time.sleep(0.02)

    # --- clients -----------------------------------------------------------------------------------------------

    def url(self, gateway: int = 0, scheme: str = "ws", path: str = "/ws") -> str:
        gateways = self.of("gateway")
        return f"{scheme}://127.0.0.1:{gateways[gateway % len(gateways)].port}{path}"

    def over(self, transport: str) -> Deployment:
        """The same processes, talked to over "ws" or "rest"."""
        return replace(self, transport=transport)

    def client(self, gateway: int = 0, *, checked: bool = True, **options: Any) -> AbstractAsyncContextManager[Any]:
        """A client whose every frame is held against the message types, unless its speed is what matters."""
        if self.transport == "rest":
            return rest_client(self.url(gateway, "http", ""), options.get("additional_headers"))

        def watch(way: str, frame: bytes) -> None:
            collect(frame)
            if way == "←":
                check_frame(frame)

        return connect(self.url(gateway), watch=watch if checked else None, **options)

    @asynccontextmanager
    async def account(self, gateway: int = 0) -> AsyncIterator[tuple[Any, Account]]:
        """A connection, and an account that was registered and confirmed over it."""
        async with self.client(gateway) as client:
            yield client, await self.sign_up(client)

    async def sign_up(
        self, client: Client | RestClient, address: str | None = None, password: str = PASSWORD, **more: Any
    ) -> Account:
        address = address or new_address()
        accepted = await client.ask("register", email=address, password=password, **more)
        assert accepted.event == "register_accepted", accepted.data
        code = await self.mailed_code(address)
        confirmed = await client.ask("confirm_email", challenge=accepted.data["challenge"], code=code, **more)
        assert confirmed.event == "email_confirmed", confirmed.data
        return Account(address, password, confirmed.data["deviceToken"])

    # --- mails -----------------------------------------------------------------------------------------------------

    def mails(self, address: str) -> list[str]:
        """The plain texts mailed to an address, oldest first."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked = now
            self._look()
        return [text for _, text in sorted(self._mails.get(address, ()))]

    def _look(self) -> None:
        for path in (self.folder / "data/outbox").glob("*.eml"):
            if path.name not in self._seen:
                self._seen.add(path.name)
                message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
                if body := message.get_body(("plain",)):
                    found = self._mails.setdefault(str(message["To"]), [])
                    found.append((path.stat().st_mtime_ns, body.get_content()))

    async def mailed_code(self, address: str, count: int = 1) -> str:
        """The code of the `count`-th mail with one to an address, when it is there."""
        return (await self.mailed_codes(address, count))[count - 1]

    async def mailed_codes(self, address: str, count: int) -> list[str]:
        async def look() -> list[str]:
            while True:
                codes = [found[0] for text in self.mails(address) if (found := re.search(r"\b\d{6,8}\b", text))]
                if len(codes) >= count:
                    CODES.update(codes)
                    return codes
                await asyncio.sleep(0.02)

        return await asyncio.wait_for(look(), MAIL_SECONDS)


class RestClient:
    """Asks over REST what `app.client.Client` asks over a WebSocket; is who it last logged in or authenticated as."""

    def __init__(self, base: str, headers: Mapping[str, str] | None = None) -> None:
        self._base, self._headers = base, headers
        self._bearer: str | None = None

    async def ask(self, event: str, *, timeout_ms: int | None = None, key: str | None = None, **data: Any) -> Answer:
        status, headers, body = await asyncio.to_thread(
            http,
            "POST",
            f"{self._base}/v1/{event}",
            orjson.dumps(data),
            bearer=self._bearer,
            key=key,
            headers=self._headers,
        )
        collect(orjson.dumps({"data": data, "key": key}))
        collect(body)
        frame = check_frame(body)
        answer = Answer(frame["event"], frame["data"], frame.get("progress", []))
        expected = STATUSES[Code(answer.code)] if answer.code else 200
        assert status == expected, (status, frame)
        assert ("Retry-After" in headers) == (status in (429, 503))
        if answer.event in ("login_success", "authenticated"):
            self._bearer = answer.data.get("accessToken") or data["accessToken"]
        elif answer.event == "logged_out":
            self._bearer = None
        return answer


@asynccontextmanager
async def rest_client(base: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[RestClient]:
    yield RestClient(base, headers)


def http(
    method: str,
    url: str,
    body: bytes | None = None,
    *,
    bearer: str | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Message, bytes]:
    """Status, headers and body of one exchange."""
    given = {"Content-Type": "application/json", **(headers or {})}
    given |= {"Authorization": f"Bearer {bearer}"} if bearer else {}
    given |= {"Idempotency-Key": key} if key else {}
    try:
        with urlopen(Request(url, data=body, headers=given, method=method), timeout=40) as answer:
            return answer.status, answer.headers, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


@dataclass(frozen=True)
class Account:
    email: str
    password: str
    device_token: str

    async def login(self, client: Client | RestClient, **more: Any) -> Answer:
        answer = await client.ask("login", email=self.email, password=self.password, **more)
        assert answer.event == "login_success", answer.data
        return answer


def in_lane(redis: Redis, lane: Lane) -> int:
    """How many requests a lane holds, waiting or in hand, with whatever broker."""
    return int(redis.xlen(names.lane(lane))) + int(redis.zcard(names.lane_open(lane)))


def new_address() -> str:
    return f"{secrets.token_hex(6)}@example.com"


def event_of(answer: Answer) -> tuple[str, str | None]:
    return answer.event, answer.code
