-- Keep what the caller is at work on, claim what a dead or hanging consumer holds, remove consumers that are gone.
-- KEYS[1] stream
-- ARGV[1] group
-- ARGV[2] consumer that claims
-- ARGV[3] ms without a sign of life after which an entry is claimed
-- ARGV[4] most entries
-- ARGV[5] ms of idleness after which an empty consumer is removed
-- ARGV[6...] ids of entries that the caller holds: a sign of life for each, where nobody else has claimed it
-- Returns {{entry id, deliveries so far, {field, value...}}...}
local stream, group, me = KEYS[1], ARGV[1], ARGV[2]
for _, id in ipairs({unpack(ARGV, 6)}) do
  if #redis.call('XPENDING', stream, group, id, id, 1, me) > 0 then
    redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID')
  end
end
local claimed = {}
local stale = tonumber(ARGV[4]) > 0 and redis.call('XPENDING', stream, group, 'IDLE', ARGV[3], '-', '+', ARGV[4]) or {}
for _, pending in ipairs(stale) do
  local id, deliveries = pending[1], pending[4]
  local entry = redis.call('XCLAIM', stream, group, me, 0, id)[1]
  if entry then
    claimed[#claimed + 1] = {id, deliveries, entry[2]}
  else
    redis.call('XACK', stream, group, id) -- a ghost: deleted, but still pending
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
