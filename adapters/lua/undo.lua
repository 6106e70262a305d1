-- Take back what was let in and could not be queued, unless it was queued and ended all the same; and tell who joined it.
-- KEYS[1] done marker of the request
-- KEYS[2] what holds the lane: a sorted set of request ids
-- KEYS[3] what is known of the same request; absent, like the next, where it was sent without a key
-- KEYS[4] who joined it
-- ARGV[1] request id
-- ARGV[2] ms the done marker lives: should the request turn up, it is done with
-- ARGV[3] prefix of reply streams
-- ARGV[4] most replies one keeps
-- ARGV[5] ms it lives without a reader
-- ARGV[6] MAC'd word to those who joined
-- ARGV[7] MAC
-- Returns 1, or 0 when it has ended
if not redis.call('SET', KEYS[1], 'cancelled', 'NX', 'PX', ARGV[2]) then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
if #KEYS > 3 and redis.call('HGET', KEYS[3], 'rid') == ARGV[1] then
  for _, who in ipairs(redis.call('LRANGE', KEYS[4], 0, -1)) do
    local node, rid = string.match(who, '^([^ ]*) (.*)$')
    local stream = ARGV[3] .. node
    redis.call('XADD', stream, 'MAXLEN', '~', ARGV[4], '*', 'k', 'joined', 'r', rid, 'x', ARGV[6], 'm', ARGV[7])
    redis.call('PEXPIRE', stream, ARGV[5])
  end
  redis.call('DEL', KEYS[3], KEYS[4])
end
return 1
