"""The scripts, one file each: the header names KEYS, ARGV and what is returned; tests hold them to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Script:
    name: str
    text: str
    sha: str


def _load(name: str) -> Script:
    text = files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    # Redis names a script by the SHA-1 of its text; nothing is secured by it
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ADMIT = _load("admit")
CHECK = _load("check")
SETTLE = _load("settle")
RETURN = _load("return")
REAP = _load("reap")
BEAT = _load("beat")
FORGET = _load("forget")
SCRIPTS = (ADMIT, CHECK, SETTLE, RETURN, REAP, BEAT, FORGET)
