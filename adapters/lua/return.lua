-- Put a taken entry back at its lane's tail: its turn has not come, or its worker stops.
-- KEYS[1] lane stream
-- KEYS[2] lane count
-- ARGV[1] consumer group
-- ARGV[2] entry id
-- Returns 1, or 0 when somebody else has ended it meanwhile
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 or not entry then
  return 0
end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[1], '*', unpack(entry[2]))
redis.call('INCR', KEYS[2])
return 1
