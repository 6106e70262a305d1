"""Docker's HEALTHCHECK: exit status 1 says that a new container in this one's place may do better.

    gateway, all   /healthz answers
    worker         the store has heard of this worker in the last seconds
    mailer         no mail has been waiting for longer than a minute

While the store itself does not answer, a new worker or mailer would not do better. /readyz says more of a gateway.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

MAIL_WAITS_MS = 60_000


def role() -> str:
    """What follows `-m app` in the command of process 1, be that the role or an init before it."""
    words = Path("/proc/1/cmdline").read_bytes().decode().split("\0")
    return words[words.index("app") + 1] or "all"


def look() -> dict[str, Any] | None:
    """`python -m app status --json`; None while the store does not answer."""
    from app.__main__ import main

    with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()):
        status = main(["status", "--json"])
    return json.loads(said.getvalue()) if status == 0 else None


def well() -> bool:
    match role():
        case "gateway" | "all":
            url = f"http://127.0.0.1:{os.environ.get('FIN_PORT') or 8000}/healthz"
            direct = build_opener(ProxyHandler({}))  # whatever http_proxy says: it is for others
            with direct.open(url, timeout=4) as answer:
                return bool(answer.status == 200)
        case "worker":
            ours, seen = f"{socket.gethostname()}:", look()
            return seen is None or any(w["name"].startswith(ours) and w["state"] == "alive" for w in seen["workers"])
        case "mailer":
            seen = look()
            return seen is None or seen["mail"].get("oldest_waiting_ms", 0) < MAIL_WAITS_MS
    return True


try:
    sys.exit(not well())
except OSError as error:
    sys.exit(str(error))
