"""Starting and stopping as an operator does: faults said in sentences, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from adapters.embedded_redis import EmbeddedRedis
from app.__main__ import _is_ready
from app.client import connect
from app.settings import Settings
from tests.deployment import CHEAP, ROOT, Deployment, event_of, new_address, secret
from tests.running import free_port

SECRETS = {"FIN_EDGE_SECRET": secret(), "FIN_WORKER_SECRET": secret(), "FIN_PEPPER": secret()}


def app(role: str, folder: Path, **settings: str) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FIN_")}
    return subprocess.Popen(
        [sys.executable, "-m", "app", role],
        cwd=folder,
        env={**environ, "PYTHONPATH": str(ROOT), "FIN_DATA_DIR": str(folder / "data"), **CHEAP, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit status and the lines of stderr."""
    try:
        _, errors = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        said, errors = process.communicate()
        pytest.fail(f"it has not ended:\n{said}{errors}")
    return process.returncode, errors.splitlines()


def test_all_faults_of_the_settings_are_said_together_and_no_secret_with_them(tmp_path: Path) -> None:
    weak = "aaaa:c2VjcmV0"
    settings = {"FIN_PORT": "http", "FIN_MAX_QUEUE": "0", "FIN_EDGE_SECRET": weak, "FIN_ARGON2": "fast"}
    status, lines = ended(app("all", tmp_path, **settings))

    said = "\n".join(lines)
    assert status == 78
    for name in [*settings, "FIN_WORKER_SECRET", "FIN_PEPPER"]:
        assert name in said
    assert "c2VjcmV0" not in said and "Traceback" not in said


def test_a_taken_port_is_said_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, lines = ended(app("all", tmp_path, FIN_PORT=port, **SECRETS))

    assert status == 78
    assert len(lines) == 1 and "FIN_PORT" in lines[0] and port in lines[0]
    assert not (tmp_path / "data/redis").exists()


def test_a_role_without_a_server_to_join_says_so(tmp_path: Path) -> None:
    status, lines = ended(app("worker", tmp_path, **SECRETS))

    assert status == 69
    assert len(lines) == 1 and "FIN_REDIS_URL" in lines[0]


class Well(BaseHTTPRequestHandler):
    """A gateway that is ready and healthy."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """It says nothing."""


async def test_a_proxy_of_the_environment_is_not_asked_about_our_own_listener(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # nobody is there
    with ThreadingHTTPServer(("127.0.0.1", 0), Well) as server:
        Thread(target=server.serve_forever).start()
        monkeypatch.setenv("FIN_PORT", str(server.server_port))
        try:
            ready = await _is_ready(Settings(port=server.server_port))
            with monkeypatch.context() as container, pytest.raises(SystemExit) as health:
                container.setattr(Path, "read_bytes", lambda path: b"python\0-m\0app\0gateway\0")
                runpy.run_path(str(ROOT / "docker/health.py"))
        finally:
            server.shutdown()

    assert (ready, health.value.code) == (True, False)


def test_an_unknown_role_gets_the_usage(tmp_path: Path) -> None:
    status, lines = ended(app("everything", tmp_path, **SECRETS))

    assert (status, len(lines)) == (64, 1) and "all|gateway|worker|mailer" in lines[0]


def test_a_data_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    status, lines = ended(app("gateway", tmp_path, **SECRETS, FIN_REDIS_URL="redis://127.0.0.1:1"))

    assert status == 78
    assert len(lines) == 1 and "FIN_DATA_DIR" in lines[0]


UNSAFE = {
    "everysec": {"appendfsync": "everysec"},
    "no AOF": {"appendonly": "no"},
    "eviction": {"maxmemory-policy": "allkeys-lru"},
    "no fsync while rewriting": {"no-appendfsync-on-rewrite": "yes"},
}


@pytest.mark.parametrize("name", UNSAFE)
def test_a_redis_that_may_lose_what_it_acknowledged_is_refused_unless_that_is_accepted(
    tmp_path: Path, name: str
) -> None:
    async def starts() -> None:
        from redis.asyncio import Redis

        server = EmbeddedRedis(tmp_path / "other")
        await server.start()
        try:
            async with Redis.from_url(server.url) as redis:
                for setting, value in UNSAFE[name].items():
                    await redis.config_set(setting, value)
            given = {**SECRETS, "FIN_REDIS_URL": server.url, "FIN_PORT": str(free_port())}
            status, lines = await asyncio.to_thread(ended, app("gateway", tmp_path, **given))
            assert status == 78
            assert len(lines) == 1 and next(iter(UNSAFE[name])) in lines[0] and "FIN_DURABILITY" in lines[0]
            relaxed = app("gateway", tmp_path, **given, FIN_DURABILITY="relaxed")
            await _until(lambda: _status(int(given["FIN_PORT"]), "/healthz") == 200)
            relaxed.terminate()
            assert (await asyncio.to_thread(ended, relaxed))[0] == 0
        finally:
            await server.stop()

    asyncio.run(starts())


def test_a_wrong_password_for_redis_is_said(tmp_path: Path) -> None:
    async def starts() -> None:
        server = EmbeddedRedis(tmp_path / "other")
        await server.start()
        try:
            url = re.sub(r":[^:@]+@", ":wrong@", server.url)
            status, lines = await asyncio.to_thread(ended, app("worker", tmp_path, **SECRETS, FIN_REDIS_URL=url))
        finally:
            await server.stop()
        assert status == 78
        assert len(lines) == 1 and "FIN_REDIS_URL" in lines[0] and "wrong@" not in lines[0]

    asyncio.run(starts())


async def test_with_redis_down_a_gateway_starts_answers_unavailable_and_heals_when_it_comes(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "other")
    await server.start()
    await server.stop()
    with Deployment.start(tmp_path, server.url, workers=0, mailers=0) as running:
        gateway = running.of("gateway")[0]
        running.wait_listening(gateway)
        running.add("worker")
        async with running.client() as client:
            away = await client.ask("login", email=new_address(), password="x")
            not_ready = _status(gateway.port, "/readyz")
            await server.start()
            await asyncio.to_thread(running.wait_ready, gateway)
            back = await client.ask("login", email=new_address(), password="x")
    await server.stop()

    assert event_of(away) == ("error", "unavailable") and away.data["retryAfterMs"] > 0
    assert not_ready == 503
    assert back.code == "invalid_credentials"


async def test_all_runs_everything_restarts_what_dies_and_leaves_nothing_behind(tmp_path: Path) -> None:
    port = free_port()
    process = app("all", tmp_path, FIN_PORT=str(port), FIN_EMAIL_CONFIRMATION="off", **SECRETS)
    try:
        await _until(lambda: _status(port, "/readyz") == 200)
        second = await asyncio.to_thread(ended, app("all", tmp_path, FIN_PORT=str(free_port()), **SECRETS))
        children = _children(process.pid)
        url = f"ws://127.0.0.1:{port}/ws"
        async with connect(url) as client:
            accepted = await client.ask("register", email="a@b.c", password="long enough, I hope")
            for pid in children:
                os.kill(pid, signal.SIGKILL)  # roles and Redis, all at once
        await _until(lambda: _status(port, "/readyz") == 200 and not set(_children(process.pid)) & set(children))
        async with connect(url) as client:
            token = accepted.data["deviceToken"]
            login = await client.ask("login", email="a@b.c", password="long enough, I hope", deviceToken=token)
        children = _children(process.pid)
    finally:
        process.terminate()
        status, lines = await asyncio.to_thread(ended, process)

    assert second[0] == 78 and len(second[1]) == 1 and "already" in second[1][0]
    assert (accepted.event, accepted.data["next"], login.event) == ("register_accepted", "login", "login_success")
    assert status == 0
    assert len(children) == 4 and not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert any(f":{port}" in line for line in lines), "it says where it serves"


def test_every_line_of_the_logs_is_json_and_none_has_a_secret_in_it(deployment: Deployment) -> None:
    async def use() -> list[str]:
        async with deployment.account() as (client, account):
            login = await account.login(client, deviceToken=account.device_token)
            await client.ask("refresh", refreshToken=login.data["refreshToken"])
            await client.ask("login", email=account.email, password="a wrong pässword")
            tokens = [login.data["accessToken"], login.data["refreshToken"], account.device_token]
            return [account.password, "a wrong pässword", *tokens]

    secrets_used = asyncio.run(use())
    logs = [process.log for process in deployment.processes]
    logs += (deployment.folder / "data/logs").glob("*.log")
    answered = 0
    for log in logs:
        text = log.read_text()
        assert not [used for used in secrets_used if used in text], log
        for line in text.splitlines():
            entry = json.loads(line)
            assert {"time", "level", "role", "message"} <= set(entry)
            if entry["message"] == "answered":
                assert {"request", "event", "code", "ms"} <= set(entry)
                answered += 1
    assert answered > 0


def _status(port: int, path: str) -> int:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


async def _until(holds: object) -> None:
    async def look() -> None:
        while not await asyncio.to_thread(holds):  # type: ignore[arg-type]
            await asyncio.sleep(0.05)

    await asyncio.wait_for(look(), 25)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
