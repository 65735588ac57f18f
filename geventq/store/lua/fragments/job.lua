-- Whether there is a job.  Whatever else may be at its key is none, and is not touched: Redis does
-- not roll a script back, so a write that could fail must not come after others.
local function is_job(job_key)
  return redis.call('TYPE', job_key).ok == 'hash'
end
