"""Keys: made once, known before they are used, replaced under running roles, forgotten in time, and never shown."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from adapters.env_file import EnvFile, WatchedEnv
from adapters.files import put as replace_file
from adapters.key_files import KeyFiles
from app import reload
from app.keys import KeyEntry, KeyInfo, Ring, SealKeys, in_use
from app.operator.keys import table
from app.passwords import Hasher
from app.sealing import Opener, Sealer, Unreadable
from app.settings import SECRET_RINGS, Fault, Settings, SettingsFault, dotenv
from tests.deployment import ROOT, secret
from tests.making import CHEAP, secrets_of

START = 1_700_000_000
HOUR = 3600
APP = [sys.executable, "-m", "app"]


class Clock:
    def __init__(self) -> None:
        self.now = float(START)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> KeyFiles:
    return KeyFiles(tmp_path, clock)


def entries(folder: Path, name: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "keys" / name).read_text())["keys"]
    return found


def kids(folder: Path, name: str) -> list[object]:
    return [entry["kid"] for entry in entries(folder, name)]


def silent(_: str) -> None:
    pass


def look(files: KeyFiles) -> dict[str, str]:
    return {ring: kid for watched in files.watched for ring, kid in watched.look().items()}


# --- the files ----------------------------------------------------------------------------------------------------

MAKE = """
import sys
from pathlib import Path
from adapters.key_files import KeyFiles
from app.keys import Ring
files = KeyFiles(Path(sys.argv[1]))
print("here", flush=True)
sys.stdin.readline()
public, private = (files.seal_keys(Ring.SEAL, private=private).public for private in (False, True))
assert list(public) == list(private)
print(*public)
"""


def test_eight_roles_that_start_at_once_make_one_key(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MAKE, str(tmp_path / "data")]
    pipe = subprocess.PIPE
    roles = [subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True) for _ in range(8)]
    assert [role.stdout.readline() for role in roles if role.stdout] == ["here\n"] * 8
    made = {role.communicate("go\n", timeout=20)[0] for role in roles}

    assert [role.returncode for role in roles] == [0] * 8
    assert len(made) == 1 and len(made.pop().split()) == 1
    folder = tmp_path / "data/keys"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"seal.json": 0o600, "seal.pub.json": 0o644}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_public_half_that_is_missing_is_had_from_the_private_one_and_never_the_other_way(
    tmp_path: Path, files: KeyFiles
) -> None:
    whole = files.seal_keys(Ring.SEAL, private=True)
    (tmp_path / "keys/seal.pub.json").unlink()
    assert files.seal_keys(Ring.SEAL, private=False).current[0] == whole.current[0]
    (tmp_path / "keys/seal.json").unlink()
    with pytest.raises(Fault, match=r"seal\.json is missing"):
        files.seal_keys(Ring.SEAL, private=True)
    assert files.seal_keys(Ring.SEAL, private=False).current[0] == whole.current[0]


def test_a_role_reads_only_the_half_that_it_needs(tmp_path: Path, files: KeyFiles) -> None:
    files.seal_keys(Ring.SEAL, private=True)
    files.token_keys(private=True)
    for name in ("seal.pub.json", "token.pub.json"):
        (tmp_path / "keys" / name).write_text("not a key file")
    again = KeyFiles(tmp_path)
    assert list(again.seal_keys(Ring.SEAL, private=True).private) == kids(tmp_path, "seal.json")
    assert again.token_keys(private=True).public.keys() == set(kids(tmp_path, "token.json"))


def test_a_file_from_before_there_was_rotation_is_read(tmp_path: Path, files: KeyFiles) -> None:
    kid = files.seal_keys(Ring.SEAL, private=True).current[0]
    path = tmp_path / "keys/seal.json"
    old = [{name: entry[name] for name in ("kid", "created", "pem")} for entry in entries(tmp_path, "seal.json")]
    path.write_text(json.dumps({"keys": old}))
    assert KeyFiles(tmp_path).seal_keys(Ring.SEAL, private=True).current[0] == kid
    assert files.inventory() == [KeyInfo("seal", kid, START, START, None, current=True)]


# --- rotation of key files ----------------------------------------------------------------------------------------


def test_a_new_seal_key_opens_at_once_seals_later_and_the_old_one_opens_for_an_hour_more(
    files: KeyFiles, clock: Clock
) -> None:
    sealing, opening = files.seal_keys(Ring.SEAL, private=False), files.seal_keys(Ring.SEAL, private=True)
    old = sealing.current[0]
    assert look(files) == {}

    files.rotate("seal", 60, silent)
    assert look(files) == {"seal": old}
    [new] = opening.private.keys() - {old}
    assert sealing.current[0] == old and sealing.public.keys() == opening.private.keys()

    clock.now += 59.9
    assert look(files) == {} and sealing.current[0] == old
    clock.now += 0.2
    assert look(files) == {"seal": new} and sealing.current[0] == new
    clock.now += HOUR - 1
    assert look(files) == {} and old in opening.private
    clock.now += 1
    assert look(files) == {"seal": new} and opening.private.keys() == {new}


def test_a_new_token_key_verifies_at_once_signs_later_and_the_old_one_verifies_for_an_hour_more(
    files: KeyFiles, clock: Clock
) -> None:
    gateway, worker = files.token_keys(private=False), files.token_keys(private=True)
    old = worker.current[0]
    files.rotate("token", 600, silent)
    look(files)
    assert worker.current[0] == old
    assert gateway.public.keys() == worker.public.keys() and len(gateway.public) == 2
    clock.now += 600
    look(files)
    new, signer = worker.current
    assert new != old and list(gateway.public) == [new, old]
    gateway.public[new].verify(signer.sign(b"text", ECDSA(SHA256())), b"text", ECDSA(SHA256()))
    clock.now += HOUR
    look(files)
    assert list(gateway.public) == list(worker.public) == [new]


def test_a_key_past_its_time_leaves_the_files_at_the_next_rotation(
    tmp_path: Path, files: KeyFiles, clock: Clock
) -> None:
    first = files.seal_keys(Ring.SEAL, private=True).current[0]
    files.rotate("seal", 60, silent)
    second = kids(tmp_path, "seal.json")[0]
    clock.now += HOUR  # the first is needed for another minute
    files.rotate("seal", 60, silent)
    assert kids(tmp_path, "seal.json")[1:] == [second, first]
    clock.now += 61
    files.rotate("seal", 60, silent)
    found = kids(tmp_path, "seal.json")
    assert len(found) == 3 and first not in found and found[2] == second
    assert kids(tmp_path, "seal.pub.json") == found


def test_the_current_key_is_the_newest_whose_time_has_come() -> None:
    def entry(kid: str, since: int, until: int | None = None) -> KeyEntry:
        return KeyEntry(kid, 0, since, until, "")

    def order(*keys: KeyEntry, now: int) -> str:
        return " ".join(key.kid for key in in_use(keys, now))

    three = (entry("c", 30), entry("b", 20, 130), entry("a", 10, 120))
    assert [order(*three, now=now) for now in (15, 20, 30, 120, 130)] == ["a c b", "b c a", "c b a", "c b", "c"]
    overtaken = (entry("c", 5), entry("b", 20, 105), entry("a", 0, 100))
    assert order(*overtaken, now=20) == "c b a"
    assert order(*three, now=5) == "a c b", "a clock that went backwards leaves the oldest, never none"
    assert order(entry("a", 10, 20), now=50) == "a"


def test_many_rotations_at_once_lose_no_key(tmp_path: Path, files: KeyFiles) -> None:
    files.seal_keys(Ring.SEAL, private=True)
    rotations = [threading.Thread(target=files.rotate, args=("seal", 60, silent)) for _ in range(8)]
    for rotation in rotations:
        rotation.start()
    for rotation in rotations:
        rotation.join()
    found = kids(tmp_path, "seal.json")
    assert len(set(found)) == 9 and kids(tmp_path, "seal.pub.json") == found


@pytest.mark.parametrize(("ring", "first"), [("seal", "seal.json"), ("mail", "mail.json"), ("token", "token.pub.json")])
def test_a_rotation_that_is_cut_off_leaves_no_key_in_use_that_is_not_known_and_the_next_one_mends_it(
    tmp_path: Path, files: KeyFiles, monkeypatch: pytest.MonkeyPatch, ring: str, first: str
) -> None:
    """Who opens or verifies knows it first: the private half of seal and mail, the public one of token."""
    files.token_keys(private=True) if ring == "token" else files.seal_keys(Ring(ring), private=True)
    names = {f"{ring}.json", f"{ring}.pub.json"}
    written = count(1)

    def put(path: Path, text: str, mode: int) -> None:
        if next(written) == 2:
            raise OSError(28, "No space left on device")
        replace_file(path, text, mode)

    monkeypatch.setattr("adapters.key_files.put", put)
    with pytest.raises(Fault, match="No space left"):
        files.rotate(ring, 60, silent)
    assert {name: len(kids(tmp_path, name)) for name in names} == {name: 2 if name == first else 1 for name in names}
    files.rotate(ring, 60, silent)
    assert kids(tmp_path, f"{ring}.json") == kids(tmp_path, f"{ring}.pub.json")


def test_a_ring_whose_private_half_is_elsewhere_is_not_rotated_here(tmp_path: Path, files: KeyFiles) -> None:
    files.seal_keys(Ring.SEAL, private=False)
    (tmp_path / "keys/seal.json").unlink()
    with pytest.raises(Fault, match="where its private keys are"):
        files.rotate("seal", 60, silent)


def test_a_folder_that_cannot_be_looked_into_is_said(tmp_path: Path) -> None:
    files = KeyFiles(tmp_path / ("x" * 300))
    for call in (files.inventory, lambda: files.rotate("seal", 60, silent), lambda: files.token_keys(private=True)):
        with pytest.raises(Fault, match=r"FIN_DATA_DIR: .*File name too long"):
            call()


FAULTY: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "half written": lambda text: text[: len(text) // 2],
    "no keys": lambda text: '{"keys": []}',
    "not keys": lambda text: '["keys"]',
    "no PEM": lambda text: text.replace("BEGIN", "BEGUN"),
    "no time": lambda text: text.replace('"from": ', '"from": "x", "was": '),
    "another kind": lambda text: json.dumps({"keys": [json.loads(text)["keys"][0] | {"pem": PEM}]}),
}
PEM = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""  # Ed25519, RFC 8410


@pytest.mark.parametrize("name", FAULTY)
@pytest.mark.parametrize("private", [True, False])
def test_a_faulty_key_file_is_a_fault_and_what_is_held_stays(
    tmp_path: Path, files: KeyFiles, name: str, private: bool
) -> None:
    held = files.seal_keys(Ring.SEAL, private=private)
    before = held.public, held.private
    path = tmp_path / ("keys/seal.json" if private else "keys/seal.pub.json")
    good = path.read_text()
    path.write_text(FAULTY[name](good))
    for _ in range(2):
        with pytest.raises(Fault) as caught:
            look(files)
        assert path.name in str(caught.value) and "PRIVATE" not in str(caught.value)
    assert (held.public, held.private) == before
    with pytest.raises(Fault):
        files.rotate("seal", 60, silent) if private else KeyFiles(tmp_path).seal_keys(Ring.SEAL, private=False)
    path.write_text(good)
    assert look(files) == {}


# --- the secrets of .env ------------------------------------------------------------------------------------------


class Waits:
    """Stands for the wait between the two steps; `files` is the file as it was then."""

    def __init__(self, path: Path) -> None:
        self.path, self.seconds, self.files = path, list[float](), list[str]()

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.files.append(self.path.read_text())


def env(folder: Path, text: str = "", **given: str) -> tuple[Path, EnvFile, Waits]:
    path = folder / ".env"
    lines = [f"{name}={ring}:{base64.urlsafe_b64encode(os.urandom(32)).decode()}" for ring, name in NAMES.items()]
    path.write_text(text or "\n".join(lines))
    waits = Waits(path)
    return path, EnvFile(path, given, waits), waits


NAMES = {"edg1": "FIN_EDGE_SECRET", "wrk1": "FIN_WORKER_SECRET", "pep1": "FIN_PEPPER"}


def versions(text: str | Path, name: str) -> list[str]:
    lines = text.read_text() if isinstance(text, Path) else text
    [value] = [line.partition("=")[2] for line in lines.splitlines() if line.startswith(f"{name}=")]
    return [version.partition(":")[0] for version in value.split(",")]


@pytest.mark.parametrize("ring", SECRET_RINGS)
def test_a_new_secret_is_known_for_a_while_before_it_is_the_current_one(tmp_path: Path, ring: str) -> None:
    path, file, waits = env(tmp_path)
    name, before = SECRET_RINGS[ring], dotenv(path)
    said: list[str] = []
    file.rotate(ring, 10, said.append)

    [old, new] = versions(waits.files[0], name)
    assert waits.seconds == [10]
    assert versions(path, name) == [new, old] and before[name].startswith(old)
    assert said == [f"{ring}: {new} is known; it becomes current in 10 s.", f"{ring}: {new} is current."]
    after = dotenv(path)
    assert after[name].endswith(f",{before[name]}")
    assert {n: v for n, v in after.items() if n != name} == {n: v for n, v in before.items() if n != name}
    Settings.from_env(after)  # strong enough


def test_nothing_but_the_one_value_of_the_file_is_changed(tmp_path: Path) -> None:
    old = secret()
    text = (
        f"# FIN_PEPPER=old é\r\n\r\nFIN_PEPPER={secret()}\r\nFIN_HOST = 0.0.0.0 \n"
        f"export FIN_PEPPER = '{old}' \r\n# the end, without a line break"
    )
    path, file, _ = env(tmp_path)
    path.write_bytes(text.encode())
    file.rotate("pepper", 10, silent)
    new = dotenv(path)["FIN_PEPPER"]
    assert new.endswith(f",{old}") and len(new) > 2 * len(old)
    assert path.read_bytes().decode() == text.replace(old, new)


def test_an_old_edge_secret_goes_once_nothing_can_need_it_and_the_others_stay(tmp_path: Path) -> None:
    path, file, waits = env(tmp_path)
    for ring in (*SECRET_RINGS, *SECRET_RINGS):
        file.rotate(ring, 10, silent)
    assert {name: len(versions(path, name)) for name in SECRET_RINGS.values()} == dict.fromkeys(NAMES.values(), 3)

    rested = time.time() - 1000
    for ring, name in SECRET_RINGS.items():
        os.utime(path, (rested, rested))
        [last, *older] = versions(path, name)
        file.rotate(ring, 10, silent)
        assert versions(waits.files[-1], name)[:3] == [last, *older], "not before the new one is current"
        assert versions(path, name)[1:] == ([last] if ring == "edge" else [last, *older])


def test_a_secret_of_the_real_environment_is_not_rotated_in_the_file(tmp_path: Path) -> None:
    path, file, waits = env(tmp_path, FIN_PEPPER=secret(), FIN_EDGE_SECRET=" ")
    before = path.read_bytes()
    with pytest.raises(Fault, match="FIN_PEPPER comes from the environment"):
        file.rotate("pepper", 10, silent)
    assert (path.read_bytes(), waits.seconds) == (before, [])
    file.rotate("edge", 10, silent)  # empty is unset


def test_a_new_secret_that_was_taken_out_meanwhile_is_said(tmp_path: Path) -> None:
    path, _, _ = env(tmp_path)
    before = path.read_text()
    file = EnvFile(path, {}, lambda _: replace_file(path, before))
    with pytest.raises(Fault, match="has lost its new version"):
        file.rotate("edge", 10, silent)
    assert path.read_text() == before


def test_two_rotations_at_once_are_one_after_the_other(tmp_path: Path) -> None:
    path, _, _ = env(tmp_path)
    first_waits, second_waits, go_on = threading.Event(), threading.Event(), threading.Event()

    def wait(_: float) -> None:
        first_waits.set()
        go_on.wait(10)

    first = threading.Thread(target=EnvFile(path, {}, wait).rotate, args=("edge", 10, silent))
    second = threading.Thread(target=EnvFile(path, {}, lambda _: second_waits.set()).rotate, args=("edge", 10, silent))
    first.start()
    assert first_waits.wait(10)
    [old, one] = versions(path, "FIN_EDGE_SECRET")
    second.start()
    assert not second_waits.wait(0.2)
    assert versions(path, "FIN_EDGE_SECRET") == [old, one]
    go_on.set()
    first.join(10)
    second.join(10)
    found = versions(path, "FIN_EDGE_SECRET")
    assert found[1:] == [one, old] and len(found) == 3


def test_a_link_stays_a_link_and_a_file_keeps_its_mode_and_owner(tmp_path: Path) -> None:
    path, _, _ = env(tmp_path)
    target = path.rename(tmp_path / "secrets")
    path.symlink_to(target)
    target.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(target, 12345, 54321)
    before = target.stat()
    EnvFile(path, {}, lambda _: None).rotate("edge", 10, silent)
    after = target.stat()
    assert path.is_symlink() and len(versions(target, "FIN_EDGE_SECRET")) == 2
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert sorted(tmp_path.iterdir()) == [path, target]


# --- what roles hold ----------------------------------------------------------------------------------------------


def test_secrets_are_replaced_where_they_are_held_all_or_none(tmp_path: Path) -> None:
    path, file, _ = env(tmp_path)
    settings = Settings.from_env(file.read(), ("gateway",))
    edge, nothing = settings.edge_secret, settings.pepper
    watched = WatchedEnv(file, settings)
    assert watched.look() == {}
    file.rotate("edge", 10, silent)
    file.rotate("pepper", 10, silent)
    [new, _] = versions(path, "FIN_EDGE_SECRET")
    assert watched.look() == {"edge": new} and watched.look() == {}
    assert settings.edge_secret is edge and edge.current.kid == new
    assert settings.pepper is nothing and nothing.current.kid == "none"

    settings = Settings.from_env(file.read())
    held = [list(s.versions) for s in (settings.edge_secret, settings.worker_secret, settings.pepper)]
    file.rotate("worker", 10, silent)
    path.write_text(path.read_text().replace("FIN_PEPPER", "FIN_PEPER"))
    with pytest.raises(SettingsFault, match="FIN_PEPPER is missing"):
        WatchedEnv(file, settings).look()
    assert [list(s.versions) for s in (settings.edge_secret, settings.worker_secret, settings.pepper)] == held


def test_a_secret_of_the_real_environment_never_changes_under_a_role(tmp_path: Path) -> None:
    given = secret()
    path, file, _ = env(tmp_path, FIN_PEPPER=given)
    settings = Settings.from_env(file.read())
    EnvFile(path, {}, lambda _: None).rotate("pepper", 10, silent)
    assert WatchedEnv(file, settings).look() == {}
    assert settings.pepper.current.kid == given.partition(":")[0]


async def test_a_role_takes_new_keys_within_a_look_and_says_a_fault_once(
    tmp_path: Path, files: KeyFiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.001)
    path, file, _ = env(tmp_path)
    settings = Settings.from_env(file.read())
    held = files.seal_keys(Ring.SEAL, private=True)
    key_file = tmp_path / "keys/seal.json"
    good = key_file.read_text()
    looks = count()

    class Counted:
        def look(self) -> dict[str, str]:
            next(looks)
            return {}

    async def looked(times: int = 3) -> None:
        until = next(looks) + times
        while next(looks) < until + times:
            await asyncio.sleep(0.001)

    with caplog.at_level(logging.INFO, "finthenticate"):
        role = asyncio.create_task(reload.keep_fresh([*files.watched, WatchedEnv(file, settings), Counted()]))
        replace_file(key_file, "{")
        await looked(20)
        await asyncio.to_thread(file.rotate, "edge", 10, silent)
        await looked(20)
        replace_file(key_file, good)
        await looked(20)
        await asyncio.to_thread(files.rotate, "seal", 3, silent)
        await looked(20)
        role.cancel()

    assert len(held.private) == 2
    assert settings.edge_secret.current.kid == versions(path, "FIN_EDGE_SECRET")[0]
    said = [record.message for record in caplog.records]
    assert said.count("keys cannot be read, the old ones stay") == said.count("keys can be read again") == 1
    changed = [record.__dict__["fields"]["ring"] for record in caplog.records if record.message == "keys changed"]
    assert changed[-1] == "seal" and set(changed[:-1]) == {"edge"}
    values = [base64.urlsafe_b64encode(s.value).decode().rstrip("=") for s in settings.edge_secret.versions]
    assert not [value for value in values if value in caplog.text]


def keys_of(*kids: str) -> SealKeys:
    private = {kid: X25519PrivateKey.from_private_bytes(kid.encode() * 8) for kid in kids}
    return SealKeys({kid: key.public_key() for kid, key in private.items()}, private)


ALL = keys_of("key1", "key2")


def test_a_sealer_keeps_its_envelope_until_the_key_or_the_edge_secret_is_another() -> None:
    keys, edge = keys_of("key1"), secrets_of("edg1")
    sealer = Sealer(keys, edge, "mail")
    heads = []
    for public, kids in (
        ("key1", "edg1"),
        ("key1 key2", "edg1"),
        ("key2 key1", "edg1"),
        ("key2 key1", "edg1 edg2"),
        ("key2 key1", "edg2 edg1"),
    ):
        keys.public = {kid: ALL.public[kid] for kid in public.split()}
        edge.versions = tuple(secrets_of(*kids.split()).versions)
        envelope = sealer.envelope
        assert sealer.envelope is envelope
        heads.append(b".".join(envelope.wrapped.split(b".")[:2]).decode())
    assert heads == ["key1.edg1", "key1.edg1", "key2.edg1", "key2.edg1", "key2.edg2"]
    before = sealer.envelope
    sealer.renew()
    assert sealer.envelope.wrapped != before.wrapped


def test_an_opener_opens_with_every_key_it_has_and_with_none_that_it_had() -> None:
    keys, edge = keys_of("key1"), secrets_of("edg1")
    opener, old = Opener(keys, edge, "mail"), Sealer(keys_of("key1"), secrets_of("edg1"), "mail").envelope
    new = Sealer(keys_of("key2"), secrets_of("edg2"), "mail").envelope
    with pytest.raises(Unreadable):
        opener.envelope(new.wrapped)
    keys.private, edge.versions = keys_of("key2", "key1").private, secrets_of("edg2", "edg1").versions
    for envelope in (old, new):
        assert opener.envelope(envelope.wrapped).open(envelope.seal(b"text", b""), b"") == b"text"
    assert opener.envelope(old.wrapped) is opener.envelope(old.wrapped)
    keys.private = keys_of("key2").private
    with pytest.raises(Unreadable):
        opener.envelope(old.wrapped)
    edge.versions = secrets_of("edg1").versions
    with pytest.raises(Unreadable):
        opener.envelope(new.wrapped)


def test_an_unknown_address_is_verified_against_the_decoy_whatever_became_of_the_pepper_it_was_made_with() -> None:
    pepper = secrets_of("pep1")
    hasher = Hasher(CHEAP, pepper)
    for kids in (("pep2", "pep1"), ("pep2",)):
        pepper.versions = secrets_of(*kids).versions
        assert not hasher.verify(hasher.decoy, "nobody", "a guess")
        assert not hasher.outdated(hasher.decoy)


# --- weak secrets -------------------------------------------------------------------------------------------------


def b64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


@pytest.mark.parametrize(
    "weak",
    [
        pytest.param(b64(b"a" * 32), id="one byte again and again"),
        pytest.param("a" * 43, id="one letter again and again"),
        pytest.param(b64(bytes(range(32))), id="a sequence"),
        pytest.param(b64(bytes(range(255, 0, -3))), id="a sequence in steps"),
        pytest.param(b64(bytes(range(0, 64, 2)) * 2), id="a sequence, twice"),
        pytest.param(b64(os.urandom(16) * 2), id="128 random bits, twice"),
        pytest.param(b64(b"correct horse battery staple and more"), id="a text"),
        pytest.param(b64(b"0123456789abcdefghijklmnopqrstuvwxyz"), id="an alphabet"),
        pytest.param("correct-horse-battery-staple-and-some-more-words", id="words for base64"),
        pytest.param("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQ", id="an alphabet for base64"),
        pytest.param("change-me-" + b64(os.urandom(30)), id="a placeholder"),
        pytest.param("ThisIsTheEdgeSecretOfOurProductionDeployment01", id="a name"),
        pytest.param(b64(os.urandom(31)), id="31 bytes"),
    ],
)
@pytest.mark.parametrize("name", SECRET_RINGS.values())
def test_a_start_with_a_weak_secret_is_refused_and_the_variable_named(name: str, weak: str) -> None:
    strong = {other: secret() for other in SECRET_RINGS.values()}
    with pytest.raises(SettingsFault) as caught:
        Settings.from_env({**strong, name: f"aaaa:{weak}"})
    assert [line.split()[0] for line in caught.value.faults] == [name]
    assert "too weak" in str(caught.value) and weak not in str(caught.value)


def test_what_random_sources_give_is_strong_enough() -> None:
    values = [b64(os.urandom(size)) for size in (32, 33, 48, 64) for _ in range(500)]
    values += [os.urandom(32).hex() for _ in range(500)]
    for n in range(0, len(values), 3):
        names = zip(SECRET_RINGS.values(), values[n : n + 3] + values[:2])
        Settings.from_env({name: f"aaaa:{value}" for name, value in names})


# --- the commands -------------------------------------------------------------------------------------------------


def run(folder: Path, *arguments: str, limit: int | None = None, **given: str) -> tuple[int, list[str], list[str]]:
    """Exit status, and the lines of stdout and stderr. `limit`: no file may be longer."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("FIN_")}
    small = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = subprocess.run(
        [*APP, "keys", *arguments],
        cwd=folder,
        env={**environ, "PYTHONPATH": str(ROOT), "FIN_DATA_DIR": "data", **given},
        capture_output=True,
        text=True,
        timeout=20,
        preexec_fn=small,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def deployed(folder: Path) -> tuple[Path, KeyFiles]:
    path, _, _ = env(folder)
    files = KeyFiles(folder / "data")
    for ring in (Ring.SEAL, Ring.MAIL):
        files.seal_keys(ring, private=True)
    files.token_keys(private=True)
    return path, files


def test_the_list_names_every_key_of_every_ring_and_shows_no_secret(tmp_path: Path) -> None:
    path, files = deployed(tmp_path)
    files.rotate("seal", 60, silent)
    status, lines, errors = run(tmp_path, "list", FIN_PEPPER=(pepper := secret()))
    assert (status, errors) == (0, [])
    shown = [line.split() for line in lines]
    assert shown[0] == "ring key state made current from until".split()
    assert [(row[0], row[2]) for row in shown[1:]] == [
        ("seal", "next"),
        ("seal", "current"),
        ("mail", "current"),
        ("token", "current"),
        ("edge", "current"),
        ("worker", "current"),
        ("pepper", "current"),
    ]
    assert [row[1] for row in shown[1:3]] == kids(tmp_path / "data", "seal.json")
    assert shown[-1][1] == pepper.partition(":")[0], "the environment wins"
    said = "\n".join(lines)
    values = [pepper, *dotenv(path).values()]
    hidden = [value.partition(":")[2].rstrip("=") for value in values]
    hidden += [line for file in (tmp_path / "data/keys").iterdir() for line in file.read_text().split("\\n")[1:2]]
    assert len(hidden) > 8 and not [value for value in hidden if value in said]


def test_the_list_of_a_machine_with_some_keys_has_those(tmp_path: Path) -> None:
    deployed(tmp_path)
    (tmp_path / ".env").write_text(f"FIN_EDGE_SECRET={secret()}\n")
    for name in ("seal.json", "seal.pub.json", "mail.pub.json", "token.json"):
        (tmp_path / "data/keys" / name).unlink()
    status, lines, _ = run(tmp_path, "list")
    assert status == 0 and [line.split()[0] for line in lines[1:]] == ["mail", "token", "edge"]


def test_the_table_has_times_where_there_are_any() -> None:
    keys = [KeyInfo("seal", "aaaa", START, START + 60, None), KeyInfo("edge", "bbbb", current=True)]
    assert list(table(keys, START)) == [
        "ring  key   state    made                  current from          until",
        "seal  aaaa  next     2023-11-14 22:13:20Z  2023-11-14 22:14:20Z  -",
        "edge  bbbb  current  -                     -                     -",
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ("", 64, "usage: python -m app keys list | keys rotate RING"),
        ("show", 64, "usage: "),
        ("list edge", 64, "usage: "),
        ("rotate", 64, "usage: "),
        ("rotate edge now", 64, "usage: "),
        ("rotate sealing", 64, "there is no ring 'sealing'; the rings are seal, mail, token, edge, worker, pepper."),
        ("rotate seal --after", 64, "--after must be whole seconds from 3 to 86400."),
        ("rotate seal --after 2", 64, "--after must be"),
        ("rotate seal --after 86401", 64, "--after must be"),
        ("rotate seal --after 1e3", 64, "--after must be"),
        ("rotate worker", 78, "FIN_WORKER_SECRET comes from the environment, not from"),
        ("rotate pepper", 78, "FIN_PEPPER is missing"),
        ("rotate edge", 78, "FIN_EDGE_SECRET version aaaa is too weak"),
        ("rotate mail", 78, "rotate a ring where its private keys are"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(tmp_path: Path, arguments: str, status: int, said: str) -> None:
    (tmp_path / ".env").write_text("FIN_EDGE_SECRET=aaaa:c2VjcmV0\n")
    found, lines, errors = run(tmp_path, *arguments.split(), FIN_WORKER_SECRET=secret())
    assert (found, lines, len(errors)) == (status, [], 1)
    assert said in errors[0]


@pytest.mark.parametrize("ring", ["seal", "token", "pepper"])
def test_a_file_that_cannot_be_written_is_said_and_left_as_it_was(tmp_path: Path, ring: str) -> None:
    deployed(tmp_path)

    def everything() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = everything()
    status, _, errors = run(tmp_path, "rotate", ring, limit=16)
    assert (status, len(errors)) == (78, 1) and "cannot be written: File too large" in errors[0]
    assert everything() == before


def test_a_ring_is_rotated_by_a_command(tmp_path: Path) -> None:
    deployed(tmp_path)
    [old] = kids(tmp_path / "data", "seal.json")
    status, lines, errors = run(tmp_path, "rotate", "seal", "--after", "30")
    new, kept = entries(tmp_path / "data", "seal.json")
    assert (status, errors) == (0, [])
    assert lines == [f"seal: {new['kid']} is known; it becomes current in 30 s, by itself."]
    assert kept["kid"] == old and new["from"] == int(str(new["created"])) + 30
    assert kept["until"] == int(str(new["from"])) + HOUR
    path = tmp_path / "data/keys/seal.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
