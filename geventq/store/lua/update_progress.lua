-- Store a job's progress and tell it (wire-format 9.19; cancellation.md 3.4).
--
-- KEYS   job lock events meta
-- ARGV   1 job id  2 progress as JSON  3 lock token that must hold, '' = anybody may write
-- Reply  0 stored, -1 no such job, -6 the lock is gone or another's
-- Events progress
--- include: meta
--- include: owner
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
local code = may_write(keys.job, keys.lock, ARGV[3])
if code ~= 0 then
  return code
end
redis.call('HSET', keys.job, 'progress', ARGV[2])
redis.call('XADD', keys.events, 'MAXLEN', '~', max_len(keys), '*', 'event', 'progress',
  'jobId', ARGV[1], 'data', ARGV[2])
return 0
