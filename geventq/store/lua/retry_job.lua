-- Run a finished job again (wire-format 9.18); a recorded request was for its earlier runs
-- (cancellation.md 4.4).
--
-- KEYS   1 job hash  2 the set it is in (completed or failed)  3 wait  4 prioritized  5 pc
--        6 marker  7 meta  8 active  9 events
-- ARGV   1 job id  2 'failed' or 'completed'  3 '1' = reset attempts made
--        4 '1' = reset attempts started
-- Reply  1 it waits again, -1 no such job, -3 it is not in that state
-- Events waiting
-- key count: 9
--- include: job
--- include: meta
--- include: place
--- include: types
--- include: again

local function is_lifo(job_key)
  local read, opts = pcall(cjson.decode, redis.call('HGET', job_key, 'opts') or '{}')
  return read and type(opts) == 'table' and opts.lifo == true
end

local job_id = ARGV[1]
if not is_job(KEYS[1]) then
  return -1
end
local wrong = wrong_type({ { KEYS[3], 'list' }, { KEYS[4], 'zset' } })
if wrong then
  return wrong
end
if redis.call('ZREM', KEYS[2], job_id) == 0 then
  return -3
end
clear_end(KEYS[1], ARGV[2])
if ARGV[3] == '1' then
  redis.call('HDEL', KEYS[1], 'atm')
end
if ARGV[4] == '1' then
  redis.call('HDEL', KEYS[1], 'ats')
end
local priority = tonumber(redis.call('HGET', KEYS[1], 'priority') or 0) or 0
if priority > 0 then
  push_prioritized(KEYS[4], KEYS[5], job_id, priority)
else
  redis.call(is_lifo(KEYS[1]) and 'RPUSH' or 'LPUSH', KEYS[3], job_id)
end
wake(KEYS[6], is_blocked(KEYS[7], KEYS[8]))
redis.call('XADD', KEYS[9], 'MAXLEN', '~', max_len(KEYS[7]), '*', 'event', 'waiting',
  'jobId', job_id, 'prev', ARGV[2])
return 1
