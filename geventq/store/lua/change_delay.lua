-- Let a delayed job run at another time (wire-format 9.12).
--
-- KEYS   1 job hash  2 delayed  3 marker  4 meta  5 events
-- ARGV   1 job id  2 now in ms  3 delay in ms
-- Reply  0 changed, -1 no such job, -3 it is not delayed
-- Events delayed
-- key count: 5
--- include: job
--- include: meta
--- include: place

if not is_job(KEYS[1]) then
  return -1
end
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return -3
end
local due_ms = tonumber(ARGV[2]) + tonumber(ARGV[3])
redis.call('ZADD', KEYS[2], delayed_score(KEYS[2], due_ms), ARGV[1])
redis.call('HSET', KEYS[1], 'delay', ARGV[3])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', max_len(KEYS[4]), '*', 'event', 'delayed',
  'jobId', ARGV[1], 'delay', due_ms)
mark_next_delayed(KEYS[2], KEYS[3])
return 0
