"""What the commands have in common: misuse, tables, times, and words that a terminal can be shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from app.settings import Fault

NONE = "-"


class Misuse(Fault):
    """A command that there is not."""


class Undone(Fault):
    """What was asked for could not be done."""


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """One line a row, cells aligned at their left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def moment(seconds: float | None) -> str:
    """Since 1970, as a date and time."""
    return NONE if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(ms: float | None) -> str:
    """A length of time in its two greatest units; below a minute, in tenths of a second."""
    if ms is None:
        return NONE
    if ms < 59_950:
        return f"{ms / 1000:.1f}s"
    seconds = round(ms / 1000)
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h {seconds % 3600 // 60}m"
    return f"{seconds // 86_400}d {seconds % 86_400 // 3600}h"


def figure(number: float) -> str:
    """A tenth where that tells anything."""
    return f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def plain(said: str) -> str:
    """What others have written, without what would move a terminal's cursor or break a line."""
    return "".join(character if character.isprintable() else "?" for character in said)


def line_of_json(found: Mapping[str, Any]) -> str:
    """In printable ASCII alone, whatever others have written."""
    return json.dumps(found, separators=(",", ":")).replace("\x7f", "\\u007f")
