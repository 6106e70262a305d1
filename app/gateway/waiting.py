"""Who waits in a lane, and telling them how far they have come."""

from __future__ import annotations

from collections.abc import Mapping

from app.frames import encode_data
from app.gateway.connections import Pending
from app.messages import DEFAULT_TIMEOUT_MS, Lane, Queued
from app.ports import LaneDepth

EVERY_SECONDS = 0.25  # the contract's four a second
FULL_RATE = 500  # more who wait are told more seldom, down to once a second, to spare the loop


class Waiting:
    """Requests that were told to wait and have no answer yet."""

    def __init__(self) -> None:
        self._all: dict[Pending, Lane] = {}

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def pause(self) -> float:
        """Seconds until the next telling."""
        return EVERY_SECONDS * min(4.0, max(1.0, len(self._all) / FULL_RATE))

    def add(self, pending: Pending, lane: Lane, place: int, position: int, eta_ms: int) -> None:
        pending.place = place
        self._all[pending] = lane
        _tell(pending, position, eta_ms)

    def discard(self, pending: Pending) -> None:
        self._all.pop(pending, None)

    def update(self, depths: Mapping[Lane, LaneDepth]) -> None:
        """Tell everybody whose position has changed; it only falls."""
        for pending, lane in list(self._all.items()):
            depth = depths[lane]
            ahead = pending.place - depth.ended + depth.before
            position = max(1, ahead - depth.slots)
            if position < pending.position:
                eta_ms = max(1, int(ahead * 1000 / depth.rate)) if depth.rate > 0 else DEFAULT_TIMEOUT_MS
                _tell(pending, position, eta_ms)


def _tell(pending: Pending, position: int, eta_ms: int) -> None:
    pending.position = position
    if pending.caller is not None:
        data = encode_data(Queued(position=position, eta_ms=eta_ms))
        pending.caller.progress(Queued.event, pending.frame.id, data)
