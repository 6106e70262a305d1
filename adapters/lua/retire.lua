-- Take the name of a consumer that leaves out of its group, unless something is pending under it.
-- KEYS[1] stream
-- ARGV[1] group
-- ARGV[2] consumer
-- Returns 1, or 0 when it holds something or there is no such group
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if pending.err or #pending > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
