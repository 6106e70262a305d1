"""The mails of a load: the outbox read as it fills, and emptied, since a campaign mails thousands."""

from __future__ import annotations

import asyncio
import email
import email.policy
import re
from collections import Counter
from pathlib import Path

LOOK_SECONDS = 0.05


class Mails:
    """Codes by address, in the order they were read. `count`: mails by address; one sent twice has one name."""

    def __init__(self, outbox: Path) -> None:
        self._outbox = outbox
        self._codes: dict[str, list[str]] = {}
        self._came = asyncio.Condition()
        self._names: set[str] = set()
        self.count: Counter[str] = Counter()

    async def codes(self, address: str, count: int) -> list[str]:
        """The first `count` codes mailed to an address, when they are there."""
        async with self._came:
            await self._came.wait_for(lambda: len(self._codes.get(address, ())) >= count)
            return self._codes[address][:count]

    async def run(self) -> None:
        while True:
            if self.look():
                async with self._came:
                    self._came.notify_all()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> int:
        """Read and remove what is there: how many mails."""
        paths = sorted(self._outbox.glob("*.eml"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths:
            message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            address, body = str(message["To"]), message.get_body(("plain",))
            path.unlink()
            if path.name in self._names:
                continue  # at least once is what is promised of a mail
            self._names.add(path.name)
            self.count[address] += 1
            if body is not None and (found := re.search(r"\b\d{6,8}\b", body.get_content())):
                self._codes.setdefault(address, []).append(found[0])
        return len(paths)
