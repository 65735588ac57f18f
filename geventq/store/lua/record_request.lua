-- Record the request that a stuck attempt did not follow, so that the stalled job ends by it
-- without running again (cancellation.md 2.10, 4.3).
--
-- KEYS   1 job hash  2 its lock
-- ARGV   1 lock token  2 the record as JSON  3 deferred failure text, '' = the job may be retried
-- Reply  1 recorded, 0 the lock is gone or another's
-- Events none
-- key count: 2
--- include: job

if redis.call('GET', KEYS[2]) ~= ARGV[1] or not is_job(KEYS[1]) then
  return 0
end
redis.call('HSET', KEYS[1], 'gqc', ARGV[2])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'defa', ARGV[3])
end
return 1
