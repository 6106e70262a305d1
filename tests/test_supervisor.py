"""The supervisor: what dies comes back and is said, what stops stops everything. Against real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from app.settings import Fault
from app.supervisor import EX_CONFIG, Pace, only_one, supervise

QUICK = Pace(first_delay=0.05, longest_delay=0.2, healthy_after=60.0, grace=0.5, poll=0.02)

# A supervisor as `all` is one: the real embedded server and a role that starts a child of its own.
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from adapters.embedded_redis import EmbeddedRedis
from app.supervisor import supervise
data = Path(sys.argv[1])
async def ready():
    return all((data / name).exists() and (data / name).read_text() for name in ("role", "child"))
def say():
    print("ready", flush=True)
role = ["sh", "-c", f"sleep 60 & echo $! > '{data}/child'; echo $$ > '{data}/role'; wait"]
sys.exit(asyncio.run(supervise({"role": role}, EmbeddedRedis(data), ready=ready, on_ready=say)))
"""


class FakeServer:
    """Ends at once when told to fail; else lives until it is stopped."""

    def __init__(self, *, ends: int = 0) -> None:
        self.starts = 0
        self.ends = ends
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        self.starts += 1

    async def wait(self) -> int:
        if self.starts <= self.ends:
            return 1
        await self.stopped.wait()
        return 0

    async def stop(self, grace: float = 10.0) -> None:
        self.stopped.set()


def shell(script: str) -> Sequence[str]:
    return ["sh", "-c", script]


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)


def supervise_until(
    condition: Callable[[], bool],
    commands: dict[str, Sequence[str]],
    server: FakeServer | None = None,
    numbers: Sequence[int] = (signal.SIGTERM,),
) -> int:
    """Run until `condition`, then send this process the signals; return the status."""

    async def run() -> int:
        async def ready() -> bool:
            return condition()

        def on_ready() -> None:
            for number in numbers:
                os.kill(os.getpid(), number)

        running = supervise(commands, server, ready=ready, on_ready=on_ready, pace=QUICK)
        return await asyncio.wait_for(running, 10)

    return asyncio.run(run())


def test_a_role_that_dies_is_started_again_after_a_growing_pause_and_this_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    dying = shell(f"echo $$ >> '{out}'; exit 3")
    assert supervise_until(lambda: len(lines(out)) >= 4, {"worker": dying}) == 0
    said = [record.__dict__["fields"] for record in caplog.records if "again" in record.message]
    assert said[0] == {"role": "worker", "exit": 3, "restart_in_ms": 50}
    assert [fields["restart_in_ms"] for fields in said[:3]] == [50, 100, 200]


def test_a_server_that_dies_is_started_again_while_the_roles_run_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    server = FakeServer(ends=2)
    commands = {"worker": shell(f"echo $$ >> '{out}'; exec sleep 60")}
    assert supervise_until(lambda: server.starts == 3 and bool(lines(out)), commands, server) == 0
    assert len(lines(out)) == 1
    assert not alive(int(lines(out)[0]))
    assert server.stopped.is_set()


def test_a_role_that_refuses_its_settings_stops_everything_with_its_status(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refusing = shell(f"while [ ! -s '{out}' ]; do sleep 0.01; done; exit {EX_CONFIG}")
    commands = {"gateway": shell(f"echo $$ > '{out}'; exec sleep 60"), "worker": refusing}
    assert supervise_until(lambda: False, commands) == EX_CONFIG
    assert not alive(int(lines(out)[0]))


def test_a_role_that_does_not_drain_is_killed_after_the_grace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    deaf = shell(f"trap '' TERM; echo $$ > '{out}'; while :; do sleep 0.05; done")
    assert supervise_until(lambda: bool(lines(out)), {"worker": deaf}) == 0
    assert not alive(int(lines(out)[0]))
    assert any("killed" in record.message for record in caplog.records)


def test_a_server_that_cannot_start_is_a_fault_and_no_role_is_started(tmp_path: Path) -> None:
    class Broken(FakeServer):
        async def start(self) -> None:
            raise Fault("There is no server.")

    with pytest.raises(Fault, match="no server"):
        supervise_until(lambda: False, {"worker": shell(f"touch '{tmp_path}/out'")}, Broken())
    assert not (tmp_path / "out").exists()


def test_only_one_runs_on_a_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "var"
    with only_one(data), pytest.raises(Fault, match="already runs"), only_one(data):
        pass
    with only_one(data):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(Fault, match="cannot be written to"), only_one(tmp_path / "file"):
        pass


@pytest.fixture
def everything(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A running supervisor, and the process ids of its role, the role's child and its server."""
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    pids = [int(lines(tmp_path / name)[0]) for name in ("role", "child")]
    pids += [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if server_of(pid, tmp_path)]
    assert len(pids) == 3
    yield process, pids
    process.kill()
    process.wait()
    process.stdout.close()


def server_of(pid: int, data: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == data / "redis"
    except OSError:
        return False


def test_sigterm_leaves_no_process_behind(everything: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, pids = everything
    process.terminate()
    assert process.wait(10) == 0
    assert not any(map(alive, pids))


def test_sigkill_of_the_supervisor_leaves_no_role_and_no_server_behind(
    everything: tuple[subprocess.Popen[str], list[int]],
) -> None:
    process, (role, child, server) = everything
    process.kill()
    until(lambda: not alive(role) and not alive(server))
    if alive(child):  # a role's own children are its own to end; `sh` does not
        os.kill(child, signal.SIGKILL)


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    deaf = shell(f"trap '' TERM; echo $$ > '{out}'; while :; do sleep 0.05; done")

    async def run() -> float:
        clock = asyncio.get_running_loop().time

        async def ready() -> bool:
            return bool(lines(out))

        def on_ready() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGINT)

        began = clock()
        assert await supervise({"worker": deaf}, None, ready=ready, on_ready=on_ready, pace=Pace(poll=0.02)) == 0
        return clock() - began

    assert asyncio.run(run()) < 5
    assert not alive(int(lines(out)[0]))
