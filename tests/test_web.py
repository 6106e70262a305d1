"""The pages without a browser: what is served and how, client.js under node, its types, the texts."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import orjson
import pytest

from app.messages import Code
from tests.browser import needs, npm_folder
from tests.deployment import ROOT, Deployment, new_address

WEB = ROOT / "app/web"
VIEWS = ["/", "/signup", "/confirm", "/forgot", "/reset", "/account"]


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urlopen(request, timeout=10) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


# --- what is served -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", VIEWS)
def test_every_view_is_the_one_document_under_a_strict_policy(path: str, deployment: Deployment) -> None:
    status, headers, body = get(deployment.url(0, "http", path))
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))

    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert headers["referrer-policy"] == "no-referrer" and headers["x-content-type-options"] == "nosniff"
    assert body.startswith(b"<!doctype html>") and b"{release}" not in body
    assert not re.search(rb"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", body), "something is inline"


def test_password_managers_and_codes_find_their_fields() -> None:
    document = (WEB / "index.html").read_text()
    forms = re.findall(r"<form.*?</form>", document, re.S)

    assert len(forms) >= 10
    for form in forms:
        fields = re.findall(r"<input[^>]*>", form)
        secret = [field for field in fields if 'type="password"' in field]
        assert all(re.search(r'autocomplete="(current|new)-password"', field) for field in secret)
        assert not secret or any('autocomplete="username"' in field for field in fields), form
        assert all('autocomplete="one-time-code"' in field for field in fields if 'name="code"' in field)
        assert 'method="post"' in form, "without scripts a password would go into the address"


def test_what_a_document_names_may_be_kept_for_ever_and_comes_packed(deployment: Deployment) -> None:
    base = deployment.url(0, "http", "")
    _, _, body = get(f"{base}/")
    names = set(re.findall(r'(?:src|href)="(/web/[^"]+)"', body.decode()))

    assert len(names) >= 6
    for name in names:
        status, headers, packed = get(base + name, accept_encoding="gzip")
        assert status == 200 and "immutable" in headers["cache-control"]
        assert gzip.decompress(packed) == (WEB / Path(name).name).read_bytes()


def test_an_unchanged_file_is_not_sent_again_and_other_hosts_pages_may_import_the_client(
    deployment: Deployment,
) -> None:
    url = deployment.url(0, "http", "/web/client.js")
    status, headers, body = get(url)

    assert (status, headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert (headers["cache-control"], headers["access-control-allow-origin"]) == ("no-cache", "*")
    assert body == (WEB / "client.js").read_bytes()
    assert get(url, if_none_match=headers["etag"])[0] == 304


def test_a_release_that_is_not_this_nodes_is_served_but_not_to_be_kept(deployment: Deployment) -> None:
    status, headers, _ = get(deployment.url(0, "http", "/web/0123456789ab/client.js"))

    assert (status, headers["cache-control"]) == (200, "no-cache")


@pytest.mark.parametrize(
    "path", ["/web/index.html", "/web/nothing.js", "/web/..%2fsettings.py", "/web/x/..%2f..%2f.env"]
)
def test_nothing_else_is_served(path: str, deployment: Deployment) -> None:
    assert get(deployment.url(0, "http", path))[0] == 404


# --- the development mailbox ------------------------------------------------------------------------------------------


async def test_the_mailbox_shows_the_outbox_to_this_machine_alone(deployment: Deployment) -> None:
    address = new_address()
    async with deployment.client() as client:
        await client.ask("register", email=address, password="correct horse battery staple")
    code = await deployment.mailed_code(address)
    url = deployment.url(0, "http", "/mailbox/mails")

    _, _, body = get(url)
    mail = next(mail for mail in orjson.loads(body)["mails"] if mail["to"] == address)
    assert code in mail["text"] and set(mail) == {"id", "to", "subject", "date", "text"}
    assert get(url.removesuffix("/mails"))[0] == 200
    assert get(url, host="rebound.example")[0] == 404
    assert get(url, x_forwarded_for="203.0.113.7")[0] == 404


def test_there_is_no_mailbox_where_others_can_listen_in(redis_url: str, tmp_path: Path) -> None:
    with Deployment.start(tmp_path, redis_url, mailers=0, settings={"FIN_HOST": "0.0.0.0"}) as deployment:
        assert get(deployment.url(0, "http", "/mailbox"))[0] == 404
        assert get(deployment.url(0, "http", "/mailbox/mails"))[0] == 404
        assert b'name="fin-mailbox" content="off"' in get(deployment.url(0, "http", "/"))[2]


# --- under node -------------------------------------------------------------------------------------------------------


@pytest.mark.all
def test_client_js_keeps_its_promises() -> None:
    needs("node")
    environ = {**os.environ, "CODES": " ".join(Code)}
    ran = subprocess.run(
        ["node", "--test", "--test-reporter=tap", *sorted(map(str, (ROOT / "tests/web").glob("*.test.mjs")))],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert ran.returncode == 0, ran.stdout
    assert int(re.search(r"# pass (\d+)", ran.stdout)[1]) > 25  # type: ignore[index]


@pytest.mark.all
def test_the_scripts_types_hold() -> None:
    npm = npm_folder()
    options = "--noEmit --checkJs --allowJs --strict --target es2022 --module esnext --moduleResolution bundler"
    ran = subprocess.run(
        ["npx", "--no-install", "tsc", *options.split(), "--lib", "es2022,dom,dom.iterable",
         str(WEB / "main.js"), str(WEB / "mailbox.js")],
        cwd=npm, capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert ran.returncode == 0, ran.stdout
