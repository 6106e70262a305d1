-- End a mail, once, whoever holds it by now: what was sent is sent.
-- KEYS[1] mail stream
-- KEYS[2] dead letters
-- ARGV[1] consumer group
-- ARGV[2] entry id
-- ARGV[3] most dead letters
-- ARGV[4...] fields and values of its dead letter; none: it was sent
-- Returns 1, or 0 when it has ended before
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if pending.err or #pending == 0 then
  return 0
end
local letter = {unpack(ARGV, 4)}
if #letter > 0 then -- first, since a server that is out of memory refuses it
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(letter))
end
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return 1
