"""Runs last: nothing that the tests used as a secret may lie readable in Redis's files, a log or any output.

`deployment.SECRETS` and `CODES` collect what every client sent and got. The outbox is the one place a code belongs.
"""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest
from redis import Redis

from tests.deployment import CODES, SECRETS, Deployment

LEAST = 10  # shorter passwords of the tests ("x", "wrong") are words that any log may hold


def variants(secret: str) -> set[str]:
    """As it is, URL-encoded, and in base64 at each of the three places it can begin at in what was encoded."""
    found = {secret, quote(secret, safe="")}
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + secret.encode()).decode()
        whole = encoded[4 if shift else 0 :].rstrip("=")[:-1]  # without what neighbours would change
        found |= {whole, whole.replace("+", "-").replace("/", "_")}
    return found


def search(folder: Path) -> list[str]:
    """Files under `folder`, outboxes apart, that hold a secret."""
    with TemporaryDirectory() as work:
        return _search(folder, Path(work))


def _search(folder: Path, work: Path) -> list[str]:
    long, codes = work / "secrets", work / "codes"
    patterns = {v for secret in SECRETS if len(secret) >= LEAST for v in variants(secret)}
    long.write_text("".join(f"{pattern}\n" for pattern in sorted(patterns)))
    codes.write_text("".join(f"{code}\n" for code in sorted(CODES)))
    hits: list[str] = []
    for file, options in ((long, "-arlF"), (codes, "-arlFw")):
        command = ["grep", options, "--exclude-dir=outbox", "-f", str(file), str(folder)]
        hits += subprocess.run(command, capture_output=True, text=True).stdout.split()
    return hits


@pytest.mark.parametrize("encoded", ["raw", "base64", "url"])
def test_a_planted_secret_is_found(tmp_path: Path, encoded: str) -> None:
    secret = "a planted pässword, long enough"
    SECRETS.add(secret)
    CODES.add("48151623")
    text = {
        "raw": f"user={secret};",
        "base64": base64.b64encode(f"x{secret}y".encode()).decode(),
        "url": quote(secret, safe=""),
    }[encoded]
    (tmp_path / "place").mkdir()
    (tmp_path / "place/a.log").write_text(f"before {text} after")
    (tmp_path / "place/b.log").write_text('{"code":"48151623"}')
    (tmp_path / "place/c.log").write_text("1481516234 is another number")
    try:
        hits = search(tmp_path / "place")
    finally:
        SECRETS.discard(secret)
        CODES.discard("48151623")

    assert sorted(Path(hit).name for hit in hits) == ["a.log", "b.log"]


def test_no_secret_that_any_test_used_is_readable_anywhere(
    deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Redis.from_url(deployment.redis_url) as redis:
        redis.save()  # an RDB beside the AOF
    base = tmp_path_factory.getbasetemp()
    redis_files = [path for path in base.rglob("*.aof") if path.stat().st_size]

    hits = search(base)

    print(f"{len(SECRETS)} secrets and {len(CODES)} codes were looked for in {len(redis_files)} append-only files")
    assert redis_files and list(base.rglob("*.rdb")) and list(base.rglob("*.out"))
    assert not hits
