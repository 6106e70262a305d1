"""The words of an operator's commands: what they take, tables, JSON, and a watch that outlives what it watches."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson
import pytest

from app.messages import Lane
from app.operator.dead import Dead
from app.operator.status import CLEAR, NOBODY, WIDTH, Status, as_json, as_text, empty_in
from app.operator.words import Misuse, plain, span
from app.ports import Backlog, Beat, LaneVitals, Letter, Overview, Unavailable, Vitals, WorkerSeen

NOW = 1_700_000_000_000
LETTER = Letter("1700000000000-0", NOW, "hash", "delivered 3 times", "login", "0edg1-AAAAAAAAAAAAAAAAAAAAAA")
MAIL = Letter("1700000060000-1", NOW + 60_000, "mail", "not sent in 5 tries", rid="0wrk1-mail", retryable=True)


def worker(name: str = "one:7:ab12cd34", *, alive: bool = True, drained: float = 60.4) -> WorkerSeen:
    lanes = {
        Lane.FAST: LaneVitals(128, 980.0, 0, 1.25),
        Lane.HASH: LaneVitals(2, 70.0, 5, drained),
        Lane.SLOW: LaneVitals(2, 70.0, 4, drained / 20),
    }
    beat = Beat(NOW - 400, NOW - 7_380_000, alive, Vitals(27.123, lanes))
    return WorkerSeen(name, {Lane.FAST: 0, Lane.HASH: 7, Lane.SLOW: 4}, beat)


GONE = WorkerSeen("two:9:ef56ab78", {Lane.FAST: 0, Lane.HASH: 3, Lane.SLOW: 1})
SEEN = Overview(
    NOW,
    (worker(), GONE),
    ("0-node1", "0-node2"),
    {Lane.FAST: Backlog(0, 0), Lane.HASH: Backlog(1200, 10, 12_149, 80), Lane.SLOW: Backlog(300, 5, 9000, 700)},
    Backlog(3, 1, 4000, 200),
    2,
    LETTER,
)
EMPTY = Overview(NOW, (), (), {lane: Backlog(0, 0) for lane in Lane}, Backlog(0, 0), 0, None)

# --- what is taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", Status()),
        ("--json", Status(json=True)),
        ("--watch", Status(watch=2)),
        ("--watch 5", Status(watch=5)),
        ("--watch --json", Status(True, 2)),
        ("--json --watch 3600", Status(True, 3600)),
        ("--watch 1 --json", Status(True, 1)),
    ],
)
def test_a_look_is_once_or_every_so_many_seconds(arguments: str, expected: Status) -> None:
    assert Status.parse(arguments.split()) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("list", Dead("list")),
        ("list --json", Dead("list", json=True)),
        ("list --most 3", Dead("list", most=3)),
        ("list --json --most 3", Dead("list", json=True, most=3)),
        ("list --most 3 --json", Dead("list", json=True, most=3)),
        ("retry 1-0", Dead("retry", ("1-0",))),
        ("retry 1-0 2-0 1-0", Dead("retry", ("1-0", "2-0"))),
        ("retry --all", Dead("retry")),
        ("drop x", Dead("drop", ("x",))),
        ("drop --all", Dead("drop")),
    ],
)
def test_letters_are_named_or_all_are_meant(arguments: str, expected: Dead) -> None:
    assert Dead.parse(arguments.split()) == expected


@pytest.mark.parametrize(
    ("parse", "arguments", "said"),
    [
        (Status.parse, "now", "usage: python -m app status "),
        (Status.parse, "--json --json", "usage: "),
        (Status.parse, "--watch 1 2", "usage: "),
        (Status.parse, "--watch --watch", "usage: "),
        (Status.parse, "--watch 0", "--watch must be whole seconds from 1 to 3600."),
        (Status.parse, "--watch 3601", "--watch must be"),
        (Status.parse, "--watch 0.5", "--watch must be"),
        (Dead.parse, "", "usage: python -m app dead list "),
        (Dead.parse, "show", "usage: "),
        (Dead.parse, "list 1-0", "usage: "),
        (Dead.parse, "list --most", "usage: "),
        (Dead.parse, "list --most 0", "--most must be a whole number from 1 to 100000."),
        (Dead.parse, "list --most many", "--most must be"),
        (Dead.parse, "retry", "usage: "),
        (Dead.parse, "retry --all 1-0", "usage: "),
        (Dead.parse, "drop 1-0 --all", "usage: "),
        (Dead.parse, "drop --most", "usage: "),
    ],
)
def test_what_is_no_command_gets_a_sentence(
    parse: Callable[[Sequence[str]], object], arguments: str, said: str
) -> None:
    with pytest.raises(Misuse) as caught:
        parse(arguments.split())
    assert str(caught.value).startswith(said)


# --- what is shown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ms", "said"),
    [
        (None, "-"),
        (0, "0.0s"),
        (80, "0.1s"),
        (59_949, "59.9s"),
        (59_950, "1m 0s"),
        (200_499, "3m 20s"),
        (3_599_499, "59m 59s"),
        (3_599_500, "1h 0m"),
        (86_399_499, "23h 59m"),
        (86_400_000, "1d 0h"),
        (9_999_999_999, "115d 17h"),
    ],
)
def test_a_length_of_time_is_said_in_its_two_greatest_units(ms: float | None, said: str) -> None:
    assert span(ms) == said


def test_what_others_wrote_moves_no_cursor() -> None:
    assert plain("a\x1b[2Jb\nc\u202eé ok") == "a?[2Jb?c?é ok"


def test_the_table_shows_who_works_what_waits_and_what_was_given_up() -> None:
    assert list(as_text(SEEN)) == [
        "2023-11-14 22:13:20Z  workers: 1 alive, 1 gone  gateways: 2",
        "",
        "worker          state  up     beat  hash    slots    in hand  pending  ends/s",
        "one:7:ab12cd34  alive  2h 3m  0.4s  27.1ms  128/2/2  0/5/4    0/7/4    1.2/60.4/3.0",
        "two:9:ef56ab78  gone   -      -     -       -        -        0/3/1    -",
        "(numbers with a stroke: fast/hash/slow)",
        "",
        "gateways: 0-node1, 0-node2",
        "",
        "lane  waiting  in hand  oldest waiting  oldest in hand  drains/s  could/s  empty in",
        "fast  0        0        -               -               1.2       980      -",
        "hash  1200     10       12.1s           0.1s            60.4      70.0     20.0s",
        "slow  300      5        9.0s            0.7s            3.0       70.0     1m 41s",
        "mail  3        1        4.0s            0.2s            -         -        -",
        "",
        "dead letters: 2  newest: 2023-11-14 22:13:20Z, hash, delivered 3 times",
    ]


@pytest.mark.parametrize(
    ("workers", "states"),
    [
        ((), "none"),
        ((GONE,), "1 gone"),
        ((worker(alive=False), GONE), "1 silent, 1 gone"),
    ],
)
def test_that_no_worker_is_alive_is_plain_to_see(workers: tuple[WorkerSeen, ...], states: str) -> None:
    lines = list(as_text(replace(SEEN, workers=workers)))
    assert lines[:2] == [f"2023-11-14 22:13:20Z  workers: {states}  gateways: 2", NOBODY]
    [hashing] = [line.split() for line in lines if line.startswith("hash ")]
    assert hashing[-3:] == ["0.0", "0.0", "unknown"]  # who is silent drains nothing
    assert NOBODY not in as_text(SEEN)


def test_an_empty_deployment_has_a_short_table() -> None:
    lines = list(as_text(EMPTY))
    assert lines[1:4] == [
        NOBODY,
        "",
        "lane  waiting  in hand  oldest waiting  oldest in hand  drains/s  could/s  empty in",
    ]
    assert lines[-1] == "dead letters: 0"


def test_the_table_fits_a_hundred_and_twenty_columns() -> None:
    hashing = LaneVitals(64, 2345.6, 448, 99.9)
    large = {Lane.FAST: LaneVitals(128, 12_345.6, 128, 1234.5), Lane.HASH: hashing, Lane.SLOW: hashing}
    beat = Beat(NOW - 59_900, NOW - 36_000_000, True, Vitals(127.3, large))
    busy = WorkerSeen("login-7d9f8b6c5d-x2x4k:1:ab12cd34", {Lane.FAST: 128, Lane.HASH: 448, Lane.SLOW: 448}, beat)
    deep = Backlog(100_000, 1000, 3_599_000, 59_900)
    seen = replace(
        SEEN,
        workers=(busy,) * 3,
        nodes=tuple(f"0-{n:012}" for n in range(50)),
        lanes=dict.fromkeys(Lane, deep),
        mail=deep,
        newest=replace(LETTER, reason="the seal does not hold " * 9),
    )
    lines = list(as_text(seen))
    assert max(map(len, lines)) <= WIDTH, max(lines, key=len)
    assert all(node in "\n".join(lines) for node in seen.nodes)
    assert lines[-1].endswith("…")


@pytest.mark.parametrize(
    ("queue", "drained", "seconds"),
    [
        (Backlog(0, 0), 0.0, 0.0),
        (Backlog(0, 0), 5.0, 0.0),
        (Backlog(95, 5), 50.0, 2.0),
        (Backlog(1, 0), 0.0, None),
        (Backlog(0, 1), 0.0, None),
    ],
)
def test_how_long_it_takes_is_reckoned_from_what_ended(queue: Backlog, drained: float, seconds: float | None) -> None:
    assert empty_in(queue, drained) == seconds


def test_the_json_has_numbers_and_nothing_that_is_not_known() -> None:
    one, two = as_json(SEEN)["workers"]
    assert one == {
        "name": "one:7:ab12cd34",
        "state": "alive",
        "pending": {"fast": 0, "hash": 7, "slow": 4},
        "up_ms": 7_380_000,
        "beat_age_ms": 400,
        "hash_ms": 27.1,
        "lanes": {
            "fast": {"slots": 128, "in_hand": 0, "drain_rate": 1.2, "could_rate": 980.0},
            "hash": {"slots": 2, "in_hand": 5, "drain_rate": 60.4, "could_rate": 70.0},
            "slow": {"slots": 2, "in_hand": 4, "drain_rate": 3.0, "could_rate": 70.0},
        },
    }
    assert two == {"name": "two:9:ef56ab78", "state": "gone", "pending": {"fast": 0, "hash": 3, "slow": 1}}
    assert {name: value for name, value in as_json(SEEN).items() if name != "workers"} == {
        "now_ms": NOW,
        "clock_ahead_ms": 0,
        "nodes": ["0-node1", "0-node2"],
        "lanes": {
            "fast": {"waiting": 0, "in_hand": 0, "drain_rate": 1.2, "could_rate": 980.0, "empty_in_s": 0.0},
            "hash": {
                "waiting": 1200,
                "in_hand": 10,
                "oldest_waiting_ms": 12_149,
                "oldest_in_hand_ms": 80,
                "drain_rate": 60.4,
                "could_rate": 70.0,
                "empty_in_s": 20.0,
            },
            "slow": {
                "waiting": 300,
                "in_hand": 5,
                "oldest_waiting_ms": 9000,
                "oldest_in_hand_ms": 700,
                "drain_rate": 3.0,
                "could_rate": 70.0,
                "empty_in_s": 101.0,
            },
        },
        "mail": {"waiting": 3, "in_hand": 1, "oldest_waiting_ms": 4000, "oldest_in_hand_ms": 200},
        "dead": {
            "letters": 2,
            "newest": {
                "id": "1700000000000-0",
                "at_ms": NOW,
                "lane": "hash",
                "reason": "delivered 3 times",
                "event": "login",
                "request": "0edg1-AAAAAAAAAAAAAAAAAAAAAA",
                "retryable": False,
            },
        },
    }


@pytest.mark.parametrize("seen", [EMPTY, replace(SEEN, workers=(worker(drained=0.0),))])
def test_no_null_stands_for_what_is_not_known(seen: Overview) -> None:
    assert b"null" not in orjson.dumps(as_json(seen))
    assert "empty_in_s" in as_json(seen)["lanes"]["fast"]
    assert ("empty_in_s" in as_json(seen)["lanes"]["hash"]) == (seen is EMPTY)


# --- an operator's commands, on a queue that is none --------------------------------------------------------------


@dataclass
class Fake:
    """An Operator. `looks`: what each look finds, an Unavailable is raised; the last one goes on for ever."""

    looks: Sequence[Overview | Unavailable] = (SEEN,)
    found: Sequence[Letter] = (MAIL, LETTER)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    opened: int = 0

    def __post_init__(self) -> None:
        self._looks = itertools.chain(self.looks, itertools.repeat(self.looks[-1]))

    async def connect(self) -> Fake:
        self.opened += 1
        return self

    async def look(self) -> Overview:
        seen = next(self._looks)
        if isinstance(seen, Unavailable):
            raise seen
        return seen

    async def letters(self, most: int | None) -> Sequence[Letter]:
        return self.found[:most]

    async def retry(self, ids: Sequence[str]) -> Sequence[Literal["retried", "request", "unreadable", "unknown"]]:
        self.asked.append(tuple(ids))
        verdicts: dict[str, Any] = {MAIL.id: "retried", LETTER.id: "request", "3-0": "unreadable"}
        return [verdicts.get(id, "unknown") for id in ids]

    async def drop(self, ids: Sequence[str]) -> Sequence[bool]:
        self.asked.append(tuple(ids))
        return [id in (MAIL.id, LETTER.id) for id in ids]

    async def close(self) -> None:
        self.opened -= 1


async def run(command: Status | Dead, fake: Fake, **more: Any) -> tuple[int, list[str]]:
    lines: list[str] = []
    status = await command.run(fake.connect, lines.append, **more)
    assert fake.opened == 0
    return status, lines


async def watched(
    fake: Fake, count: int, connect: Callable[[], Awaitable[Fake]] | None = None, **how: Any
) -> list[str]:
    """What a watch shows until it is interrupted after so many looks; it has to end well."""
    shown: list[str] = []
    enough = asyncio.Event()

    def say(text: str) -> None:
        shown.append(text)
        if len(shown) == count:
            enough.set()

    terminal = how.pop("terminal", False)
    watch = asyncio.create_task(Status(watch=0.001, **how).run(connect or fake.connect, say, terminal=terminal))
    await asyncio.wait_for(enough.wait(), 5)
    watch.cancel()  # what Ctrl-C does
    assert await watch == 0
    assert fake.opened == 0
    return shown[:count]


TABLE = "\n".join(as_text(SEEN))
AWAY = "The queue does not answer: Redis: gone"


async def test_one_look_shows_one_table() -> None:
    assert await run(Status(), Fake()) == (0, [TABLE])
    [line] = (await run(Status(json=True), Fake()))[1]
    assert orjson.loads(line) == as_json(SEEN)


async def test_one_look_at_a_queue_that_is_away_is_the_callers_to_say() -> None:
    fake = Fake([Unavailable("Redis: gone")])
    with pytest.raises(Unavailable):
        await run(Status(), fake)
    assert fake.opened == 0


async def test_a_watch_repaints_a_terminal_and_separates_tables_elsewhere() -> None:
    assert await watched(Fake(), 3) == [TABLE, f"\n{TABLE}", f"\n{TABLE}"]
    assert await watched(Fake(), 2, terminal=True) == [f"{CLEAR}{TABLE}"] * 2
    assert [orjson.loads(line) for line in await watched(Fake(), 2, terminal=True, json=True)] == [as_json(SEEN)] * 2


async def test_a_watch_says_in_place_that_the_queue_is_away_and_goes_on_when_it_is_back() -> None:
    away = Unavailable("Redis: gone")
    looks: list[Overview | Unavailable] = [SEEN, away, away, SEEN]
    assert await watched(Fake(looks), 4) == [TABLE, f"\n{AWAY}", f"\n{AWAY}", f"\n{TABLE}"]
    assert (await watched(Fake(looks), 2, terminal=True))[1] == CLEAR + AWAY
    assert orjson.loads((await watched(Fake(looks), 2, json=True))[1]) == {"unavailable": "Redis: gone"}


async def test_a_watch_waits_for_a_queue_that_is_not_there_yet() -> None:
    fake, calls = Fake(), itertools.count()

    async def connect() -> Fake:
        if next(calls) < 2:
            raise Unavailable("Redis: gone")
        return await fake.connect()

    assert await watched(fake, 3, connect) == [AWAY, f"\n{AWAY}", f"\n{TABLE}"]


async def test_letters_are_listed_newest_first_with_what_can_be_retried() -> None:
    status, lines = await run(Dead("list"), Fake())
    assert status == 0
    assert lines == [
        "id               time                  lane  what   request or mail               retry  reason",
        "1700000060000-1  2023-11-14 22:14:20Z  mail  mail   0wrk1-mail                    yes    not sent in 5 tries",
        "1700000000000-0  2023-11-14 22:13:20Z  hash  login  0edg1-AAAAAAAAAAAAAAAAAAAAAA  no     delivered 3 times",
    ]
    assert len((await run(Dead("list", most=1), Fake()))[1]) == 2
    assert await run(Dead("list"), Fake(found=())) == (0, ["There are no dead letters."])


async def test_letters_are_listed_as_json() -> None:
    [line] = (await run(Dead("list", json=True), Fake(found=[MAIL, replace(LETTER, event="", rid="")])))[1]
    assert orjson.loads(line) == {
        "letters": [
            {
                "id": MAIL.id,
                "at_ms": MAIL.at,
                "lane": "mail",
                "reason": MAIL.reason,
                "mail": "0wrk1-mail",
                "retryable": True,
            },
            {"id": LETTER.id, "at_ms": NOW, "lane": "hash", "reason": LETTER.reason, "retryable": False},
        ]
    }
    assert await run(Dead("list", json=True), Fake(found=())) == (0, ['{"letters":[]}'])


NOTHING = "what was sealed in it is gone and its client has been told; nothing to send again"


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (Dead("retry", (MAIL.id,)), 0, [f"{MAIL.id}: queued again"]),
        (
            Dead("retry", (LETTER.id, MAIL.id, "3-0", "9-\x1b0")),
            1,
            [
                f"{LETTER.id}: not retried: {NOTHING}",
                f"{MAIL.id}: queued again",
                "3-0: not retried: it could not be read, and nothing of it was kept",
                "9-?0: there is no such letter",
            ],
        ),
        (Dead("retry"), 1, ["1: queued again", f"1: not retried: {NOTHING}"]),
        (Dead("drop", (LETTER.id, MAIL.id)), 0, [f"{LETTER.id}: dropped", f"{MAIL.id}: dropped"]),
        (Dead("drop", (LETTER.id, "9-0")), 1, [f"{LETTER.id}: dropped", "9-0: there is no such letter"]),
        (Dead("drop"), 0, ["2: dropped"]),
    ],
)
async def test_of_each_letter_it_is_said_what_became_of_it(command: Dead, status: int, said: list[str]) -> None:
    fake = Fake()
    assert await run(command, fake) == (status, said)
    assert fake.asked == [command.ids or (MAIL.id, LETTER.id)]


@pytest.mark.parametrize("what", ["retry", "drop"])
async def test_where_there_are_no_letters_all_of_them_are_done(what: Literal["retry", "drop"]) -> None:
    assert await run(Dead(what), Fake(found=())) == (0, ["There are no dead letters."])
