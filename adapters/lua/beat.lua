-- A worker's sign of life; adds up what all living workers can do.
-- KEYS[1] workers hash: name -> msgpack {at, since, hash_ms, lanes: {lane -> {slots, rate, in hand, drained}}}
-- KEYS[2] capacity hash: "<lane>:slots", "<lane>:rate", "workers"
-- ARGV[1] worker's name
-- ARGV[2] msgpack map, empty: the worker leaves; else
--   since    ms of the store's clock since when it runs; 0: since now
--   hash_ms  its measured time of one hash
--   lanes    map: lane -> {slots, requests a second it could do, requests in hand, requests a second it ended}
-- ARGV[3] ms after which a silent worker counts as dead
-- Returns {now, ms that is ahead of the server's own clock}
local now, ahead = tick()
local mine = cmsgpack.unpack(ARGV[2])
if next(mine) then
  local since = mine.since > 0 and mine.since or now
  local said = {at = now, since = since, hash_ms = mine.hash_ms, lanes = mine.lanes}
  redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack(said))
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
local total, living = {}, 0
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local worker = cmsgpack.unpack(all[i + 1])
  if math.abs(now - worker.at) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    living = living + 1
    for lane, can in pairs(worker.lanes) do
      local sum = total[lane] or {0, 0}
      total[lane] = {sum[1] + can[1], sum[2] + can[2]}
    end
  end
end
redis.call('DEL', KEYS[2])
if living > 0 then
  redis.call('HSET', KEYS[2], 'workers', living)
  for lane, sum in pairs(total) do
    redis.call('HSET', KEYS[2], lane .. ':slots', sum[1], lane .. ':rate', string.format('%.3f', sum[2]))
  end
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return {now, ahead}
