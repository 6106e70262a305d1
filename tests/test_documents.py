"""The published documents: valid by their ecosystems' validators, complete, and true to the running service."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft7Validator, Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import validate

from app import frames, messages
from app.documents import ABOUT, COOKIE, COOKIE_HTTPS, ERRORS, EXAMPLES, asyncapi, openapi, refusal_example
from app.gateway import rest
from app.handlers import HANDLERS
from app.messages import EVENTS, KINDS, STATUSES, Code, Refusal
from tests.accounts import NEW_PASSWORD, Authenticator, detected, pushed, reset_code, sign_in
from tests.deployment import PASSWORD, Account, Deployment, check_frame, http, new_address

URLS = "http://login.test:8000", "https://login.test"
PARSER = "@asyncapi/parser@3.6.3"
PARSE = """
const {Parser} = require("@asyncapi/parser");
new Parser().parse(require("fs").readFileSync(0, "utf8")).then(({document, diagnostics}) => {
    const wrong = diagnostics.filter(({severity}) => severity === 0);
    for (const {message, path} of wrong) console.error(path.join("/"), message);
    process.exit(document && !wrong.length ? 0 : 1);
});
"""
OPENAPI, ASYNCAPI = openapi(URLS[0]), asyncapi(URLS[0])
BOTH = pytest.mark.parametrize("document", [OPENAPI, ASYNCAPI], ids=["openapi", "asyncapi"])
PHONE = {"deviceName": "phone"}


def inside(value: object) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from inside(item)


def look_up(document: dict[str, Any], ref: str) -> Any:
    found: Any = document
    for name in ref.removeprefix("#/").split("/"):
        found = found[name.replace("~1", "/").replace("~0", "~")]
    return found


def codes_in(document: dict[str, Any], value: object) -> set[str]:
    """The codes that refusals in a part of a document are bound to."""
    parts = [part.get("properties", {}).get("code", {}) for part in inside(value)]
    return {code for part in parts for code in part.get("enum", ())}


def hold(document: dict[str, Any], schema: dict[str, Any], value: object) -> None:
    """A value against a schema of a document, in the dialect the document's format has."""
    dialect = Draft202012Validator if "openapi" in document else Draft7Validator
    dialect({**schema, "components": document["components"]}).validate(value)


def names(value: object) -> object:
    """The field names of a value, all the way down; a list is as its first item."""
    if isinstance(value, dict):
        return {name: names(item) for name, item in value.items()}
    return [names(item) for item in value[:1]] if isinstance(value, list) else None


def filled(event: str, real: dict[str, Any]) -> dict[str, Any]:
    """The example of a request, with what has to be real."""
    return {name: real.get(name, value) for name, value in EXAMPLES[event]["request"].items()}


# --- valid and complete ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", URLS)
def test_openapi_json_is_valid(url: str) -> None:
    validate(orjson.loads(orjson.dumps(openapi(url))))


@pytest.mark.all
@pytest.mark.parametrize("url", URLS)
def test_asyncapi_json_is_valid(url: str, npm_folder: Path) -> None:
    ran = subprocess.run(
        ["node", "-e", PARSE], cwd=npm_folder, input=orjson.dumps(asyncapi(url)), capture_output=True, timeout=60
    )

    assert ran.returncode == 0, ran.stderr.decode()


@pytest.fixture(scope="module")
def npm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds the parser."""
    if not (shutil.which("node") and shutil.which("npm")):
        why = "AsyncAPI's own parser needs node and npm, which are not on the PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("npm")
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(["npm", "install", "--prefix", ".", *quiet, PARSER], cwd=folder, check=True, timeout=180)
    return folder


@BOTH
def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    refs = {part["$ref"] for part in inside(document) if "$ref" in part}

    assert refs and all(look_up(document, ref) for ref in refs)


def test_asyncapi_json_has_every_request_event_and_code() -> None:
    found = ASYNCAPI["components"]["messages"]

    assert set(found) == {f"{event}_request" for event in KINDS} | set(EVENTS)
    assert len(found) == len(KINDS) + len(EVENTS)
    assert set(ASYNCAPI["operations"]) == {*KINDS, "push"}
    assert codes_in(ASYNCAPI, found) == set(Code)
    pushed = {ref["$ref"].rpartition("/")[2] for ref in ASYNCAPI["operations"]["push"]["messages"]}
    sent = "connected session_started session_ended login_attempt login_decided mail_status security_alert"
    assert pushed == {*sent.split(), "draining"}


def test_openapi_json_has_every_request_its_events_and_every_code_at_its_status() -> None:
    met = set()
    for kind in KINDS.values():
        responses = OPENAPI["paths"][f"/v1/{kind.event}"]["post"]["responses"]
        for status, response in responses.items():
            response = look_up(OPENAPI, response["$ref"]) if "$ref" in response else response
            found = codes_in(OPENAPI, response)
            by_http = {Code.BAD_REQUEST} if status in ("403", "405", "413", "415") else set()
            assert all(STATUSES[Code(code)] == int(status) for code in found - by_http)
            assert ("Retry-After" in response.get("headers", {})) == (status in ("429", "503"))
            met |= found
        events = {part["const"] for part in inside(responses) if "const" in part}
        assert {kind.refused, *(reply.event for reply in kind.answers)} - {None} <= events

    assert met == set(Code) - {Code.DUPLICATE_ID}
    assert set(OPENAPI["paths"]) >= {"/v1/claim", "/healthz", "/readyz", "/.well-known/jwks.json", "/asyncapi.json"}


def test_a_body_may_be_absent_only_where_the_request_has_no_fields() -> None:
    bodies = {event: OPENAPI["paths"][f"/v1/{event}"]["post"]["requestBody"]["required"] for event in KINDS}

    assert bodies == {event: bool(kind.data.__struct_fields__) for event, kind in KINDS.items()}


def test_a_session_is_demanded_where_the_table_says_so_and_the_cookie_is_the_routes() -> None:
    demanded = {event: OPENAPI["paths"][f"/v1/{event}"]["post"]["security"] for event in KINDS}

    assert {event for event, schemes in demanded.items() if {"bearer": []} in schemes} == {
        event for event, kind in KINDS.items() if kind.needs_session
    }
    assert (COOKIE, COOKIE_HTTPS) == (rest.COOKIE, rest.COOKIE_HTTPS)
    cookies = [openapi(url)["components"]["securitySchemes"]["cookie"]["name"] for url in URLS]
    assert cookies == [COOKIE, COOKIE_HTTPS]


@pytest.mark.parametrize("event", KINDS)
def test_a_requests_refusals_are_those_its_handler_names(event: str) -> None:
    handler, (_, codes) = HANDLERS[event], ABOUT[event]
    named = {code for code in Code if re.search(rf"\b{code}\b", str(handler.__doc__))}
    used = {Code[name] for name in re.findall(r"refuse\(REFUSED, Code\.(\w+)", inspect.getsource(handler))}  # type: ignore[arg-type]

    assert named - set(ERRORS) == set(codes) >= used
    assert bool(KINDS[event].refused) == bool(codes)


def test_what_only_code_checks_is_described() -> None:
    login = OPENAPI["components"]["schemas"]["Login"]["properties"]

    assert login["email"]["format"] == "email" and "254" in login["email"]["description"]
    assert login["password"]["maxLength"] == 1024 and "1024 bytes" in login["password"]["description"]
    assert login["deviceName"]["anyOf"][0]["maxLength"] == 100


# --- examples ---------------------------------------------------------------------------------------------------------


def test_there_is_an_example_of_every_request_and_event_and_of_nothing_else() -> None:
    plain = {event for event, data in EVENTS.items() if data is not Refusal}

    assert {event for event, example in EXAMPLES.items() if "request" in example} == set(KINDS)
    assert {event for event, example in EXAMPLES.items() if "data" in example} == plain


@BOTH
def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    pairs = []
    for part in inside(document):
        if "payload" in part and "examples" in part:
            pairs += [(part["payload"], example["payload"]) for example in part["examples"]]
        elif "schema" in part:
            pairs += [(part["schema"], example["value"]) for example in part.get("examples", {}).values()]
            pairs += [(part["schema"], part["example"])] if "example" in part else []

    for schema, example in pairs:
        hold(document, schema, example)
    assert len(pairs) >= len(KINDS) + len(EVENTS)


@pytest.mark.parametrize("name", ASYNCAPI["components"]["messages"])
def test_every_example_is_what_the_code_reads_or_writes(name: str) -> None:
    [example] = ASYNCAPI["components"]["messages"][name]["examples"]
    frame = orjson.dumps(example["payload"])

    if name.endswith("_request"):
        assert frames.decode(frame).kind.event == example["payload"]["event"]
    else:
        assert check_frame(frame)["event"] == name


# --- true: end to end -----------------------------------------------------------------------------------------------


class Walk:
    """Every request once with success, over whatever `ask` asks, and every other step of a login."""

    def __init__(self, deployment: Deployment, ask: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> None:
        self._deployment, self._ask, self._asked = deployment, ask, set[str]()
        self.real: dict[str, Any] = {"email": new_address()}

    async def __call__(self) -> None:
        real, deployment = self.real, self._deployment
        await self._does("register")
        await deployment.mailed_code(real["email"])  # mails are sent side by side: the newest is known by its turn
        await self._does("resend_confirmation")
        real["code"] = await deployment.mailed_code(real["email"], 2)
        await self._does("confirm_email")
        await self._does("login")
        for event in ("refresh", "authenticate", "sessions", "account"):
            await self._does(event)
        await self._approves()
        await self._does("enroll_2fa")
        app = Authenticator(real["secret"])
        await self._does("confirm_2fa", code=await app.code())
        trusted = real.pop("deviceToken")
        await self._does("login", "new_device_detected", deviceToken="unknown")
        code = (await deployment.mailed_codes(real["email"], 4))[3]
        await self._does("verify_device", "2fa_required", code=code)
        await self._does("verify_2fa", code=await app.code())
        real["deviceToken"] = trusted
        await self._does("new_recovery_codes", code=await app.code())
        await self._does("disable_2fa", recoveryCode=real["recoveryCodes"][0])
        async with deployment.client() as other:
            account = Account(real["email"], PASSWORD, trusted)
            real["sessionId"] = (await sign_in(other, account)).data["sessionId"]
            await self._does("revoke_session")
        await self._does("revoke_other_sessions")
        await self._does("change_password")
        await self._does("change_password", currentPassword=NEW_PASSWORD, newPassword=PASSWORD)
        await self._does("forget_device", deviceRef=real["devices"][0]["deviceRef"])
        await self._does("logout")
        await self._does("request_password_reset")
        await self._does("reset_password", code=await reset_code(deployment, real["email"]))
        assert self._asked == set(KINDS)

    async def _does(self, event: str, answered: str = "", **more: Any) -> None:
        self._asked.add(event)
        data = filled(event, self.real) | more
        if event == "disable_2fa":
            del data["code"]
        frame = await self._ask(event, data)
        assert frame["event"] == (answered or KINDS[event].success.event), frame
        for each in (frame, *frame.get("progress", ())):
            self.real.update(each["data"])

    async def _approves(self) -> None:
        """Somebody else waits to be let in, and a connection of this session is asked."""
        async with self._deployment.client() as owner, self._deployment.client(1) as phone:
            await owner.ask("authenticate", accessToken=self.real["accessToken"])
            waits = await detected(phone, Account(self.real["email"], PASSWORD, ""), **PHONE)
            await self._deployment.mailed_code(self.real["email"], 3)
            login_id = (await pushed(owner, "login_attempt"))["loginId"]
            await self._does("approve_login", loginId=login_id, matchNumber=waits["matchNumber"])
            done = await phone.ask("verify_device", challenge=waits["challenge"])
            assert done.event == "login_success"


async def test_real_frames_have_the_field_names_of_the_examples(guarded: Deployment) -> None:
    async with guarded.client() as client:
        assert names(client.hello) == names(EXAMPLES["connected"]["data"])

        async def ask(event: str, data: dict[str, Any]) -> dict[str, Any]:
            answer = await client.ask(event, **data)
            frame = {"event": answer.event, "data": answer.data, "progress": answer.progress}
            for each in (frame, *answer.progress):
                if each["event"] != "queued":
                    assert names(each["data"]) == names(EXAMPLES[each["event"]]["data"])
            return frame

        await Walk(guarded, ask)()
        told = {
            frame["event"]: frame["data"]
            for frame in (client.pushes.get_nowait() for _ in range(client.pushes.qsize()))
        }
        assert set(told) >= {"session_started", "session_ended", "login_attempt", "mail_status"}
        for event, data in told.items():
            assert names(data) == names(EXAMPLES[event]["data"])


async def test_real_refusals_are_the_examples(deployment: Deployment) -> None:
    async with deployment.client() as client:
        address = new_address()
        registered = await client.ask("register", **filled("register", {"email": address}))
        wrong = f"{(int(await deployment.mailed_code(address)) + 1) % 10**8:08}"
        refused = {
            Code.PASSWORD_TOO_SHORT: await client.ask("register", email=address, password="short"),
            Code.INVALID_CODE: await client.ask("confirm_email", challenge=registered.data["challenge"], code=wrong),
            Code.CHALLENGE_EXPIRED: await client.ask("confirm_email", **EXAMPLES["confirm_email"]["request"]),
            Code.INVALID_CREDENTIALS: await client.ask("login", email=address, password="wrong"),
            Code.TOKEN_INVALID: await client.ask("authenticate", **EXAMPLES["authenticate"]["request"]),
            Code.NOT_AUTHENTICATED: await client.ask("account"),
            Code.UNKNOWN_EVENT: await client.ask("nothing"),
        }

    assert {code: answer.data for code, answer in refused.items()} == {code: refusal_example(code) for code in refused}


async def test_every_request_over_rest_is_answered_as_openapi_json_says(guarded: Deployment) -> None:
    document = openapi(guarded.environ["FIN_PUBLIC_URL"])
    own = {"Origin": guarded.environ["FIN_PUBLIC_URL"]}

    async def post(event: str, data: dict[str, Any], expected: int = 200, **more: Any) -> tuple[Any, dict[str, Any]]:
        url = guarded.url(0, "http", f"/v1/{event}")
        status, headers, body = await asyncio.to_thread(http, "POST", url, orjson.dumps(data), **more)
        assert status == expected, body
        response = document["paths"][f"/v1/{event}"]["post"]["responses"][str(status)]
        response = look_up(document, response["$ref"]) if "$ref" in response else response
        [(content_type, content)] = response["content"].items()
        assert headers["Content-Type"] == content_type
        frame: dict[str, Any] = orjson.loads(body)
        hold(document, content["schema"], frame)
        return headers, frame

    async def ask(event: str, data: dict[str, Any]) -> dict[str, Any]:
        bearer = walk.real.get("accessToken") if KINDS[event].needs_session else None
        return (await post(event, data, bearer=bearer))[1]

    walk = Walk(guarded, ask)
    await walk()
    real = walk.real
    await post("account", {}, 401, bearer=real["accessToken"])
    await post("refresh", filled("refresh", real), 401)
    async with guarded.account() as (_, account):
        token = {"deviceToken": account.device_token}
        _, login = await post("login", {"email": account.email, "password": account.password, **token})
    refresh = {"refreshToken": login["data"]["refreshToken"]}
    await post("claim", refresh, 403)
    for event in ("refresh", "logout"):
        headers, _ = await post("claim", refresh, headers=own)
        cookie = {"Cookie": headers["Set-Cookie"].partition(";")[0]}
        await post(event, {}, 403, headers=cookie)
        await post(event, {}, headers={**own, **cookie})
        refresh = {"refreshToken": cookie["Cookie"].partition("=")[2]}  # one behind after /v1/refresh: within the grace


# What Schemathesis does not provoke: method, request, body, headers, status.
NO_REQUESTS: dict[str, tuple[str, str, bytes, dict[str, str], int]] = {
    "no JSON": ("POST", "login", b"{", {}, 400),
    "no object": ("POST", "login", b"[]", {}, 400),
    "a key too short": ("POST", "login", b"{}", {"Idempotency-Key": "short"}, 400),
    "a foreign page": ("POST", "claim", b"{}", {"Origin": "https://elsewhere.test"}, 403),
    "an unknown request": ("POST", "nothing", b"{}", {}, 404),
    "another method": ("PUT", "login", b"{}", {}, 405),
    "a body too big": ("POST", "login", b" " * (messages.MAX_MESSAGE_BYTES + 1), {}, 413),
    "another type": ("POST", "login", b"x", {"Content-Type": "text/plain"}, 415),
}


@pytest.mark.parametrize(("method", "event", "body", "headers", "status"), NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_is_refused_as_openapi_json_says(
    method: str, event: str, body: bytes, headers: dict[str, str], status: int, deployment: Deployment
) -> None:
    answered, _, data = http(method, deployment.url(0, "http", f"/v1/{event}"), body, headers=headers)

    assert answered == status
    response = OPENAPI["components"]["responses"][f"error_{status}"]
    hold(OPENAPI, response["content"]["application/json"]["schema"], orjson.loads(data))


@pytest.mark.parametrize("path", [path for path, item in OPENAPI["paths"].items() if "get" in item])
def test_what_is_read_is_as_openapi_json_says(path: str, deployment: Deployment) -> None:
    status, headers, body = http("GET", deployment.url(0, "http", path))

    assert (status, headers["Content-Type"]) == (200, "application/json")
    hold(
        OPENAPI,
        OPENAPI["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"],
        orjson.loads(body),
    )
    if path in ("/openapi.json", "/asyncapi.json"):
        made = openapi if path == "/openapi.json" else asyncapi
        assert orjson.loads(body) == orjson.loads(orjson.dumps(made(deployment.environ["FIN_PUBLIC_URL"])))
