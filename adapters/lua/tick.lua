-- A gateway's sign of life.
-- KEYS[1] living nodes: name -> when it was heard of, ms
-- ARGV[1] node
-- ARGV[2] ms after which a silent node counts as dead
-- Returns {now, ms that is ahead of the server's own clock}
local now, ahead = tick()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZADD', KEYS[1], now, ARGV[1])
return {now, ahead}
