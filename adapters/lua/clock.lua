-- The store's clock: put before every script, whose last key is always its hash: "last", "ahead" (ms).
-- It is the server's own clock while that goes forwards. When that is set back, the store's clock goes on from where it
-- was, to the last second, and stays ahead until the other has caught up: nothing that has expired is good again.
-- KEYS[#KEYS] clock hash
local function own_clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Now in ms, and how far that is ahead of the server's own clock.
local function clock()
  local own, kept = own_clock(), redis.call('HMGET', KEYS[#KEYS], 'last', 'ahead')
  local last = tonumber(kept[1] or 0)
  local now = own >= last and own or math.max(own + kept[2], last)
  return now, now - own
end

-- The same, and remembered: by whoever gives a sign of life each second.
local function tick()
  local now, ahead = clock()
  redis.call('HSET', KEYS[#KEYS], 'last', string.format('%.0f', now), 'ahead', string.format('%.0f', ahead))
  return now, ahead
end
