"""The Argon2 that ./setup.sh leaves in .venv: compiled for this processor where that works, else the prebuilt one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import ROOT

PARTS = ("argon2-cffi", "argon2-cffi-bindings", "cffi", "pycparser")

pytestmark = pytest.mark.all


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a .venv as setup.sh makes it, in which only Argon2 is installed. The documents in there quote a
    password of ours, so nothing of it stays for tests/test_secrecy.py to find.
    """
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "scripts").mkdir()
    for name in ("scripts/argon2", "requirements.lock", "requirements-build.lock"):
        shutil.copy(ROOT / name, folder / name)
    lines, ours = [], False
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        ours = line.split("==")[0] in PARTS if line[:1] not in (" ", "#") else ours
        lines += [line] if ours else []
    (folder / "argon2.lock").write_text("\n".join(lines))
    said(folder, sys.executable, "-m", "venv", ".venv")
    install = "-m pip install -q --disable-pip-version-check --require-hashes -r argon2.lock"
    said(folder, ".venv/bin/python", *install.split())
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def checkout(installed: Path) -> Path:
    """With the prebuilt one."""
    said(installed, "scripts/argon2", "portable")
    (installed / ".venv/argon2").unlink(missing_ok=True)
    return installed


def said(folder: Path, *command: str, **environ: str) -> str:
    """What it printed, to either stream; it has to succeed."""
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def binary(folder: Path) -> bytes:
    [found] = folder.glob(".venv/lib/python*/site-packages/_argon2_cffi_bindings/_ffi*.so")
    return found.read_bytes()


HASH = "import argon2; print(argon2.PasswordHasher(2, 1024, 1).hash('correct horse'))"
VERIFY = "import argon2, sys; argon2.PasswordHasher().verify(sys.argv[1], 'correct horse')"


@pytest.mark.skipif(not shutil.which("cc"), reason="nothing to compile with on this machine")
def test_argon2_is_compiled_for_this_processor_once_and_knows_the_others_records(checkout: Path) -> None:
    prebuilt = binary(checkout)
    record = said(checkout, ".venv/bin/python", "-c", HASH).strip()

    assert "Compiling Argon2" in said(checkout, "scripts/argon2", "native")
    native = binary(checkout)
    assert native != prebuilt
    assert said(checkout, "scripts/argon2", "native") == "", "it is there already"
    said(checkout, ".venv/bin/python", "-c", VERIFY, record)
    record = said(checkout, ".venv/bin/python", "-c", HASH).strip()

    said(checkout, "scripts/argon2", "portable")
    assert binary(checkout) == prebuilt
    said(checkout, ".venv/bin/python", "-c", VERIFY, record)
    assert not (checkout / ".venv/argon2-build").exists()


@pytest.mark.skipif(not shutil.which("cc"), reason="nothing to compile with on this machine")
def test_where_argon2_cannot_be_compiled_the_prebuilt_one_stays_and_that_is_said_once(checkout: Path) -> None:
    prebuilt = binary(checkout)
    broken = shutil.which("false") or "false"

    assert "could not be compiled here" in said(checkout, "scripts/argon2", "native", CC=broken)
    assert binary(checkout) == prebuilt
    assert (checkout / ".venv/argon2.log.failed").read_text()
    assert said(checkout, "scripts/argon2", "native", CC=broken) == "", "not tried again at every start"
    said(checkout, ".venv/bin/python", "-c", HASH)


def test_without_a_compiler_the_prebuilt_one_stays_without_a_word(checkout: Path, tmp_path: Path) -> None:
    prebuilt, tools = binary(checkout), tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "cat"):
        (tools / name).symlink_to(shutil.which(name) or name)

    assert said(checkout, "scripts/argon2", "native", PATH=str(tools)) == ""
    assert binary(checkout) == prebuilt
