-- Begin a mail again that this mailer holds: it counts as one more time.
-- KEYS[1] mail stream
-- ARGV[1] consumer group
-- ARGV[2] mailer that holds it
-- ARGV[3] entry id
-- Returns {how often it was begun, {field, value...}}, or {} when it is gone, or somebody else holds it now
local stream, group, me, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local mine = redis.pcall('XPENDING', stream, group, id, id, 1, me)
if mine.err or #mine == 0 then
  return {}
end
local entry = redis.call('XCLAIM', stream, group, me, 0, id)[1]
if not entry then
  redis.call('XACK', stream, group, id) -- a ghost: deleted, but still pending
  return {}
end
return {mine[1][4] + 1, entry[2]}
