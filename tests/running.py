"""Servers that tests can start, kill, fill and start again: processes of this machine, containers, or given ones."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from adapters.embedded_redis import CONF, PORTS
from app.supervisor import end_with_parent

ANSWER_SECONDS = 2.0
START_SECONDS = 90.0  # RabbitMQ takes five on an idle machine; a loaded one is slower
STOP_SECONDS = 10.0
LOOK_SECONDS = 0.05
# A quorum queue of RabbitMQ 3.10 that is killed within a second of its first declaration comes back without a leader
# and without what is in it: Ra writes the names of its servers down (names.dets) only now and then.
WRITTEN_DOWN_SECONDS = 2.0
HOLDERS: deque[socket.socket] = deque()
MOST_HELD = 200  # no test has as many servers
HZ = 100  # ticks a second of Redis, which ends a read that blocks in vain with the next one; ten unless told otherwise
LOW, NORMAL = "0.00001", "0.4"  # RabbitMQ's memory watermark, as a part of the machine's memory


class Kind(StrEnum):
    REDIS = "redis"
    VALKEY = "valkey"
    RABBITMQ = "rabbitmq"


@dataclass(frozen=True)
class Ways:
    """The settings of a kind, and the image where none is set."""

    url: str
    image: str
    default_image: str
    scheme: str
    port: int


WAYS = {
    Kind.REDIS: Ways("FIN_TEST_REDIS_URL", "FIN_TEST_REDIS_IMAGE", "redis:7.0", "redis", 6379),
    Kind.VALKEY: Ways("FIN_TEST_VALKEY_URL", "FIN_TEST_VALKEY_IMAGE", "valkey/valkey:9.1", "redis", 6379),
    Kind.RABBITMQ: Ways("FIN_TEST_AMQP_URL", "FIN_TEST_RABBITMQ_IMAGE", "rabbitmq:3.10", "amqp", 5672),
}


@dataclass(frozen=True)
class Source:
    """Where a server of a kind comes from: the URL, the image or the program."""

    kind: Kind
    way: Literal["url", "container", "local"]
    what: str
    version: str

    def __str__(self) -> str:
        where = WAYS[self.kind].url if self.way == "url" else f"{self.way}: {self.what}"
        return f"{self.version} ({where})"


class Server(ABC):
    """One server. What it acknowledged survives `kill`, and it comes back at the same address with the same data."""

    mortal = True  # False: it is not ours to kill or fill

    def __init__(self, source: Source) -> None:
        self.source = source

    @property
    @abstractmethod
    def parts(self) -> SplitResult:
        """Its URL: redis://:password@host:port or amqp://user:password@host:port/vhost."""

    @abstractmethod
    async def start(self) -> None:
        """Return when it serves."""

    @abstractmethod
    async def stop(self) -> None: ...

    @abstractmethod
    async def kill(self) -> None:
        """SIGKILL; return when it is dead."""

    @abstractmethod
    async def control(self, *command: str) -> None:
        """RabbitMQ's rabbitmqctl."""

    async def restart(self) -> None:
        """After `kill` or `stop`."""
        await self.start()

    @property
    def address(self) -> tuple[str, int]:
        return self.parts.hostname or "127.0.0.1", self.parts.port or WAYS[self.source.kind].port

    @asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """It has no memory left meanwhile, and refuses what would need some."""
        await self._memory(full=True)
        try:
            yield
        finally:
            await self._memory(full=False)

    async def _memory(self, *, full: bool) -> None:
        if self.source.kind is Kind.RABBITMQ:
            await self.control("set_vm_memory_high_watermark", LOW if full else NORMAL)
        else:
            with _redis(self.parts) as redis:
                redis.config_set("maxmemory", 1 if full else 0)

    async def _until_it_serves(self, lives: Callable[[], str]) -> None:
        """`lives`: why it does not, or ""."""
        deadline = time.monotonic() + START_SECONDS
        while not version_at(self.source.kind, self.parts):
            if problem := lives():
                raise RuntimeError(f"{self.source.kind} did not start: {problem}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.source.kind} does not answer after {START_SECONDS:.0f} s")
            await asyncio.sleep(LOOK_SECONDS)


class Given(Server):
    mortal = False

    @property
    def parts(self) -> SplitResult:
        return urlsplit(self.source.what)

    async def start(self) -> None:
        await self._until_it_serves(lambda: "")

    async def stop(self) -> None:
        """It is somebody else's."""

    async def kill(self) -> None:
        raise AssertionError("not ours")

    async def control(self, *command: str) -> None:
        raise AssertionError("not ours")


class Local(Server):
    """A process of this machine, on loopback, its data in `folder`. To be started from the main thread."""

    def __init__(self, source: Source, folder: Path) -> None:
        super().__init__(source)
        self._folder, self._port = folder, free_port()
        self._password = secrets.token_urlsafe(16)
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = self._spawn()
        await self._until_it_serves(self._dead)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @abstractmethod
    def _spawn(self) -> subprocess.Popen[bytes]: ...

    def _popen(self, command: list[str], environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self._folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent(),
            )

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _dead(self) -> str:
        if self._process is None or self._process.poll() is None:
            return ""
        return self._log.read_text(errors="replace")[-2000:] or f"exit status {self._process.returncode}"

    async def _end(self, number: int) -> None:
        """Its process group gets the signal, and SIGKILL when that was not enough."""
        process, self._process = self._process, None
        if process is None:
            return
        await _end_group(process, number)


class LocalRedis(Local):
    @property
    def parts(self) -> SplitResult:
        return urlsplit(f"redis://:{self._password}@127.0.0.1:{self._port}/0")

    def _spawn(self) -> subprocess.Popen[bytes]:
        """As durable as a deployment's."""
        conf = CONF.format(port=self._port, password=self._password)
        (self._folder / "redis.conf").write_text(f"{conf}hz {HZ}\n")
        return self._popen([self.source.what, "redis.conf"])

    async def control(self, *command: str) -> None:
        raise AssertionError("not RabbitMQ")


class LocalRabbitMQ(Local):
    """A node with names, ports, data and an epmd of its own."""

    def __init__(self, source: Source, folder: Path) -> None:
        super().__init__(source, folder)
        self._epmd: subprocess.Popen[bytes] | None = None
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))},
            "HOME": str(folder),  # of the cookie
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"fin{secrets.token_hex(4)}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            # a node that waits for work does not spin: there are other processes on this machine
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    @property
    def parts(self) -> SplitResult:
        return urlsplit(f"amqp://guest:guest@127.0.0.1:{self._port}/")

    def _spawn(self) -> subprocess.Popen[bytes]:
        (self._folder / "plugins").write_text("[].\n")
        (self._folder / "rabbitmq.config").write_text("[{rabbit, [{disk_free_limit, 1000000}]}].\n")
        if self._epmd is None:  # RabbitMQ would start one that outlives it
            port = self._environ["ERL_EPMD_PORT"]
            self._epmd = self._popen(["epmd", "-address", "127.0.0.1", "-port", port], self._environ)
        return self._popen([self.source.what], self._environ)

    async def stop(self) -> None:
        await super().stop()
        if self._epmd is not None:
            await _end_group(self._epmd, signal.SIGTERM)
            self._epmd = None

    async def control(self, *command: str) -> None:
        ctl = str(Path(self.source.what).with_name("rabbitmqctl"))
        node = self._environ["RABBITMQ_NODENAME"]
        done = await asyncio.to_thread(
            lambda: subprocess.run([ctl, "-n", node, *command], env=self._environ, capture_output=True, timeout=60)
        )
        assert done.returncode == 0, done.stdout + done.stderr


class Contained(Server):
    """A container, by testcontainers."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._container: Any = None
        self._host, self._port = "127.0.0.1", 0

    @property
    def parts(self) -> SplitResult:
        user = "guest:guest@" if self.source.kind is Kind.RABBITMQ else ""
        return urlsplit(f"{WAYS[self.source.kind].scheme}://{user}{self._host}:{self._port}/")

    async def start(self) -> None:
        await asyncio.to_thread(self._start)
        await self._until_it_serves(lambda: "")

    def _start(self) -> None:
        port = WAYS[self.source.kind].port
        if self._container is None:
            self._container = _testcontainers()(self.source.what).with_exposed_ports(port)
            if self.source.kind is not Kind.RABBITMQ:
                self._container.with_command(
                    f"{self.source.kind}-server --protected-mode no --bind 0.0.0.0 --save '' "
                    f"--appendonly yes --appendfsync always --maxmemory-policy noeviction --hz {HZ}"
                )
            self._container.start()
        else:
            self._container.get_wrapped_container().start()
        self._container.get_wrapped_container().reload()  # a restarted one has another port on the host
        self._host = self._container.get_container_host_ip().replace("localhost", "127.0.0.1")
        bindings = self._container.get_wrapped_container().ports[f"{port}/tcp"]
        self._port = int(bindings[0]["HostPort"])

    async def stop(self) -> None:
        if self._container is not None:
            await asyncio.to_thread(self._container.stop)
            self._container = None

    async def kill(self) -> None:
        await asyncio.to_thread(self._kill)

    def _kill(self) -> None:
        wrapped = self._container.get_wrapped_container()
        wrapped.kill()
        wrapped.wait()

    async def control(self, *command: str) -> None:
        wrapped = self._container.get_wrapped_container()
        status, said = await asyncio.to_thread(wrapped.exec_run, ["rabbitmqctl", *command])
        assert status == 0, said


# --- small things ----------------------------------------------------------------------------------------------------


def free_port() -> int:
    """Below those that systems give to outgoing connections, so that it is still free when a server comes back; the
    next one is for a gateway's operator. Held by a socket that does not listen, so that nobody else gets it meanwhile.
    """
    while True:
        port, holder = secrets.choice(PORTS[::2]), socket.socket()
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            holder.close()
            continue
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # now whoever it is for can bind it too
        HOLDERS.append(holder)
        if len(HOLDERS) > MOST_HELD:
            HOLDERS.popleft().close()
        return port


def version_at(kind: Kind, parts: SplitResult) -> str:
    """What answers there says of its version; "" when nothing does."""
    if kind is Kind.RABBITMQ:
        return _greeting((parts.hostname or "", parts.port or WAYS[kind].port))
    with _redis(parts) as redis, suppress(RedisError, OSError):
        about: Any = redis.info("server")
        return str(about.get("valkey_version") or about["redis_version"])
    return ""


def _redis(parts: SplitResult) -> Redis:
    return Redis.from_url(
        parts.geturl(),
        socket_timeout=ANSWER_SECONDS,
        socket_connect_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def _greeting(address: tuple[str, int]) -> str:
    """The version in the first frame that an AMQP 0-9-1 server sends."""
    with suppress(OSError), socket.create_connection(address, ANSWER_SECONDS) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        said = b""
        while len(said) < 4096 and (more := connection.recv(4096)):
            said += more
            if found := re.search(rb"\x07versionS\x00\x00\x00.([\d.]+)", said, re.DOTALL):
                return found[1].decode()
    return ""


def _testcontainers() -> Any:
    # its reaper is one more image to be pulled; what is started here is stopped here
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.container import DockerContainer

    return DockerContainer


async def _end_group(process: subprocess.Popen[bytes], number: int) -> None:
    """It gets the signal, SIGKILL when that was not enough, and so do children that its end has left behind."""
    deadline = time.monotonic() + STOP_SECONDS
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    while process.returncode is None and not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.01)
    if process.returncode is None:  # not reaped yet: the group's number is still its own
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
