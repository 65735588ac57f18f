-- Give a job another priority; one that waits moves (wire-format 9.13).
--
-- KEYS   job wait prioritized pc marker meta active
-- ARGV   1 job id  2 priority  3 '1' = in front of its equals
-- Reply  0 changed, -1 no such job
-- Events none
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
local job_id, priority, first = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
if redis.call('ZREM', keys.prioritized, job_id) == 1
  or redis.call('LREM', keys.wait, -1, job_id) == 1 then
  enqueue(keys, job_id, priority, first)
  if priority == 0 or not first then
    wake_unless_blocked(keys)
  end
end
redis.call('HSET', keys.job, 'priority', priority)
return 0
