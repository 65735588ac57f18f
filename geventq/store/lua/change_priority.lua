-- Give a job another priority; one that waits moves (wire-format 9.13).
--
-- KEYS   1 job hash  2 wait  3 prioritized  4 pc  5 marker  6 meta  7 active
-- ARGV   1 job id  2 priority  3 '1' = in front of its equals
-- Reply  0 changed, -1 no such job
-- Events none
-- key count: 7
--- include: job
--- include: meta
--- include: place
--- include: types

if not is_job(KEYS[1]) then
  return -1
end
local wrong = wrong_type({ { KEYS[2], 'list' } })
if wrong then
  return wrong
end
local job_id, priority, first = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
if redis.call('ZREM', KEYS[3], job_id) == 1 or redis.call('LREM', KEYS[2], -1, job_id) == 1 then
  if priority == 0 then
    redis.call(first and 'RPUSH' or 'LPUSH', KEYS[2], job_id)
    wake(KEYS[5], is_blocked(KEYS[6], KEYS[7]))
  elseif first then
    push_prioritized_first(KEYS[3], job_id, priority)
  else
    push_prioritized(KEYS[3], KEYS[4], job_id, priority)
    wake(KEYS[5], is_blocked(KEYS[6], KEYS[7]))
  end
end
redis.call('HSET', KEYS[1], 'priority', priority)
return 0
