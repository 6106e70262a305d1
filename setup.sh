#!/usr/bin/env bash
# From a fresh clone to a running service. Every step is skipped once it is done, so a second run takes a second.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

usage() {
    cat <<'END'
Usage: ./setup.sh [--install-only]

Makes .venv, installs the pinned dependencies, writes .env with fresh secrets if there is none, and starts
everything (Ctrl-C stops it).

  --install-only   do everything but start
  --help           this text

PYTHON names the interpreter that .venv is made with, when it should not be the first Python >= 3.11 found.
END
}

# One sentence and a status (sysexits): 64 usage, 69 something is missing, 73 cannot write.
fail() {
    printf 'setup.sh: %s\n' "$2" >&2
    exit "$1"
}

start=yes
for argument in "$@"; do
    case $argument in
        --install-only) start=no ;;
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
    "$venv_python" - <<'END' || fail 73 ".env could not be written in $PWD."
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

[ -w . ] || fail 73 "the folder $PWD cannot be written to; clone the project where you may write."
venv_python=.venv/bin/python
if ! "$venv_python" -c "import pip; $recent" >/dev/null 2>&1; then
    make_venv
fi
install_lock
[ -e .env ] || [ -L .env ] || write_env
if [ $start = yes ]; then
    exec "$venv_python" -m app all
fi
