-- End a request: all of its effects, its reply and its acknowledgement, or nothing.
-- Lua has no rollback, so every condition comes before the first write.
-- KEYS[1] done marker of the request
-- ARGV[1] msgpack map:
--   rid        request id
--   deadline   ms of the server's clock; 0: settle whatever the time
--   mark       ms the done marker lives: until no copy of the request can be about any more
--   conditions array of {expected, command...}: an answer of nil counts as ''
--   limits     array of {key, held, action, most, window ms, penalty ms, most penalty ms}; action "spend", "free", "clear"
--   notices    array of {online key, connection that is not told, MAC'd body, MAC}: for every node where somebody else is
--              authenticated as that account
--   swaps      array of {key, field, old, new}: written only where old is still there
--   endings    array of {list of sessions, prefix of sessions, id of one that stays, why}: all others on the list end
--   commands   array of {command...}: writes
--   posts      array of {node, {field, value...}}: replies
--   mails      array of {limits, array of {command...}}; limits: array of {key, most, window ms}: past one, none is run
--   record     nil, or {key of what is known, key of who joined, session id, outcome or '', ms to keep it, MAC'd word to
--              those who joined, MAC}; '' forgets: an error is not recorded
--   presence   array of {command...}: who is authenticated where, after the notices: nobody is told of himself
--   delivery   array of {command...}: acknowledgement, done in every case but "conflict" and "full"
--   nodes      prefix of keys
--   replies    prefix of keys, where posts are entries of streams; nil: posts are returned, and kept with the done marker
--              for who settles again
--   keep       ms a reply stream lives without a reader
--   most       replies it keeps
--   mail       the mail stream
--   most_mail  mails that may wait in it: nothing is done that mails another
-- Returns {"settled" | "done" | "expired" | "conflict" | "full", now, msgpack of the posts to be sent, or ''}
local plan = cmsgpack.unpack(ARGV[1])
local now = clock()

local function run(commands)
  for _, command in ipairs(commands) do
    redis.call(unpack(command))
  end
end

local posts = {}
local function post(node, fields)
  if plan.replies then
    redis.call('XADD', plan.replies .. node, 'MAXLEN', '~', plan.most, '*', unpack(fields))
    redis.call('PEXPIRE', plan.replies .. node, plan.keep)
  else
    posts[#posts + 1] = {node, fields}
  end
end

local ended = redis.call('GET', KEYS[1])
if ended then
  for _, limit in ipairs(plan.limits) do
    redis.call('ZREM', limit[2], plan.rid)
  end
  run(plan.delivery)
  return {'done', now, string.match(ended, '^posts (.*)$') or ''}
end
local verdict = 'settled'
if plan.deadline > 0 and now >= plan.deadline then
  verdict = 'expired'
else
  for _, condition in ipairs(plan.conditions) do
    if (redis.call(unpack(condition, 2)) or '') ~= condition[1] then
      return {'conflict', now, ''}
    end
  end
  if #plan.mails > 0 and redis.call('XLEN', plan.mail) >= plan.most_mail then
    return {'full', now, ''}
  end
end

redis.call('SET', KEYS[1], verdict, 'PX', plan.mark)
for _, limit in ipairs(plan.limits) do
  local key, held, action, most, window, penalty, most_penalty = unpack(limit)
  redis.call('ZREM', held, plan.rid)
  if verdict == 'expired' then
    action = 'free'
  end
  if action == 'clear' then
    redis.call('DEL', key)
  elseif action == 'spend' then
    local n = redis.call('HINCRBY', key, 'n', 1)
    if penalty > 0 then
      if n >= most then
        local delay = math.min(most_penalty, penalty * 2 ^ math.min(30, n - most))
        redis.call('HSET', key, 'closed', string.format('%.0f', now + delay))
      end
      redis.call('PEXPIRE', key, window)
    elseif n == 1 then
      redis.call('PEXPIRE', key, window)
    end
  end
end
run(plan.delivery)
if verdict == 'expired' then
  return {verdict, now, ''}
end

for _, swap in ipairs(plan.swaps) do
  local key, field, old, new = unpack(swap)
  if redis.call('HGET', key, field) == old then
    redis.call('HSET', key, field, new)
  end
end
for _, ending in ipairs(plan.endings) do
  local list, sessions, stays, reason = unpack(ending)
  for _, id in ipairs(redis.call('ZRANGE', list, 0, -1)) do
    if id ~= stays then
      if redis.call('EXISTS', sessions .. id) == 1 then
        redis.call('HSET', sessions .. id, 'ended', reason)
      end
      redis.call('ZREM', list, id)
    end
  end
end
run(plan.commands)
for _, each in ipairs(plan.posts) do
  post(unpack(each))
end
for _, mail in ipairs(plan.mails) do
  local limits, commands = unpack(mail)
  local allowed = true
  for _, limit in ipairs(limits) do
    if tonumber(redis.call('HGET', limit[1], 'n') or 0) >= limit[2] then
      allowed = false
    end
  end
  if allowed then
    for _, limit in ipairs(limits) do
      if redis.call('HINCRBY', limit[1], 'n', 1) == 1 then
        redis.call('PEXPIRE', limit[1], limit[3])
      end
    end
    run(commands)
  end
end
-- Where an account is online: {node, name of one connection there, whether it is the only one}..., read once for all
-- notices, since an account may have many connections and many sessions to end.
local function nodes_of(online)
  local found, at = {}, {}
  for _, name in ipairs(redis.call('HKEYS', online)) do
    local node = string.match(name, '^[^ ]*')
    local there = at[node]
    if there == nil then
      there = redis.call('EXISTS', plan.nodes .. node) == 1 and {node, name, true}
      at[node] = there
      if there then
        found[#found + 1] = there
      end
    elseif there then
      there[3] = false
    end
    if not there then
      redis.call('HDEL', online, name) -- its node is dead
    end
  end
  return found
end
local where = {}
for _, notice in ipairs(plan.notices) do
  local online, spare, body, mac = unpack(notice)
  where[online] = where[online] or nodes_of(online)
  for _, there in ipairs(where[online]) do
    local node, name, only = unpack(there)
    if not only or name ~= spare then
      post(node, {'k', 'notice', 'x', body, 'm', mac})
    end
  end
end
if plan.record then
  local key, joined, session, outcome, keep, word, mac = unpack(plan.record)
  if redis.call('HGET', key, 'rid') == plan.rid then -- else it expired, and another one took its place
    for _, who in ipairs(redis.call('LRANGE', joined, 0, -1)) do
      local node, rid = string.match(who, '^([^ ]*) (.*)$')
      post(node, {'k', 'joined', 'r', rid, 'x', word, 'm', mac})
    end
    redis.call('DEL', key, joined)
    if outcome ~= '' then
      local ends = string.format('%.0f', now + keep)
      redis.call('HSET', key, 'state', 'done', 'until', ends, 'session', session, 'outcome', outcome)
      redis.call('PEXPIRE', key, keep)
    end
  end
end
run(plan.presence)
if #posts == 0 then
  return {verdict, now, ''}
end
local packed = cmsgpack.pack(posts)
redis.call('SET', KEYS[1], 'posts ' .. packed, 'PX', plan.mark)
return {verdict, now, packed}
