-- Take back what was let in and could not be queued, unless it was queued and ended all the same.
-- KEYS[1] done marker of the request
-- KEYS[2] what holds the lane: a sorted set of request ids
-- KEYS[3] what is known of the same request; absent, like the next, where it was sent without a key
-- KEYS[4] who joined it
-- ARGV[1] request id
-- ARGV[2] ms the done marker lives: should the request turn up, it is done with
-- Returns 1, or 0 when it has ended
if not redis.call('SET', KEYS[1], 'cancelled', 'NX', 'PX', ARGV[2]) then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
if #KEYS > 3 and redis.call('HGET', KEYS[3], 'rid') == ARGV[1] then
  redis.call('DEL', KEYS[3], KEYS[4])
end
return 1
