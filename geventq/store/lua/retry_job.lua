-- Run a finished job again (wire-format 9.18); a recorded request was for its earlier runs
-- (cancellation.md 4.4).
--
-- KEYS   job completed failed wait prioritized pc marker meta active events
-- ARGV   1 job id  2 'failed' or 'completed'  3 '1' = reset attempts made
--        4 '1' = reset attempts started
-- Reply  1 it waits again, -1 no such job, -3 it is not in that state
-- Events waiting
--- include: job
--- include: place
--- include: types
--- include: again

local function is_lifo(job_key)
  local read, opts = pcall(cjson.decode, redis.call('HGET', job_key, 'opts') or '{}')
  return read and type(opts) == 'table' and opts.lifo == true
end

local job_id = ARGV[1]
local wrong = wrong_type(keys)
if wrong then
  return wrong
end
if not is_job(keys.job) then
  return -1
end
local ended_key = ARGV[2] == 'failed' and keys.failed or keys.completed
if redis.call('ZREM', ended_key, job_id) == 0 then
  return -3
end
clear_end(keys.job, ARGV[2])
if ARGV[3] == '1' then
  redis.call('HDEL', keys.job, 'atm')
end
if ARGV[4] == '1' then
  redis.call('HDEL', keys.job, 'ats')
end
local priority = priority_of(keys.job)
enqueue(keys, job_id, priority, priority == 0 and is_lifo(keys.job))
wake_unless_blocked(keys)
redis.call('XADD', keys.events, 'MAXLEN', '~', max_len(keys), '*', 'event', 'waiting',
  'jobId', job_id, 'prev', ARGV[2])
return 1
