-- Whether a scheduler lives whose schedule a job carries on (wire-format 14); `scheduler` is the
-- job's `rjk`, or false.
local function is_scheduled(scheduler)
  return scheduler and (redis.call('EXISTS', keys.base .. 'repeat:' .. scheduler) == 1
    or redis.call('ZSCORE', keys.schedulers, scheduler) ~= false)
end
