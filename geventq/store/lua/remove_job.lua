-- Remove a job from wherever it is, unless it runs (wire-format 9.14, without children).
--
-- KEYS   job completed waiting_children delayed failed prioritized wait paused active events
--        meta lock schedulers
-- ARGV   1 job id  2 key base
-- Reply  1 it is gone, 0 it is locked, -8 it is a scheduler's pending job
-- Events removed
--- include: meta
--- include: remove

local job_id = ARGV[1]
local scheduler = redis.call('HGET', keys.job, 'rjk')
if scheduler then
  local next_ms = redis.call('ZSCORE', keys.schedulers, scheduler)
  if next_ms and job_id == 'repeat:' .. scheduler .. ':' .. next_ms then
    return -8
  end
end
if redis.call('EXISTS', keys.lock) == 1 then
  return 0
end
local places = {
  { 'completed', keys.completed, 'ZREM' }, { 'waiting-children', keys.waiting_children, 'ZREM' },
  { 'delayed', keys.delayed, 'ZREM' }, { 'failed', keys.failed, 'ZREM' },
  { 'prioritized', keys.prioritized, 'ZREM' }, { 'wait', keys.wait }, { 'paused', keys.paused },
  { 'active', keys.active },
}
local state = 'unknown'
for _, place in ipairs(places) do
  local removed
  if place[3] then
    removed = redis.call('ZREM', place[2], job_id)
  else
    removed = redis.call('LREM', place[2], 0, job_id)
  end
  if removed > 0 then
    state = place[1]
    break
  end
end
local owned = redis.call('HGET', keys.job, 'deid')
if owned and redis.call('GET', ARGV[2] .. 'de:' .. owned) == job_id then
  redis.call('DEL', ARGV[2] .. 'de:' .. owned, ARGV[2] .. 'dn:' .. owned)
end
if delete_job_keys(keys.job) > 0 then
  redis.call('XADD', keys.events, 'MAXLEN', '~', max_len(keys), '*', 'event', 'removed',
    'jobId', job_id, 'prev', state)
end
return 1
