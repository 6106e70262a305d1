"""Where a scenario plays: a Redis of its own and a deployment on it, whose dead are counted and replaced."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from redis import Redis

from adapters.embedded_redis import EmbeddedRedis
from tests.deployment import Deployment, Process
from tests.faults import Figures, Run
from tests.faults.audit import Allowed, State, audit, read_state
from tests.faults.load import SETTINGS
from tests.faults.log import Log

LOG_TAIL = 4096


@dataclass
class Stage:
    """`kills` by what killed: a failpoint's name, "external", or the role."""

    run: Run
    server: EmbeddedRedis
    deployment: Deployment
    redis: Any  # a redis.Redis, whose annotations know no bytes
    kills: Counter[str] = field(default_factory=Counter)

    def of(self, role: str) -> list[Process]:
        return self.deployment.of(role)

    def kill(self, process: Process, why: str) -> None:
        self.deployment.kill(process)
        self.kills[why] += 1

    def dead(self, role: str) -> list[Process]:
        """Those that failpoints killed since, counted and taken off; AssertionError for any other end."""
        found = [process for process in self.of(role) if process.popen.poll() is not None]
        for process in found:
            status, point = process.popen.returncode, failpoint(process.log)
            assert status == -signal.SIGKILL and point, f"{process.log} ended by itself, status {status}"
            self.kills[point] += 1
            self.deployment.processes.remove(process)
        return found

    @property
    def killed(self) -> int:
        return self.kills.total()

    def audit(self, log: Log, allowed: Allowed) -> None:
        """AssertionError with every promise that was broken; the log is in the run's folder for who looks into it."""
        log.write(self.run.folder / "log.jsonl")
        audit(log, self.state(), allowed)

    def state(self) -> State:
        return read_state(self.redis)

    def all_live(self) -> None:
        dead = [process.log.name for process in self.deployment.processes if process.popen.poll() is not None]
        assert not dead, f"died: {', '.join(dead)}"

    def figures(self, log: Log) -> Figures:
        told = {what: n for what, n in sorted(log.told().items()) if what.startswith(("error", "closed"))}
        kills = {f"killed {why}": n for why, n in sorted(self.kills.items())}
        return {"requests": len(log.asked), **kills, **told, "slowest s": round(log.slowest(), 1)}


@asynccontextmanager
async def stage(
    run: Run, *, gateways: int = 2, workers: int = 2, mailers: int = 1, settings: Mapping[str, str] | None = None
) -> AsyncIterator[Stage]:
    """Set up in the run's folder, and cleared away however it ends; every process left has to end well."""
    server = EmbeddedRedis(run.folder / "server")
    await server.start()
    try:
        with (
            Deployment.start(
                run.folder,
                server.url,
                gateways=gateways,
                workers=workers,
                mailers=mailers,
                settings={**SETTINGS, **(settings or {})},
            ) as deployment,
            Redis.from_url(server.url) as redis,
        ):
            yield Stage(run, server, deployment, redis)
    finally:
        await server.stop()


def failpoint(log: Path) -> str:
    """The name of the point at which a process killed itself, from the last words of its log; "" for none."""
    lines = log.read_bytes()[-LOG_TAIL:].splitlines()
    try:
        last = orjson.loads(lines[-1])
    except (IndexError, ValueError):
        return ""
    return str(last.get("point", ""))
