-- Where a job is (wire-format 13).
--
-- KEYS  completed, failed, delayed, prioritized, active, wait, paused, waiting-children
-- ARGV  job ids
-- Reply a list of states, as get_job_state names them
-- Events none
-- key count: 8

local zsets = { { 1, 'completed' }, { 2, 'failed' }, { 3, 'delayed' }, { 4, 'prioritized' } }
local lists = { { 5, 'active' }, { 6, 'waiting' }, { 7, 'waiting' } }

local function state_of(job_id)
  for _, place in ipairs(zsets) do
    if redis.call('ZSCORE', KEYS[place[1]], job_id) then
      return place[2]
    end
  end
  for _, place in ipairs(lists) do
    if redis.call('LPOS', KEYS[place[1]], job_id) then
      return place[2]
    end
  end
  if redis.call('ZSCORE', KEYS[8], job_id) then
    return 'waiting-children'
  end
  return 'unknown'
end

local states = {}
for i = 1, #ARGV do
  states[i] = state_of(ARGV[i])
end
return states
