"""Every key name, built here and nowhere else.

All carry the tag `{0}`: the shard. There is one today; with the tag and the shard in every id, more of them and a
Redis Cluster can come without a change of format.
"""

from __future__ import annotations

from app.messages import Lane

_TAG = "fin:{0}:"

GROUP = "workers"
MAIL_GROUP = "mailers"

USERS = _TAG + "user:"
EMAILS = _TAG + "email:"
SESSIONS = _TAG + "session:"
CHALLENGES = _TAG + "challenge:"
ONLINE = _TAG + "online:"
NODES = _TAG + "node:"
LIVING = _TAG + "nodes"
REPLIES = _TAG + "replies:"
DEVICES_OF = ":devices"
SESSIONS_OF = ":sessions"

CLOCK = _TAG + "clock"
WORKERS = _TAG + "workers"
CAPACITY = _TAG + "capacity"
DEAD = _TAG + "dead"
MAIL = _TAG + "mail"
MAILERS = _TAG + "mailers"
EVENTS = _TAG + "events"


def lane(lane: Lane) -> str:
    return f"{_TAG}lane:{lane}"


def lane_open(lane: Lane) -> str:
    """What has not ended of a lane whose entries another broker holds."""
    return f"{_TAG}lane:{lane}:open"


def lane_count(lane: Lane) -> str:
    return f"{_TAG}lane:{lane}:count"


def done(rid: str) -> str:
    return f"{_TAG}done:{rid}"


def again(rid: str) -> str:
    """How often RabbitMQ handed it out in vain, by those who got it next."""
    return f"{_TAG}again:{rid}"


def limit(name: str, subject: str) -> str:
    return f"{_TAG}limit:{name}:{subject}"


def held(name: str, subject: str) -> str:
    return f"{_TAG}held:{name}:{subject}"


def same(id: str) -> str:
    return f"{_TAG}same:{id}"


def joined(id: str) -> str:
    return f"{_TAG}joined:{id}"
