-- Give one lock another life (wire-format 9.10).
--
-- KEYS   lock stalled
-- ARGV   1 lock token  2 life in ms  3 job id
-- Reply  1 extended, 0 gone or another's
-- Events none

if redis.pcall('GET', keys.lock) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', keys.lock, ARGV[2])
redis.pcall('SREM', keys.stalled, ARGV[3])
return 1
