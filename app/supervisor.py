"""`all`: one server and one process per role, kept alive, and stopped together.

What dies is started again after a growing pause, and said so. A role that ends with EX_CONFIG has told the
operator what is wrong: nothing is tried again and everything stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from app.settings import Fault

EX_CONFIG = 78  # sysexits.h
log = logging.getLogger("finthenticate")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Loaded before any fork: between fork and exec nothing may import or allocate more than it must.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Server(Protocol):
    """What the roles need running first. After it has died, `start` may be called again."""

    async def start(self) -> None:
        """Return when it serves; raise Fault when it cannot."""

    async def wait(self) -> int:
        """Return the exit status when it has ended."""

    async def stop(self, grace: float = 10.0) -> None:
        """Ask it to end, make it end after `grace` seconds, and return when it has ended."""


@dataclass(frozen=True)
class Pace:
    """How long the supervisor waits, in seconds."""

    first_delay: float = 0.5
    longest_delay: float = 10.0
    healthy_after: float = 30.0  # a process that lived this long starts again with the first delay
    grace: float = 15.0  # what PROTOCOL gives a role to drain
    poll: float = 0.1


@contextlib.contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Hold data_dir/all.lock: one `all` per data folder. The kernel lets go of it however the process ends."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = (data_dir / "all.lock").open("a")
    except OSError as error:
        raise Fault(f"The data folder {data_dir} cannot be written to ({error.strerror}); set FIN_DATA_DIR.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            message = f"Finthenticate already runs on {data_dir}; stop it first, or set another FIN_DATA_DIR."
            raise Fault(message) from None
        yield


def end_with_parent() -> Callable[[], None] | None:
    """For preexec_fn: the child gets SIGTERM when the thread that started it ends, however it ends (Linux)."""
    libc = _libc
    if libc is None:
        return None
    parent = os.getpid()

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)

    return arrange


async def supervise(
    commands: Mapping[str, Sequence[str]],
    server: Server | None,
    *,
    ready: Callable[[], Awaitable[bool]],
    on_ready: Callable[[], None],
    pace: Pace = Pace(),
) -> int:
    """Run `commands` (role → argv) until SIGTERM, SIGINT or SIGHUP; return the exit status.

    `on_ready` is called once, when `ready` first says true. A server that cannot start at all raises its Fault.
    A second signal kills instead of waiting.
    """
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()
    roles = [_Role(name, argv) for name, argv in commands.items()]
    signals = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signals.append(signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, lambda: hurry.set() if stop.is_set() else stop.set())
    tasks: list[asyncio.Task[int]] = []
    stopping = asyncio.create_task(stop.wait())
    try:
        if server:
            starting = asyncio.create_task(server.start())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait([starting])
                return 0
            starting.result()
            tasks.append(asyncio.create_task(_keep("redis", _server_lives(server), pace)))
        tasks += [asyncio.create_task(_keep(role.name, role.live, pace)) for role in roles]
        tasks.append(asyncio.create_task(_announce(ready, on_ready, pace)))
        await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        ended = [task.result() for task in tasks if task.done()]
        return ended[0] if ended else 0
    finally:
        await _end(tasks)
        await _drain(roles, hurry, pace.grace)
        if server:
            leaving = asyncio.create_task(server.stop())
            await _either(leaving, hurry)
            await _end([leaving])
            await server.stop(0)
        await _end([stopping])
        for number in signals:
            loop.remove_signal_handler(number)


class _Role:
    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.name = name
        self.argv = argv
        self.process: asyncio.subprocess.Process | None = None

    async def live(self) -> int:
        """Start it and wait for its end. Own session: a terminal's Ctrl-C reaches the supervisor alone."""
        self.process = await asyncio.create_subprocess_exec(
            *self.argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent()
        )
        log.info("role started", extra={"fields": {"role": self.name, "pid": self.process.pid}})
        status = await self.process.wait()
        self.kill()
        self.process = None
        return status

    def terminate(self) -> None:
        if self.process and self.process.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole session, so that no child of a role outlives it."""
        if self.process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def gone(self) -> None:
        if self.process:
            await self.process.wait()


def _server_lives(server: Server) -> Callable[[], Awaitable[int]]:
    running = True

    async def live() -> int:
        nonlocal running
        if not running:
            await server.start()
            log.info("server started", extra={"fields": {"role": "redis"}})
        running = False
        return await server.wait()

    return live


async def _keep(name: str, live: Callable[[], Awaitable[int]], pace: Pace) -> int:
    """Call `live` again and again; return only when starting it again would be useless."""
    clock = asyncio.get_running_loop().time
    delay = pace.first_delay
    while True:
        began = clock()
        fields: dict[str, object] = {"role": name}
        try:
            status = await live()
        except (Fault, OSError) as error:
            fields["reason"] = str(error)
        else:
            if status == EX_CONFIG:
                return status
            fields["exit"] = status if status >= 0 else signal.strsignal(-status)
        if clock() - began >= pace.healthy_after:
            delay = pace.first_delay
        fields["restart_in_ms"] = round(delay * 1000)
        log.error("process ended, starting it again", extra={"fields": fields})
        await asyncio.sleep(delay)
        delay = min(delay * 2, pace.longest_delay)


async def _announce(ready: Callable[[], Awaitable[bool]], on_ready: Callable[[], None], pace: Pace) -> int:
    while not await ready():
        await asyncio.sleep(pace.poll)
    on_ready()
    await asyncio.Event().wait()  # only cancelled
    return 0


async def _drain(roles: Sequence[_Role], hurry: asyncio.Event, grace: float) -> None:
    for role in roles:
        role.terminate()
    gone = asyncio.gather(*(role.gone() for role in roles))
    await _either(gone, hurry, grace)
    for role in roles:
        if role.process and role.process.returncode is None:
            log.error("role did not drain, killed", extra={"fields": {"role": role.name}})
        role.kill()
    await asyncio.gather(*(role.gone() for role in roles))


async def _either(awaited: asyncio.Future[Any], event: asyncio.Event, seconds: float | None = None) -> None:
    """Return when `awaited` is done, `event` is set or the time is over; `awaited` goes on."""
    signalled = asyncio.create_task(event.wait())
    await asyncio.wait([awaited, signalled], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    await _end([signalled])


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
