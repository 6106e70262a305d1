-- Reserve a request's attempt and read its facts, in one step: no attempt can slip between the two.
-- KEYS[1] done marker of the request
-- ARGV[1] msgpack map:
--   rid       request id: a reservation's name, so checking twice reserves once
--   deadline  ms of the server's clock
--   hold      ms of the server's clock until which a reservation lives if it is never settled
--   limits    array of {key, held, most, penalty (bool), waits (bool)}
--   email     key of address -> user id | nil
--   session   key of the session | nil
--   other     key of another session | nil
--   challenge key of the challenge | nil
--   users, emails, sessions, online, nodes  prefixes of keys
--   devices   suffix of a user's devices key | nil: do not read
--   list      suffix of a user's session list key | nil: do not read
--   crowd     nil: read all of the list; n: only what is too many for one more where n are allowed
-- Returns {"done" | "expired" | "wait", now} or
--   {"ok", now, ms that is ahead of the server's own clock, {{n-th limit, ms to wait}...}, user id, user, session,
--    other session, challenge, devices, {{session id, session}...}, online}; hashes as flat arrays, empty when absent
local ask = cmsgpack.unpack(ARGV[1])
local now, ahead = clock()
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {'done', now}
end
if now >= ask.deadline then
  return {'expired', now}
end

local refused, granted = {}, {}
for index, limit in ipairs(ask.limits) do
  local key, held, most, penalty, waits = unpack(limit)
  redis.call('ZREMRANGEBYSCORE', held, '-inf', now)
  if not redis.call('ZSCORE', held, ask.rid) then
    local state = redis.call('HMGET', key, 'n', 'closed')
    local places = most - tonumber(state[1] or 0)
    local closed = tonumber(state[2] or 0)
    if penalty and places < 1 then
      places = 1 -- the delay is over: one attempt at a time until one succeeds
    end
    local taken = redis.call('ZCARD', held)
    if closed > now then
      refused[#refused + 1] = {index, closed - now}
    elseif taken < places then
      granted[#granted + 1] = held
    elseif waits and taken > 0 then
      return {'wait', now}
    else
      refused[#refused + 1] = {index, math.max(1000, redis.call('PTTL', key))}
    end
  end
end
for _, held in ipairs(granted) do
  redis.call('ZADD', held, ask.hold, ask.rid)
  if redis.call('PEXPIRETIME', held) < ask.hold then -- others may hold a place for longer
    redis.call('PEXPIREAT', held, ask.hold)
  end
end

local function field(hash, name)
  for i = 1, #hash, 2 do
    if hash[i] == name then
      return hash[i + 1]
    end
  end
end

local session = ask.session and redis.call('HGETALL', ask.session) or {}
local other = ask.other and redis.call('HGETALL', ask.other) or {}
local challenge = ask.challenge and redis.call('HGETALL', ask.challenge) or {}
local user_id = field(session, 'user') or ''
local address = field(challenge, 'email')
local email = ask.email or (address and ask.emails .. address)
if email then
  user_id = redis.call('GET', email) or ''
end
local user, devices, list, online = {}, {}, {}, {}
if user_id ~= '' then
  local key = ask.users .. user_id
  user = redis.call('HGETALL', key)
  devices = ask.devices and redis.call('HGETALL', key .. ask.devices) or {}
  if ask.list then
    local most = -1
    if ask.crowd then
      most = math.max(0, redis.call('ZCOUNT', key .. ask.list, now, '+inf') - ask.crowd + 1)
    end
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', key .. ask.list, now, '+inf', 'LIMIT', 0, most)) do
      list[#list + 1] = {id, redis.call('HGETALL', ask.sessions .. id)}
    end
    if not ask.crowd then
      local there, lives = redis.call('HGETALL', ask.online .. user_id), {}
      for i = 1, #there, 2 do
        local node = string.match(there[i], '^[^ ]*')
        if lives[node] == nil then
          lives[node] = redis.call('EXISTS', ask.nodes .. node) == 1
        end
        if lives[node] then
          online[#online + 1] = there[i + 1]
        end
      end
    end
  end
end
return {'ok', now, ahead, refused, user_id, user, session, other, challenge, devices, list, online}
