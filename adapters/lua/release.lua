-- Hand back a taken entry that was not begun: the next who reaps gets it, as if it had not been taken this time.
-- KEYS[1] lane stream
-- ARGV[1] consumer group
-- ARGV[2] consumer that holds it
-- ARGV[3] ms without a sign of life after which an entry is claimed
-- ARGV[4] entry id
-- Returns 1, or 0 when somebody else has taken it over meanwhile, or it is gone
local stream, group, me, idle, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local mine = redis.pcall('XPENDING', stream, group, id, id, 1, me)
if mine.err or #mine == 0 then
  return 0
end
redis.call('XCLAIM', stream, group, me, 0, id, 'IDLE', idle, 'RETRYCOUNT', mine[1][4] - 1, 'JUSTID')
return 1
