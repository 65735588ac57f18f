-- Record the request that a stuck attempt did not follow, so that the stalled job ends by it
-- without running again (cancellation.md 2.10, 4.3).
--
-- KEYS   job lock
-- ARGV   1 lock token  2 the record as JSON  3 deferred failure text, '' = the job may be retried
-- Reply  1 recorded, 0 the lock is gone or another's
-- Events none
--- include: job

if redis.pcall('GET', keys.lock) ~= ARGV[1] or not is_job(keys.job) then
  return 0
end
redis.call('HDEL', keys.job, 'gqc') -- a full Redis refuses HSET as the first write
redis.call('HSET', keys.job, 'gqc', ARGV[2])
if ARGV[3] ~= '' then
  redis.call('HSET', keys.job, 'defa', ARGV[3])
end
return 1
