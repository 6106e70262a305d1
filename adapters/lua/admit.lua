-- Let a request into its lane, or say when to come again.
-- KEYS[1] what holds the lane
-- KEYS[2] lane count: how many were ever admitted; its value is an entry's place in the order
-- KEYS[3] capacity hash, there while workers live: "<lane>:slots", "<lane>:rate" (requests a second)
-- KEYS[4] what holds the lane whose requests go first, by the same workers; the lane itself where none does
-- KEYS[5] what is known of the same request; absent, like the next, where it was sent without a key
-- KEYS[6] who joined it
-- KEYS[7...] the same two under its former names: another edge secret was current when it was sent first
-- ARGV[1] lane whose capacity it has: that of KEYS[4]
-- ARGV[2] most requests in the lane, waiting or in hand
-- ARGV[3] deadline, ms of the server's clock
-- ARGV[4] request id
-- ARGV[5] node
-- ARGV[6] most who may join
-- ARGV[7] ms that what is known of a pending request outlives its deadline
-- ARGV[8] command that counts what is in the lane
-- ARGV[9] command that puts the request there
-- ARGV[10...] its arguments after the key
-- Returns {"admitted", place, position, eta ms or -1} | {"full", ahead, ms until there is room or -1} | {"expired", now} |
--   {"joined", n, ms until its deadline}: it is pending, and word of its end will come |
--   {"crowded", n}: too many have joined | {"done", n}: its outcome is recorded; n: under its n-th name from 0
local lane, cap, deadline = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = clock()
local left = deadline - now
if left <= 0 then
  return {'expired', now}
end
for n = 5, #KEYS - 1, 2 do
  local known, joined, name = redis.call('HMGET', KEYS[n], 'state', 'until'), KEYS[n + 1], (n - 5) / 2
  local alive = known[1] and tonumber(known[2]) > now
  if alive and known[1] == 'done' then
    return {'done', name}
  end
  if alive then
    if redis.call('LLEN', joined) >= tonumber(ARGV[6]) then
      return {'crowded', name}
    end
    redis.call('RPUSH', joined, ARGV[5] .. ' ' .. ARGV[4])
    redis.call('PEXPIREAT', joined, known[2] + ARGV[7])
    return {'joined', name, known[2] - now}
  end
end
local capacity = redis.call('HMGET', KEYS[3], lane .. ':slots', lane .. ':rate')
local slots, rate = tonumber(capacity[1] or 0), tonumber(capacity[2] or 0)
local own = redis.call(ARGV[8], KEYS[1])
local before = KEYS[4] ~= KEYS[1] and redis.call(ARGV[8], KEYS[4]) or 0
local here = before + own
local ahead = math.max(0, here - slots)
local eta = -1
if rate > 0 then
  eta = math.floor((here + 1) * 1000 / rate)
end
if own >= cap then
  return {'full', here, rate > 0 and math.ceil((before * 1000 + own * 500) / rate) or -1}
end
if here >= slots and eta > left then
  return {'full', here, eta - left}
end
redis.call(ARGV[9], KEYS[1], unpack(ARGV, 10))
if #KEYS > 5 then
  redis.call('DEL', KEYS[5], KEYS[6])
  redis.call('HSET', KEYS[5], 'state', 'pending', 'rid', ARGV[4], 'until', ARGV[3])
  redis.call('PEXPIREAT', KEYS[5], deadline + ARGV[7])
end
local place = redis.call('INCR', KEYS[2])
local waits = slots > 0 and here >= slots or slots == 0
return {'admitted', place, waits and ahead + 1 or 0, eta}
