-- Store a job's progress and tell it (wire-format 9.19; cancellation.md 3.4).
--
-- KEYS   1 job hash  2 its lock  3 events  4 meta
-- ARGV   1 job id  2 progress as JSON  3 lock token that must hold, '' = anybody may write
-- Reply  0 stored, -1 no such job, -6 the lock is gone or another's
-- Events progress
-- key count: 4
--- include: meta
--- include: owner

local code = may_write(KEYS[1], KEYS[2], ARGV[3])
if code ~= 0 then
  return code
end
redis.call('HSET', KEYS[1], 'progress', ARGV[2])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', max_len(KEYS[4]), '*', 'event', 'progress',
  'jobId', ARGV[1], 'data', ARGV[2])
return 0
