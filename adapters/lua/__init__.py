"""The scripts, one file each: the header names KEYS, ARGV and what is returned; tests hold them to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Script:
    """`source` is its file; `text` what the server runs: the clock, then that."""

    name: str
    source: str
    text: str
    sha: str


def _read(name: str) -> str:
    return files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")


CLOCK = _read("clock")


def _load(name: str) -> Script:
    source = _read(name)
    text = CLOCK + source
    # Redis names a script by the SHA-1 of its text; nothing is secured by it
    return Script(name, source, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ADMIT = _load("admit")
CHECK = _load("check")
SETTLE = _load("settle")
RETURN = _load("return")
RELEASE = _load("release")
REAP = _load("reap")
BEAT = _load("beat")
FORGET = _load("forget")
RETIRE = _load("retire")
BACKLOG = _load("backlog")
RETRY = _load("retry")
TICK = _load("tick")
UNDO = _load("undo")
POST = _load("post")
POST_AGAIN = _load("post_again")
POST_END = _load("post_end")
TELL = _load("tell")
SCRIPTS = (
    *(ADMIT, CHECK, SETTLE, RETURN, RELEASE, REAP, BEAT, FORGET, TICK, RETIRE, BACKLOG, RETRY, UNDO),
    *(POST, POST_AGAIN, POST_END, TELL),
)
