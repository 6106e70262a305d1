"""Builds an image's whole root: a virtual environment and what its interpreter needs at run time, and nothing else.

usage: rootfs.py VENV ROOT     with the interpreter that VENV was made with, on Debian

No shell, no package manager, no compiler gets in, whatever the base image has. What scanners ask for does: which
Debian packages the files are from.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

STDLIB = sysconfig.get_path("stdlib")
# Of the standard library: what is for developers, for terminals and screens, or brings libraries that nothing uses.
LEFT_OUT = (
    "__pycache__ test tests distutils idlelib lib2to3 tkinter turtledemo turtle.py ensurepip pydoc_data site-packages"
    " dist-packages config-3* *.a _test* _tkinter* _curses* readline* _dbm* _gdbm* _sqlite3* nis* ossaudiodev*"
).split()
TRUST = "/etc/ssl/certs/ca-certificates.crt"
FILES = {
    "etc/passwd": "finthenticate:x:10001:10001::/data:/nonexistent\n",
    "etc/group": "finthenticate:x:10001:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}


def put(source: str, root: Path) -> None:
    """A file, not a link to it, at the same path."""
    target = root / source.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def libraries(folder: Path) -> set[str]:
    """Paths of the shared objects that the programs and modules in the folder load, the loader among them."""
    found: set[str] = set()
    for path in filter(Path.is_file, folder.rglob("*")):
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        said = subprocess.run(["ldd", path], capture_output=True, text=True).stdout  # noqa: S607  # Debian's
        found.update(re.findall(r"(/\S+) \(0x", said))
    return found


def packages(paths: Iterable[str]) -> set[str]:
    """The Debian packages that the files are from. Their paths are known with and without /usr."""
    patterns = (f"*{path.removeprefix('/usr')}" for path in paths)
    said = subprocess.run(["dpkg-query", "--search", *patterns], capture_output=True, text=True).stdout  # noqa: S607
    return {name for line in said.splitlines() for name in line.partition(": /")[0].split(", ")}


def main(venv: Path, root: Path) -> None:
    shutil.copytree(STDLIB, root / STDLIB.lstrip("/"), ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(venv / "lib", root / str(venv / "lib").lstrip("/"))
    for path in (f"{venv}/bin/python", f"{venv}/pyvenv.cfg", "/etc/os-release", TRUST):
        put(path, root)
    shared = libraries(root)
    for path in shared:
        put(path, root)
    for name, text in FILES.items():
        (root / name).write_text(text)
    for package in packages([*shared, f"{STDLIB}/os.py", TRUST]):
        status = subprocess.run(["dpkg-query", "--status", package], capture_output=True, text=True).stdout  # noqa: S607
        record = root / "var/lib/dpkg/status.d" / package.partition(":")[0]
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(status)
    folders = sorted({str(Path(path).parent) for path in shared})
    subprocess.run(["ldconfig", "-r", root, *folders], check=True)  # noqa: S607


main(Path(sys.argv[1]), Path(sys.argv[2]))
