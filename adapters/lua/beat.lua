-- A worker's sign of life; adds up what all living workers can do.
-- KEYS[1] workers hash: name -> msgpack {at, lanes: {lane -> {slots, rate}}}
-- KEYS[2] capacity hash: "<lane>:slots", "<lane>:rate", "workers"
-- ARGV[1] worker's name
-- ARGV[2] msgpack map: lane -> {slots, requests a second}; empty: the worker leaves
-- ARGV[3] ms after which a silent worker counts as dead
-- Returns now, ms
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mine = cmsgpack.unpack(ARGV[2])
if next(mine) then
  redis.call('HSET', KEYS[1], ARGV[1], cmsgpack.pack({at = now, lanes = mine}))
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
return now
