-- Let a delayed job run at another time (wire-format 9.12).
--
-- KEYS   job delayed marker meta events
-- ARGV   1 job id  2 now in ms  3 delay in ms
-- Reply  0 changed, -1 no such job, -3 it is not delayed
-- Events delayed
--- include: job
--- include: place
--- include: types

local wrong = wrong_type(keys)
if wrong then
  return wrong
end
if not is_job(keys.job) then
  return -1
end
if redis.call('ZREM', keys.delayed, ARGV[1]) == 0 then
  return -3
end
local due_ms = tonumber(ARGV[2]) + tonumber(ARGV[3])
redis.call('ZADD', keys.delayed, delayed_score(keys, due_ms), ARGV[1])
redis.call('HSET', keys.job, 'delay', ARGV[3])
redis.call('XADD', keys.events, 'MAXLEN', '~', max_len(keys), '*', 'event', 'delayed',
  'jobId', ARGV[1], 'delay', due_ms)
mark_next_delayed(keys)
return 0
