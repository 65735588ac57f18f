-- Let a delayed job run now (wire-format 9.12).
--
-- KEYS   job delayed wait prioritized pc marker meta active events
-- ARGV   1 job id
-- Reply  0 promoted, -1 no such job, -3 it is not delayed
-- Events waiting
--- include: job
--- include: place
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
if not redis.call('ZSCORE', keys.delayed, ARGV[1]) then
  return -3
end
if not is_job(keys.job) then
  return -1
end
redis.call('ZREM', keys.delayed, ARGV[1])
enqueue(keys, ARGV[1], priority_of(keys.job))
wake_unless_blocked(keys)
redis.call('XADD', keys.events, '*', 'event', 'waiting', 'jobId', ARGV[1], 'prev', 'delayed')
redis.call('HSET', keys.job, 'delay', 0)
return 0
