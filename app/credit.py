"""How much of a lane a worker takes, how fast it works it off, and how long what is ready may wait for company."""

from __future__ import annotations

import asyncio
import time

from app.messages import Lane

FAST_CREDIT = 128
HASH_AHEAD_MS = 100  # work in hand keeps the threads busy this long: no thread waits for a round trip, none hoards
SETTLE_PATIENCE_SECONDS = 0.03


class LaneHold:
    """How much of one lane this worker has in hand, and how fast it works it off."""

    def __init__(self, lane: Lane, slots: int) -> None:
        self.lane, self.slots = lane, slots
        self.held = 0
        self.room = asyncio.Event()
        self.hash_ms = 30.0  # until measured
        self._rate = 500.0  # FAST, until measured
        self._ended, self._busy_seconds, self._busy_since = 0, 0.0, 0.0
        self._drained, self._counted_since = 0, time.monotonic()

    @property
    def credit(self) -> int:
        if self.lane is Lane.FAST:
            return FAST_CREDIT
        return self.slots * (2 + int(HASH_AHEAD_MS / max(self.hash_ms, 1.0)))

    @property
    def spares(self) -> bool:
        """Whether nothing of it waits for a thread, so that the lane that comes after may have what is left."""
        return self.held <= self.slots

    @property
    def patience(self) -> float:
        """How long an outcome may wait for others: not at all at rest, a little while there is a backlog."""
        return SETTLE_PATIENCE_SECONDS if self.lane is not Lane.FAST and self.held > 2 * self.slots else 0.0

    def hashed(self, ms: float) -> None:
        self.hash_ms += (ms - self.hash_ms) * 0.1

    def take(self) -> None:
        if self.held == 0:
            self._busy_since = time.monotonic()
        self.held += 1

    def release(self, done: bool) -> None:
        self.held -= 1
        self._ended += 1
        self._drained += done
        if self.held == 0:
            self._busy_seconds += time.monotonic() - self._busy_since
        self.room.set()

    def rate(self) -> float:
        """Requests a second, as measured: threads over the time of a hash, or what was ended while busy."""
        if self.lane is not Lane.FAST:
            return self.slots * 1000 / max(self.hash_ms, 0.1)
        busy = self._busy_seconds + (time.monotonic() - self._busy_since if self.held else 0.0)
        if self._ended >= FAST_CREDIT:
            self._rate = self._ended / max(busy, 0.001)
            self._ended, self._busy_seconds, self._busy_since = 0, 0.0, time.monotonic()
        return self._rate

    def drained(self) -> float:
        """Requests a second that ended since the last call, or since the start."""
        now = time.monotonic()
        rate = self._drained / max(now - self._counted_since, 0.001)
        self._drained, self._counted_since = 0, now
        return rate


class Turn:
    """A request's place in its lane's credit: until it is decided, or ended otherwise."""

    def __init__(self, hold: LaneHold) -> None:
        self.hold = hold
        self._over = False
        hold.take()

    def end(self, *, done: bool = True) -> None:
        """`done`: the request will not come again."""
        if not self._over:
            self._over = True
            self.hold.release(done)
