"""A mailer that writes: one .eml file a mail, for development and for tests."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from app.mail.message import build
from app.records import Mail
from app.settings import Fault


class Outbox:
    """Mailer into a folder. A mail's id is its file's name, so sending twice leaves one file."""

    def __init__(self, folder: Path, public_url: str, sender: str) -> None:
        self._folder, self._public_url, self._sender = folder, public_url, sender
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fault(f"FIN_MAIL_URL: the outbox {folder} cannot be made: {error.strerror}.") from None

    async def send(self, mail: Mail, message_id: str) -> None:
        message = build(mail, message_id, self._public_url, self._sender)
        await asyncio.to_thread(self._write, message_id, message.as_bytes())

    def _write(self, message_id: str, content: bytes) -> None:
        partial = self._folder / f".{message_id}.part"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it holds a code
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._folder / f"{message_id}.eml")
