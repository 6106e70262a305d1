-- Put the mail that a dead letter keeps back into the mail stream, as it was, and take the letter away.
-- KEYS[1] dead letters
-- KEYS[2] mail stream
-- ARGV[1] letter's id
-- Returns "retried" | "unknown": there is no such letter | "request" or "unreadable": nothing of it was kept
local letter = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not letter then
  return 'unknown'
end
local kept = {}
for i = 1, #letter[2], 2 do
  kept[letter[2][i]] = letter[2][i + 1]
end
if kept.lane ~= 'mail' then
  return 'request'
end
if not (kept.id and kept.w and kept.x) then
  return 'unreadable'
end
redis.call('XADD', KEYS[2], '*', 'id', kept.id, 'w', kept.w, 'x', kept.x)
redis.call('XDEL', KEYS[1], ARGV[1])
return 'retried'
