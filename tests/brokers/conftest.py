"""Every scenario for every adapter, on servers that are there for these tests alone; what is not promised is listed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers.adapters import ADAPTERS, Adapter, shorten
from tests.brokers.ground import Ground
from tests.running import Kind, Server
from tests.servers import NEEDED, locate, server_of

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mortal: kills a server or fills it: not one that was given by a URL")
    config.addinivalue_line("markers", "unhurried: with the times of a deployment")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A lack is played too, and has to be one."""
    if "ground" in metafunc.fixturenames:
        scenario = metafunc.function.__name__
        cases = []
        for adapter in ADAPTERS:
            marks = [pytest.mark.all] if adapter.slow else []
            if reason := adapter.lacks.get(scenario):
                marks.append(pytest.mark.xfail(reason=reason, strict=True))
            cases.append(pytest.param(adapter, id=adapter.name, marks=marks))
        metafunc.parametrize("ground", cases, indirect=True)


class Fleet:
    """Servers, started when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[Kind, Server] = {}

    def of(self, kind: Kind) -> Server:
        if kind not in self._servers:
            source = locate(kind, os.environ)
            if isinstance(source, str):
                if os.environ.get("CI") and kind in NEEDED:
                    pytest.fail(source)
                pytest.skip(source)
            server = server_of(source, self._folder / kind)
            asyncio.run(server.start())
            self._servers[kind] = server
        return self._servers[kind]

    def stop(self) -> None:
        for server in self._servers.values():
            asyncio.run(server.stop())


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    servers = Fleet(tmp_path_factory.mktemp("brokers"))
    yield servers
    servers.stop()


@pytest.fixture
def ground(request: pytest.FixtureRequest, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """Entered around the test (tests/conftest.py)."""
    adapter: Adapter = request.param
    servers = {kind: fleet.of(kind) for kind in adapter.servers}
    if request.node.get_closest_marker("mortal") and not all(server.mortal for server in servers.values()):
        pytest.skip("a server that was given by a URL is neither killed nor filled")
    if not request.node.get_closest_marker("unhurried"):
        shorten(adapter, monkeypatch.setattr)
    return Ground(adapter, servers)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Of each broker that was played: how much it has kept, and all that it does not promise."""
    folder = f"{HERE.relative_to(HERE.parent.parent).as_posix()}/"
    counts = {
        (adapter.name, outcome): [
            report
            for report in terminalreporter.stats.get(outcome, ())
            if report.nodeid.startswith(folder) and f"[{adapter.name}" in report.nodeid
        ]
        for adapter in ADAPTERS
        for outcome in ("passed", "xfailed", "failed", "skipped")
    }
    if not any(counts.values()):
        return
    terminalreporter.section("what brokers promise")
    for adapter in ADAPTERS:
        passed, lacking = counts[adapter.name, "passed"], counts[adapter.name, "xfailed"]
        if not any(counts[adapter.name, outcome] for outcome in ("passed", "xfailed", "failed", "skipped")):
            terminalreporter.write_line(f"{adapter.name}: not played")
            continue
        terminalreporter.write_line(
            f"{adapter.name}: {len(passed)} scenarios kept, {len(lacking)} not promised, "
            f"{len(counts[adapter.name, 'failed'])} broken, {len(counts[adapter.name, 'skipped'])} not played"
        )
        for report in lacking:
            scenario = report.nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
            terminalreporter.write_line(f"  not promised: {scenario}\n      {report.wasxfail}")
