-- How deep a stream is, how old its oldest entries are, and who holds how many. Writes nothing.
-- KEYS[1] stream
-- ARGV[1] group
-- Returns {now by the store's clock, ms that is ahead of the server's own, entries, in hand, age of the oldest that waits, age of the oldest in hand,
--   {{consumer, in hand}...}}; ages in ms since it was queued, -1 where there is none
local stream, group = KEYS[1], ARGV[1]

local function age(id)
  -- ids are made by the server's own clock
  return id and math.max(0, own_clock() - tonumber(string.match(id, '^%d+'))) or -1
end

local function map(flat)
  local found = {}
  for i = 1, #flat, 2 do
    found[flat[i]] = flat[i + 1]
  end
  return found
end

local last, held, oldest, consumers = '0-0', 0, false, {}
local groups = redis.call('EXISTS', stream) == 1 and redis.call('XINFO', 'GROUPS', stream) or {}
for _, flat in ipairs(groups) do
  local info = map(flat)
  if info.name == group then
    last = info['last-delivered-id']
    held, oldest = unpack(redis.call('XPENDING', stream, group))
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
      local who = map(consumer)
      consumers[#consumers + 1] = {who.name, who.pending}
    end
  end
end
local waits = redis.call('XRANGE', stream, '(' .. last, '+', 'COUNT', 1)[1]
local now, ahead = clock()
return {now, ahead, redis.call('XLEN', stream), held, age(waits and waits[1]), age(oldest), consumers}
