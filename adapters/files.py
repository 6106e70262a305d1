"""Files that hold keys: replaced as a whole, by one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import string
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def put(path: Path, text: str, mode: int = 0o600) -> None:
    """All of `text` or nothing, also in a power cut. A file that is there keeps its mode and its owner."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            if path.exists():
                was = path.stat()
                os.fchown(file.fileno(), was.st_uid, was.st_gid)
                mode = was.st_mode & 0o777
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    with _opened(path.parent) as folder:
        os.fsync(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else is in here for the same folder. The kernel lets go however the process ends."""
    with _opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def new_kid(taken: Collection[str]) -> str:
    """Four of a-z and 0-9, none of `taken`."""
    while (kid := "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(4))) in taken:
        pass
    return kid
