#!/usr/bin/env bash
# From a fresh clone to a running service. Every step is skipped once it is done, so a second run takes a second.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

usage() {
    cat <<'END'
Usage: ./setup.sh [--install-only | --docker] [--portable]

Makes .venv, installs the pinned dependencies, compiles Argon2 for this processor where there is a C compiler, writes
.env with fresh secrets if there is none, and starts everything (Ctrl-C stops it).

  --install-only   do everything but start
  --portable       take the prebuilt Argon2, for a .venv or an image that is to run on other machines too
  --docker         instead, build the image and start everything in containers (docker compose down stops it)
  --help           this text

PYTHON names the interpreter that .venv is made with, when it should not be the first Python >= 3.11 found.
FIN_BASE_IMAGE, FIN_REDIS_IMAGE and FIN_RABBITMQ_IMAGE name other images than python:3.11-slim, redis:7.0 and
rabbitmq:3.10.
END
}

# One sentence and a status (sysexits): 64 usage, 69 something is missing, 73 cannot write.
fail() {
    printf 'setup.sh: %s\n' "$2" >&2
    exit "$1"
}

start=all
argon2=native
for argument in "$@"; do
    case $argument in
        --install-only) start=nothing ;;
        --docker) start=containers ;;
        --portable) argon2=portable ;;
        --help | -h) usage && exit 0 ;;
        *) fail 64 "unknown option $argument; ./setup.sh --help lists them." ;;
    esac
done

recent='import sys; sys.exit(sys.version_info < (3, 11))'

find_python() {
    local name names=(python3 python3.13 python3.12 python3.11)
    [ -z "${PYTHON:-}" ] || names=("$PYTHON")
    for name in "${names[@]}"; do
        if "$name" -c "$recent" >/dev/null 2>&1; then
            printf '%s' "$name"
            return
        fi
    done
    [ -z "${PYTHON:-}" ] || fail 69 "PYTHON=$PYTHON is not a Python 3.11 or newer."
    fail 69 "Python 3.11 or newer is needed and was not found (Debian and Ubuntu: apt install python3 python3-venv)."
}

make_venv() {
    local python version said
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    # Debian ships Python without ensurepip; asked first, since venv would leave half a .venv behind
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        fail 69 "this Python cannot make virtual environments; install the package python3-venv (or python$version-venv)."
    said=$("$python" -m venv --clear .venv 2>&1) || fail 73 ".venv could not be made: ${said##*$'\n'}"
}

install_lock() {
    local lock=requirements.lock stamp=.venv/installed.sha256 digest reason
    digest=$("$venv_python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' $lock)
    if [ -f $stamp ] && [ "$(cat $stamp)" = "$digest" ]; then
        return
    fi
    echo "Installing the dependencies (once; less than a minute on most lines)..." >&2
    if ! "$venv_python" -m pip install --quiet --no-input --disable-pip-version-check --require-hashes -r $lock \
        >.venv/install.log 2>&1; then
        if grep -qE 'NewConnectionError|ConnectTimeoutError|NameResolutionError' .venv/install.log; then
            fail 69 "the dependencies could not be downloaded: the package index cannot be reached from here."
        fi
        reason=$(grep -E '^ERROR: ' .venv/install.log | tail -n 1) || reason=$(tail -n 1 .venv/install.log)
        fail 69 "the dependencies could not be installed: ${reason#ERROR: } (all of it: .venv/install.log)"
    fi
    printf '%s\n' "$digest" >$stamp
}

# A link to a finished private file: never readable by others, never half written, never over an existing .env.
write_env() {
    "$1" - <<'END' || fail 73 ".env could not be written in $PWD."
import base64, os, secrets, string, sys

ALPHABET = string.ascii_lowercase + string.digits


def secret() -> str:
    kid = "".join(secrets.choice(ALPHABET) for _ in range(4))
    return f"{kid}:{base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b'=').decode()}"


TEXT = f"""\
# The secrets of this deployment: KID:SECRET, newest first, separated by commas. Keep them, and keep them to yourself.
# Seals what passes between gateways and workers.
FIN_EDGE_SECRET={secret()}
# Signs refresh tokens and protects mailed codes and account keys; workers only.
FIN_WORKER_SECRET={secret()}
# Goes into every password hash: without it no password can be verified, so back it up apart from the data.
FIN_PEPPER={secret()}
"""
draft = f".env.{secrets.token_hex(8)}"
try:
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(TEXT)
        file.flush()
        os.fsync(file.fileno())
    os.link(draft, ".env")
    print("Wrote .env with fresh secrets.", file=sys.stderr)
except FileExistsError:
    pass
finally:
    if os.path.exists(draft):
        os.unlink(draft)
END
}

# What compose.yaml takes from .env beside the service's own secrets: no settings of the service.
write_compose_env() {
    local uid=${ROLE_UID:-$(id -u)}
    [ "$uid" != 0 ] || uid=10001
    cat >>.env <<END

# For docker compose. ROLE_UID is who the worker and the mailer are: whoever may read the mails in var/outbox.
COMPOSE_PROJECT_NAME=finthenticate
COMPOSE_FILE=docker/compose.yaml
ROLE_UID=$uid
REDIS_PASSWORD=$(hex_secret)
RABBITMQ_PASSWORD=$(hex_secret)
END
}

hex_secret() {
    od -An -tx1 -N32 /dev/urandom | tr -d ' \n'
}

deploy() {
    local arguments name uid until compose=(docker compose) image=${FIN_IMAGE:-finthenticate}
    command -v docker >/dev/null || fail 69 "--docker needs Docker, which was not found."
    docker info >/dev/null 2>&1 || fail 69 "no Docker engine answers; is it started, and may you use it?"
    "${compose[@]}" version >/dev/null 2>&1 || compose=(docker-compose)
    "${compose[@]}" version >/dev/null 2>&1 ||
        fail 69 "--docker needs Docker Compose, which was not found (the plugin docker compose, or docker-compose 1.29)."
    if ! [ -e .env ] && ! [ -L .env ]; then
        command -v python3 >/dev/null || fail 69 "Python is needed to write .env, and was not found."
        write_env python3
    fi
    grep -q '^REDIS_PASSWORD=' .env || write_compose_env
    mkdir -p var/outbox
    uid=$(sed -n 's/^ROLE_UID=//p' .env)
    [ "$(id -u)" != 0 ] || chown "${uid:-10001}" var/outbox

    echo "Building the image $image..." >&2
    arguments=(--quiet --network host --tag "$image" --file docker/Dockerfile --build-arg "ARGON2=$argon2")
    arguments+=(--build-arg "PROCESSOR=$(grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null | cksum)")
    [ -z "${FIN_BASE_IMAGE:-}" ] || arguments+=(--build-arg "BASE_IMAGE=$FIN_BASE_IMAGE")
    for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST; do # where this machine has its packages from
        [ -z "${!name:-}" ] || arguments+=(--build-arg "$name")
    done
    docker build "${arguments[@]}" . >/dev/null || fail 69 "the image could not be built."
    if [ $argon2 = native ] && docker run --rm --network none --entrypoint python "$image" -c "$prebuilt" 2>/dev/null; then
        echo "Argon2 could not be compiled in the image, so logins take two to three times as long as they could." >&2
    fi
    "${compose[@]}" up --detach || fail 69 "the containers could not be started."
    until=$((SECONDS + 60))
    until "${compose[@]}" exec -T gateway python -c "$ready" >/dev/null 2>&1; do
        [ $SECONDS -lt "$until" ] || fail 69 "it is not ready after a minute; ${compose[*]} logs says why."
        sleep 0.5
    done
    echo "Finthenticate serves at http://$("${compose[@]}" port gateway 8000); ${compose[*]} down stops it."
}

prebuilt='from importlib.metadata import distribution as d; import sys
sys.exit("manylinux" not in d("argon2-cffi-bindings").read_text("WHEEL"))'
ready='import urllib.request; urllib.request.urlopen("http://127.0.0.1:8000/readyz")'
[ -w . ] || fail 73 "the folder $PWD cannot be written to; clone the project where you may write."
if [ $start = containers ]; then
    deploy
    exit
fi
venv_python=.venv/bin/python
if ! "$venv_python" -c "import pip; $recent" >/dev/null 2>&1; then
    make_venv
fi
install_lock
scripts/argon2 $argon2
[ -e .env ] || [ -L .env ] || write_env "$venv_python"
if [ $start = all ]; then
    exec "$venv_python" -m app all
fi
