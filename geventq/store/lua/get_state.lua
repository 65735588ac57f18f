-- Where a job is (wire-format 13).
--
-- KEYS   completed failed delayed prioritized active wait paused waiting_children
-- ARGV   1... job ids
-- Reply  a list of states, as get_job_state names them
-- Events none

local zsets = {
  { keys.completed, 'completed' }, { keys.failed, 'failed' }, { keys.delayed, 'delayed' },
  { keys.prioritized, 'prioritized' },
}
local lists = { { keys.active, 'active' }, { keys.wait, 'waiting' }, { keys.paused, 'waiting' } }

local function state_of(job_id)
  for _, place in ipairs(zsets) do
    if redis.call('ZSCORE', place[1], job_id) then
      return place[2]
    end
  end
  for _, place in ipairs(lists) do
    if redis.call('LPOS', place[1], job_id) then
      return place[2]
    end
  end
  if redis.call('ZSCORE', keys.waiting_children, job_id) then
    return 'waiting-children'
  end
  return 'unknown'
end

local states = {}
for i = 1, #ARGV do
  states[i] = state_of(ARGV[i])
end
return states
