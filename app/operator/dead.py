"""`python -m app dead …`: the dead letters: what they are, which can be tried again, and away with them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from app.operator.words import NONE, Misuse, columns, moment, plain
from app.ports import Letter, Operator

USAGE = "python -m app dead list [--json] [--most N] | dead retry|drop ID...|--all"
LISTED, MOST_LISTED = 50, 100_000
HEAD = ("id", "time", "lane", "what", "request or mail", "retry", "reason")

RETRIED = {
    "retried": "queued again",
    "request": "not retried: what was sealed in it is gone and its client has been told; nothing to send again",
    "unreadable": "not retried: it could not be read, and nothing of it was kept",
    "unknown": "there is no such letter",
}


@dataclass(frozen=True)
class Dead:
    """`ids` None: all."""

    what: Literal["list", "retry", "drop"]
    ids: tuple[str, ...] | None = None
    json: bool = False
    most: int = LISTED

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Dead:
        match arguments:
            case ["list", *more]:
                return _parse_list(more)
            case ["retry" | "drop" as what, "--all"]:
                return cls(what)
            case ["retry" | "drop" as what, _, *_] if not any(id.startswith("-") for id in arguments[1:]):
                return cls(what, tuple(dict.fromkeys(arguments[1:])))
            case _:
                raise Misuse(f"usage: {USAGE}")

    async def run(
        self, connect: Callable[[], Awaitable[Operator]], say: Callable[[str], None], *, terminal: bool = False
    ) -> int:
        """The exit status: 1 where anything that was asked for could not be done."""
        operator = await connect()
        try:
            if self.what == "list":
                return await self._list(operator, say)
            ids = self.ids
            if ids is None:
                ids = tuple(letter.id for letter in await operator.letters(None))
            verdicts = list(await operator.retry(ids)) if self.what == "retry" else await _dropped(operator, ids)
        finally:
            await operator.close()
        if self.ids is None:
            _say_counts(verdicts, say)
        else:
            for id, verdict in zip(ids, verdicts, strict=True):
                say(f"{plain(id)}: {_words(verdict)}")
        return 0 if set(verdicts) <= {"retried", "dropped"} else 1

    async def _list(self, operator: Operator, say: Callable[[str], None]) -> int:
        found = await operator.letters(self.most)
        if self.json:
            say(orjson.dumps({"letters": [letter_json(letter) for letter in found]}).decode())
        elif found:
            for line in columns([HEAD, *map(_row, found)]):
                say(line)
        else:
            say("There are no dead letters.")
        return 0


def _parse_list(more: Sequence[str]) -> Dead:
    match more:
        case []:
            return Dead("list")
        case ["--json"]:
            return Dead("list", json=True)
        case ["--most", most] | ["--json", "--most", most] | ["--most", most, "--json"]:
            if not re.fullmatch("[0-9]{1,6}", most) or not 1 <= int(most) <= MOST_LISTED:
                raise Misuse(f"--most must be a whole number from 1 to {MOST_LISTED}.")
            return Dead("list", json="--json" in more, most=int(most))
        case _:
            raise Misuse(f"usage: {USAGE}")


async def _dropped(operator: Operator, ids: Sequence[str]) -> list[str]:
    return ["dropped" if there else "unknown" for there in await operator.drop(ids)]


def _words(verdict: str) -> str:
    return RETRIED.get(verdict, verdict)


def _say_counts(verdicts: Sequence[str], say: Callable[[str], None]) -> None:
    if not verdicts:
        say("There are no dead letters.")
    for verdict in dict.fromkeys(verdicts):
        say(f"{verdicts.count(verdict)}: {_words(verdict)}")


def letter_json(letter: Letter) -> dict[str, Any]:
    """{id, at_ms: since 1970, lane, reason, retryable, event?, request? or mail?: its id}; absent: unreadable."""
    found = {"id": letter.id, "at_ms": letter.at, "lane": letter.lane, "reason": letter.reason}
    named = {"event": letter.event, "mail" if letter.lane == "mail" else "request": letter.rid}
    return found | {name: value for name, value in named.items() if value} | {"retryable": letter.retryable}


def _row(letter: Letter) -> tuple[str, ...]:
    what = "mail" if letter.lane == "mail" else plain(letter.event) or NONE
    known = (plain(letter.id), moment(letter.at / 1000), plain(letter.lane), what, plain(letter.rid) or NONE)
    return (*known, "yes" if letter.retryable else "no", plain(letter.reason))
