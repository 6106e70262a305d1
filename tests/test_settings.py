"""Settings: the environment is read once, all of its faults are said together, and no secret ever."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

from app.settings import KNOWN, NO_SECRETS, Argon2, Fault, Limits, Settings, SettingsFault, dotenv
from app.settings_table import ABOUT, markdown
from app.smtp import Smtp

VALUES = {name: base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=") for name in ("edge", "worker", "pepper")}
SECRETS = {
    "FIN_EDGE_SECRET": f"edg1:{VALUES['edge']}",
    "FIN_WORKER_SECRET": f"wrk1:{VALUES['worker']}",
    "FIN_PEPPER": f"pep1:{VALUES['pepper']}",
}
HIDDEN = "hunter2-hunter2-hunter2-hunter2-hunter2-hunter2"


def read(roles: tuple[str, ...] = ("gateway", "worker", "mailer"), /, **environ: str) -> Settings:
    return Settings.from_env(SECRETS | environ, roles, cores=3)


def faults(roles: tuple[str, ...] = ("gateway", "worker", "mailer"), /, **environ: str) -> list[str]:
    with pytest.raises(SettingsFault) as caught:
        Settings.from_env(SECRETS | environ, roles)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


# --- defaults and values ------------------------------------------------------------------------------------------


def test_with_nothing_but_secrets_everything_has_the_defaults_of_the_contract() -> None:
    found = read()
    assert (found.host, found.port, found.redis_url, found.data_dir) == ("127.0.0.1", 8000, None, Path("var"))
    assert (found.mail_url, found.public_url) == ("file:outbox", "http://127.0.0.1:8000")
    assert (found.smtp, found.mail_from) == (None, "")
    assert (found.allowed_origins, found.trusted_proxies) == ((), ())
    assert (found.email_confirmation, found.durability_strict) == (True, True)
    assert found.argon2 == Argon2(19456, 2, 1)
    assert (found.min_password, found.audience) == (15, "finthenticate")
    assert found.limits == Limits(5, 60, 20, 30, 5, 1000, 20)
    assert (found.max_queue, found.hash_threads) == (2000, 3)
    assert found.warnings == ()


@pytest.mark.parametrize("name", [name for name, (value, _, _) in ABOUT.items() if value])
def test_a_default_that_the_readme_names_is_the_default(name: str) -> None:
    assert read(**{name: str(ABOUT[name][0])}) == read()


def test_the_readmes_table_is_the_settings_own() -> None:
    assert markdown() in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8"), (
        "run scripts/settings"
    )


def test_every_setting_that_is_read_is_in_the_table() -> None:
    source = (Path(__file__).parent.parent / "app/settings.py").read_text(encoding="utf-8")

    assert set(re.findall(r'"(FIN_[A-Z0-9_]+)"', source)) - {"FIN_TEST_FAILPOINTS"} <= set(ABOUT)


def test_every_setting_is_read() -> None:
    found = read(
        FIN_HOST="0.0.0.0",
        FIN_PORT="9000",
        FIN_REDIS_URL="rediss://u:p@redis.test:6380/3",
        FIN_BROKER_URL="rediss://u:p@redis.test:6380/3",
        FIN_DATA_DIR="/srv/fin",
        FIN_MAIL_URL="file:/srv/mails",
        FIN_PUBLIC_URL="https://login.test/",
        FIN_ALLOWED_ORIGINS="https://app.test, http://LOCALHOST:3000,",
        FIN_TRUSTED_PROXIES="10.0.0.0/8, 2001:db8::/32, 192.0.2.1",
        FIN_EMAIL_CONFIRMATION="off",
        FIN_ARGON2="m=65536,t=3,p=4",
        FIN_MIN_PASSWORD="8",
        FIN_AUDIENCE="bank",
        FIN_FAILURES_PER_ACCOUNT="off",
        FIN_FAILURES_PER_IP="61",
        FIN_REGISTRATIONS_PER_IP="21",
        FIN_MAILS_PER_IP="31",
        FIN_MAILS_PER_ACCOUNT="6",
        FIN_CONNECTIONS_PER_IP="1001",
        FIN_MESSAGES_PER_SECOND="off",
        FIN_DURABILITY="relaxed",
        FIN_MAX_QUEUE="10",
        FIN_HASH_THREADS="8",
    )
    assert (found.host, found.port, found.redis_url) == ("0.0.0.0", 9000, "rediss://u:p@redis.test:6380/3")
    assert (found.data_dir, found.mail_url) == (Path("/srv/fin"), "file:/srv/mails")
    assert (found.public_url, found.allowed_origins) == (
        "https://login.test",
        ("https://app.test", "http://localhost:3000"),
    )
    assert found.trusted_proxies == tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32")))
    assert (found.email_confirmation, found.durability_strict) == (False, False)
    assert (found.argon2, found.min_password, found.audience) == (Argon2(65536, 3, 4), 8, "bank")
    assert found.limits == Limits(None, 61, 21, 31, 6, 1001, None)
    assert (found.max_queue, found.hash_threads, found.warnings) == (10, 8, ())


def test_a_mail_server_is_read_for_who_sends_and_a_warning_is_said_to_that_role_alone() -> None:
    about = {"FIN_MAIL_URL": "smtp://mail.test:25?tls=none", "FIN_MAIL_FROM": "Example <hello@login.test>"}
    found = read(**about)
    assert (found.smtp, found.mail_from) == (Smtp("mail.test", 25, "none"), "Example <hello@login.test>")
    [warning] = found.warnings
    assert warning.startswith("FIN_MAIL_URL sends mails, and the codes in them, in the clear")
    assert read(("worker",), **about).warnings == ()


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({"FIN_PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"FIN_HOST": "::1"}, "http://[::1]:8000"),
        ({"FIN_PUBLIC_URL": "https://login.test:8443/"}, "https://login.test:8443"),
    ],
)
def test_the_public_url_follows_host_and_port_unless_it_is_set(environ: dict[str, str], url: str) -> None:
    assert read(**environ).public_url == url


def test_a_port_that_goes_without_saying_is_left_out_of_origins_as_browsers_do() -> None:
    found = read(FIN_ALLOWED_ORIGINS="https://app.test:443, http://app.test:80, https://app.test:80, http://[::1]:80")

    assert found.allowed_origins == ("https://app.test", "http://app.test", "https://app.test:80", "http://[::1]")


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_an_empty_name_is_an_unset_one(empty: str) -> None:
    names = KNOWN - set(SECRETS)
    assert read(**dict.fromkeys(names, empty)) == read()
    assert faults(FIN_PEPPER=empty)[0].startswith("FIN_PEPPER is missing")


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_every_limit_takes_off(name: str) -> None:
    assert getattr(read(**{f"FIN_{name.upper()}": "off"}).limits, name) is None


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FIN_PORT", "0"),
        ("FIN_PORT", "65536"),
        ("FIN_PORT", "-1"),
        ("FIN_PORT", "8000.0"),
        ("FIN_PORT", "٨٠٠٠"),
        ("FIN_PORT", "http"),
        ("FIN_REDIS_URL", "http://redis.test"),
        ("FIN_REDIS_URL", "redis.test:6379"),
        ("FIN_REDIS_URL", "redis://redis.test:port"),
        ("FIN_BROKER_URL", "amqp:rabbit.test"),
        ("FIN_BROKER_URL", "amqp://rabbit.test:port"),
        ("FIN_DEPLOYMENT", "two words"),
        ("FIN_DEPLOYMENT", "x" * 41),
        ("FIN_BROKER_URL", "redis://other.test"),
        ("FIN_MAIL_URL", "http://mail.test"),
        ("FIN_MAIL_FROM", "login.test"),
        ("FIN_MAIL_URL", "file:"),
        ("FIN_PUBLIC_URL", "login.test"),
        ("FIN_PUBLIC_URL", "ftp://login.test"),
        ("FIN_PUBLIC_URL", "https://"),
        ("FIN_PUBLIC_URL", "https://login.test/auth/"),
        ("FIN_PUBLIC_URL", "https://login.test//"),
        ("FIN_PUBLIC_URL", "https://login.test/?"),
        ("FIN_PUBLIC_URL", "https://login.test?a=b"),
        ("FIN_PUBLIC_URL", "https://login.test#top"),
        ("FIN_PUBLIC_URL", "https://user@login.test"),
        ("FIN_ALLOWED_ORIGINS", "app.test"),
        ("FIN_ALLOWED_ORIGINS", "https://app.test/path"),
        ("FIN_ALLOWED_ORIGINS", "https://app.test/"),
        ("FIN_ALLOWED_ORIGINS", "null"),
        ("FIN_ALLOWED_ORIGINS", "*"),
        ("FIN_ALLOWED_ORIGINS", "https://*.app.test"),
        ("FIN_ALLOWED_ORIGINS", "https://user@app.test"),
        ("FIN_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("FIN_TRUSTED_PROXIES", "everybody"),
        ("FIN_EMAIL_CONFIRMATION", "on"),
        ("FIN_DURABILITY", "none"),
        ("FIN_ARGON2", "19456"),
        ("FIN_ARGON2", "m=19456,t=2"),
        ("FIN_ARGON2", "m=0,t=2,p=1"),
        ("FIN_ARGON2", "m=19456,t=0,p=1"),
        ("FIN_ARGON2", "m=7,t=1,p=1"),
        ("FIN_ARGON2", "m=15,t=1,p=2"),
        ("FIN_ARGON2", "m=1048577,t=1,p=1"),
        ("FIN_ARGON2", "m=19456,t=17,p=1"),
        ("FIN_ARGON2", "m=19456,t=2,p=17"),
        ("FIN_MIN_PASSWORD", "0"),
        ("FIN_MIN_PASSWORD", "257"),
        ("FIN_FAILURES_PER_ACCOUNT", "0"),
        ("FIN_FAILURES_PER_IP", "none"),
        ("FIN_REGISTRATIONS_PER_IP", "-1"),
        ("FIN_MAILS_PER_IP", "1.5"),
        ("FIN_MAILS_PER_ACCOUNT", "OFF"),
        ("FIN_CONNECTIONS_PER_IP", "1e3"),
        ("FIN_MESSAGES_PER_SECOND", "20/s"),
        ("FIN_MAX_QUEUE", "0"),
        ("FIN_MAX_QUEUE", "1000001"),
        ("FIN_HASH_THREADS", "0"),
        ("FIN_HASH_THREADS", "257"),
    ],
)
def test_a_wrong_setting_is_one_fault_that_names_it(name: str, value: str) -> None:
    [fault] = faults(**{name: value})
    assert fault.startswith(f"{name} must be ")
    assert "\n" not in fault


def test_all_faults_are_said_together_each_in_its_line() -> None:
    wrong = {
        "FIN_PORT": "x",
        "FIN_ARGON2": "x",
        "FIN_ALLOWED_ORIGINS": "x,y",
        "FIN_DURABILITY": "x",
        "FIN_MAX_QUEUE": "x",
        "FIN_FAILURES_PER_IP": "x",
        "FIN_EDGE_SECRET": "x",
        "FIN_PEPPER": "",
    }
    said = faults(**wrong)
    assert {line.split()[0] for line in said} == set(wrong)
    assert len(said) == 9  # two origins


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        pytest.param("", "is missing", id="missing"),
        pytest.param("   ", "is missing", id="blank"),
        pytest.param(HIDDEN, "must be KID:SECRET", id="no key id"),
        pytest.param(f"{HIDDEN}:edg1", "must be KID:SECRET", id="the wrong way round"),
        pytest.param(f"EDG1:{VALUES['edge']}", "must be KID:SECRET", id="a key id in capitals"),
        pytest.param(f"edge1:{VALUES['edge']}", "must be KID:SECRET", id="a long key id"),
        pytest.param(f"ed.1:{VALUES['edge']}", "must be KID:SECRET", id="a key id with a dot"),
        pytest.param("edg1:", "is too weak", id="no bytes"),
        pytest.param("edg1:" + base64.urlsafe_b64encode(os.urandom(31)).decode(), "is too weak", id="31 bytes"),
        pytest.param("edg1:" + "A" * 64, "is too weak", id="nothing but zeros"),
        pytest.param("edg1:" + base64.b64encode(b"changeme" * 8).decode(), "is too weak", id="a word again and again"),
        pytest.param(f"edg1:{VALUES['edge']},edg1:{VALUES['worker']}", "same key id", id="one id twice"),
        pytest.param(f"edg2:{VALUES['edge']},edg1:short", "is too weak", id="an old version that is weak"),
        pytest.param(f"edg2:{VALUES['edge']},", "must be KID:SECRET", id="a comma at the end"),
        pytest.param("edg1:" + "é" * 64, "is too weak", id="no base64"),
    ],
)
@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_or_weak_secret_is_a_fault_that_does_not_repeat_it(name: str, value: str, problem: str) -> None:
    [fault] = faults(**{name: value})
    assert fault.startswith(f"{name} ")
    assert problem in fault
    for part in value.replace(",", ":").split(":"):
        assert len(part) <= 5 or part not in fault


def test_versions_of_a_secret_are_newest_first_and_all_found_by_their_id() -> None:
    found = read(FIN_PEPPER=f"pep2:{VALUES['edge']}, pep1:{VALUES['pepper']}==").pepper
    assert [version.kid for version in found.versions] == ["pep2", "pep1"]
    assert found.current.kid == "pep2"
    old = found.find("pep1")
    assert old is not None
    assert old.value == base64.urlsafe_b64decode(VALUES["pepper"] + "=")
    assert found.find("pep3") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FIN_REDIS_URL", f"redis://:{HIDDEN}@redis.test:port"),
        ("FIN_REDIS_URL", f"http://:{HIDDEN}@redis.test"),
        ("FIN_BROKER_URL", f"amqp://guest:{HIDDEN}@rabbit.test:port"),
        ("FIN_BROKER_URL", f"redis://:{HIDDEN}@other.test"),
        ("FIN_MAIL_URL", f"smtp://user:{HIDDEN}@mail.test:port?x={HIDDEN}"),
        ("FIN_MAIL_URL", f"smtp://user:{HIDDEN}@mail.test/{HIDDEN}?tls=none&x={HIDDEN}#{HIDDEN}"),
        ("FIN_PUBLIC_URL", f"ftp://user:{HIDDEN}@login.test"),
        ("FIN_PUBLIC_URL", f"https://user:{HIDDEN}@login.test"),
        ("FIN_ALLOWED_ORIGINS", f"https://user:{HIDDEN}@app.test"),
    ],
)
def test_a_fault_of_a_url_does_not_repeat_its_password(name: str, value: str) -> None:
    assert HIDDEN not in "".join(faults(**{name: value}))


def test_no_secret_is_in_the_repr_of_settings() -> None:
    found = read(FIN_REDIS_URL=f"redis://:{HIDDEN}@redis.test:6379", FIN_MAIL_URL=f"smtp://user:{HIDDEN}@mail.test")
    shown = f"{found!r} {found}"
    assert HIDDEN not in shown
    for value, secrets in zip(VALUES.values(), (found.edge_secret, found.worker_secret, found.pepper)):
        assert value not in shown
        assert repr(secrets.current.value) not in shown


# --- roles and warnings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "needed"),
    [
        ("gateway", {"FIN_EDGE_SECRET"}),
        ("worker", {"FIN_EDGE_SECRET", "FIN_WORKER_SECRET", "FIN_PEPPER"}),
        ("mailer", {"FIN_EDGE_SECRET"}),
    ],
)
def test_each_role_needs_its_own_secrets_and_takes_no_other(role: str, needed: set[str]) -> None:
    with pytest.raises(SettingsFault) as caught:
        Settings.from_env({}, (role,))
    assert {fault.split()[0] for fault in caught.value.faults} == needed
    found = read((role,))
    held = {"FIN_EDGE_SECRET": found.edge_secret, "FIN_WORKER_SECRET": found.worker_secret, "FIN_PEPPER": found.pepper}
    assert {name for name, secrets in held.items() if secrets is not NO_SECRETS} == needed


def test_an_operators_command_plays_no_role_and_needs_no_secret() -> None:
    found = Settings.from_env({"FIN_EDGE_SECRET": "x", "FIN_PEPPER": "x", "FIN_REDIS_URL": "redis://127.0.0.1"}, ())
    assert found.redis_url == "redis://127.0.0.1"
    assert found.edge_secret is found.worker_secret is found.pepper is NO_SECRETS


@pytest.mark.parametrize("role", ["gateway", "mailer"])
def test_a_role_does_not_look_at_secrets_that_it_does_not_need(role: str) -> None:
    Settings.from_env(
        {"FIN_EDGE_SECRET": SECRETS["FIN_EDGE_SECRET"], "FIN_PEPPER": "x", "FIN_WORKER_SECRET": "x"}, (role,)
    )


def test_a_name_that_is_no_setting_is_a_warning_that_does_not_repeat_its_value() -> None:
    found = read(FIN_PEPER=HIDDEN, FIN_ARGON="x", FIN_OPS_PORT="9001", OTHER="x", FINAL="x", FIN_EMPTY="")
    assert [warning.split()[0] for warning in found.warnings] == ["FIN_ARGON", "FIN_PEPER"]
    assert HIDDEN not in "".join(found.warnings)


@pytest.mark.parametrize(
    ("cost", "warned"),
    [
        ("m=19456,t=2,p=1", False),
        ("m=47104,t=1,p=1", False),
        ("m=65536,t=3,p=4", False),
        ("m=19455,t=2,p=1", True),
        ("m=19456,t=1,p=1", True),
        ("m=8,t=1,p=1", True),
    ],
)
def test_a_cost_below_owasps_floor_is_taken_with_a_warning(cost: str, warned: bool) -> None:
    warnings = read(FIN_ARGON2=cost).warnings
    assert [warning.split()[0] for warning in warnings] == ["FIN_ARGON2"] * warned


# --- .env ---------------------------------------------------------------------------------------------------------


def test_a_dotenv_file_is_names_and_values(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        "# a comment\n\n  # another\nFIN_HOST=0.0.0.0\n  FIN_PORT = 9000  \nexport FIN_AUDIENCE=bank\n"
        "FIN_MAIL_URL='file:my mails'\nFIN_REDIS_URL=\"redis://:a=b#c@redis.test\"\nFIN_EMPTY=\nFIN_QUOTED=''\n"
        "FIN_HALF='x\nFIN_ONE='\nFIN_UNICODE=é\r\nFIN_TWICE=1\nFIN_TWICE=2",
        encoding="utf-8",
    )
    assert dotenv(path) == {
        "FIN_HOST": "0.0.0.0",
        "FIN_PORT": "9000",
        "FIN_AUDIENCE": "bank",
        "FIN_MAIL_URL": "file:my mails",
        "FIN_REDIS_URL": "redis://:a=b#c@redis.test",
        "FIN_EMPTY": "",
        "FIN_QUOTED": "",
        "FIN_HALF": "'x",
        "FIN_ONE": "'",
        "FIN_UNICODE": "é",
        "FIN_TWICE": "2",
    }


def test_no_dotenv_file_has_no_names(tmp_path: Path) -> None:
    assert dotenv(tmp_path / ".env") == {}


def test_a_line_that_is_no_name_and_value_is_a_fault_with_its_number_and_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(f"FIN_HOST=x\n{HIDDEN}\n")
    with pytest.raises(Fault, match=r"line 2 is not NAME=value") as caught:
        dotenv(path)
    assert HIDDEN not in str(caught.value)


def test_a_dotenv_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"FIN_HOST=\xff")
    for wrong in (path, tmp_path):
        with pytest.raises(Fault, match="cannot be read"):
            dotenv(wrong)


def test_one_setting_makes_rabbitmq_the_broker_and_redis_stays_the_store() -> None:
    settings = read(FIN_REDIS_URL="redis://redis.test", FIN_BROKER_URL="amqp://u:p@rabbit.test/v", FIN_DEPLOYMENT="a-1")
    assert (settings.redis_url, settings.amqp_url) == ("redis://redis.test", "amqp://u:p@rabbit.test/v")
    assert settings.deployment == "a-1"
    assert read(FIN_BROKER_URL="redis://redis.test", FIN_REDIS_URL="redis://redis.test").amqp_url is None
