-- Forget the outcome of a request, unless another has taken its place.
-- KEYS[1] what is known of the request
-- ARGV[1] the outcome as it was recalled
-- Returns 1, or 0 when it is there no longer
if redis.call('HGET', KEYS[1], 'outcome') ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
