-- Whether a scheduler lives whose schedule a job carries on (wire-format 14); `scheduler` is the
-- job's `rjk`, or false.
local function is_scheduled(scheduler)
  return scheduler and (redis.call('EXISTS', keys.base .. 'repeat:' .. scheduler) == 1
    or redis.call('ZSCORE', keys.schedulers, scheduler) ~= false)
end

-- Whether a job is the one run that its living scheduler has planned: without it the schedule ends.
local function is_pending_run(job_id, scheduler)
  local next_ms = scheduler and redis.call('ZSCORE', keys.schedulers, scheduler)
  return next_ms and job_id == 'repeat:' .. scheduler .. ':' .. next_ms
end
