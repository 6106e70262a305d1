"""What visitors asked and what they were told: the one log that a fault's promises are held against."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

UNKNOWN = frozenset({"deadline_exceeded", "unavailable", "internal"})  # the contract: its outcome is unknown


@dataclass(eq=False)
class Sending:
    """One frame sent, and how it ended: a terminal event, a closed connection, or `missing`: neither in time."""

    connection: str  # visitor, its n-th connection, gateway
    sent: float  # seconds since the log began
    timeout_ms: int
    ended: float | None = None  # seconds since the log began
    event: str = ""  # the terminal one
    data: dict[str, Any] = field(default_factory=dict)
    closed: int | None = None  # the close code
    missing: bool = False

    @property
    def code(self) -> str:
        return str(self.data.get("code", ""))

    @property
    def told(self) -> str:
        """ "login_success", "login_failure invalid_credentials", "error internal", "closed 1006", "missing"."""
        if self.event:
            return f"{self.event} {self.code}".rstrip()
        return "missing" if self.missing else f"closed {self.closed}"

    @property
    def acknowledged(self) -> bool:
        """Evaluated: a success or a refusal."""
        return self.event not in ("", "error")

    @property
    def unknown(self) -> bool:
        return not self.event or (self.event == "error" and self.code in UNKNOWN)

    @property
    def seconds(self) -> float:
        return 0.0 if self.ended is None else self.ended - self.sent


@dataclass(eq=False)
class Asked:
    """One request of a visitor, however often it was sent."""

    number: int
    visitor: str
    event: str
    account: str  # the address it is about
    data: dict[str, Any]
    wanted: frozenset[str]  # what is honest to tell, as in Sending.told; of errors only their codes are looked at
    key: str | None = None
    session: str = ""  # the one it is made for or about
    sendings: list[Sending] = field(default_factory=list)

    @property
    def answer(self) -> Sending | None:
        """The first sending that was told of an evaluation."""
        return next((sending for sending in self.sendings if sending.acknowledged), None)

    def answered(self, told: str) -> bool:
        return self.answer is not None and self.answer.told == told

    @property
    def unknown(self) -> bool:
        """It may have had its effect, or not."""
        return self.answer is None and any(sending.unknown for sending in self.sendings)

    def __str__(self) -> str:
        told = ", ".join(f"{s.told} after {s.seconds:.1f} s on {s.connection}" for s in self.sendings)
        made_for = f" for session {self.session}" if self.session else ""
        return f"#{self.number} {self.event} {self.account}{made_for} ({'key' if self.key else 'plain'}): {told}"


@dataclass
class Log:
    asked: list[Asked] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)  # frames with the id of no request in flight: double, misdirected
    problems: list[str] = field(default_factory=list)  # what a visitor saw that no request shows: a mail never came
    mails: Counter[str] = field(default_factory=Counter)  # by address
    began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        return time.monotonic() - self.began

    @property
    def sendings(self) -> Iterator[Sending]:
        return (sending for asked in self.asked for sending in asked.sendings)

    def told(self) -> Counter[str]:
        """How often what was told."""
        return Counter(sending.told for sending in self.sendings)

    def slowest(self) -> float:
        """Seconds from a sending to its terminal event."""
        return max((sending.seconds for sending in self.sendings if sending.event), default=0.0)

    def write(self, path: Path) -> None:
        """One JSON object a request, for who looks into a failure."""
        with path.open("wb") as file:
            for asked in self.asked:
                file.write(orjson.dumps(asked, default=list, option=orjson.OPT_APPEND_NEWLINE))
