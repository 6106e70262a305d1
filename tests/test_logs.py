"""Logs: what a line holds, and that files of them stay bounded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from app import logs


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Whatever was configured before is there again afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    locks = len(logs._locks)
    yield logging.getLogger("finthenticate")
    while len(logs._locks) > locks:
        logs._locks.pop().close()
    for handler in root.handlers:
        if handler not in before:
            handler.close()
    root.handlers, root.level = before, level


def lines_of(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_a_line_is_the_same_in_the_file_and_on_stdout(
    log: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("worker", tmp_path)
    log.warning("it is %s", "full\n", extra={"fields": {"lane": "hash", "waits": 3}})
    try:
        raise KeyError("what a client sent")
    except KeyError:
        log.exception("failed")

    printed = capsys.readouterr().out
    assert printed == (tmp_path / "logs/worker.log").read_text()
    assert "what a client sent" not in printed
    full, failed = lines_of(tmp_path / "logs/worker.log")
    assert str(full.pop("time")).endswith("Z")
    assert full == {"level": "warning", "role": "worker", "message": "it is full\n", "lane": "hash", "waits": 3}
    assert failed["error"] == "KeyError" and failed["level"] == "error" and failed["trace"]


def test_a_log_is_rotated_before_it_passes_its_bound_and_no_newer_line_is_lost(
    log: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 2000)
    monkeypatch.setattr(logs, "FILES_KEPT", 3)
    logs.configure("gateway", tmp_path)
    for n in range(200):
        log.info("line", extra={"fields": {"n": n}})

    files = [tmp_path / "logs/gateway.log", *(tmp_path / f"logs/gateway.log.{n}" for n in (1, 2, 3))]
    assert all(0 < file.stat().st_size <= 2000 for file in files)
    assert not (tmp_path / "logs/gateway.log.4").exists()
    kept = [line["n"] for file in reversed(files) for line in lines_of(file)]
    assert kept == list(range(200 - len(kept), 200)) and len(kept) > 60


def test_a_second_process_of_a_role_writes_a_file_of_its_own(log: logging.Logger, tmp_path: Path) -> None:
    logs.configure("worker", tmp_path)
    logs.configure("worker", tmp_path)
    log.info("here")

    assert lines_of(tmp_path / "logs/worker.log") == []
    assert [line["message"] for line in lines_of(tmp_path / "logs/worker-2.log")] == ["here"]
