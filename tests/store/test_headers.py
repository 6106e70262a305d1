"""What the header of each script says is what its body takes."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters import lua


@dataclass(frozen=True)
class Interface:
    """What a script takes: numbers of KEYS and ARGV, and the names of the fields of its msgpack maps."""

    keys: frozenset[str]
    args: frozenset[str]
    fields: frozenset[str]


def documented(text: str) -> Interface:
    lines = list(itertools.takewhile(lambda line: line.startswith("--"), text.splitlines()))
    head = "\n".join(lines)
    fields = [name for line in lines if (found := re.match(r"--   ([a-z_]+(?:, [a-z_]+)*) ", line))
              for name in found[1].split(", ")]  # fmt: skip
    return Interface(
        frozenset(re.findall(r"^-- KEYS\[(\d+)\] \S", head, re.MULTILINE)),
        frozenset(re.findall(r"^-- ARGV\[(\d+(?:\.\.\.)?)\] \S", head, re.MULTILINE)),
        frozenset(fields),
    )


def used(text: str) -> Interface:
    body = "\n".join(line.partition("--")[0] for line in text.splitlines())
    maps = re.findall(r"local (\w+) = cmsgpack\.unpack\(ARGV\[\d+\]\)", body)
    fields = [name for map_ in maps for name in re.findall(rf"\b{map_}\.(\w+)", body)]
    rest = [f"{number}..." for number in re.findall(r"(?:unpack\(ARGV, |for n = )(\d+)(?:\)|, #ARGV do)", body)]
    return Interface(
        frozenset(re.findall(r"KEYS\[(\d+)\]", body)),
        frozenset(re.findall(r"ARGV\[(\d+)\]", body) + rest),
        frozenset(fields),
    )


@pytest.mark.parametrize("script", lua.SCRIPTS, ids=lambda script: script.name)
def test_the_header_of_a_script_says_exactly_what_its_body_takes(script: lua.Script) -> None:
    assert documented(script.source) == used(script.source)
    assert re.search(r"^-- Returns ", script.source, re.MULTILINE)


def test_every_script_of_the_folder_is_loaded_and_named_by_its_hash() -> None:
    folder = Path(str(lua.__file__)).parent
    assert {path.stem for path in folder.glob("*.lua")} == {"clock", *(script.name for script in lua.SCRIPTS)}
    assert len({script.sha for script in lua.SCRIPTS}) == len(lua.SCRIPTS)


SMALL = """-- A script.
-- KEYS[1] a key
-- ARGV[1] msgpack map:
--   rid     an id
--   a, b_c  two more, of which
--     this  is the explanation
-- ARGV[2...] the rest
-- Returns 1
local ask = cmsgpack.unpack(ARGV[1]) -- ask.said KEYS[9]
redis.call('SET', KEYS[1], ask.rid .. ask.a .. ask.b_c, unpack(ARGV, 2))
"""


def test_the_reading_of_headers_finds_what_is_there() -> None:
    expected = Interface(frozenset("1"), frozenset({"1", "2..."}), frozenset({"rid", "a", "b_c"}))
    assert documented(SMALL) == used(SMALL) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("-- KEYS[1] a key\n", ""),
        ("-- KEYS[1] a key\n", "-- KEYS[1] a key\n-- KEYS[2] nobody's\n"),
        ("-- ARGV[2...] the rest\n", ""),
        ("ARGV, 2", "ARGV, 3"),
        ("--   rid     an id\n", ""),
        ("--   a, b_c  two", "--   a, b_c, d  three"),
        ("ask.b_c", "ask.rid"),
        ("KEYS[1], ask", "KEYS[2], ask"),
    ],
)
def test_a_header_that_says_something_else_is_found(before: str, after: str) -> None:
    changed = SMALL.replace(before, after)
    assert changed != SMALL
    assert documented(changed) != used(changed)
