-- Replace a job's payload (wire-format 9.19; cancellation.md 3.4).
--
-- KEYS   1 job hash  2 its lock
-- ARGV   1 payload as JSON  2 lock token that must hold, '' = anybody may write
-- Reply  0 stored, -1 no such job, -6 the lock is gone or another's
-- Events none
-- key count: 2
--- include: owner

local code = may_write(KEYS[1], KEYS[2], ARGV[2])
if code == 0 then
  redis.call('HSET', KEYS[1], 'data', ARGV[1])
end
return code
