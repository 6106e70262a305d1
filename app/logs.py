"""Logs: one JSON object a line, to stdout and to a rotating file. Never a payload, never a secret."""

from __future__ import annotations

import fcntl
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

import orjson

from app.settings import Fault

FILE_BYTES = 10 * 1024 * 1024
FILES_KEPT = 5
MOST_OF_A_ROLE = 256

_locks: list[IO[str]] = []  # held for as long as the process lives


class JsonLines(logging.Formatter):
    """`time level role message`, then the record's `fields`. JSON escapes what could break a line or a terminal.

    Made once for each record, however many handlers ask.
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        if (made := getattr(record, "json_line", None)) is None:
            made = record.json_line = self._made(record)
        return str(made)

    def _made(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, Any] = {
            "time": time,
            "level": record.levelname.lower(),
            "role": self._role,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["trace"] = _trace(record)
        return orjson.dumps(line, default=str).decode()


class _File(RotatingFileHandler):
    """What cannot be written, since the disk is full, say, has been told to stdout all the same."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """As its base does it, but without asking the file system at every line what kind of file this is."""
        if self.stream is None:
            self.stream = self._open()
        return self.stream.tell() + len(self.format(record)) >= self.maxBytes

    def handleError(self, record: logging.LogRecord) -> None:
        return


def configure(role: str, data_dir: Path) -> None:
    """Send everything there. Fault when the folder cannot be written to."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    folder = data_dir / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(_File(_own(folder, role), maxBytes=FILE_BYTES, backupCount=FILES_KEPT))
    except OSError as error:
        raise Fault(f"FIN_DATA_DIR: logs cannot be written to {folder}: {error.strerror}.") from None
    for handler in handlers:
        handler.setFormatter(JsonLines(role))
    # What no line of ours shows is not gathered for every line (Python's logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    logging.getLogger("finthenticate").setLevel(logging.INFO)


def _own(folder: Path, role: str) -> Path:
    """`role.log`, or `role-2.log` and so on where another process of that role writes the first."""
    for number in range(1, MOST_OF_A_ROLE + 1):
        name = role if number == 1 else f"{role}-{number}"
        lock = (folder / f".{name}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        _locks.append(lock)
        return folder / f"{name}.log"
    raise Fault(f"FIN_DATA_DIR: {MOST_OF_A_ROLE} processes of role {role} write logs to {folder} already.")


def _trace(record: logging.LogRecord) -> list[str]:
    """Where it failed, innermost last: places only, since the error's own words may quote what a client sent."""
    places = []
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return places
