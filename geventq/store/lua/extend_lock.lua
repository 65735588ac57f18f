-- Give one lock another life (wire-format 9.10).
--
-- KEYS   1 lock  2 stalled
-- ARGV   1 lock token  2 life in ms  3 job id
-- Reply  1 extended, 0 gone or another's
-- Events none
-- key count: 2

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SREM', KEYS[2], ARGV[3])
return 1
