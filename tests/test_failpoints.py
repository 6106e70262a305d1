"""Failpoints: what is done and what is not when a worker dies at each of them, and what their setting takes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from redis import Redis

from adapters import names
from app.messages import Lane
from app.settings import FAILPOINTS, Failpoint, Failpoints, Settings, SettingsFault
from tests.deployment import Deployment, event_of, secret
from tests.faults.load import lanes_empty, until
from tests.faults.stage import failpoint

VICTIM, OTHER = "victim@load.test", "other@load.test"
COUNTED = {"FIN_FAILURES_PER_ACCOUNT": "1000000"}
NAME = "FIN_TEST_FAILPOINTS"
DONE_BY_REDIS = ("settling", "settled")


@pytest.mark.all
@pytest.mark.streams
@pytest.mark.parametrize("point", FAILPOINTS)
async def test_a_worker_dies_at_its_point_and_another_ends_what_it_had_begun(
    redis_url: str, tmp_path: Path, point: str
) -> None:
    about = "" if point == "taken" else f"@{VICTIM}"
    with Deployment.start(tmp_path, redis_url, workers=0, mailers=0, settings=COUNTED) as running:
        worker = running.add("worker", FIN_TEST_FAILPOINTS=f"{point}=1/1{about} seed=7")
        running.wait_ready(running.of("gateway")[0])
        assert "KILL THEMSELVES" in worker.log.read_text()
        with Redis.from_url(redis_url) as redis:
            async with running.client() as client:
                if about:
                    spared = await client.ask("login", email=OTHER, password="wrong")
                    assert spared.code == "invalid_credentials" and worker.popen.poll() is None
                    redis.delete(names.EVENTS)
                asked = client.ask("login", email=VICTIM, password="wrong", timeout_ms=30_000)
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(asked)
                    assert await until(lambda: worker.popen.poll() is not None, 10)
                    assert (worker.popen.returncode, failpoint(worker.log)) == (-signal.SIGKILL, point)
                    running.processes.remove(worker)
                    if point in DONE_BY_REDIS:
                        assert await until(lambda: not redis.xlen(names.lane(Lane.HASH)), 5)
                    reserved = redis.zcard(names.held("account", f"{VICTIM}|127.0.0.1"))
                    done = (redis.xlen(names.EVENTS), 1 - redis.xlen(names.lane(Lane.HASH)))
                    assert reserved == (1 if point in ("checked", "decided") else 0)
                    assert done == ((1, 1) if point in DONE_BY_REDIS else (0, 0))
                    if point not in DONE_BY_REDIS:
                        running.add("worker")
                answer = task.result()
            assert await lanes_empty(redis_url, 5)
            audited = redis.xlen(names.EVENTS)
            counted = redis.hget(names.limit("account", f"{VICTIM}|127.0.0.1"), "n")
            held = redis.zcard(names.held("account", f"{VICTIM}|127.0.0.1"))

    assert event_of(answer) == ("login_failure", "invalid_credentials")
    assert (audited, counted, held) == (1, b"1", 0)


# --- the setting -----------------------------------------------------------------------------------------------------


def read(spec: str) -> Settings:
    secrets = {name: secret() for name in ("FIN_EDGE_SECRET", "FIN_WORKER_SECRET", "FIN_PEPPER")}
    return Settings.from_env({**secrets, NAME: spec})


def test_points_chances_prefix_and_seed_are_read() -> None:
    assert read("settling=1/300 checked=2/4@poison- seed=7").failpoints == Failpoints(
        (Failpoint("settling", 1 / 300), Failpoint("checked", 0.5, "poison-")), 7
    )


def test_beside_rabbitmq_it_is_a_fault() -> None:
    with pytest.raises(SettingsFault) as told:
        Settings.from_env({NAME: "settled=1/2", "FIN_BROKER_URL": "amqp://localhost"})
    assert any(fault.startswith(NAME) for fault in told.value.faults)


def test_without_the_setting_there_is_nothing_and_with_it_there_is_a_warning() -> None:
    assert read("").failpoints is None and not read("").warnings
    [warning] = read("taken=1/2").warnings
    assert warning.startswith(f"{NAME} IS SET")


@pytest.mark.parametrize(
    "spec", ["hashed=1/2", "taken", "taken=2/1", "taken=0/1", "taken=1/2@x", "settled=0.5", "seed=x", "seed"]
)
def test_a_wrong_word_is_a_fault_that_names_the_setting_and_is_told_with_the_others(spec: str) -> None:
    with pytest.raises(SettingsFault) as told:
        Settings.from_env({NAME: f"settled=1/2 {spec}"})
    assert [fault.split()[0] for fault in told.value.faults].count(NAME) == 1
    assert any(fault.startswith("FIN_PEPPER") for fault in told.value.faults)
