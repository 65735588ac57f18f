-- Clear a recorded request that was meant for an earlier run (cancellation.md 4.4).
--
-- KEYS   1 job hash  2 its lock
-- ARGV   1 lock token  2 the record as it was read  3 the deferred failure text it came with
-- Reply  1 cleared, 0 the lock or the record is another's now
-- Events none
-- key count: 2

if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('HGET', KEYS[1], 'gqc') ~= ARGV[2] then
  return 0
end
redis.call('HDEL', KEYS[1], 'gqc')
if redis.call('HGET', KEYS[1], 'defa') == ARGV[3] then
  redis.call('HDEL', KEYS[1], 'defa')
end
return 1
