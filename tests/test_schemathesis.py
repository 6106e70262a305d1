"""Schemathesis against /openapi.json: no answer of the service is a fault, and none is undocumented."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import Databases, Deployment

pytestmark = pytest.mark.all
SEED = 20261123
CASES = 40  # generated for each operation, besides its examples and its edges
CHECKS = """not_a_server_error status_code_conformance content_type_conformance response_headers_conformance
response_schema_conformance unsupported_method""".split()


@pytest.fixture(scope="module")
def fuzzed(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One of its own: it is left with hundreds of registrations, in database 3."""
    with databases() as url, Deployment.start(tmp_path_factory.mktemp("fuzzed"), url) as deployment:
        yield deployment


def fuzz(deployment: Deployment, folder: Path, *options: str) -> None:
    """All but the stateful phase, since no answer links to a next request. What it did shows when the test fails."""
    base = deployment.url(0, "http", "")
    fixed = ["--seed", str(SEED), "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"]
    bounds = ["--max-examples", str(CASES), "--request-timeout", "20", "--no-shrink", "--continue-on-failure"]
    command = ["-m", "schemathesis.cli", "run", f"{base}/openapi.json", "--url", base, *fixed, *bounds, *options]
    print(f"schemathesis, seed {SEED}")
    ran = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=110)
    print(ran.stdout, ran.stderr)
    assert ran.returncode == 0


def test_no_answer_is_undocumented(fuzzed: Deployment, tmp_path: Path) -> None:
    fuzz(fuzzed, tmp_path)


async def test_no_answer_to_a_session_is_undocumented(fuzzed: Deployment, tmp_path: Path) -> None:
    """All that leaves the session alive: after a logout there would be nothing but 401."""
    async with fuzzed.client() as client:
        account = await fuzzed.sign_up(client)
        token = (await account.login(client)).data["accessToken"]
        options = ["--header", f"Authorization: Bearer {token}", "--include-path-regex", "^/v1/(account|sessions)$"]
        fuzz(fuzzed, tmp_path, *options)
        assert (await client.ask("account")).event == "account"
