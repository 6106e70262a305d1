-- A signed push for a node that lives.
-- KEYS[1] node's sign of life
-- KEYS[2] its reply stream
-- ARGV[1] most replies it keeps
-- ARGV[2] ms it lives without a reader
-- ARGV[3] MAC'd body
-- ARGV[4] MAC
-- Returns 1, or 0 when the node is dead
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[1], '*', 'k', 'notice', 'x', ARGV[3], 'm', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
