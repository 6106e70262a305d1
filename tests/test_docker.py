"""Every role in a container: what setup.sh --docker builds and starts, used from outside, killed and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from app.client import connect, steady
from tests.deployment import PASSWORD, ROOT, new_address
from tests.running import free_port

COPIED = (
    "app",
    "adapters",
    "docker",
    "scripts",
    "requirements.lock",
    "requirements-build.lock",
    "setup.sh",
    ".dockerignore",
)
LOCAL = {  # where no registry is reached
    "FIN_BASE_IMAGE": "local/python:3.11",
    "FIN_REDIS_IMAGE": "local/redis:7.0",
    "FIN_RABBITMQ_IMAGE": "local/rabbitmq:3.10",
}
HEALTHY_SECONDS = 60
DRAIN_SECONDS = 15  # PROTOCOL.md
BUILD_SECONDS = 600
LOAD_SECONDS = 8


def said(*command: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, seconds: float = 120) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@dataclass
class Containers:
    folder: Path
    environ: dict[str, str]
    compose: list[str]
    ports: tuple[int, int]

    def composed(self, *arguments: str) -> str:
        return said(*self.compose, *arguments, cwd=self.folder, env=self.environ)

    def of(self, role: str) -> list[str]:
        return self.composed("ps", "-q", role).split()

    def mailed_code(self, address: str) -> str:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            for path in (self.folder / "var/outbox").glob("*.eml"):
                text = path.read_text()
                if f"To: {address}\n" in text and (found := re.search(r"\b\d{6,8}\b", text.partition("\n\n")[2])):
                    return found[0]
            time.sleep(0.05)
        raise AssertionError(f"no mail to {address}")


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said("docker", "inspect", container))[0]
    return found


def health(container: str) -> str:
    return str(inspect(container)["State"]["Health"]["Status"])


def wait_ready(port: int) -> None:
    until = time.monotonic() + HEALTHY_SECONDS
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError as not_yet:  # HTTPError is one too
            assert time.monotonic() < until, f"the gateway at {port} is not ready: {not_yet}"
            time.sleep(0.2)


def two_ports() -> tuple[int, int]:
    """Free, and one after the other."""
    while True:
        port = free_port()
        with socket.socket() as other, suppress(OSError):
            other.bind(("127.0.0.1", port + 1))
            return port, port + 1


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def containers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Two gateways, three workers and a mailer, started from a copy of the checkout with a .env of its own."""
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode:
        pytest.skip("no Docker engine answers on this machine")
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    if not plugin and not shutil.which("docker-compose"):
        pytest.skip("Docker Compose is not on this machine")
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    ports = two_ports()
    local = {
        name: image
        for name, image in LOCAL.items()
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode == 0
    }
    environ = {
        **local,
        **os.environ,
        "COMPOSE_PROJECT_NAME": f"fin-test-{secrets.token_hex(4)}",
        "FIN_IMAGE": "finthenticate:test",
        "FIN_PUBLIC_URL": f"http://127.0.0.1:{ports[0]}",
        "GATEWAY_PORTS": f"127.0.0.1:{ports[0]}-{ports[1]}",
    }
    if request.param == "rabbitmq":
        password = secrets.token_hex(16)
        environ["COMPOSE_PROFILES"] = "rabbitmq"
        environ["ROLE_UID"] = "4242"  # as of somebody who is not root, and not the image's own
        environ["RABBITMQ_PASSWORD"] = password
        environ["FIN_BROKER_URL"] = f"amqp://finthenticate:{password}@rabbitmq:5672/"
    running = Containers(folder, environ, ["docker", "compose"] if plugin else ["docker-compose"], ports)
    try:
        serves = said("./setup.sh", "--docker", cwd=folder, env=environ, seconds=BUILD_SECONDS)
        assert f"http://127.0.0.1:{ports[0]}" in serves or f"http://127.0.0.1:{ports[1]}" in serves, serves
        running.composed("up", "-d", "--scale", "gateway=2", "--scale", "worker=3")
        for port in ports:
            wait_ready(port)
        yield running
    finally:
        running.composed("down", "--volumes", "--remove-orphans", "--timeout", "20")
        shutil.rmtree(
            folder
        )  # tests/test_secrecy.py looks through what tests leave, and source quotes codes and events


@pytest.mark.all
def test_the_whole_journey_works_from_outside_on_each_gateway(containers: Containers) -> None:
    for port in containers.ports:
        url = f"http://127.0.0.1:{port}"
        walked = said(sys.executable, str(ROOT / "scripts/try"), url, cwd=containers.folder, env=containers.environ)
        assert "All of it worked" in walked


@pytest.mark.all
def test_a_gateway_has_neither_a_private_key_nor_the_workers_secrets(containers: Containers) -> None:
    gateway = containers.of("gateway")[0]
    look = "import os, pathlib; print([p.name for p in pathlib.Path('/data/keys').iterdir() if os.access(p, os.R_OK)])"
    readable = said("docker", "exec", gateway, "python", "-c", look)
    environ = said("docker", "exec", gateway, "python", "-c", "import os; print(dict(os.environ))")
    secret_values = [
        line.partition("=")[2]
        for line in (containers.folder / ".env").read_text().splitlines()
        if line.startswith(("FIN_WORKER_SECRET=", "FIN_PEPPER="))
    ]

    assert "token.pub.json" in readable and "seal.pub.json" in readable
    assert not re.search(r"'(seal|mail|token)\.json'", readable)
    assert len(secret_values) == 2 and not any(value in environ for value in secret_values)


@pytest.mark.all
def test_the_image_of_this_machine_hashes_with_an_argon2_that_was_compiled_for_it(containers: Containers) -> None:
    base = containers.environ.get("FIN_BASE_IMAGE", "python:3.11-slim")
    if not said("docker", "run", "--rm", "--entrypoint", "sh", base, "-c", "command -v cc || true").strip():
        pytest.skip(f"{base} has no C compiler, and whether Debian gave one cannot be told from here")
    look = "import importlib.metadata as m; print(m.distribution('argon2-cffi-bindings').read_text('WHEEL'))"
    made_for = said("docker", "exec", containers.of("worker")[0], "python", "-c", look)

    assert "-linux_" in made_for and "manylinux" not in made_for, made_for


@pytest.mark.all
def test_no_secret_and_no_package_index_is_in_the_image_and_nobody_is_root(containers: Containers) -> None:
    [image] = json.loads(said("docker", "image", "inspect", "finthenticate:test"))
    history = said("docker", "history", "--no-trunc", "finthenticate:test")

    assert image["Config"]["User"] not in ("", "0", "root")
    assert "SECRET" not in history and "PEPPER" not in history and "PIP_" not in history
    for role in ("gateway", "worker", "mailer"):
        for container in containers.of(role):
            assert inspect(container)["HostConfig"]["ReadonlyRootfs"]
            assert said("docker", "exec", container, "python", "-c", "import os; print(os.getuid())") != "0"


@pytest.mark.all
async def test_a_worker_killed_and_roles_drained_under_load_lose_nothing(containers: Containers) -> None:
    urls = [f"ws://127.0.0.1:{port}/ws" for port in containers.ports]
    addresses, tokens = [new_address() for _ in range(4)], dict[str, str]()
    async with connect(urls[0]) as client:
        for address in addresses:
            accepted = await client.ask("register", email=address, password=PASSWORD)
            code = await asyncio.to_thread(containers.mailed_code, address)
            confirmed = await client.ask("confirm_email", challenge=accepted.data["challenge"], code=code)
            assert confirmed.event == "email_confirmed", confirmed.data
            tokens[address] = confirmed.data["deviceToken"]
    until = time.monotonic() + LOAD_SECONDS
    answers: list[str] = []

    async def keep_logging_in(address: str) -> None:
        async with steady(*urls) as client:
            while time.monotonic() < until:
                device = {"deviceToken": tokens[address]}
                answer = await client.ask("login", email=address, password=PASSWORD, timeout_ms=25_000, **device)
                answers.append(answer.event)

    load = [asyncio.create_task(keep_logging_in(address)) for address in addresses * 4]
    await asyncio.sleep(LOAD_SECONDS / 4)
    before = len(answers)
    killed, drained, _ = containers.of("worker")
    await asyncio.to_thread(said, "docker", "kill", killed)
    stopped = [drained, containers.of("gateway")[1]]
    await asyncio.to_thread(said, "docker", "stop", "--time", "20", *stopped)
    await asyncio.gather(*load)

    assert [inspect(container)["State"]["ExitCode"] for container in stopped] == [0, 0]
    assert before and len(answers) > before
    assert set(answers) == {"login_success"}


@pytest.mark.all
def test_every_role_turns_healthy_and_drains(containers: Containers) -> None:
    containers.composed("up", "-d", "--scale", "gateway=2", "--scale", "worker=3")  # who was killed or stopped is back
    roles = {container: role for role in ("gateway", "worker", "mailer") for container in containers.of(role)}
    until = time.monotonic() + HEALTHY_SECONDS
    while time.monotonic() < until and any(health(container) != "healthy" for container in roles):
        time.sleep(0.5)
    assert {container: health(container) for container in roles} == dict.fromkeys(roles, "healthy")

    took: dict[str, float] = {}
    for container in roles:
        began = time.monotonic()
        said("docker", "stop", "--time", "20", container)
        took[container] = time.monotonic() - began
    assert {container: inspect(container)["State"]["ExitCode"] for container in roles} == dict.fromkeys(roles, 0)
    assert max(took.values()) < DRAIN_SECONDS, took


DOCKER = """\
#!/bin/sh
case $1 in
    info) exit {info} ;;
    *) exit 1 ;;
esac
"""


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (None, "needs Docker, which was not found"),
        (DOCKER.format(info=1), "no Docker engine answers"),
        (DOCKER.format(info=0), "needs Docker Compose"),
    ],
)
def test_setup_says_what_is_missing_for_containers(tmp_path: Path, script: str | None, sentence: str) -> None:
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    if script:
        (tmp_path / "docker").write_text(script)
        (tmp_path / "docker").chmod(0o755)
    done = subprocess.run(
        [tmp_path / "bash", ROOT / "setup.sh", "--docker"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )

    assert done.returncode == 69
    assert len(done.stderr.splitlines()) == 1 and sentence in done.stderr
