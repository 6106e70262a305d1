"""One contract for brokers: what app/ports.py promises of GatewayBroker and WorkerBroker, played on real servers.

To add a broker:

1. Write the two classes from the docstrings of app/ports.py, and where they keep state in Redis, as the brokers here
   do, on adapters/redis_state.py and RedisStore, whose `check` and `settle` are the Store and the fence.
2. Give its server a kind in tests/running.py and tests/servers.py, unless it has one.
3. Add an Adapter to ADAPTERS in tests/brokers/adapters.py: which servers it needs, the broker's own first; how a
   gateway's and a worker's side are made on their URLs; which of its modules have times that tests make short; how
   something unreadable comes into a lane, and what is kept of dead letters.
4. `pytest tests/brokers -m "" -k NAME` plays every scenario. What the broker cannot promise stands in its `lacks`, by
   the scenario's name and with a reason. It is played all the same, has to fail, and is listed at the end of the run:
   a lack that is none is a failure too.

Tests know nothing but the ports, and the servers themselves: these are killed and made full. Each side of a broker has
wires of its own to its servers (wire.py): cut, shut, frozen, or deaf to answers, it is what dies, hangs or is away.
Whatever was handed out and not ended comes again, by `take` or by `reap`, as the broker likes. FIN_TEST_SEED repeats
what was random.
"""
