"""Every setting in a line: its default and what it means. The README's table is made of it (scripts/settings), and a
FIN_ name that is not here is taken for a typing error.
"""

from __future__ import annotations

_TABLE = """
FIN_HOST | 127.0.0.1 | where the gateway listens
FIN_PORT | 8000 | and on which port
FIN_REDIS_URL | *a server of its own* | the store and the queue: `redis(s)://` or `unix://`; Redis or Valkey ≥ 7.0
FIN_BROKER_URL | *FIN_REDIS_URL* | the queue: `amqp(s)://` for RabbitMQ ≥ 3.10; Redis stays the store
FIN_DEPLOYMENT | finthenticate | what RabbitMQ's queues are called by: deployments can share a virtual host
FIN_DATA_DIR | ./var | the embedded server's data, logs, outbox, generated keys
FIN_MAIL_URL | file:outbox | `file:DIR` (under FIN_DATA_DIR) or `smtp://USER:PASSWORD@HOST:PORT?tls=starttls`
FIN_MAIL_FROM | *no-reply@ the host of FIN_PUBLIC_URL* | the address that mails come from
FIN_PUBLIC_URL | *http://FIN_HOST:FIN_PORT* | a host without a path: issuer of tokens, base of links, an allowed origin
FIN_ALLOWED_ORIGINS | | more origins that may connect, comma-separated
FIN_TRUSTED_PROXIES | | networks whose X-Forwarded-For is believed, comma-separated
FIN_EMAIL_CONFIRMATION | required | `required` or `off`
FIN_DEVICE_VERIFICATION | on | `on`: a login on a new device needs a mailed code or an approval; or `off`
FIN_ARGON2 | m=19456,t=2,p=1 | Argon2id cost of new hashes; a login with an older hash upgrades it
FIN_MIN_PASSWORD | 15 | least length of a password in code points
FIN_AUDIENCE | finthenticate | `aud` of access tokens
FIN_FAILURES_PER_ACCOUNT | 5 | failures of an address from one network before a delay, 30 s to 15 min; limits take `off`
FIN_FAILURES_PER_IP | 60 | failures of one network a minute (IPv6: a /64)
FIN_REGISTRATIONS_PER_IP | 20 | registrations of one network an hour
FIN_MAILS_PER_IP | 30 | mails caused by one network an hour
FIN_MAILS_PER_ACCOUNT | 5 | mails to one address an hour
FIN_CONNECTIONS_PER_IP | 1000 | connections of one address to one gateway
FIN_MESSAGES_PER_SECOND | 20 | messages of one connection
FIN_OPS_PORT | *FIN_PORT + 1* | `/metrics` of a gateway, on 127.0.0.1 alone; or `off`
FIN_DURABILITY | strict | `relaxed` starts on a Redis that can lose what it acknowledged
FIN_MAX_QUEUE | 2000 | requests in a lane before `overloaded`
FIN_HASH_THREADS | *number of cores* | Argon2 at once in one worker, 19 MiB each with the default cost
FIN_EDGE_SECRET | *from setup.sh* | seals what passes between gateways, workers and mailers
FIN_WORKER_SECRET | *from setup.sh* | refresh tokens, mailed codes, device tokens, account keys; workers only
FIN_PEPPER | *from setup.sh* | in every password hash; workers only. Without it none can be verified: back it up
"""

# name → default, where that is a value, and meaning
ABOUT = {
    name: (None if default.startswith("*") else default, default, meaning)
    for name, default, meaning in (map(str.strip, line.split("|")) for line in _TABLE.strip().splitlines())
}


def markdown() -> str:
    """The table as the README has it."""
    rows = (f"| {name} | {shown} | {meaning} |".replace("|  |", "| |") for name, (_, shown, meaning) in ABOUT.items())
    return "\n".join(("| name | default | meaning |", "|---|---|---|", *rows)) + "\n"
