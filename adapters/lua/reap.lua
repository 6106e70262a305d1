-- Keep what the caller is at work on, find what was handed to it and never came, claim what a dead or hanging consumer
-- holds, and remove consumers that are gone.
-- KEYS[1] stream
-- ARGV[1] group
-- ARGV[2] consumer that claims
-- ARGV[3] ms without a sign of life after which an entry is claimed
-- ARGV[4] most entries
-- ARGV[5] ms of idleness after which an empty consumer is removed
-- ARGV[6] ms after which an entry of the caller's own needs a sign of life, or has been lost on its way
-- ARGV[7...] ids of entries that the caller holds
-- Returns {{entry id, deliveries before this one, {field, value...}}...}
local stream, group, me, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4])
local most_own = 100000 -- more than a lane holds
local claimed = {}

-- Idleness goes by the server's own clock: when that is set back, it begins anew, lest nothing look idle for as long.
local ahead = redis.call('HGET', KEYS[#KEYS], 'ahead') or '0'
if ahead ~= (redis.call('HGET', KEYS[#KEYS], stream) or '0') then
  for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', most_own)) do
    redis.call('XCLAIM', stream, group, pending[2], 0, pending[1], 'JUSTID')
  end
  redis.call('HSET', KEYS[#KEYS], stream, ahead)
end

local function claim(id, deliveries, ...)
  local entry = redis.call('XCLAIM', stream, group, me, 0, id, ...)[1]
  if entry then
    claimed[#claimed + 1] = {id, deliveries, entry[2]}
  else
    redis.call('XACK', stream, group, id) -- a ghost: deleted, but still pending
  end
end

local held = {}
for n = 7, #ARGV do
  held[ARGV[n]] = true
end
for _, mine in ipairs(redis.call('XPENDING', stream, group, 'IDLE', ARGV[6], '-', '+', most_own, me)) do
  local id, deliveries = mine[1], mine[4]
  if held[id] then
    redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID')
  else
    claim(id, deliveries - 1, 'RETRYCOUNT', deliveries) -- nobody has begun it, so it does not count again
  end
end
if most > 0 then
  for _, other in ipairs(redis.call('XPENDING', stream, group, 'IDLE', ARGV[3], '-', '+', most)) do
    claim(other[1], other[4])
  end
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local info = {}
  for i = 1, #consumer, 2 do
    info[consumer[i]] = consumer[i + 1]
  end
  if info.name ~= me and info.pending == 0 and info.idle > tonumber(ARGV[5]) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, info.name)
  end
end
return claimed
