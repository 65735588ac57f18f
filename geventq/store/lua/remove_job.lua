-- Remove a job from wherever it is, unless it runs (wire-format 9.14, without children).
--
-- KEYS   job completed waiting_children delayed failed prioritized wait paused active events
--        meta lock schedulers
-- Also   :logs :dependencies :processed :failed :unsuccessful de: dn:
-- ARGV   1 job id  2 key base
-- Reply  1 it is gone, 0 it is locked, -8 it is a scheduler's pending job
-- Events removed
--- include: meta
--- include: deduplication
--- include: remove
--- include: scheduler
--- include: types

local job_id = ARGV[1]
local wrong = wrong_type(keys)
if wrong then
  return wrong
end

-- A field of the job's hash; what is no hash has none.
local function field(name)
  local value = redis.pcall('HGET', keys.job, name)
  return type(value) == 'string' and value or nil
end

if is_pending_run(job_id, field('rjk')) then
  return -8
end
if redis.call('EXISTS', keys.lock) == 1 then
  return 0
end

local zsets = {
  { 'completed', keys.completed }, { 'waiting-children', keys.waiting_children },
  { 'delayed', keys.delayed }, { 'failed', keys.failed }, { 'prioritized', keys.prioritized },
}
local lists = { { 'wait', keys.wait }, { 'paused', keys.paused }, { 'active', keys.active } }

-- Takes the id out of the first place that has it; answers its name.
local function leave()
  for _, place in ipairs(zsets) do
    if redis.call('ZREM', place[2], job_id) == 1 then
      return place[1]
    end
  end
  for _, place in ipairs(lists) do
    if redis.call('LREM', place[2], 0, job_id) > 0 then
      return place[1]
    end
  end
  return 'unknown'
end

local state = leave()
free_deduplication(ARGV[2], job_id, field('deid'))
local found = redis.call('TYPE', keys.job).ok
if found ~= 'hash' and found ~= 'none' then
  return 1 -- no job, and nobody's to delete
end
if delete_job_keys(keys.job) > 0 then
  redis.call('XADD', keys.events, 'MAXLEN', '~', max_len(keys), '*', 'event', 'removed',
    'jobId', job_id, 'prev', state)
end
return 1
