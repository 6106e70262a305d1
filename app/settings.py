"""Settings: the only reader of the environment.

`Settings.from_env` never raises at the first fault: it collects every one of them, names the variable
and never prints a secret, so that an operator mends a deployment in one pass.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from app import smtp
from app.settings_table import ABOUT
from app.smtp import Smtp

T = TypeVar("T")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ROLES = ("gateway", "worker", "mailer")
# RFC 9106 and the OWASP password storage cheat sheet: 19 MiB, two passes, one lane is the floor.
ARGON2_FLOOR = (19456, 2, 1)
ARGON2_CEILING = (1048576, 16, 16)  # what a typing error must not exceed: 1 GiB a hash
SECRET_BYTES = 32


class Fault(Exception):
    """A sentence for the operator; the process ends with it and with EX_CONFIG."""


class SettingsFault(Fault):
    """Every fault of the environment, one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class Secret:
    """A named 256-bit (or longer) key. The id travels with what was made with it; the bytes never do."""

    kid: str
    value: bytes = field(repr=False)


@dataclass
class Secrets:
    """Versions of one secret: the first is used for what is new, the others still verify what is old.

    One object for the life of a process, looked up at use: `Settings.renew` replaces its versions as a whole.
    """

    versions: tuple[Secret, ...]

    @property
    def current(self) -> Secret:
        return self.versions[0]

    def find(self, kid: str) -> Secret | None:
        return next((secret for secret in self.versions if secret.kid == kid), None)


MOST_PORT = 65535
NO_SECRETS = Secrets((Secret("none", b""),))
SECRET_RINGS = {"edge": "FIN_EDGE_SECRET", "worker": "FIN_WORKER_SECRET", "pepper": "FIN_PEPPER"}


@dataclass(frozen=True)
class Argon2:
    """Argon2id cost: memory in KiB, passes, lanes (RFC 9106)."""

    memory_kib: int = 19456
    passes: int = 2
    lanes: int = 1


@dataclass(frozen=True)
class Limits:
    """What one subject may do; None is `off`."""

    failures_per_account: int | None = 5
    failures_per_ip: int | None = 60
    registrations_per_ip: int | None = 20
    mails_per_ip: int | None = 30
    mails_per_account: int | None = 5
    connections_per_ip: int | None = 1000
    messages_per_second: int | None = 20


@dataclass(frozen=True)
class Failpoint:
    """Where a worker kills itself: at each passage with this chance, of requests about addresses that begin so."""

    name: str
    chance: float
    about: str = ""


@dataclass(frozen=True)
class Failpoints:
    """For tests alone. The same seed draws the same chances."""

    points: tuple[Failpoint, ...]
    seed: int = 0


@dataclass(frozen=True)
class Settings:
    """One deployment's settings, checked. Field names carry their units."""

    host: str = "127.0.0.1"
    port: int = 8000
    ops_port: int | None = 8001  # None: no /metrics
    redis_url: str | None = field(default=None, repr=False)
    amqp_url: str | None = field(default=None, repr=False)  # None: Redis is the broker too
    deployment: str = "finthenticate"
    data_dir: Path = Path("var")
    mail_url: str = field(default="file:outbox", repr=False)
    smtp: Smtp | None = None  # None: mail_url is file:DIR
    mail_from: str = ""  # "": no-reply at the public host
    public_url: str = "http://127.0.0.1:8000"
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    email_confirmation: bool = True
    device_verification: bool = True
    argon2: Argon2 = Argon2()
    min_password: int = 15
    audience: str = "finthenticate"
    limits: Limits = Limits()
    durability_strict: bool = True
    max_queue: int = 2000
    hash_threads: int = 2
    edge_secret: Secrets = field(default_factory=lambda: NO_SECRETS)
    worker_secret: Secrets = field(default_factory=lambda: NO_SECRETS)
    pepper: Secrets = field(default_factory=lambda: NO_SECRETS)
    failpoints: Failpoints | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str], roles: tuple[str, ...] = ROLES, *, cores: int = 2) -> Settings:
        """Read every FIN_ name that `roles` need (none: no secret); raise SettingsFault with all that is wrong."""
        reader = _Reader(environ)
        settings = _read(reader, roles, cores)
        if reader.faults:
            raise SettingsFault(reader.faults)
        return settings

    def renew(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Take its secrets' versions as they are now: ring → current key id of those that changed.

        SettingsFault, and not one of them replaced, when any is faulty.
        """
        held = dict(zip(SECRET_RINGS, (self.edge_secret, self.worker_secret, self.pepper)))
        fresh = {ring: read_secrets(environ, ring) for ring, secrets in held.items() if secrets is not NO_SECRETS}
        changed = {ring: secrets for ring, secrets in fresh.items() if secrets != held[ring]}
        for ring, secrets in changed.items():
            held[ring].versions = secrets.versions
        return {ring: secrets.current.kid for ring, secrets in changed.items()}


def data_dir(environ: Mapping[str, str]) -> Path:
    return Path(_Reader(environ).text("FIN_DATA_DIR", "./var"))


def read_secrets(environ: Mapping[str, str], ring: str) -> Secrets:
    """One of SECRET_RINGS; SettingsFault when it is missing or weak."""
    reader = _Reader(environ)
    secrets = reader.secrets(SECRET_RINGS[ring])
    if reader.faults:
        raise SettingsFault(reader.faults)
    return secrets


def dotenv(path: Path) -> dict[str, str]:
    """The names of a `.env` file: NAME=value lines, `#` comments, optional quotes. A missing file has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise Fault(f"{path} cannot be read: {error}.") from None
    names = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if pair := dotenv_line(line):
                names[pair[0]] = pair[1]
        except ValueError:
            raise Fault(f"{path} line {number} is not NAME=value.") from None
    return names


def dotenv_line(line: str) -> tuple[str, str] | None:
    """Name and value of a line; None for a comment or an empty one, ValueError for what is neither."""
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    name, equals, value = line.removeprefix("export ").partition("=")
    if not equals:
        raise ValueError("not NAME=value")
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return name.strip(), value


# Read by name below; a FIN_ name that is not here is a typing error, said as a warning.
KNOWN = frozenset(ABOUT) | {"FIN_TEST_FAILPOINTS"}
# In the order in which a request passes them: adapters/failpoints.py.
FAILPOINTS = "taken checked decided settling settled".split()


def _read(env: _Reader, roles: tuple[str, ...], cores: int) -> Settings:
    host = env.text("FIN_HOST", "127.0.0.1")
    port = env.integer("FIN_PORT", 8000, 1, MOST_PORT)
    ops_port = env.port_or_off("FIN_OPS_PORT", port + 1)
    url_host = f"[{host}]" if ":" in host else host
    redis_url = env.url("FIN_REDIS_URL", ("redis", "rediss", "unix"))
    broker_url = env.url("FIN_BROKER_URL", ("redis", "rediss", "unix", "amqp", "amqps"))
    if broker_url and not broker_url.startswith("amqp") and broker_url != redis_url:
        env.fault("FIN_BROKER_URL", "must be the same as FIN_REDIS_URL, or an amqp:// URL")
    deployment = env.text("FIN_DEPLOYMENT", "finthenticate")
    if not re.fullmatch("[a-z0-9-]{1,40}", deployment):
        env.fault("FIN_DEPLOYMENT", f"must be 1 to 40 of a-z, 0-9 and -, not {deployment!r}")
    mail_url = env.text("FIN_MAIL_URL", "file:outbox")
    mail_server, in_the_clear = env.smtp("FIN_MAIL_URL", mail_url)
    argon2, weak = env.argon2("FIN_ARGON2")
    failpoints, armed = env.failpoints("FIN_TEST_FAILPOINTS")
    if failpoints and broker_url and broker_url.startswith("amqp"):
        env.fault("FIN_TEST_FAILPOINTS", "works only where FIN_BROKER_URL names no RabbitMQ")
    off_or = env.limit
    return Settings(
        host=host,
        port=port,
        ops_port=ops_port,
        redis_url=redis_url,
        amqp_url=broker_url if broker_url and broker_url.startswith("amqp") else None,
        deployment=deployment,
        data_dir=data_dir(env.environ),
        mail_url=mail_url,
        smtp=mail_server,
        mail_from=env.sender("FIN_MAIL_FROM"),
        public_url=env.site("FIN_PUBLIC_URL") or f"http://{url_host}:{port}",
        allowed_origins=tuple(env.origins("FIN_ALLOWED_ORIGINS")),
        trusted_proxies=tuple(env.networks("FIN_TRUSTED_PROXIES")),
        email_confirmation=env.choice("FIN_EMAIL_CONFIRMATION", ("required", "off")) == "required",
        device_verification=env.choice("FIN_DEVICE_VERIFICATION", ("on", "off")) == "on",
        argon2=argon2,
        min_password=env.integer("FIN_MIN_PASSWORD", 15, 1, 256),
        audience=env.text("FIN_AUDIENCE", "finthenticate"),
        limits=Limits(
            failures_per_account=off_or("FIN_FAILURES_PER_ACCOUNT", 5),
            failures_per_ip=off_or("FIN_FAILURES_PER_IP", 60),
            registrations_per_ip=off_or("FIN_REGISTRATIONS_PER_IP", 20),
            mails_per_ip=off_or("FIN_MAILS_PER_IP", 30),
            mails_per_account=off_or("FIN_MAILS_PER_ACCOUNT", 5),
            connections_per_ip=off_or("FIN_CONNECTIONS_PER_IP", 1000),
            messages_per_second=off_or("FIN_MESSAGES_PER_SECOND", 20),
        ),
        durability_strict=env.choice("FIN_DURABILITY", ("strict", "relaxed")) == "strict",
        max_queue=env.integer("FIN_MAX_QUEUE", 2000, 1, 1_000_000),
        hash_threads=env.integer("FIN_HASH_THREADS", cores, 1, 256),
        edge_secret=env.secrets("FIN_EDGE_SECRET") if roles else NO_SECRETS,
        worker_secret=env.secrets("FIN_WORKER_SECRET") if "worker" in roles else NO_SECRETS,
        pepper=env.secrets("FIN_PEPPER") if "worker" in roles else NO_SECRETS,
        failpoints=failpoints,
        warnings=(*weak, *(in_the_clear if "mailer" in roles else ()), *armed, *env.unknown()),
    )


class _Reader:
    """Typed reads that note a fault and go on with a stand-in."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = {name: value for name, value in environ.items() if name.startswith("FIN_") and value.strip()}
        self.faults: list[str] = []

    def fault(self, name: str, problem: str) -> None:
        self.faults.append(f"{name} {problem}.")

    def unknown(self) -> list[str]:
        return [f"{name} is not a setting; is it misspelt?" for name in sorted(self.environ) if name not in KNOWN]

    def text(self, name: str, default: str) -> str:
        return self.environ.get(name, default).strip()

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        raw = self.text(name, str(default))
        if not re.fullmatch(r"[0-9]{1,9}", raw) or not least <= int(raw) <= most:
            self.fault(name, f"must be a whole number from {least} to {most}, not {raw!r}")
            return default
        return int(raw)

    def limit(self, name: str, default: int) -> int | None:
        if self.text(name, "") == "off":
            return None
        raw = self.text(name, str(default))
        if not re.fullmatch(r"[0-9]{1,9}", raw) or int(raw) < 1:
            self.fault(name, f"must be a whole number of at least 1, or off, not {raw!r}")
            return default
        return int(raw)

    def port_or_off(self, name: str, default: int) -> int | None:
        if self.text(name, "off" if default > MOST_PORT else "") == "off":
            return None
        return self.integer(name, default, 1, MOST_PORT)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        raw = self.text(name, choices[0])
        if raw not in choices:
            self.fault(name, f"must be {' or '.join(choices)}, not {raw!r}")
            return choices[0]
        return raw

    def url(self, name: str, schemes: tuple[str, ...]) -> str | None:
        raw = self.environ.get(name, "").strip()
        if not raw:
            return None
        try:
            parts = urlsplit(raw)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in schemes or not (parts.netloc or parts.scheme == "unix"):
            # a connection URL may carry a password: say what is expected, not what was found
            self.fault(name, f"must be a URL that starts with {' or '.join(s + '://' for s in schemes)}")
            return None
        return raw

    def site(self, name: str) -> str | None:
        """Of a whole host: its pages and the links in mails begin at its root."""
        raw = self.url(name, ("http", "https"))
        if raw is None:
            return None
        parts = urlsplit(raw)
        if parts.path not in ("", "/") or "@" in parts.netloc or "?" in raw or "#" in raw:
            self.fault(name, "must be a URL such as https://login.example, with no path, query, fragment or user")
            return None
        return raw.removesuffix("/")

    def smtp(self, name: str, raw: str) -> tuple[Smtp | None, list[str]]:
        if raw.startswith(("smtp:", "smtps:")):
            warnings: list[str] = []
            server = smtp.read(raw, lambda problem: self.fault(name, problem), lambda said: warnings.append(said))
            return server, [f"{name} {warning}." for warning in warnings]
        if not raw.startswith("file:") or raw == "file:":
            self.fault(name, "must be file:DIR, or smtp://USER:PASSWORD@HOST:PORT?tls=starttls, implicit or none")
        return None, []

    def sender(self, name: str) -> str:
        raw = self.text(name, "")
        if raw and not smtp.is_sender(raw):
            self.fault(name, f"must be an address such as Example <no-reply@example.com>, not {raw!r}")
        return raw

    def origins(self, name: str) -> Iterator[str]:
        yield from self._each(name, _origin, "must be origins such as https://app.example, separated by commas")

    def networks(self, name: str) -> Iterator[Network]:
        problem = "must be networks such as 10.0.0.0/8, separated by commas"
        yield from self._each(name, ipaddress.ip_network, problem)

    def _each(self, name: str, parse: Callable[[str], T], problem: str) -> Iterator[T]:
        for raw in filter(None, (part.strip() for part in self.text(name, "").split(","))):
            try:
                yield parse(raw)
            except ValueError:
                shown = re.sub("//.*@", "//...@", raw)  # a password may be in it
                self.fault(name, f"{problem}, not {shown!r}")

    def argon2(self, name: str) -> tuple[Argon2, list[str]]:
        raw = self.text(name, "m=19456,t=2,p=1")
        match = re.fullmatch(r"m=(\d{1,8}),t=(\d{1,3}),p=(\d{1,3})", raw)
        cost = tuple(map(int, match.groups())) if match else (0, 0, 0)
        memory_kib, passes, lanes = cost
        if not match or min(cost) < 1 or memory_kib < 8 * lanes or any(c > m for c, m in zip(cost, ARGON2_CEILING)):
            self.fault(name, f"must be like m=19456,t=2,p=1 (memory in KiB, at least 8 a lane), not {raw!r}")
            return Argon2(), []
        weak = memory_kib * passes < ARGON2_FLOOR[0] * ARGON2_FLOOR[1]
        warning = f"{name} is below the floor that OWASP recommends (m=19456,t=2,p=1 or its equal)."
        return Argon2(memory_kib, passes, lanes), [warning] if weak else []

    def failpoints(self, name: str) -> tuple[Failpoints | None, list[str]]:
        """POINT=K/N, K times in N passages, or POINT=K/N@PREFIX; and seed=NUMBER."""
        found, seed = [], 0
        for word in self.text(name, "").split():
            if match := re.fullmatch(r"seed=(\d{1,18})", word):
                seed = int(match[1])
                continue
            match = re.fullmatch(r"([a-z]+)=(\d{1,9})/(\d{1,9})(?:@(.+))?", word)
            if not match or match[1] not in FAILPOINTS or not 0 < int(match[2]) <= int(match[3]):
                self.fault(name, f"must be POINT=K/N or POINT=K/N@PREFIX and seed=NUMBER, not {word!r}")
            elif match[4] and match[1] == "taken":
                self.fault(name, f"takes no prefix at taken, where no address is known yet: {word!r}")
            else:
                found.append(Failpoint(match[1], int(match[2]) / int(match[3]), match[4] or ""))
        armed = Failpoints(tuple(found), seed) if found else None
        return armed, [f"{name} IS SET: WORKERS KILL THEMSELVES ON PURPOSE. It is for tests alone."] if armed else []

    def secrets(self, name: str) -> Secrets:
        """`kid:base64url`, newest first, separated by commas."""
        raw = self.environ.get(name, "").strip()
        if not raw:
            self.fault(name, "is missing; ./setup.sh --install-only writes a .env with fresh secrets")
            return NO_SECRETS
        versions = []
        for part in raw.split(","):
            kid, _, encoded = part.strip().partition(":")
            try:
                value = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
            except (binascii.Error, ValueError):
                value = b""
            if not re.fullmatch(r"[a-z0-9]{4}", kid):
                self.fault(name, "must be KID:SECRET, KID four of a-z and 0-9; newest first, separated by commas")
            elif _weak(value, encoded):
                self.fault(name, f"version {kid} is too weak: {SECRET_BYTES} random bytes in base64url are needed")
            versions.append(Secret(kid, value))
        if len({secret.kid for secret in versions}) < len(versions):
            self.fault(name, "has two versions with the same key id")
        return Secrets(tuple(versions))


# What stands for a secret in examples: by chance, one of them is in a random value once in ten million.
_PLACEHOLDERS = re.compile("changeme|changethis|secret|password|example|default|insecure|placeholder|finthenticate")


def _weak(value: bytes, encoded: str) -> bool:
    """What no source of random bytes gives: too few or too like bytes, a pattern, a text, words for base64."""
    if len(value) < SECRET_BYTES or len(set(value)) < SECRET_BYTES // 2:
        return True
    steps = bytes((after - before) % 256 for before, after in pairwise(value))
    if _repeats(value) or _repeats(steps):  # aaaa, abcabc; abcd, acegi
        return True
    words = re.sub("[-_]", "", encoded).lower()
    one_case = encoded in (encoded.lower(), encoded.upper()) and not re.fullmatch("[0-9a-f]*", words)  # hex may be
    return value.isascii() or one_case or _PLACEHOLDERS.search(words) is not None


def _repeats(value: bytes) -> bool:
    return any(value[n:] == value[:-n] for n in range(1, len(value) // 2 + 1))


def _origin(raw: str) -> str:
    parts = urlsplit(raw)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query or parts.fragment:
        raise ValueError(raw)
    if "*" in parts.netloc or "@" in parts.netloc:
        raise ValueError(raw)
    return origin_of(parts.scheme, parts.netloc)


def origin_of(scheme: str, netloc: str) -> str:
    """As browsers write it: in lower case, and without the port that goes without saying."""
    return f"{scheme}://{netloc.lower().removesuffix({'http': ':80', 'https': ':443'}[scheme])}"
