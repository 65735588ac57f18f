-- Let a delayed job run now (wire-format 9.12).
--
-- KEYS   1 job hash  2 delayed  3 wait  4 prioritized  5 pc  6 marker  7 meta  8 active  9 events
-- ARGV   1 job id
-- Reply  0 promoted, -1 no such job, -3 it is not delayed
-- Events waiting
-- key count: 9
--- include: job
--- include: meta
--- include: place
--- include: types

if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return -3
end
if not is_job(KEYS[1]) then
  return -1
end
local wrong = wrong_type({ { KEYS[3], 'list' }, { KEYS[4], 'zset' } })
if wrong then
  return wrong
end
redis.call('ZREM', KEYS[2], ARGV[1])
local priority = tonumber(redis.call('HGET', KEYS[1], 'priority') or 0) or 0
if priority > 0 then
  push_prioritized(KEYS[4], KEYS[5], ARGV[1], priority)
else
  redis.call('LPUSH', KEYS[3], ARGV[1])
end
wake(KEYS[6], is_blocked(KEYS[7], KEYS[8]))
redis.call('XADD', KEYS[9], '*', 'event', 'waiting', 'jobId', ARGV[1], 'prev', 'delayed')
redis.call('HSET', KEYS[1], 'delay', 0)
return 0
