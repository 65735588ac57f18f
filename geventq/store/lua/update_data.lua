-- Replace a job's payload (wire-format 9.19; cancellation.md 3.4).
--
-- KEYS   job lock
-- ARGV   1 payload as JSON  2 lock token that must hold, '' = anybody may write
-- Reply  0 stored, -1 no such job, -6 the lock is gone or another's
-- Events none
--- include: owner
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
local code = may_write(keys.job, keys.lock, ARGV[2])
if code == 0 then
  redis.call('HSET', keys.job, 'data', ARGV[1])
end
return code
