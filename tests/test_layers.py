"""The shape of the code, read from its syntax: which module knows which, and what the core keeps out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each part stands on, directly; it may know whatever those stand on too, and its own submodules.
STANDS_ON = {
    "app": "",
    "app.smtp": "",
    "app.settings_table": "",
    "app.settings": "app.smtp app.settings_table",
    "app.messages": "",
    "app.keys": "",
    "app.totp": "",
    "app.client": "",
    "app.frames": "app.messages",
    "app.documents": "app.frames",
    "app.credit": "app.messages",
    "app.threads": "",
    "app.records": "app.messages",
    "app.passwords": "app.settings app.messages",
    "app.sealing": "app.settings app.keys",
    "app.tokens": "app.sealing",
    "app.rules": "app.records app.tokens",
    "app.ports": "app.records",
    "app.handlers": "app.rules app.passwords app.totp",
    "app.entries": "app.ports app.sealing app.frames",
    "app.settlements": "app.entries app.rules",
    "app.worker": "app.settlements app.handlers app.credit app.threads",
    "app.operator.metrics": "app.operator",
    "app.gateway": "app.entries app.rules app.operator.metrics",
    "app.gateway.doorway": "app.settings",
    "app.gateway.rest": "app.gateway app.gateway.doorway",
    "app.gateway.pages": "app.settings",
    "app.gateway.server": "app.gateway.rest app.gateway.pages app.documents",
    "app.mail": "app.entries app.rules",
    "app.mail.templates": "app.records",
    "app.mail.message": "app.mail.templates",
    "app.logs": "app.settings",
    "app.supervisor": "app.settings",
    "app.reload": "app.settings",
    "app.operator": "app.entries app.rules",
    "adapters": "app.ports app.rules app.mail.message app.supervisor",
    "app.__main__": "adapters app.gateway.server app.worker app.mail app.logs app.reload app.operator",
}
CORE = "messages frames records rules tokens passwords totp sealing entries settlements keys handlers documents".split()
KEPT_OUT = set("time asyncio threading socket logging pathlib subprocess random importlib".split())
ONLY_IN = {"redis": "adapters", "sanic": "app.gateway", "uvloop": "app.__main__"}
CLOCK = {f"{name}.{how}" for name in ("datetime", "date") for how in ("now", "utcnow", "today")}
ENVIRONMENT = {f"os.{name}" for name in ("environ", "environb", "getenv", "getenvb", "putenv")}


def part_of(module: str) -> str:
    """The longest part that holds the module; a new top-level module has to be given a place above."""
    found = [part for part in STANDS_ON if f"{module}.".startswith(f"{part}.") and part != "app"]
    if module in ("app", "app.__init__"):
        return "app"
    assert found, f"{module} has no place in the layers"
    return max(found, key=len)


def may_know(part: str) -> set[str]:
    below = STANDS_ON[part].split()
    return {part}.union(below, *map(may_know, below))


def imports_of(module: str, tree: ast.AST, known: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Every module imported anywhere in a tree, inside functions too; `from app import rules` is app.rules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join((*package, node.module) if node.module else package)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (whole if whole in known else base), node.lineno


def faults_of(module: str, source: str, known: frozenset[str] = frozenset()) -> list[str]:
    """Everything a module does that its place does not allow."""
    tree, part = ast.parse(source), part_of(module)
    found = []
    for imported, line in imports_of(module, tree, known):
        top = imported.partition(".")[0]
        if top in ("app", "adapters") and part_of(imported) not in may_know(part) | {"app"}:
            found.append(f"{module}:{line} knows {imported}")
        if top == "tests" or (top in ONLY_IN and not f"{part}.".startswith(f"{ONLY_IN[top]}.")):
            found.append(f"{module}:{line} knows {imported}")
    for node in ast.walk(tree):
        line, named = getattr(node, "lineno", 0), _names(node)
        if named & ENVIRONMENT and part != "app.__main__":
            found.append(f"{module}:{line} reads the environment")
        if isinstance(node, ast.Constant) and re.fullmatch("FIN_[A-Z_]+", str(node.value)) and part != "app.settings":
            found.append(f"{module}:{line} reads a setting")
        if part.removeprefix("app.") in CORE:
            found += _faults_of_core(module, node, named, line)
    return found


def _names(node: ast.AST) -> set[str]:
    """`os.environ`, however long what stands before it, and `from os import environ`."""
    if isinstance(node, ast.ImportFrom):
        return {f"{node.module}.{alias.name}" for alias in node.names}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
        return {f"{node.value.id if isinstance(node.value, ast.Name) else node.value.attr}.{node.attr}"}
    return set()


def _faults_of_core(module: str, node: ast.AST, named: set[str], line: int) -> Iterator[str]:
    if isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await):
        yield f"{module}:{line} is async"
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in sorted(set(names) & KEPT_OUT):
            yield f"{module}:{line} knows {name}"
    if named & CLOCK:
        yield f"{module}:{line} reads the clock"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input"):
        yield f"{module}:{line} does I/O"


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(path for top in ("app", "adapters") for path in (ROOT / top).rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_knows_only_what_lies_below_it_and_keeps_out_what_its_place_forbids(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    name = f"{module}.__init__" if MODULES[module].name == "__init__.py" else module
    assert faults_of(name, source, frozenset(MODULES)) == []


def test_every_part_of_the_layers_is_there() -> None:
    packages = set(MODULES) | {name.rpartition(".")[0] for name in MODULES}
    assert set(STANDS_ON) <= packages
    assert {f"app.{name}" for name in CORE} <= set(STANDS_ON)


def test_the_order_of_the_layers_is_the_designs() -> None:
    """messages ← rules ← handlers ← worker/gateway → ports ← adapters."""
    for below, above in (
        ("app.messages", "app.rules"),
        ("app.rules", "app.handlers"),
        ("app.handlers", "app.worker"),
        ("app.ports", "app.worker"),
        ("app.ports", "app.gateway"),
        ("app.ports", "adapters"),
    ):
        assert below in may_know(above)
        assert above not in may_know(below)
    assert {part for part in STANDS_ON if "adapters" in may_know(part)} == {"adapters", "app.__main__"}
    assert "app.ports" not in may_know("app.handlers")
    assert not may_know("adapters") & {"app.handlers", "app.worker", "app.gateway", "app.entries"}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("app.messages", "from app.rules import iso", "app.messages:1 knows app.rules"),
        ("app.messages", "import app.records", "app.messages:1 knows app.records"),
        ("app.totp", "from app.tokens import Mint", "app.totp:1 knows app.tokens"),
        ("app.totp", "import time", "app.totp:1 knows time"),
        ("app.passwords", "from app.rules import iso", "app.passwords:1 knows app.rules"),
        ("app.tokens", "from app.records import Account", "app.tokens:1 knows app.records"),
        ("app.sealing", "from app.tokens import Mint", "app.sealing:1 knows app.tokens"),
        ("app.rules", "from app.handlers.common import Context", "app.rules:1 knows app.handlers.common"),
        ("app.rules", "from app import worker", "app.rules:1 knows app.worker"),
        ("app.handlers.login", "from app.ports import Store", "app.handlers.login:1 knows app.ports"),
        ("app.handlers.login", "from .. import worker", "app.handlers.login:1 knows app.worker"),
        ("app.handlers.login", "from ..ports import Store", "app.handlers.login:1 knows app.ports"),
        ("app.handlers.__init__", "from ..ports import Store", "app.handlers.__init__:1 knows app.ports"),
        ("app.handlers.login", "def f():\n    import adapters.lua", "app.handlers.login:2 knows adapters.lua"),
        ("app.worker", "from adapters.redis_streams import RedisWorker", "app.worker:1 knows adapters.redis_streams"),
        ("app.worker", "from app.gateway.gateway import Gateway", "app.worker:1 knows app.gateway.gateway"),
        ("app.gateway.gateway", "from app.handlers import decide", "app.gateway.gateway:1 knows app.handlers"),
        ("app.gateway.gateway", "from app import __main__", "app.gateway.gateway:1 knows app.__main__"),
        ("app.gateway.gateway", "from app.gateway.rest import Rest", "app.gateway.gateway:1 knows app.gateway.rest"),
        ("app.gateway.rest", "from app.gateway.server import serve", "app.gateway.rest:1 knows app.gateway.server"),
        ("app.gateway.rest", "from app.ports import Store\nimport redis", "app.gateway.rest:2 knows redis"),
        ("app.gateway.doorway", "from app.gateway.rest import Rest", "app.gateway.doorway:1 knows app.gateway.rest"),
        ("app.gateway.doorway", "from app.entries import sameness", "app.gateway.doorway:1 knows app.entries"),
        ("app.documents", "from app.gateway.rest import Rest", "app.documents:1 knows app.gateway.rest"),
        ("app.documents", "import sanic", "app.documents:1 knows sanic"),
        ("app.documents", "x = open('file')", "app.documents:1 does I/O"),
        ("app.credit", "from app.worker import Worker", "app.credit:1 knows app.worker"),
        ("app.mail.templates", "from app.entries import open_mail", "app.mail.templates:1 knows app.entries"),
        ("adapters.redis_store", "from app.handlers import decide", "adapters.redis_store:1 knows app.handlers"),
        ("adapters.redis_store", "from app.worker import Worker", "adapters.redis_store:1 knows app.worker"),
        ("app.worker", "from redis.asyncio import Redis", "app.worker:1 knows redis.asyncio"),
        ("app.worker", "import sanic", "app.worker:1 knows sanic"),
        ("app.worker", "from tests.making import ANA", "app.worker:1 knows tests.making"),
        ("app.rules", "async def f(): ...", "app.rules:1 is async"),
        ("app.rules", "import time", "app.rules:1 knows time"),
        ("app.rules", "from time import monotonic", "app.rules:1 knows time"),
        ("app.rules", "from datetime import datetime\nx = datetime.now()", "app.rules:2 reads the clock"),
        ("app.rules", "import datetime\nx = datetime.datetime.utcnow()", "app.rules:2 reads the clock"),
        ("app.tokens", "import os\nx = os.environ['PATH']", "app.tokens:2 reads the environment"),
        ("app.tokens", "from os import getenv", "app.tokens:1 reads the environment"),
        ("app.worker", "import os\nx = os.getenv('PATH')", "app.worker:2 reads the environment"),
        ("adapters.outbox", "import os\nx = os.environ", "adapters.outbox:2 reads the environment"),
        ("app.settings", "import os\nx = os.environ", "app.settings:2 reads the environment"),
        ("app.worker", "x = settings['FIN_PEPPER']", "app.worker:1 reads a setting"),
        ("adapters.outbox", "x = environ.get('FIN_DATA_DIR')", "adapters.outbox:1 reads a setting"),
        ("app.sealing", "import asyncio", "app.sealing:1 knows asyncio"),
        ("app.handlers.login", "import logging", "app.handlers.login:1 knows logging"),
        ("app.handlers.login", "x = open('file')", "app.handlers.login:1 does I/O"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(module: str, source: str, fault: str) -> None:
    assert faults_of(module, source, frozenset(MODULES)) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("app.handlers.login", "from app.handlers.common import Context\nfrom . import refresh\nfrom app import rules"),
        ("app.rules", "from datetime import UTC, datetime\nx = datetime.fromtimestamp(facts.now, UTC)"),
        ("app.sealing", "import os\nx = os.urandom(32)"),
        ("app.gateway.rest", "import sanic\nfrom app.gateway.doorway import Doorway\nfrom app.gateway import gateway"),
        ("app.gateway.doorway", "from sanic.request import Request\nfrom app.settings import Settings"),
        ("app.worker", "import asyncio, os, time\nx = time.monotonic()\nasync def f(): ..."),
        ("app.__main__", "import os\nfrom adapters.outbox import Outbox\nx = os.environ"),
        ("adapters.redis_store", "from redis.asyncio import Redis\nfrom app import rules\nfrom app.ports import Store"),
    ],
)
def test_what_is_allowed_is_not_found(module: str, source: str) -> None:
    assert faults_of(module, source, frozenset(MODULES)) == []


def test_a_module_without_a_place_is_found() -> None:
    with pytest.raises(AssertionError, match="has no place"):
        faults_of("app.new_thing", "")
