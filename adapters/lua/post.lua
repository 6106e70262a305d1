-- A mailer's sign of life: it holds what is pending under its name. Takes over what silent mailers held, and removes
-- those that hold nothing.
-- KEYS[1] mail stream
-- KEYS[2] living mailers: name -> when it was heard of, ms
-- ARGV[1] consumer group
-- ARGV[2] mailer's name
-- ARGV[3] ms after which a silent mailer counts as dead
-- ARGV[4] most mails to take over
-- ARGV[5...] mailers that were silent before, for so long that they could have spoken since
-- Returns {now, ms that is ahead of the server's own clock, 1 if this one counted as dead itself,
--   {silent mailer...}, {entry id...}}
local now, ahead = tick()
local stream, group, me, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - ARGV[3]))
local function silent(name)
  return not redis.call('ZSCORE', KEYS[2], name)
end

local lapsed = silent(me) and 1 or 0
redis.call('ZADD', KEYS[2], now, me)
local gone = {}
for n = 5, #ARGV do
  gone[ARGV[n]] = true
end
local names, taken = {}, {}
local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
for _, flat in ipairs(consumers.err and {} or consumers) do -- err: there is no stream or no group yet
  local about = {}
  for i = 1, #flat, 2 do
    about[flat[i]] = flat[i + 1]
  end
  local name = about.name
  if name ~= me and silent(name) then
    if about.pending == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
    else
      names[#names + 1] = name
      local left = gone[name] and most - #taken or 0
      for _, held in ipairs(left > 0 and redis.call('XPENDING', stream, group, '-', '+', left, name) or {}) do
        -- IDLE and JUSTID: it has not been begun again
        local claimed = redis.call('XCLAIM', stream, group, me, 0, held[1], 'IDLE', held[3], 'JUSTID')[1]
        if claimed then
          taken[#taken + 1] = claimed
        else
          redis.call('XACK', stream, group, held[1]) -- a ghost: deleted, but still pending
        end
      end
    end
  end
end
return {now, ahead, lapsed, names, taken}
