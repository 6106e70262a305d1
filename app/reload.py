"""Keys that change under a running role: looked at every second, taken as they are, without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from app.settings import Fault

log = logging.getLogger("finthenticate")

LOOK_SECONDS = 1.0


class Source(Protocol):
    """Where keys that a role holds come from."""

    def look(self) -> dict[str, str]:
        """Take what is new: ring → current key id of those that changed. Fault, with all kept as it was, if it cannot.

        Called in a thread: what is held is replaced by single assignments.
        """


async def keep_fresh(sources: Sequence[Source]) -> None:
    """Look for ever. A fault is said when it begins and when it is over."""
    faults = [""] * len(sources)
    while True:
        for n, source in enumerate(sources):
            faults[n] = await asyncio.to_thread(_look, source, faults[n])
        await asyncio.sleep(LOOK_SECONDS)


def _look(source: Source, said: str) -> str:
    try:
        changed = source.look()
    except Fault as fault:
        if str(fault) != said:
            log.error("keys cannot be read, the old ones stay", extra={"fields": {"reason": str(fault)}})
        return str(fault)
    if said:
        log.info("keys can be read again")
    for ring, kid in changed.items():
        log.info("keys changed", extra={"fields": {"ring": ring, "current": kid}})
    return ""
